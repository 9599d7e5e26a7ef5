// SPDX-License-Identifier: MIT OR Apache-2.0

//! A VMM that counts what KVM takes, the only process of its machine.
//!
//! On a QEMU that counts instructions (`-icount shift=0`), a tick of the
//! virtual counter is an instruction, at whatever exception level. The guest
//! reads it around a call or a load; the PMU tells what of that is not spent at
//! EL2. The lines that `cargo xtask bench` reads are those of the payload
//! `bench`, and end with
//!
//! ```text
//! payload bench: 1 passed, 0 failed, 0 skipped
//! ```

mod counter;
mod rows;
mod vm;

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};

/// When the kernel's threads have done what they do after a boot, in time
/// since the counter's start.
const QUIET_AFTER: Duration = Duration::from_secs(20);

fn main() -> Result<()> {
    match measure() {
        Ok(()) => println!("payload bench: 1 passed, 0 failed, 0 skipped"),
        Err(error) => {
            println!("test bench::kvm ... FAILED: {error:#}");
            println!("payload bench: 0 passed, 1 failed, 0 skipped");
        }
    }
    // What was written must have left the UART before power goes.
    nix::unistd::sync();
    std::thread::sleep(Duration::from_secs(1));
    reboot(RebootMode::RB_POWER_OFF).context("reboot")?;
    Ok(())
}

fn measure() -> Result<()> {
    fs::create_dir_all("/dev").and_then(|()| fs::create_dir_all("/proc"))?;
    let none: Option<&str> = None;
    mount(none, "/dev", Some("devtmpfs"), MsFlags::empty(), none).context("mount of /dev")?;
    mount(none, "/proc", Some("proc"), MsFlags::empty(), none).context("mount of /proc")?;
    while let Some(rest) = QUIET_AFTER.checked_sub(counter::uptime()) {
        std::thread::sleep(rest);
    }
    println!("bench: frequency {}", counter::frequency());
    let command_line = fs::read_to_string("/proc/cmdline")?;
    rows::measure(command_line.contains("kvm-arm.mode=protected"))
}

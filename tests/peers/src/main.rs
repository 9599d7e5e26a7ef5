// SPDX-License-Identifier: MIT OR Apache-2.0

//! A VMM that counts what KVM takes, the only process of its machine.
//!
//! On a QEMU that counts instructions (`-icount shift=0`), a tick of the
//! virtual counter is an instruction, at whatever exception level. The lines
//! that `cargo xtask bench` reads are those of the payload `bench`, and end with
//!
//! ```text
//! payload bench: 1 passed, 0 failed, 0 skipped
//! ```

#![deny(clippy::print_stdout, clippy::print_stderr)]

mod linux;
mod rows;
mod vm;

use std::fs;
use std::io::{self, Write as _};

use anyhow::{Context, Result};
use escrow_peers::{counter, tell, wait_for_quiet};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};

use crate::rows::Part;

/// On the kernel's command line: count a whole memory, not single operations.
const LENDING: &str = "bench=lending";
/// Count what guests take: with how many bytes of RAM Linux is one, and where its initramfs is.
const GUESTS: &str = "bench=guests:";

fn main() -> Result<()> {
    tell("bench::kvm", measure());
    // What was written must have left the UART before power goes.
    nix::unistd::sync();
    std::thread::sleep(std::time::Duration::from_secs(1));
    reboot(RebootMode::RB_POWER_OFF).context("reboot")?;
    Ok(())
}

fn measure() -> Result<()> {
    fs::create_dir_all("/dev").and_then(|()| fs::create_dir_all("/proc"))?;
    let none: Option<&str> = None;
    mount(none, "/dev", Some("devtmpfs"), MsFlags::empty(), none).context("mount of /dev")?;
    mount(none, "/proc", Some("proc"), MsFlags::empty(), none).context("mount of /proc")?;
    wait_for_quiet();
    writeln!(io::stdout(), "bench: frequency {}", counter::frequency())?;
    let command_line = fs::read_to_string("/proc/cmdline")?;
    let says = |word: &str| command_line.split_whitespace().any(|said| said == word);
    let guests = command_line.split_whitespace().find_map(|said| said.strip_prefix(GUESTS));
    let part = match guests {
        Some(numbers) => {
            let (ram, initrd) = numbers.split_once(':').context(GUESTS)?;
            Part::Guests { ram: ram.parse()?, initrd: initrd.parse()? }
        }
        None if says(LENDING) => Part::Lending,
        None => Part::Operations,
    };
    rows::measure(part, says("kvm-arm.mode=protected"))
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! The first process of a Linux guest, or of the same kernel on a machine without a
//! hypervisor: says what the boot has taken, does what the kernel's command line asks for,
//! and switches the machine off.
//!
//! On a QEMU that counts instructions (`-icount shift=0`), a tick of the virtual counter is
//! an instruction, at whatever exception level. When the kernel began, its image says: `cargo
//! xtask bench` adds four instructions to it, which put the counter's low half into a field of the
//! device tree's header that nobody reads.
//!
//! ```text
//! boot=ROW     tell what the boot has taken as this row
//! tell=tree    tell the device tree
//! idle=N       sleep for so many seconds
//! disk         read /dev/vda, whose contents are then this program's
//! last         tell that this was all
//! ```
//!
//! What it tells are kernel messages, so that it needs no terminal. The lines that `cargo xtask
//! bench` reads are those of the payload `bench`.

mod counter;
mod disk;

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};

/// The device tree that the machine was started with.
const TREE: &str = "/sys/firmware/fdt";
/// `boot_cpuid_phys` in its header (Devicetree Specification 0.4, 5.2).
const BEGAN: usize = 28;
/// Where the initramfs is.
const INITRD: &str = "/sys/firmware/devicetree/base/chosen/linux,initrd-start";
/// Bytes of the tree in a line: a kernel message has at most some 1,000 characters.
const TREE_LINE: usize = 256;

/// What this process says, as messages of the kernel.
pub struct Log(File);

impl Log {
    /// Says a line. It is on the console when this is back.
    fn say(&mut self, line: &str) -> Result<()> {
        // The first number is the message's level, which `quiet` shows.
        self.0.write_all(format!("<1>{line}\n").as_bytes()).context("/dev/kmsg")
    }

    /// Says a row of these samples.
    fn row(&mut self, name: &str, samples: &[u64]) -> Result<()> {
        let min = samples.iter().min().with_context(|| format!("no samples of {name}"))?;
        let (total, n) = (samples.iter().sum::<u64>(), samples.len());
        self.say(&format!("bench: {name} min {min} total {total} n {n} per 1"))
    }
}

fn main() -> Result<()> {
    let now = counter::now();
    for (what, place) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        let none: Option<&str> = None;
        mount(none, place, Some(what), MsFlags::empty(), none).context(place)?;
    }
    let mut log = Log(OpenOptions::new().write(true).open("/dev/kmsg").context("/dev/kmsg")?);
    if let Err(error) = work(&mut log, now) {
        log.say(&format!("test bench::guest ... FAILED: {error:#}"))?;
    }
    reboot(RebootMode::RB_POWER_OFF).context("reboot")?;
    Ok(())
}

fn work(log: &mut Log, now: u64) -> Result<()> {
    log.say(&format!("bench: frequency {}", counter::frequency()))?;
    let command_line = fs::read_to_string("/proc/cmdline")?;
    for word in command_line.split_whitespace() {
        match word.split_once('=') {
            Some(("boot", row)) => log.row(row, &[boot(now)?])?,
            Some(("tell", "tree")) => tree(log)?,
            Some(("idle", seconds)) => {
                thread::sleep(Duration::from_secs(seconds.parse().context("idle=")?));
            }
            None if word == "disk" => disk::measure(log)?,
            None if word == "last" => {
                log.say("payload bench: 1 passed, 0 failed, 0 skipped")?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Instructions of the boot, up to `now`: fewer than 2^32.
fn boot(now: u64) -> Result<u64> {
    let tree = fs::read(TREE).context(TREE)?;
    let began = tree.get(BEGAN..BEGAN + 4).context("the tree has no header")?;
    let began = u32::from_be_bytes(began.try_into()?);
    Ok(u64::from((now as u32).wrapping_sub(began)))
}

/// Tells the device tree, and where it says that the initramfs is.
fn tree(log: &mut Log) -> Result<()> {
    let tree = fs::read(TREE).context(TREE)?;
    for line in tree.chunks(TREE_LINE) {
        let digits: String = line.iter().map(|byte| format!("{byte:02x}")).collect();
        log.say(&format!("tree: {digits}"))?;
    }
    let initrd = fs::read(INITRD).context(INITRD)?;
    let initrd = initrd.iter().fold(0u64, |sum, &byte| sum << 8 | u64::from(byte));
    log.say(&format!("initrd: {initrd:#x}"))
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a disk's requests take. First, the disk is written to, so that what is read can be
//! known; each block holds its own number.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::fcntl::OFlag;
use nix::kmod::{ModuleInitFlags, finit_module};

use crate::Log;
use crate::counter::Instructions;

/// Linux' drivers, in the order in which they are loaded.
const DRIVERS: [&str; 2] = ["/lib/virtio_blk.ko.xz", "/lib/virtio_mmio.ko.xz"];
/// `MODULE_INIT_COMPRESSED_FILE` (Linux, include/uapi/linux/module.h).
const COMPRESSED: u32 = 4;
const DISK: &str = "/dev/vda";
/// Bytes of the disk.
const SIZE: u64 = 64 << 20;
/// Bytes of a request of a reader that goes through the disk.
const LARGE: usize = 1 << 20;
/// Bytes of a block, and of a request of a reader that jumps.
const SMALL: usize = 4096;
/// How often that reads.
const JUMPS: u64 = 512;
/// How long the kernel's threads have something to do after a boot.
const BUSY: Duration = Duration::from_secs(20);

/// Page-aligned memory, for requests that pass by the page cache.
struct Buffer {
    at: *mut u8,
    layout: Layout,
}

impl Buffer {
    fn new(size: usize) -> Result<Buffer> {
        let layout = Layout::from_size_align(size, SMALL)?;
        // SAFETY: the size is not zero.
        let at = unsafe { alloc_zeroed(layout) };
        if at.is_null() {
            handle_alloc_error(layout);
        }
        Ok(Buffer { at, layout })
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the allocation is initialised and this structure's own.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.layout.size()) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and not used any more.
        unsafe { dealloc(self.at, self.layout) };
    }
}

/// The words of a part of the disk that begins with block `number`.
fn words(number: u64, bytes: usize) -> impl Iterator<Item = u64> {
    let per_block = (SMALL / 8) as u64;
    (0..bytes as u64 / 8).map(move |word| {
        let block = number + word / per_block;
        block << 32 | (block ^ (word % per_block))
    })
}

/// Whether that is what was written there.
fn check(number: u64, found: &[u8]) -> Result<()> {
    let found_words = found.chunks_exact(8);
    let same = found_words
        .zip(words(number, found.len()))
        .all(|(found, word)| found == word.to_le_bytes());
    ensure!(same, "block {number} of the disk is not what was written");
    Ok(())
}

/// Brings up the disk, fills it, and counts.
pub fn measure(log: &mut Log) -> Result<()> {
    for driver in DRIVERS {
        let file = File::open(driver).context(driver)?;
        let flags = ModuleInitFlags::from_bits_retain(COMPRESSED);
        let parameters: &CStr = c"";
        finit_module(&file, parameters, flags).context(driver)?;
    }
    thread::sleep(BUSY);
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(OFlag::O_DIRECT.bits());
    let disk = options.open(DISK).context(DISK)?;
    let mut counter = Instructions::start()?;
    let mut large = Buffer::new(LARGE)?;
    let mut taken = Vec::new();
    for at in (0..SIZE).step_by(LARGE) {
        for (to, word) in large.bytes().chunks_exact_mut(8).zip(words(at / SMALL as u64, LARGE)) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        let before = counter.read()?;
        disk.write_all_at(large.bytes(), at)?;
        taken.push(counter.read()? - before);
    }
    disk.sync_all()?;
    log.row("blk_write_1m", &taken)?;

    let mut taken = Vec::new();
    for at in (0..SIZE).step_by(LARGE) {
        large.bytes().fill(0);
        let before = counter.read()?;
        disk.read_exact_at(large.bytes(), at)?;
        taken.push(counter.read()? - before);
        check(at / SMALL as u64, large.bytes())?;
    }
    log.row("blk_read_1m", &taken)?;
    drop(large);

    let mut small = Buffer::new(SMALL)?;
    let (mut taken, mut number) = (Vec::new(), 1u64);
    for _ in 0..JUMPS {
        // Knuth's MMIX generator; the high bits are the good ones.
        number =
            number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let block = (number >> 32) % (SIZE / SMALL as u64);
        small.bytes().fill(0);
        let before = counter.read()?;
        disk.read_exact_at(small.bytes(), block * SMALL as u64)?;
        taken.push(counter.read()? - before);
        check(block, small.bytes())?;
    }
    log.row("blk_read_4k", &taken)
}

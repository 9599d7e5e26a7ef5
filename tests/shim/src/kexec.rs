// SPDX-License-Identifier: MIT OR Apache-2.0

//! Loads another kernel for `reboot(KEXEC)`: `shim-tests --kexec IMAGE INITRD`.
//!
//! Debian's kernels have `kexec_load` alone: which memory the kernel, its
//! initramfs and its device tree go to, and what jumps to it, is the program's
//! business. The tree is this kernel's, with the initramfs's place changed.

use std::arch::global_asm;
use std::fs;
use std::ops::Range;

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;

use escrow_shim_tests::gunyah::PAGE;
use escrow_shim_tests::say;

/// `linux/kexec.h`: `KEXEC_ARCH_AARCH64`.
const ARCH_AARCH64: libc::c_ulong = 183 << 16;
/// Where an arm64 `Image` has the memory that it needs (`booting.rst`).
const IMAGE_SIZE: Range<usize> = 16..24;
/// Kernel and tree begin at a multiple of this; the tree must not cross one.
const ALIGN: u64 = 2 << 20;

// Jumps to the kernel as the boot protocol wants it: x0 the tree, x1 to x3
// zero, MMU off. The two words behind it are filled in.
global_asm!(
    ".pushsection .rodata",
    ".balign 8",
    ".global shim_kexec_start",
    "shim_kexec_start:",
    "ldr x0, 1f",
    "ldr x4, 2f",
    "mov x1, #0",
    "mov x2, #0",
    "mov x3, #0",
    "br x4",
    "1: .quad 0",
    "2: .quad 0",
    ".popsection",
);
const JUMP_CODE: usize = 24;

fn jump(tree: u64, kernel: u64) -> Vec<u8> {
    unsafe extern "C" {
        static shim_kexec_start: u8;
    }
    // SAFETY: so many bytes of instructions begin at the symbol.
    let code = unsafe { std::slice::from_raw_parts(&raw const shim_kexec_start, JUMP_CODE) };
    [code, &tree.to_le_bytes(), &kernel.to_le_bytes()].concat()
}

/// `struct kexec_segment`
#[repr(C)]
struct Segment {
    buf: *const u8,
    bufsz: usize,
    mem: u64,
    memsz: u64,
}

/// Loads it.
pub fn load(image: &str, initrd: &str) -> Result<()> {
    let image = fs::read(image).with_context(|| format!("reading {image}"))?;
    let initrd = fs::read(initrd).with_context(|| format!("reading {initrd}"))?;
    let mut tree = fs::read("/sys/firmware/fdt").context("reading the device tree")?;
    let image_size = image.get(IMAGE_SIZE).context("no Image")?.try_into()?;
    let image_size = u64::from_le_bytes(image_size);

    // Tree and jump, then the kernel, then the initramfs.
    ensure!((tree.len() as u64) < ALIGN - PAGE, "a large tree");
    let kernel_span = image_size.next_multiple_of(ALIGN);
    let initrd_span = (initrd.len() as u64).next_multiple_of(PAGE);
    let start = free_memory(ALIGN + kernel_span + initrd_span)?;
    let (kernel, initrd_at) = (start + ALIGN, start + ALIGN + kernel_span);
    set(&mut tree, "linux,initrd-start", initrd_at)?;
    set(&mut tree, "linux,initrd-end", initrd_at + initrd.len() as u64)?;

    let jump_at = start + ALIGN - PAGE;
    let jump = jump(start, kernel);
    let segments = [
        segment(&tree, start, tree.len() as u64),
        segment(&jump, jump_at, PAGE),
        segment(&image, kernel, image_size),
        segment(&initrd, initrd_at, initrd_span),
    ];
    // SAFETY: the kernel reads the segments, which live through the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_kexec_load,
            jump_at,
            segments.len(),
            segments.as_ptr(),
            ARCH_AARCH64,
        )
    };
    Errno::result(result).context("kexec_load")?;
    say!("loaded at {kernel:#x}");
    Ok(())
}

/// Jumps to what was loaded: busybox has no word for it.
pub fn reboot() -> Result<()> {
    // SAFETY: ends this kernel, as is asked for; what is not saved is lost.
    let result = unsafe { libc::reboot(libc::LINUX_REBOOT_CMD_KEXEC) };
    Errno::result(result).map(drop).context("reboot")
}

fn segment(bytes: &[u8], mem: u64, size: u64) -> Segment {
    Segment { buf: bytes.as_ptr(), bufsz: bytes.len(), mem, memsz: size.next_multiple_of(PAGE) }
}

/// The start of so much memory that nobody has reserved; the highest.
///
/// The interrupt controller goes on using tables that this kernel has made for
/// it, low in memory and told by nobody. The next one knows them by their
/// registers, but would take them for reserved if its tree were over them.
fn free_memory(size: u64) -> Result<u64> {
    let text = fs::read_to_string("/proc/iomem")?;
    let mut taken = Vec::new();
    let mut memory = Vec::new();
    let mut in_memory = false;
    for line in text.lines() {
        let (range, name) = line.trim().split_once(" : ").context("a line of iomem")?;
        let (first, last) = range.split_once('-').context("a range of iomem")?;
        let range = u64::from_str_radix(first, 16)?..u64::from_str_radix(last, 16)? + 1;
        if !line.starts_with(' ') {
            in_memory = name == "System RAM";
            if in_memory {
                memory.push(range);
            }
        } else if in_memory {
            taken.push(range);
        }
    }
    for memory in memory.iter().rev() {
        let mut start = (memory.end.saturating_sub(size)) / ALIGN * ALIGN;
        while start >= memory.start {
            let overlap = |range: &&Range<u64>| range.start < start + size && start < range.end;
            match taken.iter().find(overlap) {
                Some(range) => start = range.start.saturating_sub(size) / ALIGN * ALIGN,
                None => return Ok(start),
            }
        }
    }
    bail!("no {size} bytes are free")
}

/// Gives a property of a device tree's `/chosen` another value of the same
/// size: the number of its cells stays.
fn set(tree: &mut [u8], name: &str, value: u64) -> Result<()> {
    const BEGIN_NODE: u32 = 1;
    const END_NODE: u32 = 2;
    const PROPERTY: u32 = 3;
    const NOP: u32 = 4;
    let word = |at: usize| -> Result<u32> {
        let bytes = tree.get(at..at + 4).context("the tree ends early")?;
        Ok(u32::from_be_bytes(bytes.try_into()?))
    };
    let text = |at: usize| -> Result<&[u8]> {
        let bytes = tree.get(at..).context("the tree ends early")?;
        bytes.split(|&byte| byte == 0).next().context("the tree ends early")
    };
    let (mut at, strings) = (word(8)? as usize, word(12)? as usize);
    let mut path: Vec<&[u8]> = Vec::new();
    let place = loop {
        let token = word(at)?;
        at += 4;
        match token {
            BEGIN_NODE => {
                path.push(text(at)?);
                at += text(at)?.len() + 1;
            }
            END_NODE => drop(path.pop()),
            PROPERTY => {
                let size = word(at)? as usize;
                let own = text(strings + word(at + 4)? as usize)?;
                at += 8;
                if path == [&b""[..], b"chosen"] && own == name.as_bytes() {
                    break at..at + size;
                }
                at += size;
            }
            NOP => {}
            _ => bail!("the tree's /chosen has no {name}"),
        }
        at = at.next_multiple_of(4);
    };
    let bytes = value.to_be_bytes();
    let size = place.len();
    ensure!(size == 8 || (size == 4 && value >> 32 == 0), "{name} has {size} bytes");
    tree.get_mut(place).context("the tree ends early")?.copy_from_slice(&bytes[8 - size..]);
    Ok(())
}

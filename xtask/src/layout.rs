// SPDX-License-Identifier: MIT OR Apache-2.0

//! Where in the machine's RAM the parts of a boot go.
//!
//! QEMU places its `-kernel` and the device tree by rules of its own; the
//! modules that guest-loader writes go to addresses that we choose, and must
//! stay clear of both.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// One mebibyte, in bytes.
pub const MIB: u64 = 1 << 20;
/// Start of RAM on QEMU's `virt` machine.
pub const RAM_BASE: u64 = 0x4000_0000;
/// The alignment of every part: what the arm64 boot protocol asks of a kernel.
pub const ALIGN: u64 = 2 * MIB;

/// Where modules start: what is below is for Escrow's own image.
const MODULES: u64 = RAM_BASE + 64 * MIB;
/// QEMU packs its tree into at most 1 MiB, and aligns it to 2 MiB.
const TREE_SPAN: u64 = ALIGN;

/// Addresses of the modules of one boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Physical address of the host kernel's `Image`.
    pub kernel: u64,
    /// Physical address of the initramfs.
    pub initrd: u64,
}

impl Layout {
    /// Places a kernel that takes `kernel` bytes (with its BSS: see
    /// [`image_span`]) and an initramfs of `initrd` bytes in a machine with
    /// `ram` bytes of RAM.
    ///
    /// # Errors
    /// They do not fit.
    pub fn place(ram: u64, kernel: u64, initrd: u64) -> Result<Self> {
        let tree = device_tree(ram);
        let kernel_at = first_fit(MODULES, kernel, &tree);
        let initrd_at = first_fit(kernel_at + kernel, initrd, &tree);
        let end = initrd_at + initrd;
        if end > RAM_BASE + ram {
            bail!(
                "the kernel ({} MiB) and the initramfs ({} MiB) need {} MiB of RAM; the machine has {}",
                kernel.div_ceil(MIB),
                initrd.div_ceil(MIB),
                (end - RAM_BASE).div_ceil(MIB),
                ram / MIB
            );
        }
        Ok(Self { kernel: kernel_at, initrd: initrd_at })
    }
}

/// Where QEMU puts its device tree when `-kernel` is an `Image` and there is
/// no `-initrd`: at half of RAM, but at most 128 MiB up.
#[must_use]
pub fn device_tree(ram: u64) -> Range<u64> {
    let start = (RAM_BASE + (ram / 2).min(128 * MIB)).next_multiple_of(ALIGN);
    start..start + TREE_SPAN
}

fn first_fit(from: u64, size: u64, hole: &Range<u64>) -> u64 {
    let start = from.next_multiple_of(ALIGN);
    if start < hole.end && start + size > hole.start { hole.end } else { start }
}

/// Bytes of RAM that the kernel in `path` needs from its start: the
/// `image_size` of its arm64 `Image` header, or the file's size where the
/// header is not an `Image`'s (what to think of such a kernel is Escrow's to
/// say, not ours).
///
/// # Errors
/// The file cannot be read.
pub fn image_span(path: &Path) -> Result<u64> {
    let what = || format!("cannot read {}", path.display());
    let mut file = File::open(path).with_context(what)?;
    let length = file.metadata().with_context(what)?.len();
    let mut header = Vec::new();
    file.by_ref().take(64).read_to_end(&mut header).with_context(what)?;
    Ok(header_span(&header).unwrap_or(length).max(length))
}

/// `image_size` of an arm64 `Image` header, if that is what `header` is.
fn header_span(header: &[u8]) -> Option<u64> {
    let magic = header.get(56..60)?;
    let size = header.get(16..24)?;
    (magic == b"ARM\x64").then(|| size.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disjoint(a: &Range<u64>, b: &Range<u64>) -> bool {
        a.end <= b.start || b.end <= a.start
    }

    #[test]
    fn parts_never_meet() {
        for ram in [512 * MIB, 1024 * MIB, 8192 * MIB] {
            for kernel in [MIB, 46 * MIB, 63 * MIB, 64 * MIB, 65 * MIB, 130 * MIB] {
                for initrd in [1, 3 * MIB, 17 * MIB, 80 * MIB] {
                    let at = Layout::place(ram, kernel, initrd).unwrap();
                    let (k, i) = (at.kernel..at.kernel + kernel, at.initrd..at.initrd + initrd);
                    let tree = device_tree(ram);
                    assert!(disjoint(&k, &i) && disjoint(&k, &tree) && disjoint(&i, &tree));
                    assert!(at.kernel.is_multiple_of(ALIGN) && at.initrd.is_multiple_of(ALIGN));
                    assert!(k.start >= MODULES && i.end <= RAM_BASE + ram);
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let error = Layout::place(128 * MIB, 46 * MIB, 30 * MIB).unwrap_err();
        assert!(error.to_string().contains("the machine has 128"), "{error}");
    }

    #[test]
    fn the_header_tells_the_span() {
        let mut header = [0; 64];
        header[16..24].copy_from_slice(&0x2b2_0000_u64.to_le_bytes());
        assert_eq!(header_span(&header), None, "no magic number");
        header[56..60].copy_from_slice(b"ARM\x64");
        assert_eq!(header_span(&header), Some(0x2b2_0000));
        assert_eq!(header_span(&header[..40]), None, "truncated");
    }
}

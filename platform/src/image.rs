// SPDX-License-Identifier: MIT OR Apache-2.0

//! The host kernel's file: an arm64 Linux `Image`
//! (Linux, Documentation/arch/arm64/booting.rst).

use core::fmt;

/// An `Image` begins at a multiple of this, plus its text offset, in bytes.
pub const ALIGNMENT: u64 = 2 << 20;
/// How much of a file is looked at, in bytes.
pub const HEAD_SIZE: u64 = 64 << 10;
/// Bytes of the header.
const HEADER_SIZE: usize = 64;

/// Why a file cannot be run as the host's kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// It is not an arm64 `Image`; it looks like what the text says.
    Foreign(&'static str),
    /// It should have at least this many bytes.
    Truncated(u64),
    /// It does not say how much memory it needs.
    NoSize,
    /// It is a big-endian kernel.
    BigEndian,
    /// Its text offset is not below [`ALIGNMENT`] or not page-aligned.
    BadOffset(u64),
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ImageError::Foreign(what) => {
                write!(f, "the host's kernel is no arm64 Image but {what}")
            }
            ImageError::Truncated(size) => {
                write!(f, "the host's kernel is truncated: it should have {size} bytes")
            }
            ImageError::NoSize => f.write_str(
                "the host's kernel does not say how much memory it needs (older than Linux 3.17)",
            ),
            ImageError::BigEndian => f.write_str("the host's kernel is a big-endian one"),
            ImageError::BadOffset(offset) => {
                write!(f, "the host's kernel has a bad text offset, {offset:#x}")
            }
        }
    }
}

impl core::error::Error for ImageError {}

/// What the header of an `Image` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelImage {
    /// Bytes between a 2 MiB boundary and the Image.
    pub text_offset: u64,
    /// Memory it needs from its begin on, in bytes.
    pub memory_size: u64,
    /// The page size it is built for, in bytes, if it says.
    pub page_size: Option<u64>,
    /// Whether it runs at any 2 MiB boundary; else as low in RAM as possible.
    pub anywhere: bool,
}

impl KernelImage {
    /// Reads the header of a file of `size` bytes, and checks that the file is
    /// whole. `head` is how it begins: all of it, or [`HEAD_SIZE`] bytes.
    ///
    /// # Errors
    ///
    /// See [`ImageError`].
    pub fn parse(head: &[u8], size: u64) -> Result<Self, ImageError> {
        if let Some(what) = foreign(head) {
            return Err(ImageError::Foreign(what));
        }
        let header = head.get(..HEADER_SIZE).ok_or(ImageError::Truncated(HEADER_SIZE as u64))?;
        if header.get(56..60) != Some(b"ARM\x64") {
            return Err(ImageError::Foreign("something unknown"));
        }
        let field = |at| long(header, at).ok_or(ImageError::Truncated(HEADER_SIZE as u64));
        let [text_offset, memory_size, flags] = [field(8)?, field(16)?, field(24)?];
        if flags & 1 != 0 {
            return Err(ImageError::BigEndian);
        }
        if memory_size == 0 {
            return Err(ImageError::NoSize);
        }
        if text_offset >= ALIGNMENT || text_offset % 4096 != 0 {
            return Err(ImageError::BadOffset(text_offset));
        }
        if let Some(whole) = size_by_sections(head)
            && whole > size
        {
            return Err(ImageError::Truncated(whole));
        }
        Ok(KernelImage {
            text_offset,
            // A file may carry more than it declares; none of it may be lost.
            memory_size: memory_size.max(size),
            page_size: match flags >> 1 & 3 {
                1 => Some(4 << 10),
                2 => Some(16 << 10),
                3 => Some(64 << 10),
                _ => None,
            },
            anywhere: flags & 1 << 3 != 0,
        })
    }
}

/// Files that people take for an `Image`.
fn foreign(head: &[u8]) -> Option<&'static str> {
    const KNOWN: [(usize, &[u8], &str); 8] = [
        (4, b"zimg", "a compressed EFI image (vmlinuz.efi)"),
        (0, b"\x1f\x8b", "a gzip file (Image.gz)"),
        (0, b"\x28\xb5\x2f\xfd", "a zstd file"),
        (0, b"\xfd7zXZ\0", "an xz file"),
        (0, b"\x7fELF", "an ELF file (vmlinux)"),
        (0, b"\x27\x05\x19\x56", "a U-Boot image (uImage)"),
        (0, b"\xd0\x0d\xfe\xed", "a device tree or FIT image"),
        (0x202, b"HdrS", "an x86 kernel (bzImage)"),
    ];
    let matches =
        |at: usize, magic: &[u8]| head.get(at..).is_some_and(|rest| rest.starts_with(magic));
    KNOWN.iter().find(|(at, magic, _)| matches(*at, magic)).map(|(_, _, what)| *what)
}

/// How long the file is by its PE/COFF section table, which kernels with an
/// EFI stub have; the header itself only says how much memory they need.
fn size_by_sections(head: &[u8]) -> Option<u64> {
    const COFF_HEADER: usize = 24;
    const SECTION: usize = 40;
    let pe = int(head, 60)? as usize;
    if pe == 0 || !head.starts_with(b"MZ") {
        return None;
    }
    // From here on, what is not there is cut off.
    let Some(header) = head.get(pe..).and_then(|rest| rest.get(..COFF_HEADER)) else {
        return Some((pe as u64).saturating_add(COFF_HEADER as u64));
    };
    if !header.starts_with(b"PE\0\0") {
        return None;
    }
    let [sections, optional] = [short(header, 6)?, short(header, 20)?].map(usize::from);
    let table = pe + COFF_HEADER + optional;
    let table_end = table + sections * SECTION;
    let mut size = table_end as u64;
    for section in head.get(table..table_end).unwrap_or(&[]).chunks_exact(SECTION) {
        size = size.max(u64::from(int(section, 16)?) + u64::from(int(section, 20)?));
    }
    Some(size)
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_le_bytes)
}

fn int(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_le_bytes)
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().copied().map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests;

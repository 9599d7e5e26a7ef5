// SPDX-License-Identifier: MIT OR Apache-2.0

//! Where everything goes: the host's kernel, its device tree, and Escrow's own
//! working memory.

use core::fmt;

use crate::image::{ALIGNMENT, KernelImage};
use crate::range::{Full, Range, RangeSet};

/// Escrow's memory is whole blocks of this many bytes, so that the host's
/// stage 2 needs no table to leave them out.
pub const BLOCK: u64 = 2 << 20;
/// Separate ranges of free memory that are kept in view.
const MAX_FREE: usize = 160;

/// What is in memory when Escrow starts, and what has to get there.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// All RAM.
    pub ram: &'a [Range],
    /// What firmware and devices use.
    pub reserved: &'a [Range],
    /// Escrow's image, as loaded, with the memory it needs at its end.
    pub image: Range,
    /// The device tree that Escrow was given.
    pub tree: Range,
    /// The host's kernel, as loaded.
    pub kernel: Range,
    /// What its header says.
    pub kernel_image: KernelImage,
    /// The host's initial RAM disk, as loaded.
    pub ramdisk: Option<Range>,
    /// Working memory for Escrow, in bytes.
    pub working_size: u64,
    /// The device tree for the host, in bytes.
    pub host_tree_size: u64,
}

/// Where it all goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Escrow's image, rounded out to blocks.
    pub image: Range,
    /// Escrow's working memory, in whole blocks.
    pub working: Range,
    /// The host's kernel and all the memory that its header asks for. If it
    /// does not begin where the kernel was loaded, the kernel is to be moved.
    pub kernel: Range,
    /// The host's device tree.
    pub host_tree: Range,
}

/// Why it does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayoutError {
    /// This is outside RAM.
    OutsideRam(&'static str, Range),
    /// These two lie over each other.
    Overlap(&'static str, Range, &'static str, Range),
    /// Escrow was not loaded at a multiple of [`BLOCK`].
    Misaligned(Range),
    /// There is no free RAM for this, which needs so many bytes.
    TooLittleMemory(&'static str, u64),
    /// Memory is in too many pieces.
    Fragmented,
}

impl fmt::Display for LayoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LayoutError::OutsideRam(what, range) => write!(f, "{what} ({range}) is outside RAM"),
            LayoutError::Overlap(one, at, other, with) => {
                write!(f, "{one} ({at}) overlaps {other} ({with})")
            }
            LayoutError::Misaligned(image) => {
                write!(f, "Escrow was loaded at {:#x}, which is no 2 MiB boundary", image.start)
            }
            LayoutError::TooLittleMemory(what, size) => {
                write!(
                    f,
                    "too little memory: no {} KiB of free RAM for {what}",
                    size.div_ceil(1024)
                )
            }
            LayoutError::Fragmented => f.write_str("memory is in too many pieces"),
        }
    }
}

impl core::error::Error for LayoutError {}

impl From<Full> for LayoutError {
    fn from(_: Full) -> Self {
        LayoutError::Fragmented
    }
}

impl Layout {
    /// Finds a place for everything.
    ///
    /// # Errors
    ///
    /// See [`LayoutError`].
    pub fn plan(request: &Request<'_>) -> Result<Layout, LayoutError> {
        if request.image.start % BLOCK != 0 {
            return Err(LayoutError::Misaligned(request.image));
        }
        let image = request.image.aligned_out(BLOCK).ok_or(LayoutError::Fragmented)?;
        let mut free = RangeSet::<MAX_FREE>::new();
        for range in request.ram {
            free.insert(*range)?;
        }
        // The tree goes first: a broken one explains most of what follows.
        let loaded = [
            ("the device tree", Some(request.tree)),
            ("Escrow", Some(image)),
            ("the host's kernel", Some(request.kernel)),
            ("the host's ramdisk", request.ramdisk),
        ];
        let loaded = loaded.into_iter().filter_map(|(name, range)| Some((name, range?)));
        for (index, (name, range)) in loaded.clone().enumerate() {
            if !free.contains(&range) {
                return Err(LayoutError::OutsideRam(name, range));
            }
            for reserved in request.reserved {
                if reserved.overlaps(&range) && name != "the device tree" {
                    let other = "memory that the device tree reserves";
                    return Err(LayoutError::Overlap(name, range, other, *reserved));
                }
            }
            for (other, with) in loaded.clone().take(index) {
                // The rest of Escrow's last block may hold the old tree: it
                // is not needed any more when that memory comes into use.
                let range = if other == "the device tree" && name == "Escrow" {
                    request.image
                } else {
                    range
                };
                if range.overlaps(&with) {
                    return Err(LayoutError::Overlap(name, range, other, with));
                }
            }
        }
        for (_, range) in loaded {
            free.remove(range)?;
        }
        for range in request.reserved {
            // Whole pages, as the host takes what the tree reserves.
            free.remove(range.aligned_out(4096).ok_or(LayoutError::Fragmented)?)?;
        }
        let kernel = place_kernel(request, &free)?;
        free.remove(kernel)?;
        let place = |free: &mut RangeSet<MAX_FREE>, what, size, align| {
            let range =
                free.highest_fit(size, align).ok_or(LayoutError::TooLittleMemory(what, size))?;
            free.remove(range)?;
            Ok::<Range, LayoutError>(range)
        };
        // From the top: memory below 4 GiB is dear to the host's devices.
        let working = place(&mut free, "Escrow's ledger", request.working_size, BLOCK)?;
        let host_tree = place(&mut free, "the host's device tree", request.host_tree_size, 4096)?;
        Ok(Layout { image, working, kernel, host_tree })
    }
}

/// In place if the kernel lies right and the memory behind it is free; else at
/// the lowest place that does.
fn place_kernel(request: &Request<'_>, free: &RangeSet<MAX_FREE>) -> Result<Range, LayoutError> {
    let KernelImage { text_offset, memory_size, .. } = request.kernel_image;
    let loaded = request.kernel;
    if loaded.start % ALIGNMENT == text_offset
        && let Some(here) = Range::with_size(loaded.start, memory_size)
        && free.contains(&Range::new(loaded.end, here.end))
    {
        return Ok(here);
    }
    let what = "the host's kernel";
    let no_room = LayoutError::TooLittleMemory(what, memory_size);
    let size = memory_size.checked_add(text_offset).ok_or(no_room)?;
    let place = free.lowest_fit(size, ALIGNMENT).ok_or(no_room)?;
    Ok(Range::new(place.start + text_offset, place.end))
}

#[cfg(test)]
mod tests;

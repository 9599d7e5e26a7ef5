// SPDX-License-Identifier: MIT OR Apache-2.0

//! Where everything goes: the host's kernel, its device tree, and Escrow's own
//! working memory.

use core::fmt;

use arrayvec::ArrayVec;

use crate::board::{MAX_RAM, MAX_RESERVED};
use crate::image::{ALIGNMENT, KernelImage};
use crate::range::{Full, Range, RangeSet, align_up};

/// Escrow's memory is whole blocks of this many bytes, so that the host's
/// stage 2 needs no table to leave them out.
pub const BLOCK: u64 = 2 << 20;
const TREE: &str = "the device tree";
const ESCROW: &str = "Escrow";
/// Separate ranges of free memory that are kept in view.
const MAX_FREE: usize = MAX_RAM + MAX_RESERVED + 8;
/// Pieces that working memory may be in.
pub const MAX_PIECES: usize = 16;

/// What is in memory when Escrow starts.
#[derive(Clone, Copy)]
pub struct Loaded<'a> {
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
    /// The host's initial RAM disk, as loaded.
    pub ramdisk: Option<Range>,
}

/// What there has to be room for.
#[derive(Clone, Copy)]
pub struct Needs {
    /// What the header of the host's kernel says.
    pub kernel: KernelImage,
    /// Working memory for Escrow, in bytes.
    pub working_size: u64,
    /// The most that is taken of it at a time, in bytes, alignment included: what
    /// may be lost at the end of a piece.
    pub working_unit: u64,
    /// The device tree for the host, in bytes.
    pub host_tree_size: u64,
}

/// RAM that nothing is in: what is left where all that was loaded is in RAM
/// and apart.
#[derive(Clone, Debug)]
pub struct FreeMemory {
    free: RangeSet<MAX_FREE>,
    image: Range,
    kernel: Range,
}

/// Where it all goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Escrow's image, rounded out to blocks.
    pub image: Range,
    /// Escrow's working memory, in whole blocks: one piece, or where there is none
    /// that is large enough, several. The largest is first.
    pub working: Working,
    /// The host's kernel and all the memory that its header asks for. If it
    /// does not begin where the kernel was loaded, the kernel is to be moved.
    pub kernel: Range,
    /// The host's device tree.
    pub host_tree: Range,
}

impl Layout {
    /// All of Escrow's memory: image and working memory.
    pub fn escrow(&self) -> ArrayVec<Range, { MAX_PIECES + 1 }> {
        core::iter::once(self.image).chain(self.working.iter().copied()).collect()
    }
}

/// Pieces of working memory.
pub type Working = ArrayVec<Range, MAX_PIECES>;

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

impl Loaded<'_> {
    /// Checks that all of it is in RAM, and nothing over something else.
    ///
    /// # Errors
    ///
    /// See [`LayoutError`].
    pub fn check(&self) -> Result<FreeMemory, LayoutError> {
        if !self.image.start.is_multiple_of(BLOCK) {
            return Err(LayoutError::Misaligned(self.image));
        }
        let image = self.image.aligned_out(BLOCK).ok_or(LayoutError::Fragmented)?;
        let mut free = RangeSet::<MAX_FREE>::new();
        for range in self.ram {
            free.insert(*range)?;
        }
        // The tree goes first: a broken one explains most of what follows.
        let loaded = [
            (TREE, Some(self.tree)),
            (ESCROW, Some(image)),
            ("the host's kernel", Some(self.kernel)),
            ("the host's ramdisk", self.ramdisk),
        ];
        let loaded = loaded.into_iter().filter_map(|(name, range)| Some((name, range?)));
        for (index, (name, range)) in loaded.clone().enumerate() {
            if !free.contains(&range) {
                return Err(LayoutError::OutsideRam(name, range));
            }
            // The tree may be in memory that it reserves for itself.
            let mut reserved = self.reserved.iter().filter(|_| name != TREE);
            if let Some(reserved) = reserved.find(|reserved| reserved.overlaps(&range)) {
                let other = "memory that the device tree reserves";
                return Err(LayoutError::Overlap(name, range, other, *reserved));
            }
            for (other, with) in loaded.clone().take(index) {
                // What is left of Escrow's last block may hold the tree, which
                // is not needed any more when that memory comes into use.
                let own = if (name, other) == (ESCROW, TREE) { self.image } else { range };
                if own.overlaps(&with) {
                    return Err(LayoutError::Overlap(name, own, other, with));
                }
            }
        }
        for (_, range) in loaded {
            free.remove(range)?;
        }
        // EL2 maps all that it uses under its own address, and nothing can be referred to there.
        free.remove(Range::new(0, 4096))?;
        for range in self.reserved {
            // Whole pages, as the host takes what the tree reserves.
            free.remove(range.aligned_out(4096).ok_or(LayoutError::Fragmented)?)?;
        }
        Ok(FreeMemory { free, image, kernel: self.kernel })
    }
}

impl FreeMemory {
    /// Finds a place for everything.
    ///
    /// # Errors
    ///
    /// See [`LayoutError`].
    pub fn plan(mut self, needs: &Needs) -> Result<Layout, LayoutError> {
        let kernel = self.place_kernel(&needs.kernel)?;
        self.free.remove(kernel)?;
        // From the top: memory below 4 GiB is dear to the host's devices.
        let working = self.take_working(needs)?;
        let host_tree = self.take_highest("the host's device tree", needs.host_tree_size, 4096)?;
        Ok(Layout { image: self.image, working, kernel, host_tree })
    }

    /// In place if the kernel lies right and the memory behind it is free; else
    /// at the lowest place that does.
    fn place_kernel(&self, image: &KernelImage) -> Result<Range, LayoutError> {
        let KernelImage { text_offset, memory_size, .. } = *image;
        if self.kernel.start % ALIGNMENT == text_offset
            && let Some(here) = Range::with_size(self.kernel.start, memory_size)
            && self.free.contains(&Range::new(self.kernel.end, here.end))
        {
            return Ok(here);
        }
        let no_room = LayoutError::TooLittleMemory("the host's kernel", memory_size);
        let size = memory_size.checked_add(text_offset).ok_or(no_room)?;
        let place = self.free.lowest_fit(size, ALIGNMENT).ok_or(no_room)?;
        Ok(Range::new(place.start + text_offset, place.end))
    }

    /// One piece if there is one, else the largest that there are.
    fn take_working(&mut self, needs: &Needs) -> Result<Working, LayoutError> {
        const WHAT: &str = "Escrow's ledger";
        let Needs { working_size: size, working_unit: unit, .. } = *needs;
        if let Ok(range) = self.take_highest(WHAT, size, BLOCK) {
            return Ok(Working::from_iter([range]));
        }
        let no_room = LayoutError::TooLittleMemory(WHAT, size);
        let mut pieces = Working::new();
        let mut missing = size;
        while missing > 0 {
            let largest = self.free.iter().map(inner_blocks).max_by_key(Range::size);
            // The end of a piece may be of no use.
            let largest = largest.filter(|piece| piece.size() > unit).ok_or(no_room)?;
            let wanted = missing.checked_add(unit).and_then(|bytes| align_up(bytes, BLOCK));
            let size = wanted.map_or(largest.size(), |wanted| wanted.min(largest.size()));
            let piece = Range::new(largest.end - size, largest.end);
            self.free.remove(piece)?;
            pieces.try_push(piece).map_err(|_| LayoutError::Fragmented)?;
            missing = missing.saturating_sub(size - unit);
        }
        Ok(pieces)
    }

    fn take_highest(
        &mut self,
        what: &'static str,
        size: u64,
        align: u64,
    ) -> Result<Range, LayoutError> {
        let range =
            self.free.highest_fit(size, align).ok_or(LayoutError::TooLittleMemory(what, size))?;
        self.free.remove(range)?;
        Ok(range)
    }
}

/// The whole blocks inside a range.
fn inner_blocks(range: &Range) -> Range {
    match align_up(range.start, BLOCK) {
        Some(start) => Range::new(start, range.end & !(BLOCK - 1)),
        None => Range::default(),
    }
}

#[cfg(test)]
mod tests;

// SPDX-License-Identifier: MIT OR Apache-2.0

//! Memory of this process, by its addresses: no Rust object is in it, because
//! it may be out of reach at any time.

use std::ffi::c_void;
use std::fs::File;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use anyhow::{Context as _, Result, bail};
use escrow_shim_tests::runner::Lacking;
use nix::errno::Errno;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

/// Bytes in a page.
pub const PAGE: usize = 4096;

/// Pages in a block.
pub const HUGE: usize = 512;

/// A mapping.
pub struct Region {
    at: NonNull<c_void>,
    pages: usize,
}

impl Region {
    /// Anonymous memory of this process alone, filled.
    pub fn private(pages: usize) -> Result<Region> {
        Self::anonymous(None, pages, MapFlags::MAP_PRIVATE)
    }

    /// Anonymous memory that stays where it is when this process forks, filled.
    pub fn shared(pages: usize) -> Result<Region> {
        Self::anonymous(None, pages, MapFlags::MAP_SHARED)
    }

    /// Anonymous memory at an address of one's choice, filled.
    pub fn at(at: usize, pages: usize) -> Result<Region> {
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED_NOREPLACE;
        Self::anonymous(NonZeroUsize::new(at), pages, flags)
    }

    /// A block of 2 MiB that is one folio of Linux's, filled.
    pub fn huge() -> Result<Region> {
        // Twice as much holds an aligned one.
        let around = Self::anonymous(None, 2 * HUGE, MapFlags::MAP_PRIVATE)?;
        let at = around.page(0).next_multiple_of(HUGE * PAGE);
        drop(around);
        let length = NonZeroUsize::new(HUGE * PAGE).context("no pages")?;
        let all = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED_NOREPLACE;
        // SAFETY: a new mapping, over nothing that is there.
        let at = unsafe { mmap_anonymous(NonZeroUsize::new(at), length, all, flags) };
        let region = Region { at: at.context("mmap")?, pages: HUGE };
        // SAFETY: changes how the kernel fills the region, which is empty.
        match unsafe { madvise(region.at, length.get(), MmapAdvise::MADV_HUGEPAGE) } {
            // That of PREEMPT_RT.
            Err(Errno::EINVAL) => bail!(Lacking("huge pages".to_owned())),
            told => told.context("madvise")?,
        }
        region.fill();
        Ok(region)
    }

    fn anonymous(at: Option<NonZeroUsize>, pages: usize, flags: MapFlags) -> Result<Region> {
        let length = NonZeroUsize::new(pages * PAGE).context("no pages")?;
        let all = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE | ProtFlags::PROT_EXEC;
        // SAFETY: a new mapping, over nothing that is there.
        let at = unsafe { mmap_anonymous(at, length, all, flags) }.context("mmap")?;
        let region = Region { at, pages };
        region.fill();
        Ok(region)
    }

    /// The first pages of a file.
    pub fn file(file: &File, pages: usize) -> Result<Region> {
        Self::of_file(file, pages, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)
    }

    /// The same of a file that is not to be written to.
    pub fn file_to_read(file: &File, pages: usize) -> Result<Region> {
        Self::of_file(file, pages, ProtFlags::PROT_READ)
    }

    fn of_file(file: &File, pages: usize, protection: ProtFlags) -> Result<Region> {
        let length = NonZeroUsize::new(pages * PAGE).context("no pages")?;
        // SAFETY: a new mapping, over nothing that is there.
        let at = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, file, 0) };
        Ok(Region { at: at.context("mmap")?, pages })
    }

    /// Address of a page.
    pub fn page(&self, index: usize) -> usize {
        assert!(index < self.pages);
        self.at.as_ptr() as usize + index * PAGE
    }

    /// Writes words that tell where they are to all pages.
    pub fn fill(&self) {
        (0..self.pages).for_each(|page| self.fill_page(page));
    }

    /// Writes them to one page.
    pub fn fill_page(&self, index: usize) {
        for word in index * PAGE / 8..(index + 1) * PAGE / 8 {
            store(self.page(0) + word * 8, pattern(word));
        }
    }

    /// Whether a page is as [`fill`](Self::fill) left it.
    pub fn is_filled(&self, index: usize) -> bool {
        let mut words = index * PAGE / 8..(index + 1) * PAGE / 8;
        words.all(|word| load(self.page(0) + word * 8) == pattern(word))
    }

    /// Whether a page is all zeros.
    pub fn is_zero(&self, index: usize) -> bool {
        (0..PAGE / 8).all(|word| load(self.page(index) + word * 8) == 0)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: nobody refers to the mapping but by address. A failure
        // leaves it there, which does no harm.
        let _ = unsafe { munmap(self.at, self.pages * PAGE) };
    }
}

fn pattern(word: usize) -> u64 {
    0x5ec2_e700_0000_0000 | word as u64
}

/// Reads an aligned word of a region.
pub fn load(at: usize) -> u64 {
    // SAFETY: regions are mapped and hold no Rust objects; where a test is
    // wrong about their reach, the kernel ends it.
    unsafe { (at as *const u64).read_volatile() }
}

/// Writes an aligned word of a region.
pub fn store(at: usize, value: u64) {
    // SAFETY: as for `load`.
    unsafe { (at as *mut u64).write_volatile(value) }
}

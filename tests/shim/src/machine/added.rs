// SPDX-License-Identifier: MIT OR Apache-2.0

//! Memory that was added after boot. On these machines, all of it is above what
//! there was at boot.

use std::fs;
use std::num::NonZeroUsize;
use std::ptr;

use anyhow::{Context as _, Result, ensure};
use escrow_shim_tests::access;
use escrow_shim_tests::guest::{Guest, Order, RAM};
use escrow_shim_tests::gunyah::{Device, Mapping, Memory, PAGE, RWX};
use escrow_vmcore::uapi::fdinfo;
use nix::errno::Errno;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous};

/// `mov w0, #42` and `ret`.
const CODE: [u32; 2] = [0x5280_0540, 0xd65f_03c0];
/// Pages for a guest: 64 MiB.
const PAGES: u64 = 16 << 10;

/// The frame after the last one of boot, by the device tree.
fn end_of_boot() -> Result<u64> {
    let mut end = 0;
    for node in fs::read_dir("/proc/device-tree")?.flatten() {
        if !node.file_name().to_string_lossy().starts_with("memory@") {
            continue;
        }
        let reg = fs::read(node.path().join("reg"))?;
        for entry in reg.as_chunks::<16>().0 {
            let [base, size] = [0, 8].map(|at| {
                u64::from_be_bytes(*entry[at..].first_chunk().expect("16 bytes are more than 8"))
            });
            end = end.max((base + size) / PAGE);
        }
    }
    ensure!(end > 0, "no memory in the device tree");
    Ok(end)
}

/// Bytes of a line of `/proc/meminfo`.
pub fn meminfo(name: &str) -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)).context("meminfo")?;
    let number = line.trim_start_matches(':').trim().trim_end_matches(" kB");
    Ok(number.parse::<u64>()? << 10)
}

/// Anonymous memory of this program, in small pages.
struct Own {
    at: *mut u8,
    size: usize,
}

impl Own {
    fn new(size: u64) -> Result<Own> {
        let length = NonZeroUsize::new(size as usize).context("no memory")?;
        let rights = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE | ProtFlags::PROT_EXEC;
        // SAFETY: a new mapping.
        let at = unsafe { mmap_anonymous(None, length, rights, MapFlags::MAP_PRIVATE) }?;
        // SAFETY: of that mapping.
        unsafe { madvise(at, length.get(), MmapAdvise::MADV_NOHUGEPAGE) }?;
        Ok(Own { at: at.as_ptr().cast(), size: length.get() })
    }

    fn page(&self, n: usize) -> *mut u8 {
        self.at.wrapping_add(n * PAGE as usize)
    }

    fn pages(&self) -> usize {
        self.size / PAGE as usize
    }

    fn fill(&self) {
        for n in 0..self.pages() {
            // SAFETY: a page of the mapping, which is this test's alone.
            unsafe { ptr::write_bytes(self.page(n), n as u8, PAGE as usize) };
        }
    }

    /// Pages that are not what [`Self::fill`] made them, by loads that are not aligned.
    fn damaged(&self) -> usize {
        let is_damaged = |n: &usize| {
            let expected = u64::from_ne_bytes([*n as u8; 8]);
            [1, 0x7fd, PAGE as usize - 9].iter().any(|&offset| {
                // SAFETY: inside the page.
                unsafe { self.page(*n).add(offset).cast::<u64>().read_unaligned() != expected }
            })
        };
        (0..self.pages()).filter(is_damaged).count()
    }

    /// Puts a function into a page, and calls it.
    fn executes(&self, n: usize) -> bool {
        let code = self.page(n);
        // SAFETY: a page of the mapping that is executable; what is there is written
        // just now, and made visible to fetches (DDI 0487, "Synchronization and coherency
        // issues between data and instruction accesses").
        unsafe {
            ptr::copy_nonoverlapping(CODE.as_ptr().cast(), code, size_of_val(&CODE));
            std::arch::asm!(
                "dc cvau, {0}", "dsb ish", "ic ivau, {0}", "dsb ish", "isb",
                in(reg) code,
            );
            let function: extern "C" fn() -> u32 = std::mem::transmute(code);
            function() == 42
        }
    }
}

/// Programs have it like any other: contents, accesses that are not aligned,
/// instructions.
pub fn works_as_memory() -> Result<()> {
    let boot = end_of_boot()? * PAGE;
    let total = meminfo("MemTotal")?;
    let free = meminfo("MemAvailable")?;
    ensure!(total > 900 << 20, "{total} bytes in all: nothing has been added");
    let own = Own::new(free * 3 / 4)?;
    own.fill();
    ensure!(own.damaged() == 0, "{} pages are damaged", own.damaged());
    let mut added = 0;
    for n in (0..own.pages()).step_by(61) {
        ensure!(own.executes(n), "page {n} cannot be executed");
        let frame = access::frame_behind(own.page(n) as u64)?.context("no frame")?;
        added += u64::from(frame * PAGE >= boot);
    }
    ensure!(added > 100, "only {added} pages were added after boot");
    Ok(())
}

/// All pages of a memory that are present are of boot.
fn are_of_boot(mapping: &Mapping, pages: u64) -> Result<()> {
    let end = end_of_boot()?;
    for page in 0..pages {
        access::read(mapping, page * PAGE)?;
        let frame = access::frame(mapping, page * PAGE)?.context("no frame")?;
        ensure!(frame < end, "page {page} is frame {frame:#x}");
    }
    Ok(())
}

/// Gives a guest all of a memory, page by page as it touches them, and ends it.
fn lends_all(device: &Device, memory: &Memory, pages: u64) -> Result<()> {
    let guest = Guest::started(device, 4, 0)?;
    let at = RAM + (1 << 30);
    guest.vm.bind(at, RWX, memory, 0, pages).context("a binding")?;
    guest.ask(Order::Visit(at, pages)).context("a visit")?;
    ensure!(memory.count(fdinfo::LENT)? == pages, "{} pages are lent", memory.count(fdinfo::LENT)?);
    Ok(())
}

/// Puts as much of the host's memory to use as may be, so that all that is free is
/// in pieces of both kinds.
fn stir() -> Result<()> {
    let own = Own::new(meminfo("MemAvailable")? * 3 / 4)?;
    own.fill();
    Ok(())
}

/// Pages for guests are looked for among those that can be lent.
pub fn guests_have_memory_of_boot() -> Result<()> {
    stir()?;
    let device = Device::open()?;
    let memory = device.memory(PAGES)?;
    let mapping = memory.map(0, PAGES)?;
    are_of_boot(&mapping, PAGES)?;
    lends_all(&device, &memory, PAGES)
}

/// So are blocks, or pages in their place.
pub fn guests_have_blocks_of_boot() -> Result<()> {
    let device = Device::open()?;
    let memory = device.huge_memory(PAGES)?;
    let mapping = memory.map(0, PAGES)?;
    are_of_boot(&mapping, PAGES)?;
    lends_all(&device, &memory, PAGES)
}

/// One guest after the other, with what the host has kept for itself meanwhile.
pub fn what_a_guest_had_is_used_again() -> Result<()> {
    let device = Device::open()?;
    let own = Own::new(meminfo("MemAvailable")? / 2)?;
    own.fill();
    for _ in 0..3 {
        let memory = device.memory(PAGES / 4)?;
        lends_all(&device, &memory, PAGES / 4)?;
    }
    ensure!(own.damaged() == 0, "{} pages are damaged", own.damaged());
    Ok(())
}

/// More than was there at boot is not to be had, however much has been added: an error at
/// once, and what there is serves others after that.
pub fn want_of_memory_of_boot_is_an_error() -> Result<()> {
    let device = Device::open()?;
    let pages = end_of_boot()?;
    let memory = device.memory(pages)?;
    let all = memory.fallocate(0, 0, pages * PAGE);
    ensure!(all == Err(Errno::ENOMEM), "{all:?}");
    let mapping = memory.map(0, pages)?;
    // A few pages may have become free since.
    let refused = (0..pages).rev().find_map(|page| access::read(&mapping, page * PAGE).err());
    ensure!(refused == Some(Errno::EFAULT), "{refused:?}");
    drop((mapping, memory));
    let memory = device.memory(PAGES / 4)?;
    lends_all(&device, &memory, PAGES / 4)
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! EL2's own stage 1 while VMs run: its contents, and windows for access to other memory.
//!
//! EL2 maps Escrow's image and working memory, and the pages that a host has donated
//! for a VM's tables and vCPUs, as long as they are metadata. The memory of the host and of
//! guests is not mapped at EL2, so no instruction there can access it, not even in
//! speculation. Where EL2 has to access it (lists, zeroing, cleaning), the CPU maps it
//! for that time at an address that only this CPU uses, a *window*. So
//! memory changes its owner without TLB maintenance for EL2's own map.
//!
//! Each access through a window may fail, for the memory may ([`MemoryError`]), and so may a
//! walk of a VM's own tables ([`walk_stage1`]): the instructions are all in access.S.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use aarch64_cpu::asm::barrier;
use arrayvec::ArrayVec;
use escrow_abi::{BLOCK_SIZE, PAGE_SIZE};
use escrow_core::addr::PhysAddr;
use escrow_core::machine::MemoryError;

use crate::features::Features;
use crate::percpu::PerCpu;
use crate::sysreg::{DISR_EL1, ELR_EL2, HCR_EL2, ID_AA64PFR0_EL1, ISR_EL1, SPSR_EL2, id_field};

/// The address of windows of one page. The descriptors of each CPU are in a cache line of their own.
pub const PAGE_WINDOWS: u64 = 511 << 39;
/// The same for windows of one block of 2 MiB.
pub const BLOCK_WINDOWS: u64 = PAGE_WINDOWS + (1 << 30);
/// Descriptors of a CPU, of which it uses the first.
const LINE: usize = 8;

/// Pieces of memory that [`El2Tables::spare`] may be in.
pub const MAX_SPARE: usize = 16;

const VALID: u64 = 1 << 0;
const TABLE: u64 = 0b11;
const OUTPUT: u64 = 0x0000_ffff_ffff_f000;

/// What the boot code has prepared of EL2's translation tables.
#[derive(Debug)]
pub struct El2Tables {
    /// The table of level 0.
    pub root: PhysAddr,
    /// The descriptor of a page of data at address 0.
    pub page: u64,
    /// The same of a block.
    pub block: u64,
    /// The table of level 3 of [`PAGE_WINDOWS`].
    pub page_windows: PhysAddr,
    /// The table of level 2 of [`BLOCK_WINDOWS`].
    pub block_windows: PhysAddr,
    /// Pages for tables of level 3, with any contents: addresses and how many there are
    /// side by side. One for each block of RAM.
    pub spare: ArrayVec<(PhysAddr, usize), MAX_SPARE>,
}

/// EL2's map, as it changes.
#[derive(Debug)]
pub(crate) struct Windows {
    tables: El2Tables,
    /// Spare pages that are in use.
    used: AtomicUsize,
}

/// A place at which a CPU maps memory for as long as it works on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    slot: &'static AtomicU64,
    at: u64,
}

/// Entries of a table of EL2's own.
fn entries(table: PhysAddr) -> &'static [AtomicU64; 512] {
    // SAFETY: working memory, mapped under its own address for ever, which is used as
    // atomic words only: tables that the boot code made, or `Windows` has.
    unsafe { &*(table.0 as *const [AtomicU64; 512]) }
}

/// `asm!` that calls a function of access.S, with its failure as the result.
macro_rules! access {
    ($function:literal, $($operands:tt)*) => {{
        // A data abort in the access overwrites ELR_EL2 and SPSR_EL2: save them.
        let (elr, spsr) = (ELR_EL2::read(), SPSR_EL2::read());
        let failed: u64;
        // SAFETY: the functions touch memory through the window that their caller has
        // opened, or no memory but by a walk, and change the registers that are named
        // here.
        unsafe {
            asm!(
                concat!("bl ", $function),
                $($operands)*,
                lateout("x4") failed,
                out("x16") _,
                out("x17") _,
                out("x30") _,
                options(nostack),
            )
        };
        if failed != 0 {
            ELR_EL2::write(elr);
            SPSR_EL2::write(spsr);
            Err(MemoryError)
        } else {
            Ok(())
        }
    }};
}

impl Windows {
    pub fn new(tables: El2Tables) -> Windows {
        Windows { tables, used: AtomicUsize::new(0) }
    }

    /// The windows of a CPU: of a page, of a block.
    pub fn of_cpu(&self, index: usize) -> Option<(Window, Window)> {
        let slot = |table| entries(table).get(index * LINE);
        let place = (index * LINE) as u64;
        Some((
            Window { slot: slot(self.tables.page_windows)?, at: PAGE_WINDOWS + place * PAGE_SIZE },
            Window {
                slot: slot(self.tables.block_windows)?,
                at: BLOCK_WINDOWS + place * BLOCK_SIZE,
            },
        ))
    }

    /// Reads a list entry.
    #[inline(always)]
    pub fn read_entry(&self, at: PhysAddr) -> Result<[u64; 4], MemoryError> {
        let (window, _) = windows()?;
        let offset = at.0 % PAGE_SIZE;
        let mut words = [0; 4];
        let [w0, w1, w2, w3] = &mut words;
        window.through(at.0 - offset + self.tables.page, |start| {
            access!(
                "escrow_access_read",
                inlateout("x0") start + offset => *w0,
                lateout("x1") *w1,
                lateout("x2") *w2,
                lateout("x3") *w3
            )
        })?;
        Ok(words)
    }

    /// Writes four words.
    pub fn write_entry(&self, at: PhysAddr, words: [u64; 4]) -> Result<(), MemoryError> {
        let (window, _) = windows()?;
        let offset = at.0 % PAGE_SIZE;
        window.through(at.0 - offset + self.tables.page, |start| {
            access!(
                "escrow_access_write",
                inlateout("x0") start + offset => _,
                in("x1") words[0],
                in("x2") words[1],
                in("x3") words[2],
                in("x5") words[3]
            )
        })
    }

    /// Reads list entries side by side in one page, through one window. Returns how many.
    pub fn read_entries(&self, at: PhysAddr, entries: &mut [[u64; 4]]) -> usize {
        const SIZE: u64 = size_of::<[u64; 4]>() as u64;
        let Ok((window, _)) = windows() else { return 0 };
        let offset = at.0 % PAGE_SIZE;
        let size = (entries.len() as u64 * SIZE).min(PAGE_SIZE - offset);
        if size == 0 {
            return 0;
        }
        let start = window.at + offset;
        let end = start + size;
        let mut come = start;
        // The result is in `come`: it tells how far the access got.
        let _ = window.through(at.0 - offset + self.tables.page, |_| {
            access!(
                "escrow_access_copy",
                inlateout("x0") start => come,
                inlateout("x1") entries.as_mut_ptr() => _,
                in("x2") end,
                out("x5") _,
                out("x6") _,
                out("x7") _,
                out("x8") _
            )
        });
        ((come - start) / SIZE) as usize
    }

    /// Zeroes whole pages, all that can be, and cleans them.
    pub fn zero(&self, at: PhysAddr, size: u64, how: &Zeroing) -> Result<(), MemoryError> {
        let Zeroing { step, line, .. } = *how;
        self.each_part(at, size, |start, size| {
            let end = start + size;
            if how.at_once(start, end).is_ok() {
                return Ok(());
            }
            let mut result = Ok(());
            let mut next = start;
            while next < end {
                let come: u64;
                let done = if step != 0 {
                    access!(
                        "escrow_access_zero_blocks",
                        inlateout("x0") next => come,
                        in("x1") end,
                        in("x2") step
                    )
                } else {
                    access!("escrow_access_zero", inlateout("x0") next => come, in("x1") end)
                };
                if done.is_ok() {
                    break;
                }
                // Continue after the broken memory: there may be secrets after it.
                result = done;
                next = come + if step != 0 { step } else { 64 };
            }
            result.and(clean_lines(start, end, line))
        })
    }

    /// Cleans and invalidates whole pages.
    pub fn clean(&self, at: PhysAddr, size: u64, how: &Zeroing) -> Result<(), MemoryError> {
        self.each_part(at, size, |start, size| clean_lines(start, start + size, how.line))
    }

    /// Works on whole pages through windows: on blocks at a time where they are some. On
    /// all of them, whatever fails.
    fn each_part(
        &self,
        at: PhysAddr,
        size: u64,
        mut f: impl FnMut(u64, u64) -> Result<(), MemoryError>,
    ) -> Result<(), MemoryError> {
        let (page_window, block_window) = windows()?;
        let routed = SErrors::route();
        let end = at.0 + size;
        let mut at = at.0;
        let mut result = Ok(());
        while at < end {
            let is_block = at.is_multiple_of(BLOCK_SIZE) && end - at >= BLOCK_SIZE;
            let (window, descriptor, part) = if is_block {
                (block_window, self.tables.block, BLOCK_SIZE)
            } else {
                (page_window, self.tables.page, PAGE_SIZE)
            };
            let done = window.through(at + descriptor, |start| f(start, part));
            result = result.and(done);
            at += part;
        }
        result.and(routed.end())
    }

    /// Maps a page of metadata under its own address. Needs the lock of its block.
    pub fn map(&self, page: PhysAddr) {
        let mut table = self.tables.root;
        for level in 0..3 {
            let entry = &entries(table)[index(page, level)];
            let old = entry.load(Ordering::Relaxed);
            if old & TABLE == TABLE {
                table = PhysAddr(old & OUTPUT);
            } else if old & VALID != 0 || level != 2 {
                // Escrow's memory, or no RAM: it never becomes a VM's metadata.
                return;
            } else {
                let Some(spare) = self.take_spare() else { return };
                for slot in entries(spare) {
                    slot.store(0, Ordering::Relaxed);
                }
                // The table is empty before walkers can find it. No other CPU writes this entry:
                // it is for this block, whose lock is held.
                barrier::dsb(barrier::ISHST);
                entry.store(spare.0 | TABLE, Ordering::Release);
                table = spare;
            }
        }
        entries(table)[index(page, 3)].store(page.0 + self.tables.page, Ordering::Release);
        // Makes it visible to all CPUs' walkers (DDI 0487, "Ordering and completion of translation
        // table walks") and to the next instructions. Other CPUs read the page's address
        // from memory that is written after this, so none of them can have
        // translated it before.
        barrier::dsb(barrier::ISHST);
        barrier::isb(barrier::SY);
    }

    fn take_spare(&self) -> Option<PhysAddr> {
        let mut n = self.used.fetch_add(1, Ordering::Relaxed);
        for &(start, pages) in &self.tables.spare {
            if n < pages {
                return Some(start.add(n as u64 * PAGE_SIZE));
            }
            n -= pages;
        }
        None
    }

    /// Unmaps pages of metadata, of one block, and issues the TLB maintenance: the caller waits for
    /// its completion. Needs the block's lock.
    pub fn unmap(&self, at: PhysAddr, size: u64) {
        let Some(table) = self.level3(at) else { return };
        let pages = (at.0..at.0 + size).step_by(PAGE_SIZE as usize).map(PhysAddr);
        for page in pages.clone() {
            entries(table)[index(page, 3)].store(0, Ordering::Relaxed);
        }
        barrier::dsb(barrier::ISHST);
        for page in pages {
            // SAFETY: removes translations of pages that EL2 uses no more.
            unsafe {
                asm!("tlbi vale2is, {}", in(reg) page.0 >> 12, options(nostack, preserves_flags));
            }
        }
    }

    /// Shows what is mapped: under its own address, and through windows of the calling
    /// CPU. Of other CPUs' windows it would show what they work on.
    pub fn each_mapped(&self, f: &mut dyn FnMut(PhysAddr, u64)) {
        each_leaf(self.tables.root, 0, 0, f);
        if let Ok((page, block)) = windows() {
            for (window, size) in [(page, PAGE_SIZE), (block, BLOCK_SIZE)] {
                let descriptor = window.slot.load(Ordering::Relaxed);
                if descriptor & VALID != 0 {
                    f(PhysAddr(descriptor & OUTPUT), size);
                }
            }
        }
    }

    /// The table with the entries for a block's pages.
    fn level3(&self, at: PhysAddr) -> Option<PhysAddr> {
        let mut table = self.tables.root;
        for level in 0..3 {
            let entry = entries(table)[index(at, level)].load(Ordering::Relaxed);
            if entry & TABLE != TABLE {
                return None;
            }
            table = PhysAddr(entry & OUTPUT);
        }
        Some(table)
    }
}

fn each_leaf(table: PhysAddr, level: u32, base: u64, f: &mut dyn FnMut(PhysAddr, u64)) {
    let size = 1 << (39 - 9 * level);
    for (at, slot) in (base..).step_by(size as usize).zip(entries(table)) {
        let entry = slot.load(Ordering::Acquire);
        if at >= PAGE_WINDOWS || entry & VALID == 0 {
            continue;
        }
        if level < 3 && entry & TABLE == TABLE {
            each_leaf(PhysAddr(entry & OUTPUT), level + 1, at, f);
        } else {
            f(PhysAddr(entry & OUTPUT), size);
        }
    }
}

/// The calling CPU's windows; none before [`init_cpu`](crate::init_cpu).
#[inline(always)]
fn windows() -> Result<(Window, Window), MemoryError> {
    // SAFETY: TPIDR_EL2 is zero or points to this CPU's data, whose windows are
    // written before it does.
    unsafe { PerCpu::current().as_ref() }.and_then(|cpu| cpu.windows).ok_or(MemoryError)
}

/// Walks the stage 1 that is in force at EL1, for a load from EL1 or from EL0;
/// `PAR_EL1` has the answer. The tables are a VM's, and so may fail.
pub fn walk_stage1(at: u64, el0: bool) -> Result<(), MemoryError> {
    if el0 {
        access!("escrow_access_walk_el0", in("x0") at)
    } else {
        access!("escrow_access_walk_el1", in("x0") at)
    }
}

/// Closes the calling CPU's windows after a fault: the code that failed may have had one
/// open, and opening it again would keep the old translation in the TLB.
pub(crate) fn close_all() {
    if let Ok((page, block)) = windows() {
        for window in [page, block] {
            window.close();
        }
    }
}

const fn index(at: PhysAddr, level: u32) -> usize {
    (at.0 >> (39 - 9 * level)) as usize % 512
}

/// How pages are zeroed and cleaned on this machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Zeroing {
    /// By the instructions of FEAT_MOPS.
    sets: bool,
    /// Bytes that `DC ZVA` zeroes at a time; 0 if it must not be used.
    step: u64,
    /// Bytes of a cache line, or less: cleaning a line twice does no harm. At most a sixteenth of a
    /// page, as the loops of access.S take 16 lines of a page at a time.
    line: u64,
}

impl Zeroing {
    pub fn new(features: &Features) -> Zeroing {
        let step = features.zva_block.into();
        let line = features.cache_line.into();
        Zeroing { sets: features.sets_memory, step, line: u64::min(line, PAGE_SIZE / 16) }
    }

    /// Zeroes and cleans the fastest way there is.
    ///
    /// # Errors
    /// There is none, or it failed somewhere: nothing is known then of what was zeroed.
    #[inline(always)]
    fn at_once(&self, start: u64, end: u64) -> Result<(), MemoryError> {
        if self.sets {
            access!("escrow_access_set", inlateout("x0") start => _, inlateout("x1") end - start => _)?;
            clean_lines(start, end, self.line)
        } else if self.step == self.line {
            access!(
                "escrow_access_zero_lines",
                inlateout("x0") start => _,
                in("x1") end,
                in("x2") self.line
            )
        } else {
            Err(MemoryError)
        }
    }
}

/// Cleans and invalidates lines, all that can be.
fn clean_lines(start: u64, end: u64, line: u64) -> Result<(), MemoryError> {
    let mut result = Ok(());
    let mut next = start;
    while next < end {
        let come: u64;
        let done = access!(
            "escrow_access_clean",
            inlateout("x0") next => come,
            in("x1") end,
            in("x2") line
        );
        if done.is_ok() {
            break;
        }
        result = done;
        // Continue with the next line: its zeros may still be in a cache, and the secrets in
        // memory. If the rest is no multiple of the loop's step, the loop fails at the end of the
        // window.
        next = come + line;
    }
    result
}

impl Window {
    /// Maps a descriptor's memory in the window, and calls the closure with its address. No exception but
    /// those of access.S is taken meanwhile, so no other code of this CPU uses the window.
    #[inline(always)]
    fn through<T>(self, descriptor: u64, f: impl FnOnce(u64) -> T) -> T {
        self.slot.store(descriptor, Ordering::Relaxed);
        // Makes the descriptor visible to this CPU's walker, before the accesses that follow
        // (DDI 0487, "Ordering and completion of translation table walks").
        barrier::dsb(barrier::NSHST);
        barrier::isb(barrier::SY);
        let result = f(self.at);
        self.close();
        result
    }

    #[inline(always)]
    fn close(self) {
        self.slot.store(0, Ordering::Relaxed);
        barrier::dsb(barrier::NSHST);
        // Local TLB maintenance is enough: no other CPU translates this address. Code that opens the window
        // next executes an ISB before its accesses.
        // SAFETY: removes a translation that is not used any more.
        unsafe {
            asm!("tlbi vale2, {}", in(reg) self.at >> 12, options(nostack, preserves_flags));
        }
        // Complete, the accesses included: maintenance by address as well.
        barrier::dsb(barrier::NSH);
    }
}

/// Takes SErrors while EL2 accesses memory: without this they would be routed to EL1, although EL2's
/// access is their cause.
struct SErrors {
    hcr: u64,
    /// An SError was pending before, which no access of EL2 has caused.
    before: bool,
    /// With FEAT_RAS: `DISR_EL1`, which is the host's, and holds what the host wrote to it.
    deferred: Option<u64>,
}

const HCR_AMO: u64 = 1 << 5;
/// `ISR_EL1.A`
const ISR_A: u64 = 1 << 8;
/// `DISR_EL1.A`
const DISR_A: u64 = 1 << 31;

impl SErrors {
    fn route() -> SErrors {
        // What was under way before, stores of a VM's among them, is complete: an error of
        // theirs is pending by now, as far as the CPU can tell, and not taken for one of the
        // accesses that follow.
        barrier::dsb(barrier::SY);
        barrier::isb(barrier::SY);
        let before = ISR_EL1::read() & ISR_A != 0;
        let hcr = HCR_EL2::read();
        HCR_EL2::write(hcr | HCR_AMO);
        // FEAT_RAS
        let has_ras = id_field(ID_AA64PFR0_EL1::read(), 28) != 0;
        let deferred = has_ras.then(|| {
            let held = DISR_EL1::read();
            DISR_EL1::write(0);
            held
        });
        barrier::isb(barrier::SY);
        SErrors { hcr, before, deferred }
    }

    /// Whether there was none.
    fn end(self) -> Result<(), MemoryError> {
        // Complete for all observers (DDI 0487, "Ordering and completion of data and
        // instruction cache instructions").
        barrier::dsb(barrier::SY);
        let mut result = Ok(());
        if !self.before {
            if self.deferred.is_some() {
                // SAFETY: ESB. It defers a pending SError that is masked to DISR_EL1.
                unsafe { asm!("hint #16", options(nostack, preserves_flags)) };
                if DISR_EL1::read() & DISR_A != 0 {
                    result = Err(MemoryError);
                }
            } else {
                barrier::isb(barrier::SY);
                if ISR_EL1::read() & ISR_A != 0 {
                    result = access!("escrow_access_take_serror", out("x0") _);
                }
            }
        }
        if let Some(held) = self.deferred {
            DISR_EL1::write(held);
        }
        HCR_EL2::write(self.hcr);
        barrier::isb(barrier::SY);
        result
    }
}

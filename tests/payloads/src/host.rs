// SPDX-License-Identifier: MIT OR Apache-2.0

//! The host's part: memory of its own, and calls about it.

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use arrayvec::ArrayVec;
use escrow_abi::{
    Error, FrameState, LIST_MAX, MemEntry, ORDER_BLOCK, ORDER_PAGE, PAGE_SIZE, Rights, call,
};

use crate::arena::Arena;
use crate::board::Board;
use crate::hvc::{Answer, Refusal, call};
use crate::{Failure, Outcome, fail};

/// Pages that one list may span.
const LIST_PAGES: u64 = (LIST_MAX * size_of::<MemEntry>()) as u64 / PAGE_SIZE;

/// What a test works with.
pub struct Host {
    /// The machine.
    pub board: Board,
    /// Memory to lend.
    pub arena: Arena,
    /// Where the boot CPU writes its lists.
    pub lists: Lists,
    /// Pages that the test has put out of use for good.
    pub poisoned: u64,
}

/// The ledger's counters: pages by state, and VMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Pages in each [`FrameState`].
    pub pages: [u64; FrameState::ALL.len()],
    /// VMs that exist.
    pub vms: u64,
}

impl Counts {
    /// Reads them from Escrow.
    ///
    /// # Panics
    /// Escrow refuses to tell.
    pub fn read() -> Counts {
        let info = |selector, detail| match call(call::LEDGER_INFO, &[selector, detail]) {
            Ok([value, ..]) => value,
            Err(refusal) => panic!("LEDGER_INFO({selector}, {detail}): {refusal:?}"),
        };
        Counts {
            pages: core::array::from_fn(|state| info(call::INFO_PAGES, state as u64)),
            vms: info(call::INFO_VMS, 0),
        }
    }

    /// Pages in a state.
    pub fn of(&self, state: FrameState) -> u64 {
        self.pages[state as usize]
    }

    /// The same with `count` pages moved from one state to another.
    pub fn moved(mut self, from: FrameState, to: FrameState, count: u64) -> Counts {
        self.pages[from as usize] -= count;
        self.pages[to as usize] += count;
        self
    }
}

/// The VMs that were made and perhaps not yet destroyed, one for each slot.
static VMS: [AtomicU64; 64] = [const { AtomicU64::new(0) }; 64];

/// Notes a VM that [`Host::destroy_all`] is to know of.
pub fn note_vm(handle: u64) {
    VMS[(handle >> 8) as usize % VMS.len()].store(handle, Ordering::Relaxed);
}

/// Memory for one list, and the calls that take one. Each CPU that makes such
/// calls has its own.
#[derive(Clone, Copy, Debug)]
pub struct Lists(u64);

impl Lists {
    /// Uses fresh pages of the arena.
    pub fn new(arena: &mut Arena) -> Lists {
        Lists(arena.pages(LIST_PAGES))
    }

    /// Uses the pages from `at` on, as many as the longest list needs.
    pub const fn at(at: u64) -> Lists {
        Lists(at)
    }

    /// Where lists are written.
    pub fn address(&self) -> u64 {
        self.0
    }

    /// Writes a list, and returns the two arguments that name it.
    pub fn put(&self, entries: &[MemEntry]) -> [u64; 2] {
        assert!(entries.len() <= LIST_MAX);
        let list = self.0 as *mut MemEntry;
        for (n, entry) in entries.iter().enumerate() {
            // SAFETY: the pages are this CPU's, and there is room.
            unsafe { list.add(n).write_volatile(*entry) };
        }
        [self.0, entries.len() as u64]
    }

    /// `VM_CREATE` with the pages of a list.
    ///
    /// # Errors
    /// Escrow refuses.
    pub fn vm_create(&self, entries: &[MemEntry]) -> Result<u64, Refusal> {
        let [vm, ..] = call(call::VM_CREATE, &self.put(entries))?;
        note_vm(vm);
        Ok(vm)
    }

    /// `VM_TOP_UP`.
    ///
    /// # Errors
    /// Escrow refuses.
    pub fn top_up(&self, vm: u64, entries: &[MemEntry]) -> Answer {
        let [list, count] = self.put(entries);
        call(call::VM_TOP_UP, &[vm, list, count])
    }

    /// `MEM_LEND`.
    ///
    /// # Errors
    /// Escrow refuses.
    pub fn lend(&self, vm: u64, entries: &[MemEntry]) -> Answer {
        let [list, count] = self.put(entries);
        call(call::MEM_LEND, &[vm, list, count])
    }

    /// `MEM_LEND_ONE`.
    ///
    /// # Errors
    /// Escrow refuses.
    pub fn lend_one(&self, vm: u64, entry: &MemEntry) -> Answer {
        let [frame, guest, references, users] = entry.words();
        call(call::MEM_LEND_ONE, &[vm, frame, guest, references, users])
    }

    /// `MEM_SHARE`.
    ///
    /// # Errors
    /// Escrow refuses.
    pub fn share(&self, vm: u64, entries: &[MemEntry]) -> Answer {
        let [list, count] = self.put(entries);
        call(call::MEM_SHARE, &[vm, list, count])
    }

    /// `MEM_UNSHARE`.
    ///
    /// # Errors
    /// Escrow refuses.
    pub fn unshare(&self, entries: &[MemEntry]) -> Answer {
        call(call::MEM_UNSHARE, &self.put(entries))
    }

    /// `MEM_RECLAIM`.
    ///
    /// # Errors
    /// Escrow refuses.
    pub fn reclaim(&self, entries: &[MemEntry]) -> Answer {
        call(call::MEM_RECLAIM, &self.put(entries))
    }

    /// Brings home all pages of a range that belong to VMs that are gone.
    ///
    /// # Errors
    /// Escrow refuses.
    pub fn bring_home(&self, range: Range<u64>) -> Outcome {
        let mut away: ArrayVec<MemEntry, LIST_MAX> = ArrayVec::new();
        for at in range.clone().step_by(PAGE_SIZE as usize) {
            let state = frame_state(at)?;
            if state != FrameState::Owned {
                away.push(frame(at));
            }
            if away.is_full() || at + PAGE_SIZE == range.end && !away.is_empty() {
                self.bring_home_some(&away)?;
                away.clear();
            }
        }
        Ok(())
    }

    fn bring_home_some(&self, entries: &[MemEntry]) -> Outcome {
        if self.reclaim(entries).is_ok() {
            return Ok(());
        }
        // They belong to several VMs, perhaps, and some of these live.
        for entry in entries {
            match self.reclaim(&[*entry]) {
                Ok(_) | Err(Refusal { error: Error::WrongState | Error::Locked, .. }) => {}
                Err(refusal) => fail!("{:#x} does not come home: {refusal:?}", entry.frame),
            }
        }
        Ok(())
    }

    /// Creates a VM with `pages` pages of metadata from `at` on.
    ///
    /// # Errors
    /// Escrow refuses.
    pub fn vm_of(&self, at: u64, pages: u64) -> Outcome<u64> {
        let list: ArrayVec<_, 64> = (0..pages).map(|n| frame(at + n * PAGE_SIZE)).collect();
        self.vm_create(&list).map_err(refused("VM_CREATE"))
    }
}

/// An entry that names a page and nothing else.
pub const fn frame(at: u64) -> MemEntry {
    MemEntry::new(at, ORDER_PAGE, 0, Rights::NONE)
}

/// An entry that names a page and where a guest is to have it, with all rights.
pub const fn page_at(at: u64, guest: u64) -> MemEntry {
    MemEntry::new(at, ORDER_PAGE, guest, Rights::ALL)
}

/// An entry that names a block and nothing else.
pub const fn block(at: u64) -> MemEntry {
    MemEntry::new(at, ORDER_BLOCK, 0, Rights::NONE)
}

/// An entry that names a block and where a guest is to have it, with all rights.
pub const fn block_at(at: u64, guest: u64) -> MemEntry {
    MemEntry::new(at, ORDER_BLOCK, guest, Rights::ALL)
}

/// Turns a refusal into a failure.
pub fn refused(what: &'static str) -> impl Fn(Refusal) -> Failure {
    move |refusal| Failure::new(what, 0, format_args!("{refusal:?}"))
}

impl Host {
    /// A VM with `pages` pages of metadata.
    ///
    /// # Errors
    /// Escrow refuses.
    pub fn vm(&mut self, pages: u64) -> Outcome<u64> {
        let at = self.arena.pages(pages);
        self.lists.vm_of(at, pages)
    }

    /// One page of the arena.
    pub fn page(&mut self) -> u64 {
        self.arena.pages(1)
    }

    /// Ends a VM and brings home all pages of the arena that are not.
    ///
    /// # Errors
    /// Escrow refuses.
    pub fn end(&mut self, vm: u64) -> Outcome {
        call(call::VM_DESTROY, &[vm]).map_err(refused("VM_DESTROY"))?;
        self.bring_home()
    }

    /// Brings home all pages of the arena that belong to VMs that are gone.
    ///
    /// # Errors
    /// Escrow refuses.
    pub fn bring_home(&mut self) -> Outcome {
        self.lists.bring_home(self.arena.range())
    }

    /// Destroys all VMs.
    ///
    /// # Errors
    /// Escrow refuses to destroy one that lives.
    pub fn destroy_all(&self) -> Outcome {
        for slot in &VMS {
            let vm = slot.swap(0, Ordering::Relaxed);
            match call(call::VM_DESTROY, &[vm]) {
                // Most of them are gone, and say so; slots without any say 0.
                Ok(_) | Err(Refusal { error: Error::HandleRevoked | Error::HandleNull, .. }) => {}
                Err(refusal) => return Err(refused("VM_DESTROY")(refusal)),
            }
        }
        Ok(())
    }

    /// Undoes what a failed test left behind, as far as that goes.
    pub(crate) fn recover(&mut self) -> Outcome {
        self.destroy_all()?;
        self.bring_home()
    }
}

/// The state of a frame, by `FRAME_INFO`.
///
/// # Errors
/// Escrow refuses.
pub fn frame_state(at: u64) -> Outcome<FrameState> {
    match call(call::FRAME_INFO, &[at]) {
        Ok([state, ..]) => match FrameState::from_number(state) {
            Some(state) => Ok(state),
            None => fail!("FRAME_INFO of {at:#x} answers {state}"),
        },
        Err(refusal) => fail!("FRAME_INFO of {at:#x}: {refusal:?}"),
    }
}

/// Fills a page of the host's with words that tell where they are.
pub fn fill(page: u64, salt: u64) {
    for n in 0..PAGE_SIZE / 8 {
        // SAFETY: the page is the test's.
        unsafe { ((page + n * 8) as *mut u64).write_volatile(word(page, n, salt)) };
    }
}

fn word(page: u64, n: u64, salt: u64) -> u64 {
    page.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ salt << 32 ^ n
}

/// Whether a page of the host's is as [`fill`] left it.
pub fn is_filled(page: u64, salt: u64) -> bool {
    (0..PAGE_SIZE / 8).all(|n| peek(page + n * 8) == word(page, n, salt))
}

/// Whether `size` bytes of the host's are all zero.
pub fn is_zero(at: u64, size: u64) -> bool {
    (0..size / 8).all(|n| peek(at + n * 8) == 0)
}

/// Reads a word of the host's memory.
pub fn peek(at: u64) -> u64 {
    // SAFETY: the page is the test's, or the exception says that it is not.
    unsafe { (at as *const u64).read_volatile() }
}

/// Writes a word of the host's memory.
pub fn poke(at: u64, value: u64) {
    // SAFETY: the page is the test's, or the exception says that it is not.
    unsafe { (at as *mut u64).write_volatile(value) };
}

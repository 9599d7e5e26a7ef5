// SPDX-License-Identifier: MIT OR Apache-2.0

//! What C offers to Rust.

use core::ffi::c_void;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering};

use escrow_memfd::References;
use escrow_vmcore::Errno;
use escrow_vmcore::hypercall::{Donor, Hypervisor};

unsafe extern "C" {
    pub(crate) fn escrow_alloc(size: usize) -> *mut u8;
    pub(crate) fn escrow_free(block: *mut u8);
    pub(crate) fn escrow_panic(file: *const u8, length: usize, line: u32) -> !;
    fn escrow_hvc(args: &[u64; 8], results: &mut [u64; 5]);
    fn escrow_folio_freeze(folio: NonNull<c_void>, at: u32, count: &mut u32) -> bool;
    fn escrow_folio_unfreeze(folio: NonNull<c_void>, to: u32);
    static escrow_may_be_poisoned: AtomicBool;
    fn escrow_folio_is_marked(folio: NonNull<c_void>) -> bool;
    fn escrow_seen_through(index: u64, detail: u64);
    fn escrow_tree_refused(vm: u64, why: *const u8, length: usize);
    fn escrow_top_up(borrower: NonNull<c_void>, pages: u64) -> i32;
    fn escrow_folio_get(folio: NonNull<c_void>);
    fn escrow_folio_put(folio: NonNull<c_void>);
    fn escrow_relax();
    fn escrow_mem_get(mem: NonNull<c_void>);
    fn escrow_mem_put(mem: NonNull<c_void>);
    fn escrow_event_signal(event: NonNull<c_void>);
    fn escrow_event_put(event: NonNull<c_void>);
}

/// `hvc #0` on this CPU.
pub(crate) struct Hvc;

impl Hypervisor for Hvc {
    fn call(&mut self, args: [u64; 8]) -> [u64; 5] {
        let mut results = [0; 5];
        // SAFETY: the module is loaded only where Escrow answers, and Escrow
        // changes no memory of the kernel's that a call does not name. What
        // calls name are lists and folios, which their owners have frozen.
        unsafe { escrow_hvc(&args, &mut results) };
        results
    }
}

/// A `struct folio`.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct FolioPtr(NonNull<c_void>);

impl References for FolioPtr {
    fn get(&self) {
        // SAFETY: by the contract of this crate the folio is one, and the
        // memory that asks owns a reference to it.
        unsafe { escrow_folio_get(self.0) }
    }

    fn put(&self) {
        // SAFETY: as above; the reference that goes is one that `get`, or the
        // end of a freeze, made.
        unsafe { escrow_folio_put(self.0) }
    }

    fn freeze(&self, at: u32) -> Result<u32, u32> {
        let mut count = 0;
        // SAFETY: as above, and it owns no more than what it asks to freeze.
        let frozen = unsafe { escrow_folio_freeze(self.0, at, &mut count) };
        if frozen { Ok(count) } else { Err(count) }
    }

    fn unfreeze(&self, to: u32) {
        // SAFETY: as above; only a frozen folio gets here.
        unsafe { escrow_folio_unfreeze(self.0, to) }
    }

    fn is_poisoned(&self) -> bool {
        // SAFETY: as above; C's variable is of one byte, and is read and written as a whole.
        unsafe { escrow_may_be_poisoned.load(Ordering::Relaxed) && escrow_folio_is_marked(self.0) }
    }

    fn relax(&self) {
        // SAFETY: it waits for some cycles, and may be called anywhere.
        unsafe { escrow_relax() }
    }
}

/// EL2 has refused a folio that the host wanted to give: a report of ours was wrong.
pub(crate) fn seen_through(index: u64, detail: u64) {
    // SAFETY: it writes to the log, and may be called anywhere.
    unsafe { escrow_seen_through(index, detail) }
}

/// The device tree of a VM is refused, for that reason.
pub(crate) fn tree_refused(vm: u64, why: &str) {
    // SAFETY: it writes so many bytes of the text to the log, and may be called anywhere.
    unsafe { escrow_tree_refused(vm, why.as_ptr(), why.len()) }
}

/// C's `struct escrow_borrower`: who gives EL2 pages for a VM.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct BorrowerPtr(NonNull<c_void>);

impl Donor for BorrowerPtr {
    fn donate(&mut self, pages: u64) -> Result<(), Errno> {
        // SAFETY: by the contract of this crate it is one, and it lives on.
        Errno::from_return(unsafe { escrow_top_up(self.0, pages) })
    }
}

/// A reference to C's `struct escrow_mem`, counted.
#[derive(Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct MemRef(NonNull<c_void>);

impl MemRef {
    /// One more reference to a memory that the caller holds one to.
    pub(crate) fn new(mem: MemPtr) -> Self {
        // SAFETY: by the contract of this crate it is one, held by the caller.
        unsafe { escrow_mem_get(mem.0) };
        MemRef(mem.0)
    }

    pub(crate) fn as_ptr(&self) -> MemPtr {
        MemPtr(self.0)
    }
}

impl Clone for MemRef {
    fn clone(&self) -> Self {
        MemRef::new(self.as_ptr())
    }
}

impl Drop for MemRef {
    fn drop(&mut self) {
        // SAFETY: gives up the reference that this value stands for.
        unsafe { escrow_mem_put(self.0) }
    }
}

/// C's `struct escrow_mem`, borrowed.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct MemPtr(pub(crate) NonNull<c_void>);

/// A reference to a `struct eventfd_ctx`.
#[derive(Debug)]
#[repr(transparent)]
pub(crate) struct EventRef(NonNull<c_void>);

impl EventRef {
    /// Adds one to the counter and wakes who waits for it.
    pub(crate) fn signal(&self) {
        // SAFETY: it is one, and this value holds a reference to it.
        unsafe { escrow_event_signal(self.0) }
    }
}

impl Drop for EventRef {
    fn drop(&mut self) {
        // SAFETY: gives up the reference that this value stands for.
        unsafe { escrow_event_put(self.0) }
    }
}

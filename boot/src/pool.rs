// SPDX-License-Identifier: MIT OR Apache-2.0

//! The boot pool: what Escrow allocates while it boots, and never after.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr;

use buddy_system_allocator::Heap;
use spin::mutex::TicketMutex;

/// The largest block of the pool is 2 to the power of this number less one.
const ORDERS: usize = 32;

struct Pool(TicketMutex<State>);

struct State {
    heap: Heap<ORDERS>,
    closed: bool,
}

#[global_allocator]
static POOL: Pool = Pool(TicketMutex::new(State { heap: Heap::new(), closed: false }));

// SAFETY: the heap hands out blocks of the memory that it was given, each one
// once until it comes back, under a lock.
unsafe impl GlobalAlloc for Pool {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0.lock().heap.alloc(layout).map_or(ptr::null_mut(), |block| block.as_ptr())
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let mut state = self.0.lock();
        if let Some(block) = ptr::NonNull::new(block)
            && !state.closed
        {
            // SAFETY: the caller returns what `alloc` gave it. The pool is not
            // closed, so the heap is the one that it came from.
            unsafe { state.heap.dealloc(block, layout) };
        }
    }
}

/// Bytes of a pool that values of these sizes fit into, in any order: each
/// takes a power of two, and half of the pool may be lost to its neighbours.
pub fn size_for(sizes: impl IntoIterator<Item = usize>) -> u64 {
    let sum: usize = sizes.into_iter().map(usize::next_power_of_two).sum();
    (2 * sum as u64).next_power_of_two()
}

/// Makes memory the pool's.
///
/// # Safety
///
/// The `size` bytes from `start` are mapped to be written, and nobody else's
/// from now on.
pub unsafe fn give(start: ptr::NonNull<u8>, size: u64) {
    // SAFETY: as the caller says.
    unsafe { POOL.0.lock().heap.init(start.as_ptr().expose_provenance(), size as usize) };
}

/// Ends allocation: there is nothing that could fail for lack of memory once
/// the host runs.
pub fn close() {
    let mut state = POOL.0.lock();
    state.closed = true;
    state.heap = Heap::new();
}

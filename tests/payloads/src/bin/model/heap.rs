// SPDX-License-Identifier: MIT OR Apache-2.0

//! A heap for each CPU: the specification needs one, and CPUs that waited for each
//! other's would race less.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr::NonNull;

use buddy_system_allocator::Heap;
use escrow_payloads::cpus;
use spin::mutex::TicketMutex;

/// Bytes of each heap.
const SIZE: usize = 4 << 20;
/// Orders of the buddy system: up to the size of a heap.
const ORDERS: usize = 23;

#[repr(C, align(4096))]
struct Memory(UnsafeCell<[u8; SIZE]>);

// SAFETY: the allocators hand out its pieces, each to one owner.
unsafe impl Sync for Memory {}

#[unsafe(link_section = ".noinit")]
static MEMORY: [Memory; cpus::MAX_CPUS] =
    [const { Memory(UnsafeCell::new([0; SIZE])) }; cpus::MAX_CPUS];

struct Heaps([TicketMutex<Heap<ORDERS>>; cpus::MAX_CPUS]);

#[global_allocator]
static HEAPS: Heaps = Heaps([const { TicketMutex::new(Heap::new()) }; cpus::MAX_CPUS]);

/// Gives the heaps their memory. Once.
pub fn set_up() {
    for (heap, memory) in HEAPS.0.iter().zip(&MEMORY) {
        // SAFETY: the memory is the heap's from here on.
        unsafe { heap.lock().init(memory.0.get() as usize, SIZE) };
    }
}

// SAFETY: each block comes from the allocator of one heap, and goes back there: its
// address says which that is.
unsafe impl GlobalAlloc for Heaps {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let block = self.0[cpus::current()].lock().alloc(layout);
        block.map_or(core::ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let n = (block as usize - &raw const MEMORY as usize) / SIZE;
        if let (Some(heap), Some(block)) = (self.0.get(n), NonNull::new(block)) {
            // SAFETY: the caller says that it is a block of this layout.
            unsafe { heap.lock().dealloc(block, layout) };
        }
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

use core::alloc::{GlobalAlloc, Layout};

use crate::kernel;

/// The kernel's allocator, charged to the task's memory group. Sleeps, so it
/// is for process context only.
struct Kernel;

// SAFETY: `escrow_alloc` answers with `size` bytes that nobody else has, or
// with null; blocks of the kernel's allocator are aligned to their size
// rounded up to a power of two, up to a page, which is asked for here.
unsafe impl GlobalAlloc for Kernel {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // `kmalloc` aligns powers of two to themselves, other sizes to less.
        let size = layout.size().max(layout.align());
        let size = if layout.align() > 8 { size.next_power_of_two() } else { size };
        // SAFETY: any size may be asked for.
        unsafe { kernel::escrow_alloc(size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, _: Layout) {
        // SAFETY: the block came from `escrow_alloc`.
        unsafe { kernel::escrow_free(block) }
    }
}

#[global_allocator]
static ALLOCATOR: Kernel = Kernel;

// SPDX-License-Identifier: MIT OR Apache-2.0

use core::panic::PanicInfo;

use crate::kernel;

/// A panic is a bug of this module: the kernel's own way of dealing with one
/// takes over. `line` is where it happened.
#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let (file, line) = info.location().map_or(("", 0), |at| (at.file(), at.line()));
    // SAFETY: the function takes any bytes and does not return.
    unsafe { kernel::escrow_panic(file.as_ptr(), file.len(), line) }
}

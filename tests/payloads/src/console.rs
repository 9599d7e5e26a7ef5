// SPDX-License-Identifier: MIT OR Apache-2.0

//! The serial port: a PL011 that the boot loader has set up.

use core::fmt;
use core::sync::atomic::{AtomicUsize, Ordering};

/// Data and flag registers, bytes from the base.
const DR: usize = 0x00;
const FR: usize = 0x18;
/// Transmit FIFO full.
const FR_TXFF: u32 = 1 << 5;

static BASE: AtomicUsize = AtomicUsize::new(0);

/// Makes the PL011 at `base` the console.
pub fn set_base(base: usize) {
    BASE.store(base, Ordering::Relaxed);
}

struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let base = BASE.load(Ordering::Relaxed);
        if base == 0 {
            return Ok(());
        }
        for byte in text.bytes() {
            // SAFETY: the device tree says that a PL011's registers are there;
            // writing to its data register sends a byte and does no more.
            unsafe {
                while ((base + FR) as *const u32).read_volatile() & FR_TXFF != 0 {}
                ((base + DR) as *mut u32).write_volatile(byte as u32);
            }
        }
        Ok(())
    }
}

/// For [`println!`](crate::println).
pub fn print(arguments: fmt::Arguments<'_>) {
    // The console never fails; what a `Display` does is its own affair.
    let _ = fmt::Write::write_fmt(&mut Console, arguments);
}

/// Prints a line. For one CPU at a time: lines of several may mix.
#[macro_export]
macro_rules! println {
    ($($argument:tt)*) => {
        $crate::console::print(format_args!("{}\r\n", format_args!($($argument)*)))
    };
}

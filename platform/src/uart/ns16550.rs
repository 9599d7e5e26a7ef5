// SPDX-License-Identifier: MIT OR Apache-2.0

//! 16550 and its likes: `ns16550a`, and Synopsys's `snps,dw-apb-uart`.
//!
//! What makes them different from each other is how their registers lie: at
//! multiples of a power of two, to be accessed by the byte or by the word
//! (`reg-shift` and `reg-io-width` of the device tree).

use core::ptr;

/// Transmitter holding register, written; with DLAB clear, as firmware leaves it.
const DATA: usize = 0;
/// Line status register.
const LINE_STATUS: usize = 5;
/// Line status: the FIFO is empty, so there is room.
const EMPTY: u32 = 1 << 5;
/// Line status: and so is the shift register.
const IDLE: u32 = 1 << 6;

/// How the registers lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spacing {
    shift: u32,
    is_word: bool,
}

impl Spacing {
    /// Registers at multiples of 2 to the power of `shift` bytes, `width` bytes wide.
    /// `None` if there is no such 16550.
    pub fn new(shift: u32, width: u32) -> Option<Spacing> {
        let is_word = match width {
            1 => false,
            4 => true,
            _ => return None,
        };
        // Words lie at multiples of their size; all eight registers in 4 KiB.
        let fits = shift <= 8 && (!is_word || shift >= 2);
        fits.then_some(Spacing { shift, is_word })
    }
}

/// A 16550 that is written to by polling.
pub struct Ns16550 {
    base: *mut u8,
    spacing: Spacing,
}

// SAFETY: a UART may be written to from any CPU; who shares a value among
// several at once has to lock it.
unsafe impl Send for Ns16550 {}

impl Ns16550 {
    /// Takes the UART at an address.
    ///
    /// # Safety
    ///
    /// The 4 KiB at `base` must be mapped as device memory for as long as the
    /// value lives, and answer to reads and writes as a 16550's registers, spaced as
    /// `spacing` says.
    pub unsafe fn new(base: usize, spacing: Spacing) -> Ns16550 {
        Ns16550 { base: ptr::with_exposed_provenance_mut(base), spacing }
    }

    fn register(&self, number: usize) -> *mut u8 {
        self.base.wrapping_add(number << self.spacing.shift)
    }

    fn line_status(&self) -> u32 {
        let at = self.register(LINE_STATUS);
        if self.spacing.is_word {
            // SAFETY: `Spacing` keeps registers aligned and in the 4 KiB that the
            // caller of `new` has mapped.
            unsafe { at.cast::<u32>().read_volatile() }
        } else {
            // SAFETY: as above.
            u32::from(unsafe { at.read_volatile() })
        }
    }

    /// Sends a byte if the FIFO is empty; whether it was.
    pub fn try_send(&self, byte: u8) -> bool {
        if self.line_status() & EMPTY == 0 {
            return false;
        }
        let at = self.register(DATA);
        if self.spacing.is_word {
            // SAFETY: as above.
            unsafe { at.cast::<u32>().write_volatile(u32::from(byte)) };
        } else {
            // SAFETY: as above.
            unsafe { at.write_volatile(byte) };
        }
        true
    }

    /// Whether all that was sent is on the wire.
    pub fn is_idle(&self) -> bool {
        self.line_status() & IDLE != 0
    }
}

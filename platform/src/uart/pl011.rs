// SPDX-License-Identifier: MIT OR Apache-2.0

//! Arm PrimeCell UART, PL011 (Arm DDI0183).

use tock_registers::interfaces::{ReadWriteable, Readable, Writeable};
use tock_registers::registers::{ReadOnly, ReadWrite};
use tock_registers::{register_bitfields, register_structs};

register_bitfields! [u32,
    Flag [
        BUSY OFFSET(3) NUMBITS(1) [],
        TXFF OFFSET(5) NUMBITS(1) []
    ],
    Control [
        UARTEN OFFSET(0) NUMBITS(1) [],
        TXE OFFSET(8) NUMBITS(1) []
    ],
];

register_structs! {
    #[allow(missing_docs)]
    Registers {
        (0x000 => data: ReadWrite<u32>),
        (0x004 => _before_flag),
        (0x018 => flag: ReadOnly<u32, Flag::Register>),
        (0x01c => _before_control),
        (0x030 => control: ReadWrite<u32, Control::Register>),
        (0x034 => _before_identification),
        (0xfe0 => peripheral_id: [ReadOnly<u32>; 4]),
        (0xff0 => cell_id: [ReadOnly<u32>; 4]),
        (0x1000 => @END),
    }
}

/// A PL011 that is written to by polling. Its speed and format are what
/// firmware has set.
pub struct Pl011 {
    registers: &'static Registers,
}

// SAFETY: a UART may be written to from any CPU; who shares a value among
// several at once has to lock it, as the registers' cells are not `Sync`.
unsafe impl Send for Pl011 {}

impl Pl011 {
    /// Takes the UART at an address.
    ///
    /// # Safety
    ///
    /// The 4 KiB at `base` must be mapped as device memory for as long as the
    /// value lives, and answer to reads and writes as a PL011's registers, or
    /// if only [`Self::is_present`] is called, be safe to read.
    pub unsafe fn new(base: usize) -> Pl011 {
        // SAFETY: the caller says that the registers are mapped; they are
        // accessed volatile through cells only, so others may do so as well.
        Pl011 { registers: unsafe { &*core::ptr::with_exposed_provenance(base) } }
    }

    /// Whether the identification registers are those of a PL011.
    pub fn is_present(&self) -> bool {
        let byte = |register: &ReadOnly<u32>| register.get() as u8;
        let cell = self.registers.cell_id.each_ref().map(byte);
        let [part0, part1, ..] = self.registers.peripheral_id.each_ref().map(byte);
        cell == [0x0d, 0xf0, 0x05, 0xb1] && part0 == 0x11 && part1 & 0xf == 0
    }

    /// Switches the transmitter on, if firmware has not.
    pub fn enable(&self) {
        if !self.registers.control.matches_all(Control::UARTEN::SET + Control::TXE::SET) {
            self.registers.control.modify(Control::UARTEN::SET + Control::TXE::SET);
        }
    }

    /// Sends a byte if there is room in the FIFO; whether there was.
    pub fn try_send(&self, byte: u8) -> bool {
        let has_room = !self.registers.flag.is_set(Flag::TXFF);
        if has_room {
            self.registers.data.set(u32::from(byte));
        }
        has_room
    }

    /// Whether all that was sent is on the wire.
    pub fn is_idle(&self) -> bool {
        !self.registers.flag.is_set(Flag::BUSY)
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! A PL011: the serial port of a guest (Arm DDI 0183, r1p5).
//!
//! It is what Linux's `amba-pl011` and `earlycon=pl011` use, and more:
//!
//! | | |
//! | --- | --- |
//! | sending | a character is on the line at once. So the transmit FIFO is always empty, and each character that is sent asserts the transmit interrupt |
//! | receiving | a FIFO of 32 characters, of 1 if LCR_H.FEN is 0. It takes characters off the line while there is room in it, so the line waits for a guest that is slow, and there is no overrun |
//! | receive interrupt | at the level that IFLS says |
//! | receive timeout | as soon as a character has come, so a guest need not wait for the end of 32 bit periods |
//! | break | a character 0 with BE and FE |
//! | loop-back | CR.LBE: what is sent is received, where an overrun can be; modem outputs are inputs |
//! | modem inputs | CTS, DSR and DCD are asserted, RI is not. They do not change, so they interrupt nobody |
//! | DMA, IrDA, tests | their registers keep what is written, without an effect, or read as zero |
//!
//! After reset it is enabled, as a machine's firmware leaves it: a program may use it without
//! having set it up. A character that is sent while CR.UARTEN or CR.TXE is 0 goes out all the same.

use crate::ring::Ring;

/// Bytes of guest addresses that it has.
pub const SIZE: u64 = 0x1000;
/// Characters in the receive FIFO.
const DEPTH: usize = 32;

/// A character that was received, with its errors, as in DR: 12 bits.
pub type Received = u16;
/// A break.
pub const BREAK: Received = DR_BE | DR_FE;

const DR_FE: u16 = 1 << 8;
const DR_BE: u16 = 1 << 10;
const DR_OE: u16 = 1 << 11;

const DR: u32 = 0x00;
const RSR: u32 = 0x04;
const FR: u32 = 0x18;
const ILPR: u32 = 0x20;
const IBRD: u32 = 0x24;
const FBRD: u32 = 0x28;
const LCRH: u32 = 0x2c;
const CR: u32 = 0x30;
const IFLS: u32 = 0x34;
const IMSC: u32 = 0x38;
const RIS: u32 = 0x3c;
const MIS: u32 = 0x40;
const ICR: u32 = 0x44;
const DMACR: u32 = 0x48;
/// UARTPeriphID0 to 3 and UARTPCellID0 to 3.
const ID: u32 = 0xfe0;
const ID_END: u32 = 0x1000;
/// Part 0x011, designer 0x41, revision 3 (r1p5: the one with FIFOs of 32), then PrimeCell's.
const IDS: [u8; 8] = [0x11, 0x10, 0x34, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

const FR_CTS: u32 = 1 << 0;
const FR_DSR: u32 = 1 << 1;
const FR_DCD: u32 = 1 << 2;
const FR_RXFE: u32 = 1 << 4;
const FR_RXFF: u32 = 1 << 6;
const FR_TXFE: u32 = 1 << 7;
const FR_RI: u32 = 1 << 8;

const CR_UARTEN: u32 = 1 << 0;
const CR_LBE: u32 = 1 << 7;
const CR_TXE: u32 = 1 << 8;
const CR_RXE: u32 = 1 << 9;
const CR_DTR: u32 = 1 << 10;
const CR_RTS: u32 = 1 << 11;
const CR_OUT1: u32 = 1 << 12;
const CR_OUT2: u32 = 1 << 13;
/// All fields of CR.
const CR_ALL: u32 = 0xff87;

const LCRH_FEN: u32 = 1 << 4;

/// Bits of RIS, IMSC, MIS and ICR.
const RX: u32 = 1 << 4;
const TX: u32 = 1 << 5;
const RT: u32 = 1 << 6;
const FE: u32 = 1 << 7;
const BE: u32 = 1 << 9;
const OE: u32 = 1 << 10;
const INTERRUPTS: u32 = 0x7ff;

/// The registers, and the receive FIFO.
#[derive(Debug)]
pub struct Pl011 {
    fifo: [Received; DEPTH],
    first: usize,
    count: usize,
    /// Characters were lost since the last one in the FIFO came.
    overrun: bool,
    rsr: u32,
    ilpr: u32,
    ibrd: u32,
    fbrd: u32,
    lcrh: u32,
    cr: u32,
    ifls: u32,
    imsc: u32,
    ris: u32,
    dmacr: u32,
}

/// Whether a read at an offset takes a character out of the FIFO. No other read changes anything.
pub fn read_takes(offset: u32) -> bool {
    offset & !3 == DR
}

impl Default for Pl011 {
    fn default() -> Self {
        Pl011 {
            fifo: [0; DEPTH],
            first: 0,
            count: 0,
            overrun: false,
            rsr: 0,
            ilpr: 0,
            ibrd: 0,
            fbrd: 0,
            lcrh: 0,
            cr: CR_UARTEN | CR_TXE | CR_RXE,
            ifls: 0x12,
            imsc: 0,
            ris: 0,
            dmacr: 0,
        }
    }
}

impl Pl011 {
    /// Whether its interrupt is asserted.
    pub fn interrupt(&self) -> bool {
        self.ris & self.imsc != 0
    }

    /// A read of the guest's: of 1 to 8 bytes, at an offset. It may make room for what is on the
    /// line.
    pub fn read(&mut self, offset: u32, size: u32, line: &mut Ring<Received>) -> u64 {
        let taken = if read_takes(offset) { self.take(line).into() } else { 0 };
        self.part(offset, size, taken)
    }

    /// The same of a register whose read takes nothing.
    #[inline]
    pub fn peek(&self, offset: u32, size: u32) -> u64 {
        // The frequent one: whoever sends looks at the flags, of 9 bits, before each character.
        if offset == FR && size > 1 { self.flags().into() } else { self.part(offset, size, 0) }
    }

    fn part(&self, offset: u32, size: u32, taken: u32) -> u64 {
        let shift = 8 * (offset & 3);
        let value = u64::from(self.register(offset & !3, taken)) >> shift;
        match size {
            0..8 => value & ((1 << (8 * size)) - 1),
            _ => value,
        }
    }

    /// `taken`: what DR reads.
    fn register(&self, register: u32, taken: u32) -> u32 {
        match register {
            DR => taken,
            RSR => self.rsr,
            FR => self.flags(),
            ILPR => self.ilpr,
            IBRD => self.ibrd,
            FBRD => self.fbrd,
            LCRH => self.lcrh,
            CR => self.cr,
            IFLS => self.ifls,
            IMSC => self.imsc,
            RIS => self.ris,
            MIS => self.ris & self.imsc,
            DMACR => self.dmacr,
            ID..ID_END => {
                let id = IDS.get(((register - ID) / 4) as usize);
                id.map_or(0, |&id| id.into())
            }
            _ => 0,
        }
    }

    /// A write of the guest's, at an offset. → a character that it sends
    pub fn write(&mut self, offset: u32, value: u64, line: &mut Ring<Received>) -> Option<u8> {
        // No register has more than 32 bits.
        let value = value as u32;
        match offset {
            DR => return self.send(value as u8),
            // ECR: any value clears the errors.
            RSR => self.rsr = 0,
            ILPR => self.ilpr = value & 0xff,
            IBRD => self.ibrd = value & 0xffff,
            FBRD => self.fbrd = value & 0x3f,
            LCRH => self.lcrh = value & 0xff,
            CR => self.cr = value & CR_ALL,
            IFLS => self.ifls = value & 0x3f,
            IMSC => self.imsc = value & INTERRUPTS,
            ICR => self.ris &= !value,
            DMACR => self.dmacr = value & 7,
            _ => {}
        }
        // The write may have enabled the receiver, or its FIFO: take what waits.
        self.receive(line);
        None
    }

    fn flags(&self) -> u32 {
        let inputs = if self.cr & CR_LBE == 0 {
            FR_CTS | FR_DSR | FR_DCD
        } else {
            let wires = [(CR_RTS, FR_CTS), (CR_DTR, FR_DSR), (CR_OUT1, FR_DCD), (CR_OUT2, FR_RI)];
            wires.iter().filter(|(output, _)| self.cr & output != 0).map(|(_, input)| input).sum()
        };
        let empty = if self.count == 0 { FR_RXFE } else { 0 };
        let full = if self.count >= self.depth() { FR_RXFF } else { 0 };
        inputs | empty | full | FR_TXFE
    }

    fn depth(&self) -> usize {
        if self.lcrh & LCRH_FEN == 0 { 1 } else { DEPTH }
    }

    /// How many characters assert the receive interrupt.
    fn trigger(&self) -> usize {
        if self.lcrh & LCRH_FEN == 0 {
            return 1;
        }
        match self.ifls >> 3 {
            0 => DEPTH / 8,
            1 => DEPTH / 4,
            2 => DEPTH / 2,
            3 => DEPTH * 3 / 4,
            _ => DEPTH * 7 / 8,
        }
    }

    fn is_receiving(&self) -> bool {
        self.cr & (CR_UARTEN | CR_RXE) == CR_UARTEN | CR_RXE
    }

    /// Takes characters off the line.
    pub fn receive(&mut self, line: &mut Ring<Received>) {
        if !self.is_receiving() || self.cr & CR_LBE != 0 {
            return;
        }
        while self.count < self.depth() {
            let Some(character) = line.pop() else { break };
            self.arrive(character);
        }
    }

    /// A character arrives.
    fn arrive(&mut self, character: Received) {
        if self.count >= self.depth() {
            self.overrun = true;
            self.ris |= OE;
            return;
        }
        let lost = if core::mem::take(&mut self.overrun) { DR_OE } else { 0 };
        if let Some(place) = self.fifo.get_mut((self.first + self.count) % DEPTH) {
            *place = character | lost;
        }
        self.count += 1;
        for (error, interrupt) in [(DR_FE, FE), (DR_BE, BE)] {
            if character & error != 0 {
                self.ris |= interrupt;
            }
        }
        self.ris |= RT;
        if self.count >= self.trigger() {
            self.ris |= RX;
        }
    }

    /// The guest takes a character out of the FIFO.
    fn take(&mut self, line: &mut Ring<Received>) -> Received {
        if self.count == 0 {
            return 0;
        }
        let character = self.fifo.get(self.first).copied().unwrap_or(0);
        self.first = (self.first + 1) % DEPTH;
        self.count -= 1;
        // FE, PE, BE and OE, in that order.
        self.rsr = u32::from(character >> 8);
        if self.count < self.trigger() {
            self.ris &= !RX;
        }
        if self.count == 0 {
            self.ris &= !RT;
        }
        self.receive(line);
        character
    }

    fn send(&mut self, character: u8) -> Option<u8> {
        self.ris |= TX;
        if self.cr & CR_LBE == 0 {
            return Some(character);
        }
        if self.is_receiving() {
            self.arrive(character.into());
        }
        None
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::collections::VecDeque;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    /// A port and the line to it.
    struct Port {
        uart: Pl011,
        line: Ring<Received>,
    }

    impl Port {
        fn new() -> Port {
            Port { uart: Pl011::default(), line: Ring::new(4096).unwrap() }
        }

        fn read(&mut self, register: u32) -> u32 {
            self.uart.read(register, 4, &mut self.line) as u32
        }

        fn write(&mut self, register: u32, value: u32) -> Option<u8> {
            self.uart.write(register, value.into(), &mut self.line)
        }

        /// Somebody types.
        fn type_in(&mut self, text: &[u8]) {
            for &character in text {
                assert!(self.line.push(character.into()));
            }
            self.uart.receive(&mut self.line);
        }

        /// `pl011_startup()` and what it calls, in Linux's order (amba-pl011.c).
        fn start_up(&mut self) {
            // pl011_hwinit()
            self.write(ICR, OE | BE | 1 << 8 | FE | RT | RX);
            self.write(IMSC, RT | RX);
            self.write(IMSC, 0);
            // pl011_startup()
            self.write(IFLS, 2 << 3 | 1);
            self.write(LCRH, 0x70);
            self.write(CR, CR_UARTEN | CR_TXE | CR_RXE | CR_RTS | CR_DTR);
            // pl011_enable_interrupts()
            self.write(ICR, RT | RX);
            for _ in 0..2 * 32 {
                if self.read(FR) & FR_RXFE != 0 {
                    break;
                }
                self.read(DR);
            }
            self.write(IMSC, RT | RX);
        }

        /// `pl011_int()`: what was received.
        fn handle(&mut self) -> Vec<u8> {
            let mut text = Vec::new();
            for _ in 0..256 {
                let status = self.read(RIS) & self.read(IMSC);
                if status == 0 {
                    return text;
                }
                self.write(ICR, status & !(TX | RT | RX));
                if status & (RT | RX) != 0 {
                    // pl011_fifo_to_tty()
                    for _ in 0..256 {
                        if self.read(FR) & FR_RXFE != 0 {
                            break;
                        }
                        text.push(self.read(DR) as u8);
                    }
                }
            }
            panic!("the interrupt does not end");
        }
    }

    #[test]
    fn it_is_known_as_a_pl011() {
        let mut port = Port::new();
        let id = (0..4).map(|n| port.read(ID + 4 * n) << (8 * n)).sum::<u32>();
        let cell = (0..4).map(|n| port.read(ID + 0x10 + 4 * n) << (8 * n)).sum::<u32>();
        // amba-pl011.c, `pl011_ids`; amba.h, `AMBA_CID`; revision 3 has FIFOs of 32.
        assert_eq!((id & 0x000f_ffff, cell), (0x0004_1011, 0xb105_f00d));
        assert_eq!(id >> 20 & 0xf, 3);
    }

    #[test]
    fn early_messages_go_out() {
        // pl011_putc(): waits for room, writes, waits until it has gone.
        let mut port = Port::new();
        for &character in b"Booting" {
            assert_eq!(port.read(FR) & 1 << 5, 0, "full");
            assert_eq!(port.write(DR, character.into()), Some(character));
            assert_eq!(port.read(FR) & 1 << 3, 0, "busy");
        }
        assert!(!port.uart.interrupt());
    }

    #[test]
    fn sending_interrupts_who_wants_it() {
        let mut port = Port::new();
        port.start_up();
        port.write(DR, 7);
        assert!(!port.uart.interrupt());
        port.write(IMSC, TX | RT | RX);
        assert!(port.uart.interrupt() && port.read(MIS) == TX);
        port.write(ICR, TX);
        assert!(!port.uart.interrupt());
        port.write(DR, 8);
        assert!(port.uart.interrupt());
    }

    #[test]
    fn what_is_typed_arrives_whole_and_in_order() {
        for count in [1, 2, 15, 16, 17, 31, 32, 33, 64, 65, 1000, 4000] {
            let mut port = Port::new();
            port.start_up();
            let text: Vec<u8> = (0..count).map(|n| n as u8).collect();
            port.type_in(&text);
            assert!(port.uart.interrupt(), "{count} characters");
            assert_eq!(port.handle(), text);
            assert!(!port.uart.interrupt() && port.line.is_empty());
        }
    }

    #[test]
    fn what_was_typed_before_the_driver_does_not_block_it() {
        for count in [1, 32, 33, 64, 65, 96, 97, 98, 200] {
            let mut port = Port::new();
            port.type_in(&std::vec![b'x'; count]);
            port.start_up();
            // The driver discards what its loop reads: 64 characters at most.
            let before = port.handle();
            assert_eq!(before.len(), count.saturating_sub(64));
            port.type_in(b"now");
            assert_eq!(port.handle(), b"now", "after {count}");
        }
    }

    #[test]
    fn interrupts_follow_the_level() {
        for (ifls, trigger) in [(0, 4), (1, 8), (2, 16), (3, 24), (4, 28), (7, 28)] {
            let mut port = Port::new();
            port.write(LCRH, LCRH_FEN);
            port.write(IFLS, ifls << 3);
            port.type_in(&std::vec![1; trigger - 1]);
            assert_eq!(port.read(RIS), RT);
            port.type_in(&[1]);
            assert_eq!(port.read(RIS), RT | RX);
            port.read(DR);
            assert_eq!(port.read(RIS), RT, "below the level");
            while port.read(FR) & FR_RXFE == 0 {
                port.read(DR);
            }
            assert_eq!(port.read(RIS), 0, "empty");
        }
    }

    #[test]
    fn without_fifos_each_character_counts() {
        let mut port = Port::new();
        port.write(IMSC, RX);
        port.type_in(b"abc");
        for character in *b"abc" {
            assert!(port.uart.interrupt());
            assert_eq!(port.read(FR) & (FR_RXFE | FR_RXFF), FR_RXFF);
            assert_eq!(port.read(DR), character.into());
        }
        assert!(!port.uart.interrupt());
        assert_eq!(port.read(FR) & (FR_RXFE | FR_RXFF), FR_RXFE);
        assert_eq!(port.read(DR), 0);
    }

    #[test]
    fn who_is_off_receives_nothing_and_loses_nothing() {
        let mut port = Port::new();
        for off in [0, CR_RXE, CR_UARTEN | CR_TXE] {
            port.write(CR, off);
            port.type_in(b"later");
            assert_eq!((port.read(FR) & FR_RXFE, port.read(RIS)), (FR_RXFE, 0));
            port.write(CR, CR_UARTEN | CR_RXE);
            for character in *b"later" {
                assert_eq!(port.read(DR), character.into());
            }
        }
    }

    #[test]
    fn a_break_is_one() {
        let mut port = Port::new();
        port.start_up();
        assert!(port.line.push(BREAK));
        port.type_in(b"h");
        assert_eq!(port.read(RIS), FE | BE | RT);
        assert_eq!((port.read(DR), port.read(RSR)), (0x500, 0x5));
        assert_eq!((port.read(DR), port.read(RSR)), (b'h'.into(), 0));
        port.write(ICR, FE | BE);
        assert_eq!(port.read(RIS), 0);
    }

    #[test]
    fn what_loops_back_is_received() {
        let mut port = Port::new();
        port.write(CR, CR_UARTEN | CR_TXE | CR_RXE | CR_LBE | CR_DTR | CR_OUT2);
        assert_eq!(port.read(FR) & 0x107, FR_DSR | FR_RI);
        assert_eq!((port.write(DR, 5), port.write(DR, 6)), (None, None));
        assert_eq!(port.read(RIS), TX | RX | RT | OE);
        assert_eq!(port.read(DR), 5);
        port.write(DR, 7);
        assert_eq!((port.read(DR), port.read(RSR)), (0x807, 8));
        port.write(RSR, 0);
        assert_eq!(port.read(RSR), 0);
        // In loop-back mode, what is typed waits.
        port.type_in(b"x");
        assert_eq!(port.read(FR) & FR_RXFE, FR_RXFE);
        port.write(CR, CR_UARTEN | CR_RXE);
        assert_eq!(port.read(DR), b'x'.into());
    }

    #[test]
    fn registers_have_their_widths() {
        let registers = [
            (ILPR, 0xff),
            (IBRD, 0xffff),
            (FBRD, 0x3f),
            (LCRH, 0xff),
            (CR, 0xff87),
            (IFLS, 0x3f),
            (IMSC, 0x7ff),
            (DMACR, 7),
        ];
        let mut port = Port::new();
        for (register, mask) in registers {
            port.write(register, u32::MAX);
            assert_eq!(port.read(register), mask, "{register:#x}");
            port.write(register, 0);
            assert_eq!(port.read(register), 0, "{register:#x}");
        }
        let mut port = Port::new();
        assert_eq!((port.read(CR), port.read(IFLS), port.read(FR)), (0x301, 0x12, 0x97));
        for (size, value) in [(1, 0x12), (2, 0x12), (4, 0x12), (8, 0x12)] {
            assert_eq!(port.uart.read(IFLS, size, &mut port.line), value);
        }
        assert_eq!(port.uart.read(CR + 1, 1, &mut port.line), 3);
        assert_eq!(port.uart.read(CR, 1, &mut port.line), 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// Whatever the guest does: nothing that is typed is lost, doubled or out of order unless
        /// it loops back, and a guest that handles its interrupts gets all of it.
        #[test]
        fn nothing_is_lost(
            steps in prop::collection::vec((0u8..6, 0u32..0x1008, any::<u32>()), 0..120),
        ) {
            let mut port = Port::new();
            let mut typed = VecDeque::new();
            let mut next = 0u8;
            for (step, offset, value) in steps {
                match step {
                    0 => {
                        let text: Vec<u8> = (0..value % 40).map(|n| next + n as u8).collect();
                        next = (next + text.len() as u8) % 128;
                        port.type_in(&text);
                        typed.extend(text);
                    }
                    1 => {
                        let empty = port.read(FR) & FR_RXFE != 0;
                        let character = port.read(DR);
                        if empty {
                            prop_assert_eq!(character, 0);
                        } else {
                            prop_assert_eq!(Some(character), typed.pop_front().map(u32::from));
                        }
                    }
                    2 => prop_assert_eq!(port.write(DR, value), Some(value as u8)),
                    3 => {
                        let register = offset & 0xffc;
                        if register != DR {
                            // Loop-back has its own test.
                            let lbe = if register == CR { CR_LBE } else { 0 };
                            prop_assert_eq!(port.write(register, value & !lbe), None);
                        }
                    }
                    4 => {
                        if offset >= 4 {
                            port.uart.read(offset, 1 << (value & 3), &mut port.line);
                        }
                    }
                    _ => {
                        port.uart.write(offset | 1, value.into(), &mut port.line);
                    }
                }
                prop_assert!(port.uart.count <= DEPTH);
                let ris = port.read(RIS);
                prop_assert_eq!(ris & !INTERRUPTS, 0);
                prop_assert_eq!(port.read(MIS), ris & port.read(IMSC));
                prop_assert_eq!(port.uart.interrupt(), port.read(MIS) != 0);
            }
            // A driver that starts discards no more characters than its loop reads.
            port.start_up();
            let rest: Vec<u8> = typed.into_iter().collect();
            let got = port.handle();
            prop_assert!(rest.ends_with(&got) && rest.len() - got.len() <= 64);
            port.type_in(b"end");
            prop_assert_eq!(port.handle(), b"end");
        }
    }
}

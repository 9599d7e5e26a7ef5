// SPDX-License-Identifier: MIT OR Apache-2.0

//! A guest's console: a [PL011](crate::pl011), and the line between it and a program of the host's.
//!
//! What the guest writes waits for the program, [`OUTPUT`] characters of it. Nobody makes the
//! guest wait for a program: if there is no room, the oldest character is lost, and counted, so the
//! last words of a guest are kept. What the program writes waits for the guest, [`INPUT`]
//! characters of it; none of it is lost, as the program waits for room.

use crate::Errno;
use crate::pl011::{self, Pl011, Received};
use crate::ring::Ring;

/// Characters that wait for the program.
pub const OUTPUT: usize = 1 << 16;
/// Characters that wait for the guest.
pub const INPUT: usize = 1 << 12;

/// What follows from a change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// The interrupt's level has changed to this.
    pub line: Option<bool>,
    /// Readers have to be woken now.
    pub readable: bool,
    /// Readers have to be woken soon, unless the guest writes more before: it writes character by
    /// character.
    pub readable_soon: bool,
    /// Writers have to be woken: there is much room again.
    pub writable: bool,
}

/// Where a program has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The position of the first character.
    pub position: u64,
    /// How many.
    pub count: usize,
}

/// What there is of a console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Characters that wait for the program.
    pub waiting: u64,
    /// Characters of the guest's that were lost.
    pub lost: u64,
    /// Characters that wait for the guest, but for those in its FIFO.
    pub unread: u64,
}

/// A console.
#[derive(Debug)]
pub struct Console {
    uart: Pl011,
    output: Ring<u8>,
    input: Ring<Received>,
    lost: u64,
    /// The interrupt's level that the caller was told last.
    line: bool,
}

impl Console {
    /// A console after reset.
    ///
    /// # Errors
    /// `NoMemory`
    pub fn new() -> Result<Console, Errno> {
        let (output, input) = (Ring::new(OUTPUT)?, Ring::new(INPUT)?);
        Ok(Console { uart: Pl011::default(), output, input, lost: 0, line: false })
    }

    /// The guest reads, at an offset below [`pl011::SIZE`].
    pub fn guest_reads(&mut self, offset: u32, size: u32) -> (u64, Events) {
        // A guest looks at flags far more often than anything comes: no other read changes anything.
        if !pl011::read_takes(offset) {
            return (self.uart.peek(offset, size), Events::default());
        }
        self.guest_takes(offset, size)
    }

    /// A read of DR: apart, as the registers that it needs are no concern of the other reads.
    #[cold]
    #[inline(never)]
    fn guest_takes(&mut self, offset: u32, size: u32) -> (u64, Events) {
        let before = self.input.len();
        let value = self.uart.read(offset, size, &mut self.input);
        (value, self.events(before))
    }

    /// The guest writes.
    pub fn guest_writes(&mut self, offset: u32, value: u64) -> Events {
        let before = self.input.len();
        let sent = self.uart.write(offset, value, &mut self.input);
        let mut events = self.events(before);
        if let Some(character) = sent {
            events.readable_soon = self.output.is_empty();
            if self.output.is_full() {
                self.output.pop();
                self.lost += 1;
            }
            self.output.push(character);
            // Wake readers at the end of a line, and when a line fills a quarter of the ring.
            events.readable = character == b'\n' || self.output.len() == OUTPUT / 4;
        }
        events
    }

    /// The program writes. → how much of it
    pub fn send(&mut self, text: &[u8]) -> (usize, Events) {
        let sent = text.iter().take_while(|&&character| self.input.push(character.into())).count();
        self.uart.receive(&mut self.input);
        (sent, self.events(0))
    }

    /// The program sends a break. false: there is no room.
    pub fn send_break(&mut self) -> (bool, Events) {
        let sent = self.input.push(pl011::BREAK);
        self.uart.receive(&mut self.input);
        (sent, self.events(0))
    }

    /// Whether the program can write.
    pub fn is_writable(&self) -> bool {
        !self.input.is_full()
    }

    /// Whether the program can read.
    pub fn is_readable(&self) -> bool {
        !self.output.is_empty()
    }

    /// The program reads; what it reads stays until it is [taken](Self::take).
    pub fn peek(&mut self, to: &mut [u8]) -> Part {
        let (position, count) = self.output.peek(to);
        Part { position, count }
    }

    /// The program has what is before a position.
    pub fn take(&mut self, position: u64) {
        self.output.skip_to(position);
    }

    /// What there is.
    pub fn counts(&self) -> Counts {
        let (waiting, unread) = (self.output.len() as u64, self.input.len() as u64);
        Counts { waiting, lost: self.lost, unread }
    }

    fn events(&mut self, before: usize) -> Events {
        let level = self.uart.interrupt();
        let line = (level != self.line).then_some(level);
        self.line = level;
        let writable = before > INPUT / 2 && self.input.len() <= INPUT / 2;
        Events { line, writable, ..Events::default() }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    const DR: u32 = 0;
    const FR: u32 = 0x18;
    const LCRH: u32 = 0x2c;
    const IMSC: u32 = 0x38;

    fn say(console: &mut Console, text: &[u8]) -> Vec<Events> {
        text.iter().map(|&character| console.guest_writes(DR, character.into())).collect()
    }

    fn read_all(console: &mut Console) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            let mut text = [0; 100];
            let part = console.peek(&mut text);
            if part.count == 0 {
                return all;
            }
            all.extend(&text[..part.count]);
            console.take(part.position + part.count as u64);
        }
    }

    #[test]
    fn a_line_wakes_who_reads_at_its_end() {
        let mut console = Console::new().unwrap();
        let woken: Vec<_> = say(&mut console, b"ab\nc")
            .iter()
            .map(|events| (events.readable_soon, events.readable))
            .collect();
        assert_eq!(woken, [(true, false), (false, false), (false, true), (false, false)]);
        assert_eq!(read_all(&mut console), b"ab\nc");
        assert!(!console.is_readable());
        assert!(say(&mut console, b"d")[0].readable_soon, "empty again");
    }

    #[test]
    fn the_last_words_are_kept() {
        let mut console = Console::new().unwrap();
        let text: Vec<u8> = (0..OUTPUT + 5).map(|n| (n % 251) as u8).collect();
        say(&mut console, &text);
        let (waiting, lost, unread) = (OUTPUT as u64, 5, 0);
        assert_eq!(console.counts(), Counts { waiting, lost, unread });
        assert_eq!(read_all(&mut console), text[5..]);
    }

    #[test]
    fn what_is_lost_during_a_read_is_not_lost_twice() {
        let mut console = Console::new().unwrap();
        say(&mut console, &vec![1; OUTPUT]);
        let mut text = [0; 4];
        let part = console.peek(&mut text);
        say(&mut console, &[2; 2]);
        // The output has overwritten two of the four characters, so two are taken.
        console.take(part.position + 4);
        assert_eq!(console.counts().waiting, OUTPUT as u64 - 2);
        assert_eq!(console.counts().lost, 2);
    }

    #[test]
    fn who_writes_waits_for_room() {
        let mut console = Console::new().unwrap();
        let text: Vec<u8> = (0..INPUT + 100).map(|n| (n % 251) as u8).collect();
        let (sent, _) = console.send(&text);
        assert_eq!(sent, INPUT);
        // The PL011's holding register has taken one character, so there is room for one more.
        assert_eq!(console.send(&text[sent..]).0, 1);
        assert!(!console.is_writable() && !console.send_break().0);
        assert_eq!(console.send(&text[sent + 1..]).0, 0);
        assert_eq!(console.guest_reads(DR, 4), (0, Events::default()));
        assert!(console.is_writable());
        let woken = (1..INPUT + 1).filter(|_| console.guest_reads(DR, 4).1.writable).count();
        assert_eq!((woken, console.counts().unread), (1, 0), "once, when half of it has gone");
    }

    #[test]
    fn the_interrupt_s_level_is_told_when_it_changes() {
        let mut console = Console::new().unwrap();
        console.guest_writes(LCRH, 0x10);
        assert_eq!(console.send(b"x").1.line, None, "masked");
        assert_eq!(console.guest_writes(IMSC, 0x50).line, Some(true));
        assert_eq!(console.send(b"y").1.line, None, "high already");
        assert_eq!(console.guest_reads(DR, 4), (b'x'.into(), Events::default()));
        assert_eq!(console.guest_reads(DR, 4).1.line, Some(false));
        assert_eq!(console.send(b"z").1.line, Some(true));
        let (sent, events) = console.send_break();
        assert!(sent && events.line.is_none());
        assert_eq!(console.guest_reads(DR, 4).0, b'z'.into());
        assert_eq!(console.guest_reads(DR, 4).0, 0x500);
    }

    #[test]
    fn only_reads_of_dr_change_anything() {
        let mut console = Console::new().unwrap();
        console.guest_writes(IMSC, 0x50);
        assert_eq!(console.send(b"xy").1.line, Some(true));
        let before = std::format!("{console:?}");
        for offset in (4..pl011::SIZE as u32).step_by(4) {
            let (value, events) = console.guest_reads(offset, 4);
            assert_eq!(events, Events::default(), "{offset:#x}");
            assert_eq!(console.uart.read(offset, 4, &mut console.input), value, "{offset:#x}");
        }
        assert_eq!(std::format!("{console:?}"), before);
        // DR is four bytes long: each read of any of them takes a character.
        assert_eq!(console.guest_reads(DR + 3, 1), (0, Events::default()));
        assert_eq!(
            console.guest_reads(DR, 1),
            (b'y'.into(), Events { line: Some(false), ..Events::default() })
        );
    }

    proptest! {
        /// Both ways, in parts of any size: all of it arrives, in order, if it has room; and who
        /// was told all changes of the interrupt's level knows it.
        #[test]
        fn both_ways(
            steps in prop::collection::vec((0u8..4, any::<u8>(), 0usize..300), 0..200),
        ) {
            let mut console = Console::new().unwrap();
            console.guest_writes(LCRH, 0x10);
            let mut level = false;
            let (mut said, mut heard, mut typed, mut got) = (vec![], vec![], vec![], vec![]);
            for (step, value, count) in steps {
                let mut all = Vec::new();
                match step {
                    0 => {
                        let text: Vec<u8> = (0..count).map(|n| value.wrapping_add(n as u8)).collect();
                        all = say(&mut console, &text);
                        said.extend(text);
                    }
                    1 => {
                        let mut text = vec![0; count];
                        let part = console.peek(&mut text);
                        console.take(part.position + part.count as u64);
                        heard.extend(&text[..part.count]);
                    }
                    2 => {
                        let text = vec![value; count];
                        let (sent, events) = console.send(&text);
                        typed.extend(&text[..sent]);
                        all.push(events);
                    }
                    _ => {
                        all.push(console.guest_writes(IMSC, (value & 0x50).into()));
                        for _ in 0..count {
                            if console.guest_reads(FR, 4).0 & 0x10 != 0 {
                                break;
                            }
                            let (character, events) = console.guest_reads(DR, 4);
                            got.push(character as u8);
                            all.push(events);
                        }
                    }
                }
                all.iter().filter_map(|events| events.line).for_each(|line| level = line);
                prop_assert_eq!(level, console.uart.interrupt());
                prop_assert!(said.len() >= heard.len() && typed.len() >= got.len());
            }
            heard.extend(read_all(&mut console));
            prop_assert_eq!(console.counts().lost, 0);
            prop_assert_eq!(heard, said);
            while console.guest_reads(FR, 4).0 & 0x10 == 0 {
                got.push(console.guest_reads(DR, 4).0 as u8);
            }
            prop_assert_eq!(got, typed);
        }
    }
}

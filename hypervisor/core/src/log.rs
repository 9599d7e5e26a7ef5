// SPDX-License-Identifier: MIT OR Apache-2.0

//! Escrow's log: the last lines, in memory of its own, for the host to read.
//!
//! Once the host runs, it owns the serial port: it may stop its clock, or
//! stop its flow. EL2 does not wait for a device of the host, so it writes its lines here,
//! and the host reads them by [`LOG_READ`](escrow_abi::call::LOG_READ).
//!
//! The log is a stream of bytes, and each byte has a position in it, counted from
//! boot on. The newest lines take the place of the oldest, which go as a whole:
//! what is read from the oldest position on begins with a line. Nothing of a guest
//! may be in a line: neither its registers nor its addresses.
//!
//! The lock is held while bytes are copied, at most [`LINE_MAX`] at a time:
//! nothing is formatted under it, and nothing waited for.

use core::fmt::{self, Write};

use escrow_abi::call::LOG_CHUNK;
use spin::mutex::TicketMutex;

/// Bytes of the log that are kept.
pub const LOG_SIZE: usize = 32 << 10;
/// Longest line, its line end included; what is longer is cut.
pub const LINE_MAX: usize = 256;

/// The ring: the last lines that were written.
pub struct LogRing<const SIZE: usize = LOG_SIZE>(TicketMutex<Ring<SIZE>>);

struct Ring<const SIZE: usize> {
    bytes: [u8; SIZE],
    /// Position of the oldest line.
    start: u64,
    /// Position behind the newest line.
    end: u64,
}

impl<const SIZE: usize> LogRing<SIZE> {
    /// An empty log.
    #[expect(clippy::new_without_default, reason = "it is for statics")]
    pub const fn new() -> Self {
        const { assert!(SIZE >= LINE_MAX) };
        LogRing(TicketMutex::new(Ring { bytes: [0; SIZE], start: 0, end: 0 }))
    }

    /// Adds a line.
    pub fn push(&self, line: &Line) {
        self.0.lock().push(line.bytes());
    }

    /// The bytes from a position on, as [`LOG_READ`](escrow_abi::call::LOG_READ)
    /// answers them: the position behind them, then the bytes in three words, with
    /// zeros behind the last one.
    pub fn read(&self, from: u64) -> [u64; 4] {
        self.0.lock().read(from)
    }
}

impl<const SIZE: usize> Ring<SIZE> {
    fn push(&mut self, line: &[u8]) {
        let end = self.end.wrapping_add(line.len() as u64);
        // Remove whole lines. Each is shorter than the ring, so its end is in it.
        while end.wrapping_sub(self.start) > SIZE as u64 {
            let last = self.at(self.start);
            self.start += 1;
            while last != b'\n' && self.start < self.end && self.at(self.start - 1) != b'\n' {
                self.start += 1;
            }
        }
        for (at, &byte) in (self.end..).zip(line) {
            self.bytes[at as usize % SIZE] = byte;
        }
        self.end = end;
    }

    fn at(&self, position: u64) -> u8 {
        self.bytes[position as usize % SIZE]
    }

    fn read(&self, from: u64) -> [u64; 4] {
        let from = from.clamp(self.start, self.end);
        let to = self.end.min(from + LOG_CHUNK as u64);
        let mut chunk = [0; LOG_CHUNK];
        for (byte, at) in chunk.iter_mut().zip(from..to) {
            *byte = self.at(at);
        }
        let word = |n: usize| {
            let bytes = chunk.iter().skip(8 * n).take(8).rev();
            bytes.fold(0, |word, &byte| word << 8 | u64::from(byte))
        };
        [to, word(0), word(1), word(2)]
    }
}

/// A line of the log, as it is put together. Bytes that are no text, and line ends
/// within it, are replaced, so that a line is one line and holds no zeros.
pub struct Line {
    bytes: [u8; LINE_MAX],
    length: usize,
}

impl Line {
    /// The line with this text.
    pub fn new(text: fmt::Arguments<'_>) -> Line {
        let mut line = Line { bytes: [0; LINE_MAX], length: 0 };
        // This fails when the line is full: then the text is cut.
        let _ = line.write_fmt(text);
        line.bytes[line.length] = b'\n';
        line.length += 1;
        line
    }

    /// The bytes, with a line end.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if self.length == LINE_MAX - 1 {
                return Err(fmt::Error);
            }
            let is_text = matches!(byte, b' '..=b'~' | 0x80..);
            self.bytes[self.length] = if is_text { byte } else { b'?' };
            self.length += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

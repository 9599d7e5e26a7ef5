// SPDX-License-Identifier: MIT OR Apache-2.0

//! Bytes on their way to a descriptor that may be slow.

use std::collections::VecDeque;
use std::io::{self, Write};

/// Bytes that wait to be written.
#[derive(Debug, Default)]
pub struct Buffer(VecDeque<u8>);

impl Buffer {
    /// How many bytes wait.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds bytes at the end.
    pub fn push(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }

    /// Adds bytes at the end, and drops as many of the oldest ones as are beyond
    /// `limit`.
    pub fn push_within(&mut self, bytes: &[u8], limit: usize) {
        self.push(bytes);
        let beyond = self.len().saturating_sub(limit);
        self.0.drain(..beyond);
    }

    /// All bytes, in order.
    pub fn contents(&mut self) -> &[u8] {
        self.0.make_contiguous()
    }

    /// Writes `most` bytes, in one call. A writer that would block is not
    /// written to, and that is no error.
    pub fn write_to(&mut self, writer: &mut impl Write, most: usize) -> io::Result<()> {
        let (first, _) = self.0.as_slices();
        if first.is_empty() {
            return Ok(());
        }
        match writer.write(&first[..first.len().min(most)]) {
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                self.0.drain(..written);
                Ok(())
            }
            Err(error) if is_transient(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Whether a call that failed is to be made again, later.
pub fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_leave_in_order() {
        let mut buffer = Buffer::default();
        buffer.push(b"hello");
        let mut out = Vec::new();
        buffer.write_to(&mut out, 2).unwrap();
        buffer.push(b" world");
        assert_eq!((&out[..], buffer.len()), (&b"he"[..], 9));
        while !buffer.is_empty() {
            buffer.write_to(&mut out, 4).unwrap();
        }
        assert_eq!(out, b"hello world");
        buffer.write_to(&mut out, 4).unwrap();
    }

    #[test]
    fn the_oldest_bytes_go_first() {
        let mut buffer = Buffer::default();
        buffer.push_within(b"abcdef", 4);
        assert_eq!(buffer.contents(), b"cdef");
        buffer.push_within(b"gh", 4);
        assert_eq!(buffer.contents(), b"efgh");
    }

    #[test]
    fn a_full_writer_is_no_error_and_a_broken_one_is() {
        struct Fails(io::ErrorKind);
        impl Write for Fails {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(self.0.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut buffer = Buffer::default();
        buffer.push(b"x");
        buffer.write_to(&mut Fails(io::ErrorKind::WouldBlock), 1).unwrap();
        assert!(buffer.write_to(&mut Fails(io::ErrorKind::BrokenPipe), 1).is_err());
        assert_eq!(buffer.len(), 1);
    }
}

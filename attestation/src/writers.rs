// SPDX-License-Identifier: MIT OR Apache-2.0

//! Where encoded bytes go: into a hash, into a count, or into a part of a buffer.

use core::convert::Infallible;

use cbor4ii::core::enc::Write;
use sha2::{Digest, Sha384};

use crate::cbor::{Encoded, Encoder};

/// Counts the bytes.
#[derive(Default)]
struct Count(usize);

impl Write for Count {
    type Error = Infallible;

    fn push(&mut self, bytes: &[u8]) -> Result<(), Infallible> {
        self.0 = self.0.saturating_add(bytes.len());
        Ok(())
    }
}

/// Hashes the bytes.
struct Hash(Sha384);

impl Write for Hash {
    type Error = Infallible;

    fn push(&mut self, bytes: &[u8]) -> Result<(), Infallible> {
        self.0.update(bytes);
        Ok(())
    }
}

/// The bytes from one offset on, as many as there is room for.
pub struct Window<'a> {
    skip: usize,
    out: &'a mut [u8],
    used: usize,
}

impl<'a> Window<'a> {
    /// Puts what comes after the first `skip` bytes into `out`.
    pub const fn new(skip: usize, out: &'a mut [u8]) -> Self {
        Self { skip, out, used: 0 }
    }

    /// How many bytes are in the buffer.
    #[must_use]
    pub const fn used(&self) -> usize {
        self.used
    }
}

impl Write for Window<'_> {
    type Error = Infallible;

    fn push(&mut self, bytes: &[u8]) -> Result<(), Infallible> {
        let skipped = bytes.len().min(self.skip);
        self.skip -= skipped;
        let (bytes, room) = (&bytes[skipped..], &mut self.out[self.used..]);
        let fits = bytes.len().min(room.len());
        room[..fits].copy_from_slice(&bytes[..fits]);
        self.used += fits;
        Ok(())
    }
}

/// Something that has an encoding.
pub(crate) trait Encode {
    fn encode<W: Write<Error = Infallible>>(&self, to: &mut Encoder<W>) -> Encoded;

    /// Bytes of the encoding.
    fn size(&self) -> usize {
        let mut count = Encoder::new(Count::default());
        // What the sinks here return is no error.
        let _ = self.encode(&mut count);
        count.into_writer().0
    }

    /// The encoding's SHA-384.
    fn sha384(&self) -> [u8; 48] {
        let mut hash = Encoder::new(Hash(Sha384::new()));
        let _ = self.encode(&mut hash);
        hash.into_writer().0.finalize().into()
    }
}

/// Writes the head of a byte string, whose contents come next.
pub(crate) fn bytes_head<W: Write<Error = Infallible>>(
    to: &mut Encoder<W>,
    size: usize,
) -> Encoded {
    to.bytes_len(size)?.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Sample;

    impl Encode for Sample {
        fn encode<W: Write<Error = Infallible>>(&self, to: &mut Encoder<W>) -> Encoded {
            to.array(2)?.bytes(b"0123456789")?.item("abc")?.ok()
        }
    }

    #[test]
    fn windows_together_are_the_whole() {
        let mut whole = [0; 64];
        let mut to = Encoder::new(Window::new(0, &mut whole));
        Sample.encode(&mut to).unwrap();
        let size = to.into_writer().used();
        assert_eq!(size, Sample.size());
        for part in 1..=size {
            let mut pieces = [0; 64];
            let mut at = 0;
            while at < size {
                let end = (at + part).min(64);
                let mut to = Encoder::new(Window::new(at, &mut pieces[at..end]));
                Sample.encode(&mut to).unwrap();
                let used = to.into_writer().used();
                assert_eq!(used, part.min(size - at));
                at += used;
            }
            assert_eq!(pieces, whole);
        }
        let hash: [u8; 48] = Sha384::digest(&whole[..size]).into();
        assert_eq!(Sample.sha384(), hash);
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! CBOR (RFC 8949), one item after another. The items are `cbor4ii`'s.
//!
//! What is written has the shortest heads and definite lengths (RFC 8949, 4.2.1). What is read has definite lengths,
//! but for values that are passed over.

use core::convert::Infallible;

use cbor4ii::core::dec::{self, Decode, Read};
use cbor4ii::core::enc::{self, Encode, Write};
use cbor4ii::core::major;
use cbor4ii::core::types::{Array, Bytes, Map, Nothing, Tag};
use cbor4ii::core::utils::SliceReader;

/// What an encoder whose sink cannot fail returns.
pub(crate) type Encoded<T = ()> = Result<T, enc::Error<Infallible>>;

/// Bytes that are none of the items that are asked for.
pub(crate) type Error = dec::Error<Infallible>;

/// Writes items.
pub(crate) struct Encoder<W>(W);

impl<W: Write<Error = Infallible>> Encoder<W> {
    pub const fn new(writer: W) -> Self {
        Self(writer)
    }

    pub const fn writer_mut(&mut self) -> &mut W {
        &mut self.0
    }

    pub fn into_writer(self) -> W {
        self.0
    }

    /// A number or a text, of the type that it has.
    pub fn item(&mut self, item: impl Encode) -> Encoded<&mut Self> {
        item.encode(&mut self.0)?;
        Ok(self)
    }

    pub fn bytes(&mut self, bytes: &[u8]) -> Encoded<&mut Self> {
        self.item(Bytes(bytes))
    }

    /// The head of a byte string.
    pub fn bytes_len(&mut self, size: usize) -> Encoded<&mut Self> {
        Bytes::bounded(size, &mut self.0)?;
        Ok(self)
    }

    /// The head of an array.
    pub fn array(&mut self, items: usize) -> Encoded<&mut Self> {
        Array::bounded(items, &mut self.0)?;
        Ok(self)
    }

    /// The head of a map.
    pub fn map(&mut self, entries: usize) -> Encoded<&mut Self> {
        Map::bounded(entries, &mut self.0)?;
        Ok(self)
    }

    pub fn tag(&mut self, tag: u64) -> Encoded<&mut Self> {
        self.item(Tag(tag, Nothing))
    }

    #[expect(clippy::unnecessary_wraps, reason = "it ends a chain of items")]
    pub const fn ok(&mut self) -> Encoded {
        Ok(())
    }
}

/// Reads items.
pub(crate) struct Decoder<'a>(SliceReader<'a>);

impl<'a> Decoder<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(SliceReader::new(bytes))
    }

    /// A number or a text, of the type that is asked for. `IgnoredAny` is any value; it is no deeper than 256.
    pub fn item<T: Decode<'a>>(&mut self) -> Result<T, Error> {
        T::decode(&mut self.0)
    }

    pub fn bytes(&mut self) -> Result<&'a [u8], Error> {
        self.item().map(|Bytes(bytes)| bytes)
    }

    /// The head of an array: how many items come, `None` if it does not say so.
    pub fn array(&mut self) -> Result<Option<usize>, Error> {
        Array::len(&mut self.0)
    }

    /// The head of a map: how many entries come, `None` if it does not say so.
    pub fn map(&mut self) -> Result<Option<usize>, Error> {
        Map::len(&mut self.0)
    }

    pub fn tag(&mut self) -> Result<u64, Error> {
        Tag::tag(&mut self.0)
    }

    /// Whether a text comes next.
    pub fn is_at_text(&mut self) -> bool {
        self.next().is_some_and(|head| dec::if_major(head) == major::STRING)
    }

    pub fn is_at_end(&mut self) -> bool {
        self.next().is_none()
    }

    fn next(&mut self) -> Option<u8> {
        let Ok(rest) = self.0.fill(1);
        rest.as_ref().first().copied()
    }
}

#[cfg(test)]
mod tests {
    use std::vec;
    use std::vec::Vec;

    use cbor4ii::core::dec::IgnoredAny;

    use super::*;
    use crate::Window;

    fn written(write: impl FnOnce(&mut Encoder<Window<'_>>)) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        let mut to = Encoder::new(Window::new(0, &mut bytes));
        write(&mut to);
        let used = to.into_writer().used();
        bytes.truncate(used);
        bytes
    }

    #[test]
    fn heads_are_the_shortest() {
        let sizes = [(0, 1), (23, 1), (24, 2), (255, 2), (256, 3), (65_535, 3), (65_536, 5)];
        for (n, size) in sizes {
            let number = written(|to| _ = to.item(n).unwrap());
            assert_eq!(number.len(), size, "{n}");
            let mut from = Decoder::new(&number);
            assert_eq!(from.item::<u32>().ok(), Some(n));
            assert!(from.is_at_end());
            let n = n as usize;
            assert_eq!(written(|to| _ = to.bytes_len(n).unwrap()).len(), size, "{n} bytes");
            assert_eq!(written(|to| _ = to.array(n).unwrap()).len(), size, "{n} items");
            assert_eq!(written(|to| _ = to.map(n).unwrap()).len(), size, "{n} entries");
            assert_eq!(written(|to| _ = to.tag(n as u64).unwrap()).len(), size, "tag {n}");
        }
        assert_eq!(written(|to| _ = to.item(-35_i8).unwrap()), [0x38, 34]);
        assert_eq!(written(|to| _ = to.item(-3_i8).unwrap()), [0x22]);
    }

    #[test]
    fn strings_in_pieces_and_deep_values_are_errors() {
        assert!(Decoder::new(&[0x41, 1]).bytes().is_ok());
        assert!(Decoder::new(&[0x5F, 0x41, 1, 0xFF]).bytes().is_err());
        assert!(Decoder::new(&[0x61, b'a']).item::<&str>().is_ok());
        assert!(Decoder::new(&[0x7F, 0x61, b'a', 0xFF]).item::<&str>().is_err());
        assert_eq!(Decoder::new(&[0x9F, 0xFF]).array().ok(), Some(None));
        assert_eq!(Decoder::new(&[0xBF, 0xFF]).map().ok(), Some(None));
        let nested = |levels| [vec![0x81; levels], vec![0]].concat();
        assert!(Decoder::new(&nested(200)).item::<IgnoredAny>().is_ok());
        assert!(Decoder::new(&nested(300)).item::<IgnoredAny>().is_err());
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! The 64 bytes that an arm64 `Image` begins with (Linux,
//! Documentation/arch/arm64/booting.rst, "Call the kernel image").

use super::Error;

/// Bytes of the header.
pub const HEADER_SIZE: usize = 64;
/// `image_size` and all after it are zero in kernels before 3.17, which have to
/// be loaded as this says.
const OLD_TEXT_OFFSET: u64 = 0x8_0000;
/// A kernel is placed so many bytes behind a boundary of this.
pub const ALIGNMENT: u64 = 2 << 20;

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Where the image is placed, in bytes from a boundary of 2 MiB.
    pub text_offset: u64,
    /// Memory that the kernel needs from there on, in bytes: at least the image
    /// itself and what it zeroes at its start. 0 if the kernel does not say.
    pub image_size: u64,
}

impl Header {
    /// The header in `bytes`; `None` if they are none.
    pub fn parse(bytes: &[u8; HEADER_SIZE]) -> Option<Result<Header, Error>> {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        if bytes[56..60] != *b"ARM\x64" {
            return None;
        }
        let (text_offset, image_size, flags) = (word(8), word(16), word(24));
        if flags & 1 != 0 {
            return Some(Err(Error::Header("it is big-endian")));
        }
        // Bits 1 and 2: 0 unspecified, 1 4 KiB, 2 16 KiB, 3 64 KiB. A CPU that
        // lacks a kernel's page size lets the kernel say so itself.
        if text_offset >= ALIGNMENT {
            return Some(Err(Error::Header("its header asks for a place beyond 2 MiB")));
        }
        if image_size > 1 << 32 {
            return Some(Err(Error::Header("its header asks for more than 4 GiB")));
        }
        let text_offset = if image_size == 0 { OLD_TEXT_OFFSET } else { text_offset };
        Some(Ok(Header { text_offset, image_size }))
    }
}

/// Where the last section of a kernel with an EFI stub ends in its file, in bytes, given the
/// file's `head`; `None` if there are no PE headers in there. Signatures may follow
/// (Microsoft, "PE Format"; Linux, arch/arm64/kernel/efi-header.S).
pub fn sections_end(head: &[u8]) -> Option<u64> {
    /// In the header, the offset of the PE headers.
    const PE: usize = 60;
    let word = |at: usize| Some(u32::from_le_bytes(*head.get(at..)?.first_chunk()?));
    let half = |at: usize| Some(u16::from_le_bytes(*head.get(at..)?.first_chunk()?));
    let pe = word(PE)? as usize;
    if word(pe)? != u32::from_le_bytes(*b"PE\0\0") {
        return None;
    }
    let table = pe + 24 + usize::from(half(pe + 20)?);
    let ends = (0..usize::from(half(pe + 6)?)).map(|n| {
        let section = table + 40 * n;
        let (size, start) = (word(section + 16)?, word(section + 20)?);
        Some(u64::from(start) + u64::from(size))
    });
    ends.collect::<Option<Vec<_>>>()?.into_iter().max()
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A kernel's image of `length` bytes.
    pub fn image(text_offset: u64, image_size: u64, length: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..length).map(|at| ((at * at) >> 3) as u8).collect();
        bytes[..HEADER_SIZE].fill(0);
        bytes[8..16].copy_from_slice(&text_offset.to_le_bytes());
        bytes[16..24].copy_from_slice(&image_size.to_le_bytes());
        bytes[24..32].copy_from_slice(&0xa_u64.to_le_bytes());
        bytes[56..60].copy_from_slice(b"ARM\x64");
        bytes
    }

    /// The same with PE headers whose last section ends `behind` bytes after the file.
    pub fn with_sections(mut bytes: Vec<u8>, behind: u32) -> Vec<u8> {
        bytes[60..64].copy_from_slice(&64_u32.to_le_bytes());
        bytes[64..512].fill(0);
        bytes[64..68].copy_from_slice(b"PE\0\0");
        bytes[70] = 2;
        bytes[84] = 0xa0;
        let table = 64 + 24 + 0xa0;
        let end = bytes.len() as u32 + behind;
        for (at, value) in [(16, 0x1000), (20, 0x400), (40 + 16, end - 0x1400), (40 + 20, 0x1400)] {
            bytes[table + at..][..4].copy_from_slice(&u32::to_le_bytes(value));
        }
        bytes
    }

    #[test]
    fn sections_tell_where_a_file_ends() {
        let plain = image(0, 0x20_0000, 0x3000);
        assert_eq!(sections_end(&plain), None);
        let whole = with_sections(plain, 0x123);
        assert_eq!(sections_end(&whole[..0x300]), Some(0x3123));
        // A table that goes beyond what is there tells nothing.
        assert_eq!(sections_end(&whole[..0x110]), None);
        for length in 0..0x100 {
            assert_eq!(sections_end(&whole[..length]), None);
        }
        let mut beyond = whole;
        beyond[60..64].fill(0xff);
        assert_eq!(sections_end(&beyond), None);
    }

    fn parse(image: &[u8]) -> Option<Result<Header, String>> {
        let header = Header::parse(image.first_chunk().unwrap())?;
        Some(header.map_err(|error| error.to_string()))
    }

    #[test]
    fn a_header_is_taken_at_its_word_within_limits() {
        let header = Header { text_offset: 0x1000, image_size: 0x123_0000 };
        assert_eq!(parse(&image(0x1000, 0x123_0000, 64)), Some(Ok(header)));
        let old = Header { text_offset: 0x8_0000, image_size: 0 };
        assert_eq!(parse(&image(0, 0, 64)), Some(Ok(old)));
        assert!(parse(&image(ALIGNMENT, 1, 64)).unwrap().unwrap_err().contains("2 MiB"));
        assert!(parse(&image(0, u64::MAX, 64)).unwrap().unwrap_err().contains("4 GiB"));
        let mut big = image(0, 1, 64);
        big[24] = 1;
        assert!(parse(&big).unwrap().unwrap_err().contains("big-endian"));
        assert_eq!(parse(&[0; 64]), None);
    }
}

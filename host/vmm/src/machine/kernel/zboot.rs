// SPDX-License-Identifier: MIT OR Apache-2.0

//! The head of an EFI zboot executable: where the compressed kernel is, and how
//! it is compressed (Linux, drivers/firmware/efi/libstub/zboot-header.S).

use super::Error;

/// Where the name of the compression is.
const NAME: std::ops::Range<usize> = 24..56;
/// Bytes that tell all about it.
const SIZE: usize = NAME.end;

/// The compressed kernel in an executable.
#[derive(Debug, PartialEq, Eq)]
pub struct Payload {
    /// Where in the file, in bytes.
    pub offset: u64,
    /// Its size in bytes.
    pub size: u64,
    /// The name of the compression.
    pub compression: String,
}

/// What the head of a file says; `None` if it is no zboot executable.
pub fn payload(head: &[u8]) -> Option<Result<Payload, Error>> {
    if head.len() < 8 || !head.starts_with(b"MZ") || head[4..8] != *b"zimg" {
        return None;
    }
    if head.len() < SIZE {
        return Some(Err(Error::Truncated));
    }
    let word = |at: usize| {
        let mut word = [0; 4];
        word.copy_from_slice(&head[at..at + 4]);
        u64::from(u32::from_le_bytes(word))
    };
    let name = head[NAME].split(|&byte| byte == 0).next().unwrap_or_default();
    let compression = name.iter().map(|&byte| byte.escape_ascii().to_string()).collect();
    Some(Ok(Payload { offset: word(8), size: word(12), compression }))
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// An executable with a payload.
    pub fn zboot(compression: &str, payload: &[u8]) -> Vec<u8> {
        let mut file = b"MZ\0\0zimg".to_vec();
        file.extend(0x200_u32.to_le_bytes());
        file.extend((payload.len() as u32).to_le_bytes());
        file.resize(NAME.start, 0);
        file.extend(compression.as_bytes());
        file.resize(0x200, 0);
        file.extend(payload);
        // What follows the payload in the file is none of the kernel's.
        file.extend(b"certificate");
        file
    }

    #[test]
    fn a_head_is_read() {
        let file = zboot("gzip", &[1; 77]);
        let expected = Payload { offset: 0x200, size: 77, compression: "gzip".into() };
        assert_eq!(payload(&file).unwrap().unwrap(), expected);
        assert!(payload(&file[..20]).unwrap().is_err());
        assert!(payload(b"MZ\0\0PE..").is_none());
        assert!(payload(b"MZ").is_none());
    }

    #[test]
    fn a_name_without_an_end_is_as_long_as_its_field() {
        let file = zboot(&"\u{1b}x".repeat(40), &[]);
        assert_eq!(payload(&file).unwrap().unwrap().compression, "\\x1bx".repeat(16));
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

use super::*;

/// An Image of 64 KiB with an EFI header whose last section ends there.
fn image() -> Vec<u8> {
    let mut file = vec![0; 0x10000];
    file[..2].copy_from_slice(b"MZ");
    file[16..24].copy_from_slice(&0x2_0000u64.to_le_bytes());
    file[24] = 0b1010;
    file[56..60].copy_from_slice(b"ARM\x64");
    file[60] = 64;
    file[64..68].copy_from_slice(b"PE\0\0");
    file[70] = 2;
    file[84] = 0xa0;
    let sections = 64 + 24 + 0xa0;
    for (index, (size, at)) in [(0x8000u32, 0x1000u32), (0x7000, 0x9000)].into_iter().enumerate() {
        let section = sections + index * 40;
        file[section + 16..section + 20].copy_from_slice(&size.to_le_bytes());
        file[section + 20..section + 24].copy_from_slice(&at.to_le_bytes());
    }
    file
}

fn parse(file: &[u8]) -> Result<KernelImage, ImageError> {
    KernelImage::parse(file, file.len() as u64)
}

#[test]
fn a_good_image() {
    let expected = KernelImage {
        text_offset: 0,
        memory_size: 0x2_0000,
        page_size: Some(4096),
        anywhere: true,
    };
    assert_eq!(parse(&image()), Ok(expected));
    // One without an EFI header, as U-Boot's own or an unpacked zImage.
    let mut plain = image();
    plain[60] = 0;
    assert_eq!(parse(&plain), Ok(expected));
}

#[test]
fn every_cut_is_noticed() {
    let file = image();
    for size in 0..file.len() {
        let cut = parse(&file[..size]);
        assert!(matches!(cut, Err(ImageError::Truncated(_))), "{size}: {cut:?}");
    }
    assert_eq!(parse(&file[..0xffff]), Err(ImageError::Truncated(0x10000)));
}

#[test]
fn only_the_head_is_needed() {
    let file = image();
    assert!(KernelImage::parse(&file[..0x1000], 0x10000).is_ok());
    let cut = KernelImage::parse(&file[..0x1000], 0xf000);
    assert_eq!(cut, Err(ImageError::Truncated(0x10000)));
}

#[test]
fn other_files_are_named() {
    let foreign = |at: usize, magic: &[u8]| {
        let mut file = vec![0; 4096];
        file[at..at + magic.len()].copy_from_slice(magic);
        match parse(&file) {
            Err(ImageError::Foreign(what)) => what,
            other => panic!("{other:?}"),
        }
    };
    assert!(foreign(0, b"\x1f\x8b\x08").contains("gzip"));
    assert!(foreign(0, b"MZ\0\0zimg").contains("EFI"));
    assert!(foreign(0, b"\x7fELF").contains("ELF"));
    assert!(foreign(0x202, b"HdrS").contains("x86"));
    assert!(foreign(0, b"#!/bin/sh").contains("unknown"));
}

#[test]
fn headers_that_cannot_be() {
    let with = |at: usize, bytes: &[u8]| {
        let mut file = image();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        parse(&file)
    };
    assert_eq!(with(16, &[0; 8]), Err(ImageError::NoSize));
    assert_eq!(with(24, &[0b1011]), Err(ImageError::BigEndian));
    assert_eq!(with(8, &0x20_0000u64.to_le_bytes()), Err(ImageError::BadOffset(0x20_0000)));
    assert_eq!(with(8, &0x8_0001u64.to_le_bytes()), Err(ImageError::BadOffset(0x8_0001)));
    assert_eq!(with(24, &[0b0110]).unwrap().page_size, Some(64 << 10));
    // A file that is longer than it says is not to be cut.
    assert_eq!(with(16, &0x100u64.to_le_bytes()).unwrap().memory_size, 0x10000);
}

proptest::proptest! {
    #[test]
    fn damage_is_survived(
        changes in proptest::collection::vec((0usize..0x400, proptest::num::u8::ANY), 0..8),
        size in 0usize..0x400,
    ) {
        let mut file = image();
        for (at, value) in changes {
            file[at] = value;
        }
        let _ = parse(&file);
        let _ = parse(&file[..size]);
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! Files that people take for an arm64 kernel: what they are.

/// How much of a file tells.
pub const HEAD: usize = 0x300;

/// A file that nothing is known of.
pub const UNKNOWN: &str =
    "not an arm64 Linux kernel; these can be started: Image, Image.gz, vmlinuz (EFI zboot)";

/// A file that ends within what would be the header.
pub const SHORT: &str =
    "not an arm64 Linux kernel: its header alone has 64 bytes. Is the file cut off?";

/// Where in a file which bytes are, and what it is then.
const SORTS: &[(usize, &[u8], &str)] = &[
    (
        0,
        b"\x7fELF",
        "an ELF file, as vmlinux is; the kernel that can be started is arch/arm64/boot/Image of the same build",
    ),
    (0, b"\x27\x05\x19\x56", "a U-Boot image (uImage); give the kernel that it was made of"),
    (0, b"\xd0\x0d\xfe\xed", "a device tree or a FIT image; give the kernel alone"),
    (0, b"ANDROID!", "an Android boot image; give the kernel that is in it"),
    (0, b"070701", "an initramfs (cpio), no kernel: is it meant for --initrd?"),
    (0, b"!<arch>", "an archive, perhaps a Debian package: unpack it first"),
    (0, b"#!", "a script, no kernel"),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd; unpack it with unzstd first"),
    (0, b"\xfd7zXZ\0", "compressed with xz; unpack it with unxz first"),
    (0, b"BZh", "compressed with bzip2; unpack it with bunzip2 first"),
    (0, b"\x02\x21\x4c\x18", "compressed with lz4; unpack it with lz4 first"),
    (0x24, b"\x18\x28\x6f\x01", "a kernel for 32-bit Arm (zImage)"),
    (0x202, b"HdrS", "a kernel for x86 (bzImage)"),
    (0x30, b"RISCV", "a kernel for RISC-V"),
    (0x101, b"ustar", "a tar archive, no kernel"),
    (
        0,
        b"MZ",
        "an EFI executable that is no arm64 kernel (a unified kernel image, a boot loader?)",
    ),
];

/// What a file is that begins with `head`, if that is known.
pub fn name(head: &[u8]) -> Option<&'static str> {
    if head.is_empty() {
        return Some("empty");
    }
    let mut sorts = SORTS.iter();
    let sort = sorts.find(|(at, bytes, _)| head.get(*at..).is_some_and(|h| h.starts_with(bytes)));
    sort.map(|&(_, _, what)| what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sort_is_known_by_its_bytes() {
        for &(at, bytes, what) in SORTS {
            let mut head = vec![0; HEAD];
            head[at..at + bytes.len()].copy_from_slice(bytes);
            assert_eq!(name(&head), Some(what));
            assert_eq!(name(&head[..at + bytes.len() - 1]), None);
            assert!(at + bytes.len() <= HEAD);
        }
        // An x86 kernel with an EFI stub is told by what it is for.
        let mut head = vec![0; HEAD];
        head[..2].copy_from_slice(b"MZ");
        head[0x202..0x206].copy_from_slice(b"HdrS");
        assert!(name(&head).unwrap().contains("x86"));
        assert_eq!(name(&[1, 2, 3]), None);
    }
}

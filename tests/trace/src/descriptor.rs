// SPDX-License-Identifier: MIT OR Apache-2.0

//! Stage-2 descriptors of the 4 KiB granule, as a table walker reads them
//! (DDI 0487, "VMSAv8-64 descriptor formats"). Written from the architecture
//! and not from the hypervisor, which it is to check.

/// Bytes of a page, and of a table.
pub const PAGE_SIZE: u64 = 1 << 12;

const VALID: u64 = 1 << 0;
const TABLE_OR_PAGE: u64 = 1 << 1;
/// S2AP: read and write.
const ACCESS: u64 = 0b11 << 6;
const ACCESS_FLAG: u64 = 1 << 10;
const DIRTY_MODIFIER: u64 = 1 << 51;
/// XN: with FEAT_XNX two bits, without it the upper one alone.
const EXECUTE_NEVER: u64 = 0b11 << 53;
/// Ignored by walkers, for software.
const SOFTWARE: u64 = 0b1111 << 55;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;

/// What a descriptor says to a walker that finds it at a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A fault: never held in a TLB (I_WZCBG).
    Invalid,
    /// The next level's table.
    Table(u64),
    /// A block or page.
    Leaf(u64),
}

/// Bits of address that a descriptor of a level stands for.
pub const fn shift(level: u8) -> u32 {
    39 - 9 * level as u32
}

/// Bytes that a descriptor of a level stands for.
pub const fn size(level: u8) -> u64 {
    1 << shift(level)
}

/// What a descriptor says at a level, 0 to 3.
pub const fn decode(value: u64, level: u8) -> Kind {
    if value & VALID == 0 {
        return Kind::Invalid;
    }
    match (level, value & TABLE_OR_PAGE != 0) {
        (3, true) => Kind::Leaf(value & ADDRESS),
        (0..=2, true) => Kind::Table(value & ADDRESS),
        (1 | 2, false) => Kind::Leaf(value & ADDRESS & !(size(level) - 1)),
        // Reserved encodings are faults. (Blocks at level 0 need FEAT_LPA2.)
        _ => Kind::Invalid,
    }
}

/// Whether two valid block or page descriptors differ in nothing that takes a
/// break-before-make sequence (R_WHZWS): access permissions, execute-never, the
/// access flag, the dirty bit modifier and what is software's.
pub const fn differ_in_permissions_only(a: u64, b: u64) -> bool {
    let exempt = ACCESS | ACCESS_FLAG | DIRTY_MODIFIER | EXECUTE_NEVER | SOFTWARE;
    (a ^ b) & !exempt == 0
}

/// Whether an access that `old` let through may not be let through by `new`,
/// which differs in permissions only.
pub const fn takes_away(old: u64, new: u64) -> bool {
    let taken = old & !new & (ACCESS | ACCESS_FLAG | DIRTY_MODIFIER) != 0;
    let execution = (old ^ new) & EXECUTE_NEVER != 0 && new & EXECUTE_NEVER != 0;
    taken || execution
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_depend_on_the_level() {
        assert_eq!(decode(0x4000_0003, 2), Kind::Table(0x4000_0000));
        assert_eq!(decode(0x4000_0003, 3), Kind::Leaf(0x4000_0000));
        assert_eq!(decode(0x4020_0001, 2), Kind::Leaf(0x4020_0000));
        assert_eq!(decode(0x4000_0001, 0), Kind::Invalid);
        assert_eq!(decode(0x4000_0001, 3), Kind::Invalid);
        assert_eq!(decode(0x4000_0002, 3), Kind::Invalid);
        // Attributes are no address.
        assert_eq!(decode(0xffff_0000_4020_0fff & !2, 2), Kind::Leaf(0x4020_0000));
    }

    #[test]
    fn permissions_are_told_from_the_rest() {
        let page = 0x4000_0000 | 0b1111 << 2 | 0b11 << 6 | 0b11 << 8 | 1 << 10 | 3;
        for exempt in [6, 7, 10, 51, 53, 54, 55, 58] {
            assert!(differ_in_permissions_only(page, page ^ 1 << exempt), "bit {exempt}");
        }
        for other in [2, 5, 8, 9, 11, 12, 16, 47, 52] {
            assert!(!differ_in_permissions_only(page, page ^ 1 << other), "bit {other}");
        }
        let write = 1 << 7;
        assert!(takes_away(page, page & !write) && !takes_away(page & !write, page));
        let never = 1 << 54;
        assert!(takes_away(page, page | never) && !takes_away(page | never, page));
    }
}

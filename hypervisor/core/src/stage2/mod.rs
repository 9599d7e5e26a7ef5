// SPDX-License-Identifier: MIT OR Apache-2.0

//! Stage 2: the translation of a VM's IPAs.
//!
//! The formats follow the Arm Architecture Reference Manual (DDI 0487), D8
//! "The AArch64 Virtual Memory System Architecture", for the 4 KiB granule.

mod descriptor;
mod guest;
mod host;
mod page;
mod pool;

pub use descriptor::{Attributes, Descriptor, DescriptorCell};
pub use guest::{BlockRoom, Found, Frames, GuestMap, Leaf, Room, Span, TableCount, Unmapped};
pub(crate) use host::{HostBlock, HostGib};
pub use host::{HostMap, HostMapError, MmioMap};
pub(crate) use page::PageCell;
pub use page::{BankPage, FreePage, TablePage, TimePage, VcpuPage};
pub use pool::PagePool;

/// The stage-2 features that all CPUs have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage2Features {
    /// Bits of physical address, 32 to 48.
    pub pa_bits: u8,
    /// FEAT_S2FWB: stage 2 can force cacheable accesses.
    pub force_write_back: bool,
    /// FEAT_VMID16.
    pub vmid16: bool,
}

/// The values of `VTTBR_EL2` and `VTCR_EL2` that select a VM's address space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stage2Context {
    /// `VTTBR_EL2`: VMID and root table.
    pub vttbr: u64,
    /// `VTCR_EL2`: size and attributes.
    pub vtcr: u64,
}

/// The shape of a VM's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bits of guest address.
    pub ipa_bits: u8,
    /// Level of the root, 0 to 2.
    pub start_level: u8,
    /// Root tables that stand side by side, a power of two up to 16.
    pub root_tables: u8,
}

/// Bits of address below a descriptor of a level: what one of them maps.
pub const fn level_shift(level: u8) -> u32 {
    39 - 9 * level as u32
}

impl Geometry {
    /// The shape with the fewest levels for `ipa_bits` (32 to 48).
    ///
    /// Up to 16 root tables may be concatenated (DDI 0487, D8.2.2 "Concatenated
    /// translation tables"), so 4 bits more than a table has fit in the root.
    pub const fn new(ipa_bits: u8) -> Geometry {
        let mut start_level = 2;
        while start_level > 0 && ipa_bits as u32 > level_shift(start_level) + 9 + 4 {
            start_level -= 1;
        }
        let in_root = ipa_bits as u32 - level_shift(start_level);
        let root_tables = if in_root > 9 { 1 << (in_root - 9) } else { 1 };
        Geometry { ipa_bits, start_level, root_tables }
    }

    /// The first address beyond the space.
    pub const fn end(&self) -> u64 {
        1 << self.ipa_bits
    }

    /// `VTCR_EL2` for this shape (DDI 0487, D19.2.160): inner-shareable,
    /// write-back table walks, 4 KiB granule.
    pub const fn vtcr(&self, features: &Stage2Features) -> u64 {
        const RES1: u64 = 1 << 31;
        const SHAREABLE_WRITE_BACK: u64 = 0b11 << 12 | 0b01 << 10 | 0b01 << 8;
        let t0sz = 64 - self.ipa_bits as u64;
        let sl0 = 2 - self.start_level as u64;
        let ps = match features.pa_bits {
            0..36 => 0,
            36..40 => 1,
            40..42 => 2,
            42..44 => 3,
            44..48 => 4,
            _ => 5,
        };
        RES1 | (features.vmid16 as u64) << 19 | ps << 16 | SHAREABLE_WRITE_BACK | sl0 << 6 | t0sz
    }
}

#[cfg(test)]
mod map_tests;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn geometries_use_concatenation() {
        let of = |bits| {
            let g = Geometry::new(bits);
            (g.start_level, g.root_tables)
        };
        assert_eq!(of(32), (2, 4));
        assert_eq!(of(34), (2, 16));
        assert_eq!(of(36), (1, 1));
        assert_eq!(of(39), (1, 1));
        assert_eq!(of(40), (1, 2));
        assert_eq!(of(43), (1, 16));
        assert_eq!(of(44), (0, 1));
        assert_eq!(of(48), (0, 1));
    }

    #[test]
    fn vtcr_of_a_40_bit_machine() {
        let features = Stage2Features { pa_bits: 40, force_write_back: false, vmid16: false };
        // T0SZ 24, SL0 1, IRGN0/ORGN0 1, SH0 3, PS 2, RES1.
        assert_eq!(Geometry::new(40).vtcr(&features), 0x8002_3558);
    }
}

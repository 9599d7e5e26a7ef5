// SPDX-License-Identifier: MIT OR Apache-2.0

//! Addresses that carry their space in their type.

use core::fmt;

pub use escrow_abi::{BLOCK_SIZE, PAGE_SIZE};

/// Pages in a block.
pub const PAGES_PER_BLOCK: usize = (BLOCK_SIZE / PAGE_SIZE) as usize;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The address as a number.
            pub const fn get(self) -> u64 {
                self.0
            }

            /// Whether the address is a multiple of `size`, a power of two.
            pub const fn is_aligned(self, size: u64) -> bool {
                self.0 & (size - 1) == 0
            }

            /// The address rounded down to a multiple of `size`, a power of two.
            pub const fn align_down(self, size: u64) -> Self {
                Self(self.0 & !(size - 1))
            }

            /// The address `bytes` further on; wraps, so callers bound it first.
            pub const fn add(self, bytes: u64) -> Self {
                Self(self.0.wrapping_add(bytes))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, ":{:#x}"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address! {
    /// A physical address.
    PhysAddr, "pa"
}
address! {
    /// An intermediate physical address: what a VM takes for a physical one.
    /// The host's are equal to the physical addresses behind them.
    Ipa, "ipa"
}

impl PhysAddr {
    /// The host's name for this address.
    pub const fn identity(self) -> Ipa {
        Ipa(self.0)
    }
}

impl Ipa {
    /// What the host's name stands for.
    pub const fn identity(self) -> PhysAddr {
        PhysAddr(self.0)
    }
}

/// A range of physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhysRange {
    /// First address.
    pub base: PhysAddr,
    /// Bytes.
    pub size: u64,
}

impl PhysRange {
    /// The range of `size` bytes from `base`.
    pub const fn new(base: u64, size: u64) -> Self {
        Self { base: PhysAddr(base), size }
    }

    /// One past the last address, clipped to the end of the space.
    pub const fn end(&self) -> u64 {
        self.base.0.saturating_add(self.size)
    }

    /// Whether `address` lies inside.
    pub const fn contains(&self, address: PhysAddr) -> bool {
        address.0 >= self.base.0 && address.0 - self.base.0 < self.size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_end_where_they_should() {
        let range = PhysRange::new(0x1000, 0x2000);
        assert!(range.contains(PhysAddr(0x1000)) && range.contains(PhysAddr(0x2fff)));
        assert!(!range.contains(PhysAddr(0xfff)) && !range.contains(PhysAddr(0x3000)));
        // A range that would wrap is cut at the end of the address space: it contains nothing
        // below its base.
        let last = PhysRange::new(u64::MAX - 0xfff, 0x2000);
        assert_eq!(last.end(), u64::MAX);
        assert!(!last.contains(PhysAddr(0)));
    }

    #[test]
    fn addresses_are_rounded_and_told_apart() {
        assert_eq!(PhysAddr(0x12345).align_down(PAGE_SIZE), PhysAddr(0x12000));
        assert!(PhysAddr(0x40_0000).is_aligned(BLOCK_SIZE));
        assert!(!PhysAddr(0x40_1000).is_aligned(BLOCK_SIZE));
        assert_eq!(format!("{:?} {:?}", PhysAddr(0x1000), Ipa(0x1000)), "pa:0x1000 ipa:0x1000");
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! The redistributors of a GICv3, GICR: where their registers are (IHI 0069, "GIC redistributor register
//! map").

/// Offset of `GICR_TYPER` in RD_base.
pub const TYPER: u64 = 8;
/// `GICR_TYPER.VLPIS`: there are two more frames, of a GICv4.
pub const TYPER_VLPIS: u64 = 1 << 1;
/// `GICR_TYPER.Last`: no further redistributor follows side by side.
pub const TYPER_LAST: u64 = 1 << 4;
/// Bytes of a redistributor: the frames RD_base and SGI_base.
pub const SIZE: u64 = 0x2_0000;
/// The same of a GICv4.
pub const SIZE_GICV4: u64 = 0x4_0000;
/// Offset of SGI_base.
pub const SGI_BASE: u64 = 0x1_0000;
/// Offset of `GICR_IGROUPR0` in SGI_base.
pub const IGROUPR0: usize = 0x80;
/// Offset of `GICR_ISENABLER0` in SGI_base.
pub const ISENABLER0: usize = 0x100;
/// Offset of `GICR_IPRIORITYR0` in SGI_base: a byte for each private interrupt.
pub const IPRIORITYR0: usize = 0x400;

/// The affinity that a `GICR_TYPER` says.
#[must_use]
pub const fn affinity_of(typer: u64) -> u32 {
    (typer >> 32) as u32
}

/// The affinity of an `MPIDR_EL1`, in the same form: Aff3 to Aff0, a byte each.
#[must_use]
pub const fn affinity(mpidr: u64) -> u32 {
    (mpidr >> 8 & 0xff00_0000 | mpidr & 0xff_ffff) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn affinities_have_one_form() {
        // Bit 31 of MPIDR_EL1 is RES1, bit 30 U, bit 24 MT.
        assert_eq!(affinity(0x12_c134_5678), 0x1234_5678);
        assert_eq!(affinity_of(0x1234_5678_0000_0011), 0x1234_5678);
    }
}

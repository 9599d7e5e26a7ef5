// SPDX-License-Identifier: MIT OR Apache-2.0

//! `ESR_ELx`: exception classes and the fields of their syndromes
//! (DDI 0487, "ESR_EL2").

/// IL: the instruction was 32 bits long.
pub const IL: u64 = 1 << 25;

/// An exception class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ec(u8);

impl Ec {
    /// Unknown reason; at EL1, an undefined instruction.
    pub const UNKNOWN: Ec = Ec(0x00);
    /// WFI, WFE, WFIT or WFET.
    pub const WAIT: Ec = Ec(0x01);
    /// SIMD or floating point (`CPTR_EL2.TFP`).
    pub const FP: Ec = Ec(0x07);
    /// Pointer authentication (`HCR_EL2.API`).
    pub const PAUTH: Ec = Ec(0x09);
    /// `HVC` in AArch64.
    pub const HVC64: Ec = Ec(0x16);
    /// `SMC` in AArch64.
    pub const SMC64: Ec = Ec(0x17);
    /// `MRS`, `MSR` or a system instruction in AArch64.
    pub const SYSTEM: Ec = Ec(0x18);
    /// Instruction abort from a lower exception level.
    pub const INSTRUCTION_ABORT_LOWER: Ec = Ec(0x20);
    /// Instruction abort from the same exception level.
    pub const INSTRUCTION_ABORT_SAME: Ec = Ec(0x21);
    /// Data abort from a lower exception level.
    pub const DATA_ABORT_LOWER: Ec = Ec(0x24);
    /// Data abort from the same exception level.
    pub const DATA_ABORT_SAME: Ec = Ec(0x25);

    /// The class of a syndrome.
    pub const fn of(esr: u64) -> Ec {
        Ec((esr >> 26 & 0x3f) as u8)
    }

    /// The class in its place in a syndrome.
    pub const fn bits(self) -> u64 {
        (self.0 as u64) << 26
    }
}

/// Fields of the syndromes of instruction and data aborts.
pub mod abort {
    /// ISV: SAS, SSE, SRT and SF are valid.
    pub const ISV: u64 = 1 << 24;
    /// SAS: log2 of the bytes accessed.
    pub const SAS_SHIFT: u32 = 22;
    /// SSE: sign-extend what is loaded.
    pub const SSE: u64 = 1 << 21;
    /// SRT: the register loaded or stored.
    pub const SRT_SHIFT: u32 = 16;
    /// SF: the register is 64 bits wide.
    pub const SF: u64 = 1 << 15;
    /// FnV: the FAR is not valid.
    pub const FNV: u64 = 1 << 10;
    /// CM: by a cache maintenance instruction.
    pub const CM: u64 = 1 << 8;
    /// S1PTW: by a stage-1 table walk.
    pub const S1PTW: u64 = 1 << 7;
    /// WnR: by a write.
    pub const WNR: u64 = 1 << 6;
    /// The fault status code.
    pub const STATUS: u64 = 0x3f;

    /// Status: synchronous external abort.
    pub const EXTERNAL: u64 = 0x10;
    /// Status: the same on a table walk, plus the level.
    pub const EXTERNAL_ON_WALK: u64 = 0x14;
    /// Status: alignment fault.
    pub const ALIGNMENT: u64 = 0x21;

    /// What a fault status means to EL2.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Kind {
        /// Nothing is mapped there, or its access flag is clear.
        Translation,
        /// What is mapped there does not allow the access.
        Permission,
        /// Something else.
        Other,
    }

    /// Sorts a syndrome by its fault status. Level -1 (FEAT_LPA2) counts with
    /// the other levels.
    pub const fn kind(esr: u64) -> Kind {
        match esr & STATUS {
            0x04..=0x07 | 0x08..=0x0b | 0x2b => Kind::Translation,
            0x0c..=0x0f => Kind::Permission,
            _ => Kind::Other,
        }
    }
}

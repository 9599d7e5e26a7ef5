// SPDX-License-Identifier: MIT OR Apache-2.0

//! Syndromes of synchronous exceptions to EL2 (DDI 0487, "ESR_EL2"), a type for each
//! exception class that EL2 handles; all others are [`Instruction::Undefined`].
//!
//! Each type holds the whole syndrome and decodes a field when it is read, so an exit decodes
//! only the fields that it needs.

#[cfg(test)]
mod tests;

use crate::addr::Ipa;

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

/// Bits of the syndromes of instruction and data aborts.
pub(crate) mod abort {
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
}

/// A synchronous exception to EL2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syndrome {
    /// WFI, WFE, WFIT or WFET.
    Wait(Wait),
    /// An access to memory, or a fetch.
    Abort(Abort),
    /// Any other instruction.
    Trapped(Trapped),
}

/// An instruction that trapped to EL2, other than one that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trapped(u64);

/// Which instruction trapped to EL2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instruction {
    /// HVC or SMC.
    Call(Call),
    /// A system register or a system instruction.
    System(SystemAccess),
    /// One that uses the vector registers.
    Vectors,
    /// One of pointer authentication, which uses the keys.
    Keys,
    /// Any other: features that are hidden, AArch32, and classes that the architecture does not have yet.
    Undefined,
}

impl Syndrome {
    /// Decodes the class of an `ESR_EL2`.
    #[inline(always)]
    pub const fn of(esr: u64) -> Syndrome {
        match Ec::of(esr) {
            Ec::WAIT => Syndrome::Wait(Wait(esr)),
            Ec::DATA_ABORT_LOWER | Ec::INSTRUCTION_ABORT_LOWER => Syndrome::Abort(Abort(esr)),
            _ => Syndrome::Trapped(Trapped(esr)),
        }
    }
}

/// Registers that are switched to the guest's when it first uses them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lazy {
    /// The vector registers, for this run.
    Vectors,
    /// The keys of pointer authentication, from now on.
    Keys,
}

impl Trapped {
    /// The registers that the instruction uses, if they are switched on first use.
    #[inline]
    pub const fn uses(self) -> Option<Lazy> {
        match self.instruction() {
            Instruction::Vectors => Some(Lazy::Vectors),
            Instruction::Keys => Some(Lazy::Keys),
            Instruction::System(access) if access.is_key() => Some(Lazy::Keys),
            _ => None,
        }
    }

    /// Which it is.
    #[inline(always)]
    pub const fn instruction(self) -> Instruction {
        let Trapped(esr) = self;
        match Ec::of(esr) {
            Ec::HVC64 => Instruction::Call(Call { conduit: Conduit::Hvc, immediate: esr as u16 }),
            Ec::SMC64 => Instruction::Call(Call { conduit: Conduit::Smc, immediate: esr as u16 }),
            Ec::SYSTEM => Instruction::System(SystemAccess(esr)),
            Ec::FP => Instruction::Vectors,
            Ec::PAUTH => Instruction::Keys,
            _ => Instruction::Undefined,
        }
    }
}

/// An instruction that waits ("ISS encoding for an exception from a WF* instruction").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait(u64);

/// The limit of a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// No limit.
    None,
    /// Until the virtual counter has reached the value of this register.
    Register(usize),
    /// There is a limit, but the syndrome does not say in which register.
    Unknown,
}

impl Wait {
    /// WFE or WFET: for an event.
    #[inline]
    pub const fn is_for_event(self) -> bool {
        self.0 & 1 != 0
    }

    /// WFI: for an interrupt, without a limit.
    #[inline]
    pub const fn is_plain(self) -> bool {
        self.0 & 3 == 0
    }

    /// WFIT and WFET have a limit.
    #[inline]
    pub const fn limit(self) -> Limit {
        const TIMED: u64 = 1 << 1;
        const REGISTER_VALID: u64 = 1 << 2;
        if self.0 & TIMED == 0 {
            Limit::None
        } else if self.0 & REGISTER_VALID == 0 {
            Limit::Unknown
        } else {
            Limit::Register(register(self.0, 5))
        }
    }
}

/// How a call is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// HVC: `ELR_EL2` is the address after it.
    Hvc,
    /// SMC, which traps (`HCR_EL2.TSC`): `ELR_EL2` is its own address.
    Smc,
}

/// A call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// How it is made.
    pub conduit: Conduit,
    /// The instruction's immediate.
    pub immediate: u16,
}

/// An `MRS`, `MSR` or system instruction ("ISS encoding for an exception from MSR, MRS,
/// or System instruction execution in AArch64 state").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SystemAccess(u64);

impl SystemAccess {
    /// What it accesses: op0, op1, CRn, CRm and op2.
    #[inline]
    pub const fn encoding(self) -> (u8, u8, u8, u8, u8) {
        const fn field(esr: u64, shift: u32, bits: u32) -> u8 {
            (esr >> shift & ((1 << bits) - 1)) as u8
        }
        let esr = self.0;
        (
            field(esr, 20, 2),
            field(esr, 14, 3),
            field(esr, 10, 4),
            field(esr, 1, 4),
            field(esr, 17, 3),
        )
    }

    /// Whether it is one of the keys of pointer authentication, `APIAKeyLo_EL1` to
    /// `APGAKeyHi_EL1`.
    #[inline]
    pub const fn is_key(self) -> bool {
        matches!(self.encoding(), (3, 0, 2, 1..=3, _))
    }

    /// Whether it reads.
    #[inline]
    pub const fn is_read(self) -> bool {
        self.0 & 1 != 0
    }

    /// The general register that is read into or written from; 31 is XZR.
    #[inline]
    pub const fn register(self) -> usize {
        register(self.0, 5)
    }
}

/// Fault status codes, as EL2 tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is mapped there, or its access flag is clear.
    Translation,
    /// What is mapped there does not allow the access.
    Permission,
    /// A synchronous external abort or a parity or ECC error, also on a table walk.
    External,
    /// Something else: a TLB conflict and the like.
    Other,
}

/// An instruction or data abort of EL1 or EL0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abort(u64);

impl Abort {
    /// `ESR_EL2`.
    #[inline]
    pub const fn esr(self) -> u64 {
        self.0
    }

    /// The kind of fault, at any level, level -1 (FEAT_LPA2) included.
    #[inline]
    pub const fn fault(self) -> Fault {
        match self.0 & abort::STATUS {
            0x04..=0x07 | 0x08..=0x0b | 0x2b => Fault::Translation,
            0x0c..=0x0f => Fault::Permission,
            0x10 | 0x13..=0x17 | 0x18 | 0x1b..=0x1f => Fault::External,
            _ => Fault::Other,
        }
    }

    /// Whether it is an instruction abort.
    #[inline]
    pub const fn is_fetch(self) -> bool {
        matches!(Ec::of(self.0), Ec::INSTRUCTION_ABORT_LOWER)
    }

    /// Whether a stage-1 table walk caused it.
    #[inline]
    pub const fn is_walk(self) -> bool {
        self.0 & abort::S1PTW != 0
    }

    /// Whether a cache maintenance instruction by address caused it. Its syndrome has WnR set.
    #[inline]
    pub const fn is_cache_maintenance(self) -> bool {
        !self.is_fetch() && self.0 & abort::CM != 0
    }

    /// Whether the access was a write, also one of a walk that updates a descriptor.
    #[inline]
    pub const fn is_write(self) -> bool {
        !self.is_fetch() && self.0 & (abort::WNR | abort::CM) == abort::WNR
    }

    /// The load or store of one general register that caused it, if the syndrome describes one
    /// (ISV). Only such an access can be emulated.
    #[inline]
    pub const fn access(self) -> Option<DataAccess> {
        let plain = self.0 & (abort::ISV | abort::S1PTW | abort::CM) == abort::ISV;
        if plain && !self.is_fetch() { Some(DataAccess(self.0)) } else { None }
    }

    /// The IPA of the access. `hpfar` reads `HPFAR_EL2`; `translate` translates `FAR_EL2` by stage 1
    /// and returns `PAR_EL1`. `None` if that translation fails.
    #[inline(always)]
    pub fn ipa(
        self,
        far: u64,
        hpfar: impl FnOnce() -> u64,
        translate: impl FnOnce() -> Option<u64>,
    ) -> Option<Ipa> {
        let page = match self.fault() {
            // HPFAR_EL2 is UNKNOWN here (DDI 0487, "HPFAR_EL2"), but on a walk.
            Fault::Permission if !self.is_walk() => {
                let par = translate().filter(|par| par & 1 == 0)?;
                par & 0x000f_ffff_ffff_f000
            }
            Fault::Translation | Fault::Permission => (hpfar() & 0x0000_0fff_ffff_fff0) << 8,
            Fault::External | Fault::Other => return None,
        };
        Some(Ipa(page | far & 0xfff))
    }
}

/// A load or store of one general register, as a valid syndrome (ISV) describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataAccess(u64);

impl DataAccess {
    /// The abort that it ended in.
    #[inline]
    pub const fn abort(self) -> Abort {
        Abort(self.0)
    }

    /// Bytes: 1, 2, 4 or 8.
    #[inline]
    pub const fn size(self) -> u64 {
        1 << (self.0 >> abort::SAS_SHIFT & 0x3)
    }

    /// The register stored or loaded; 31 is XZR.
    #[inline]
    pub const fn register(self) -> usize {
        register(self.0, abort::SRT_SHIFT)
    }

    /// A store.
    #[inline]
    pub const fn is_write(self) -> bool {
        self.0 & abort::WNR != 0
    }

    /// Bits of a 64-bit register above the size of the access.
    #[inline]
    const fn unused_bits(self) -> u32 {
        64 - 8 * self.size() as u32
    }

    /// The value that a store writes: the register's, truncated to the size of the access.
    #[inline]
    pub const fn stored(self, register: u64, big_endian: bool) -> u64 {
        let value = register << self.unused_bits();
        if big_endian { value.swap_bytes() } else { value >> self.unused_bits() }
    }

    /// The value that a load of `value` writes into its register. Bits of `value` above the size of
    /// the access are ignored.
    #[inline]
    pub const fn loaded(self, value: u64, big_endian: bool) -> u64 {
        let unused = self.unused_bits();
        let value = if big_endian { value.swap_bytes() } else { value << unused };
        let value = if self.0 & abort::SSE != 0 {
            (value as i64 >> unused) as u64
        } else {
            value >> unused
        };
        if self.0 & abort::SF != 0 { value } else { value as u32 as u64 }
    }
}

/// A field with the number of a general register.
const fn register(esr: u64, shift: u32) -> usize {
    (esr >> shift & 0x1f) as usize
}

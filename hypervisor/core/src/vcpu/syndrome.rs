// SPDX-License-Identifier: MIT OR Apache-2.0

//! `ESR_EL2`: why a VM came to EL2 by a synchronous exception, as a type for each class
//! of them (DDI 0487, "ESR_EL2").
//!
//! Each type holds the syndrome and takes a field out of it where it is asked for, so
//! that an exit pays for those alone that it needs. There is a type for every class that
//! EL2 does something about; all others are [`Instruction::Undefined`].

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

/// An instruction that came to EL2, other than one that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trapped(u64);

/// Which instruction came to EL2.
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
    /// What an `ESR_EL2` says.
    #[inline(always)]
    pub const fn of(esr: u64) -> Syndrome {
        match Ec::of(esr) {
            Ec::WAIT => Syndrome::Wait(Wait(esr)),
            Ec::DATA_ABORT_LOWER | Ec::INSTRUCTION_ABORT_LOWER => Syndrome::Abort(Abort(esr)),
            _ => Syndrome::Trapped(Trapped(esr)),
        }
    }
}

/// Registers that a guest gets when it first uses them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lazy {
    /// The vector registers, for this run.
    Vectors,
    /// The keys of pointer authentication, from now on.
    Keys,
}

impl Trapped {
    /// Which registers it uses that the guest may not have been given yet.
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

/// How long an instruction waits at the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// As long as it takes.
    None,
    /// Until the virtual counter has reached what is in this register.
    Register(usize),
    /// There is one, and the CPU does not say which register has it.
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
    /// By HVC: the return address is behind it.
    Hvc,
    /// By SMC, which is trapped (`HCR_EL2.TSC`): the return address is its own.
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

/// What a fault status means to EL2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is mapped there, or its access flag is clear.
    Translation,
    /// What is mapped there does not allow the access.
    Permission,
    /// The memory system's, not translation's: a synchronous external abort or a parity error, also on
    /// a table walk.
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

    /// Why. Level -1 (FEAT_LPA2) counts with the other levels.
    #[inline]
    pub const fn fault(self) -> Fault {
        match self.0 & abort::STATUS {
            0x04..=0x07 | 0x08..=0x0b | 0x2b => Fault::Translation,
            0x0c..=0x0f => Fault::Permission,
            0x10 | 0x13..=0x17 | 0x18 | 0x1b..=0x1f => Fault::External,
            _ => Fault::Other,
        }
    }

    /// Whether it is of a fetch.
    #[inline]
    pub const fn is_fetch(self) -> bool {
        matches!(Ec::of(self.0), Ec::INSTRUCTION_ABORT_LOWER)
    }

    /// Whether it is of a stage-1 table walk.
    #[inline]
    pub const fn is_walk(self) -> bool {
        self.0 & abort::S1PTW != 0
    }

    /// Whether it is of a cache maintenance instruction by address, which says of itself
    /// that it writes.
    #[inline]
    pub const fn is_cache_maintenance(self) -> bool {
        !self.is_fetch() && self.0 & abort::CM != 0
    }

    /// Whether memory was to be written. A walk that updates an entry is a write as well.
    #[inline]
    pub const fn is_write(self) -> bool {
        !self.is_fetch() && self.0 & (abort::WNR | abort::CM) == abort::WNR
    }

    /// The load or store of one general register that it is of, if it is and the CPU describes it
    /// (ISV): what can be emulated.
    #[inline]
    pub const fn access(self) -> Option<DataAccess> {
        let plain = self.0 & (abort::ISV | abort::S1PTW | abort::CM) == abort::ISV;
        if plain && !self.is_fetch() { Some(DataAccess(self.0)) } else { None }
    }

    /// The VM's address, given `FAR_EL2` and ways to read `HPFAR_EL2`, and to have stage 1
    /// translate `FAR_EL2` again: `PAR_EL1` then. `None` if it cannot be found out.
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

    /// Bits of a register that the access leaves out.
    #[inline]
    const fn unused_bits(self) -> u32 {
        64 - 8 * self.size() as u32
    }

    /// What a store of a register writes: the value, without what is beyond
    /// the size of the access.
    #[inline]
    pub const fn stored(self, register: u64, big_endian: bool) -> u64 {
        let value = register << self.unused_bits();
        if big_endian { value.swap_bytes() } else { value >> self.unused_bits() }
    }

    /// What a load of `value` puts into its register. What is beyond the size
    /// of the access does not count.
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

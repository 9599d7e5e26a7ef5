// SPDX-License-Identifier: MIT OR Apache-2.0

//! Observers: the parts of a CPU by which the host can observe the code that runs on it
//! (counters, samples, traces, breakpoints). While a guest runs, none of them acts.
//!
//! This module decides what is stopped, and in which order; `escrow_aarch64` reads and
//! writes the registers.
//!
//! | observer | how it is stopped | how it goes on |
//! | --- | --- | --- |
//! | breakpoints, watchpoints, single steps | `MDSCR_EL1` is 0 | as it was |
//! | the same as halting debug events (`MDSCR_EL1.HDE`) | the OS Lock is locked | as it was |
//! | performance monitors | `PMCR_EL0.E` is 0: no event counter and no cycle counter counts, so none overflows | as it was |
//! | branch records (FEAT_BRBE) | `BRBCR_EL1` is 0 | as it was |
//! | trace (FEAT_TRF) | `TRFCR_EL1` is 0: trace of EL1 and EL0 is prohibited, whatever the trace unit's own filters say | as it was |
//! | samples (FEAT_SPE) | `PMSCR_EL1` is 0 | as it was |
//! | their buffers (FEAT_SPE, FEAT_TRBE) | drained to the host's memory, then off | as they were |

use crate::controls::fields::{
    DFR0_BRBE, DFR0_PMSVER, DFR0_PMUVER, DFR0_TRACEBUFFER, DFR0_TRACEFILT,
};
use crate::controls::{Ids, Other};

/// Which observers a CPU has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observers {
    /// Performance monitors of the architecture.
    pub pmu: bool,
    /// FEAT_SPE, with a buffer that is EL1's and EL2's to use.
    pub spe: bool,
    /// FEAT_TRF.
    pub trf: bool,
    /// FEAT_TRBE, with a buffer that is EL1's and EL2's to use.
    pub trbe: bool,
    /// FEAT_BRBE.
    pub brbe: bool,
}

/// A register that governs an observer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// `MDSCR_EL1`.
    Mdscr,
    /// The OS Lock: 1 locked, 0 not. Read from `OSLSR_EL1`, written to `OSLAR_EL1`.
    OsLock,
    /// `PMCR_EL0`.
    Pmcr,
    /// `BRBCR_EL1`.
    Brbcr,
    /// `TRFCR_EL1`.
    Trfcr,
    /// `TRBLIMITR_EL1`.
    Trblimitr,
    /// `PMSCR_EL1`.
    Pmscr,
    /// `PMBLIMITR_EL1`.
    Pmblimitr,
}

/// The operations of a CPU that this module needs.
pub trait Cpu {
    /// Reads a register.
    fn read(&mut self, register: Register) -> u64;
    /// Writes it.
    fn write(&mut self, register: Register, value: u64);
    /// What was written is in force.
    fn isb(&mut self);
    /// Hands samples on to the memory system (`PSB CSYNC`).
    fn psb_csync(&mut self);
    /// Hands trace on to the memory system (`TSB CSYNC`).
    fn tsb_csync(&mut self);
    /// What was handed on is in memory (`DSB NSH`).
    fn dsb(&mut self);
}

/// What the registers held when the observers were stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stopped {
    mdscr: u64,
    os_lock: u64,
    pmcr: u64,
    brbcr: u64,
    trfcr: u64,
    trblimitr: u64,
    pmscr: u64,
    pmblimitr: u64,
}

/// Clears bits of a register; returns what it held.
fn off(cpu: &mut impl Cpu, register: Register, bits: u64) -> u64 {
    let held = cpu.read(register);
    cpu.write(register, held & !bits);
    held
}

/// `MDSCR_EL1.HDE`: breakpoints halt the CPU, for a debugger outside.
const MDSCR_HDE: u64 = 1 << 14;
/// `PMCR_EL0.E`.
const PMCR_E: u64 = 1 << 0;
/// Bit E of `PMBLIMITR_EL1` and `TRBLIMITR_EL1`.
const LIMIT_E: u64 = 1 << 0;

impl Observers {
    /// `MDSCR_EL1` of a host none of whose observers acts, but which keeps EL0 from the debug
    /// communications channel (`TDCC`), as Linux does all the time. What [`Self::act`] says is
    /// this only then; for a guest it has to be 0 all the same.
    pub const NONE_ACTS: u64 = 1 << 12;

    /// What a CPU has. A buffer whose bit P is set in `PMBIDR_EL1` or `TRBIDR_EL1` is a
    /// higher exception level's, and all registers of it trap there.
    pub fn of(ids: &Ids) -> Observers {
        const P: u64 = 1 << 4;
        let has = |field| ids.has(field, 1);
        Observers {
            pmu: has(&DFR0_PMUVER),
            spe: has(&DFR0_PMSVER) && ids.other(Other::Pmbidr) & P == 0,
            trf: has(&DFR0_TRACEFILT),
            trbe: has(&DFR0_TRACEBUFFER) && ids.other(Other::Trbidr) & P == 0,
            brbe: has(&DFR0_BRBE),
        }
    }

    /// Whether the CPU has observers beside breakpoints and the performance monitors,
    /// which every CPU has.
    pub const fn are_many(&self) -> bool {
        self.spe || self.trf || self.trbe || self.brbe
    }

    /// Whether, of those that every CPU has, any acts: neither 0 nor [`Self::NONE_ACTS`]. `pmcr` is 0 where there is none.
    #[inline(always)]
    pub const fn act(mdscr: u64, pmcr: u64) -> u64 {
        mdscr | pmcr & PMCR_E
    }

    /// Stops them all. EL1's translation must still be the host's, because that is where
    /// the buffers are.
    pub fn stop(&self, cpu: &mut impl Cpu) -> Stopped {
        let mdscr = off(cpu, Register::Mdscr, u64::MAX);
        let mut stopped = Stopped { mdscr, ..Stopped::default() };
        if stopped.mdscr & MDSCR_HDE != 0 {
            // Halting does not ask for MDE. While the OS Lock is locked, breakpoints and
            // watchpoints cause no debug events of any kind (DDI 0487, "The OS Lock").
            stopped.os_lock = cpu.read(Register::OsLock);
            cpu.write(Register::OsLock, 1);
        }
        if self.pmu {
            stopped.pmcr = off(cpu, Register::Pmcr, PMCR_E);
        }
        if self.brbe {
            stopped.brbcr = off(cpu, Register::Brbcr, u64::MAX);
        }
        if self.trf {
            stopped.trfcr = off(cpu, Register::Trfcr, u64::MAX);
        }
        if self.spe {
            stopped.pmscr = off(cpu, Register::Pmscr, u64::MAX);
        }
        if !(self.spe || self.trf || self.trbe) {
            return stopped;
        }
        // The ISB: after it no record is generated. The barriers below wait until the
        // records so far are written; only then may the buffers be disabled (DDI 0487,
        // "Synchronization and Statistical Profiling" and "Trace synchronization and memory
        // barriers").
        cpu.isb();
        if self.spe {
            cpu.psb_csync();
        }
        if self.trf {
            cpu.tsb_csync();
        }
        cpu.dsb();
        if self.spe {
            stopped.pmblimitr = off(cpu, Register::Pmblimitr, LIMIT_E);
        }
        if self.trbe {
            stopped.trblimitr = off(cpu, Register::Trblimitr, LIMIT_E);
        }
        cpu.isb();
        stopped
    }

    /// Has them go on as before. EL1's translation must be the host's again, and in force.
    pub fn start(&self, cpu: &mut impl Cpu, stopped: &Stopped) {
        // Enable the buffers before the units that write to them.
        if self.trbe {
            cpu.write(Register::Trblimitr, stopped.trblimitr);
        }
        if self.spe {
            cpu.write(Register::Pmblimitr, stopped.pmblimitr);
        }
        if self.spe || self.trbe {
            cpu.isb();
        }
        if self.spe {
            cpu.write(Register::Pmscr, stopped.pmscr);
        }
        if self.trf {
            cpu.write(Register::Trfcr, stopped.trfcr);
        }
        if self.brbe {
            cpu.write(Register::Brbcr, stopped.brbcr);
        }
        if self.pmu {
            cpu.write(Register::Pmcr, stopped.pmcr);
        }
        if stopped.mdscr & MDSCR_HDE != 0 {
            // Lock first: some bits of `MDSCR_EL1` can be written only under the OS Lock.
            cpu.write(Register::OsLock, stopped.os_lock);
            cpu.isb();
        }
        cpu.write(Register::Mdscr, stopped.mdscr);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Register::*;

    const ALL: [Register; 8] = [Mdscr, OsLock, Pmcr, Brbcr, Trfcr, Trblimitr, Pmscr, Pmblimitr];

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Step {
        Write(Register, u64),
        Isb,
        Psb,
        Tsb,
        Dsb,
    }

    /// A CPU that notes what is done to it, and has only some of the registers.
    struct Fake {
        has: Observers,
        held: [u64; 8],
        steps: Vec<Step>,
    }

    impl Fake {
        fn new(has: Observers, held: u64) -> Fake {
            let held = ALL.map(|register| if register == OsLock { 0 } else { held });
            Fake { has, held, steps: Vec::new() }
        }

        fn check(&self, register: Register) {
            let there = match register {
                Mdscr | OsLock => true,
                Pmcr => self.has.pmu,
                Brbcr => self.has.brbe,
                Trfcr => self.has.trf,
                Trblimitr => self.has.trbe,
                Pmscr | Pmblimitr => self.has.spe,
            };
            assert!(there, "{register:?} is undefined on {:?}", self.has);
        }

        fn at(&self, step: Step) -> usize {
            let at = self.steps.iter().position(|&s| s == step);
            at.unwrap_or_else(|| panic!("{step:?} is not among {:?}", self.steps))
        }
    }

    impl Cpu for Fake {
        fn read(&mut self, register: Register) -> u64 {
            self.check(register);
            self.held[register as usize]
        }

        fn write(&mut self, register: Register, value: u64) {
            self.check(register);
            self.held[register as usize] = value;
            self.steps.push(Step::Write(register, value));
        }

        fn isb(&mut self) {
            self.steps.push(Step::Isb);
        }

        fn psb_csync(&mut self) {
            assert!(self.has.spe);
            self.steps.push(Step::Psb);
        }

        fn tsb_csync(&mut self) {
            assert!(self.has.trf);
            self.steps.push(Step::Tsb);
        }

        fn dsb(&mut self) {
            self.steps.push(Step::Dsb);
        }
    }

    /// All that a CPU can have. FEAT_TRBE comes with FEAT_TRF.
    fn every() -> impl Iterator<Item = Observers> {
        let all = (0..32).map(|n: u32| Observers {
            pmu: n & 1 != 0,
            spe: n & 2 != 0,
            trf: n & 4 != 0,
            trbe: n & 8 != 0,
            brbe: n & 16 != 0,
        });
        all.filter(|has| has.trf || !has.trbe)
    }

    #[test]
    fn none_acts_once_they_are_stopped() {
        for has in every() {
            let mut cpu = Fake::new(has, u64::MAX);
            let _ = has.stop(&mut cpu);
            let held = |register: Register| cpu.held[register as usize];
            assert_eq!(held(Mdscr), 0);
            assert_eq!(held(OsLock), 1, "HDE was set");
            assert_eq!(held(Pmcr) & 1 != 0, !has.pmu);
            assert_eq!(held(Brbcr) != 0, !has.brbe);
            assert_eq!(held(Trfcr) != 0, !has.trf);
            assert_eq!(held(Pmscr) != 0, !has.spe);
            assert_eq!(held(Pmblimitr) & 1 != 0, !has.spe);
            assert_eq!(held(Trblimitr) & 1 != 0, !has.trbe);
        }
    }

    #[test]
    fn all_go_on_as_they_were() {
        for has in every() {
            for held in [0, u64::MAX, 0x8041, 1 << 14] {
                for lock in [0, 1] {
                    let mut cpu = Fake::new(has, held);
                    cpu.held[OsLock as usize] = lock;
                    let before = cpu.held;
                    let stopped = has.stop(&mut cpu);
                    has.start(&mut cpu, &stopped);
                    assert_eq!(cpu.held, before, "{has:?}");
                }
            }
        }
    }

    #[test]
    fn buffers_are_drained_before_they_go() {
        for has in every().filter(|has| has.spe || has.trf) {
            let mut cpu = Fake::new(has, u64::MAX);
            let stopped = has.stop(&mut cpu);
            let (isb, dsb) = (cpu.at(Step::Isb), cpu.at(Step::Dsb));
            let off = !1;
            if has.spe {
                assert!(cpu.at(Step::Write(Pmscr, 0)) < isb && isb < cpu.at(Step::Psb));
                assert!(cpu.at(Step::Psb) < dsb && dsb < cpu.at(Step::Write(Pmblimitr, off)));
            }
            if has.trf {
                assert!(cpu.at(Step::Write(Trfcr, 0)) < isb && isb < cpu.at(Step::Tsb));
                assert!(cpu.at(Step::Tsb) < dsb);
            }
            if has.trbe {
                assert!(dsb < cpu.at(Step::Write(Trblimitr, off)));
            }
            assert_eq!(cpu.steps.last(), Some(&Step::Isb), "off before translation changes");

            cpu.steps.clear();
            has.start(&mut cpu, &stopped);
            for (buffer, filler, there) in
                [(Pmblimitr, Pmscr, has.spe), (Trblimitr, Trfcr, has.trbe)]
            {
                if there {
                    let [buffer, filler] =
                        [buffer, filler].map(|register| cpu.at(Step::Write(register, u64::MAX)));
                    assert!(buffer < cpu.at(Step::Isb) && cpu.at(Step::Isb) < filler);
                }
            }
        }
    }

    #[test]
    fn the_os_lock_is_for_halting_alone() {
        let has = Observers::default();
        let mut cpu = Fake::new(has, 0x8001);
        let stopped = has.stop(&mut cpu);
        has.start(&mut cpu, &stopped);
        assert_eq!(cpu.steps, [Step::Write(Mdscr, 0), Step::Write(Mdscr, 0x8001)]);
    }

    #[test]
    fn what_a_cpu_has() {
        let has = |dfr0: u64, of_buffers: Option<u64>| {
            let space = |crm, op2| if (crm, op2) == (5, 0) { dfr0 } else { 0 };
            let other = |_| of_buffers.expect("the register does not exist");
            Observers::of(&Ids::new(space, other))
        };
        for version in 0..=0xf_u64 {
            let (pmu, trf, brbe) =
                (has(version << 8, None), has(version << 40, None), has(version << 52, None));
            // 0xf: performance monitors that are not the architecture's.
            let architected = version != 0 && version != 0xf;
            assert_eq!(pmu, Observers { pmu: architected, ..Observers::default() });
            assert_eq!((trf.trf, trf.are_many()), (version != 0, version != 0));
            assert_eq!((brbe.brbe, brbe.are_many()), (version != 0, version != 0));
        }
        for p in [0, 1 << 4] {
            assert_eq!(has(1 << 32, Some(p | 0xf)).spe, p == 0);
            let trace = has(1 << 44 | 1 << 40, Some(p | 0xf));
            assert_eq!((trace.trbe, trace.trf), (p == 0, true));
        }
    }

    #[test]
    fn what_every_cpu_has_acts_or_not() {
        assert_eq!(Observers::act(0, 0x4100_0040), 0);
        assert_ne!(Observers::act(0, 0x4100_0041), 0);
        assert_ne!(Observers::act(1 << 15, 0), 0);
    }
}

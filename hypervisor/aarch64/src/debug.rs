// SPDX-License-Identifier: MIT OR Apache-2.0

//! The host's observers, off while a guest runs: [`escrow_core::observers`] on this CPU.
//!
//! Of this, only the performance monitors and `MDSCR_EL1` have been run: QEMU has no
//! FEAT_SPE, FEAT_TRF, FEAT_TRBE or FEAT_BRBE, and no halting debug.

use core::arch::asm;

use aarch64_cpu::asm::barrier;
use escrow_core::observers::{Cpu, Register};

use crate::sysreg::*;

/// The calling CPU.
pub(crate) struct ThisCpu;

impl Cpu for ThisCpu {
    fn read(&mut self, register: Register) -> u64 {
        match register {
            Register::Mdscr => MDSCR_EL1::read(),
            // OSLK.
            Register::OsLock => OSLSR_EL1::read() >> 1 & 1,
            Register::Pmcr => PMCR_EL0::read(),
            Register::Brbcr => BRBCR_EL1::read(),
            Register::Trfcr => TRFCR_EL1::read(),
            Register::Trblimitr => TRBLIMITR_EL1::read(),
            Register::Pmscr => PMSCR_EL1::read(),
            Register::Pmblimitr => PMBLIMITR_EL1::read(),
        }
    }

    fn write(&mut self, register: Register, value: u64) {
        match register {
            Register::Mdscr => MDSCR_EL1::write(value),
            Register::OsLock => OSLAR_EL1::write(value),
            Register::Pmcr => PMCR_EL0::write(value),
            Register::Brbcr => BRBCR_EL1::write(value),
            Register::Trfcr => TRFCR_EL1::write(value),
            Register::Trblimitr => TRBLIMITR_EL1::write(value),
            Register::Pmscr => PMSCR_EL1::write(value),
            Register::Pmblimitr => PMBLIMITR_EL1::write(value),
        }
    }

    fn isb(&mut self) {
        barrier::isb(barrier::SY);
    }

    fn psb_csync(&mut self) {
        // SAFETY: a hint.
        unsafe { asm!("hint #17", options(nostack, preserves_flags)) };
    }

    fn tsb_csync(&mut self) {
        // Twice: on a Cortex-A710 (erratum 2054223) and a Neoverse N2 (2067961), one alone
        // may not flush the trace.
        // SAFETY: hints.
        unsafe { asm!("hint #18", "hint #18", options(nostack, preserves_flags)) };
    }

    fn dsb(&mut self) {
        barrier::dsb(barrier::NSH);
    }
}

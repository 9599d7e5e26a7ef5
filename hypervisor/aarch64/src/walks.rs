// SPDX-License-Identifier: MIT OR Apache-2.0

//! Table walks of EL1&0, held off while EL1's registers and stage 2 do not belong
//! to the same VM.
//!
//! The architecture has no walks for EL1&0 while a CPU is at EL2, unless EL2 executes
//! an `AT` instruction. CPUs with [`Errata::SPECULATIVE_AT`] may execute one
//! speculatively at any time. It walks with what the registers hold at that moment, and
//! TLBs keep the result under the VMID in `VTTBR_EL2`: a VM's next
//! accesses would go by another VM's tables. So on these CPUs no walk may succeed from before the first of
//! the registers changes until after the last one has.
//!
//! The order is that of Arm's notices and of Linux (`ARM64_WORKAROUND_SPECULATIVE_AT`). Each step is
//! in force (ISB) before the next one:
//!
//! 1. `TCR_EL1.EPD0` and `EPD1` are set. A walk from either base is a Translation fault,
//!    which no TLB holds.
//! 2. `SCTLR_EL1.M` is set. While stage 1 is off there is nothing to walk, and `AT` would fill
//!    TLBs from stage 2 alone.
//! 3. The registers change; their new values have these bits as well.
//! 4. `SCTLR_EL1` gets its own value, and only then
//! 5. `TCR_EL1`: a VM whose stage 1 is off may have anything in its table bases.
//!
//! [`Errata::SPECULATIVE_AT`]: escrow_core::errata::Errata::SPECULATIVE_AT

use aarch64_cpu::asm::barrier;
use escrow_core::vcpu::El1Registers;

use crate::sysreg::{SCTLR_EL1, TCR_EL1};
use crate::trace::{self, Event};

/// `TCR_EL1.EPD0` and `EPD1`.
const TCR_EPD: u64 = 1 << 7 | 1 << 23;
/// `SCTLR_EL1.M`.
const SCTLR_M: u64 = 1 << 0;

/// A VM's own values of the two registers by which its walks are held off.
#[must_use = "the VM does not run without its own values"]
pub(crate) struct Walks {
    tcr: u64,
    sctlr: u64,
}

impl Walks {
    /// Holds off walks, by the registers in the CPU. Returns the values that they had.
    pub fn hold() -> Walks {
        let walks = Walks { tcr: TCR_EL1::read(), sctlr: SCTLR_EL1::read() };
        TCR_EL1::write(walks.tcr | TCR_EPD);
        note_tcr();
        isb();
        SCTLR_EL1::write(walks.sctlr | SCTLR_M);
        note_sctlr();
        isb();
        walks
    }

    /// Changes registers that are about to be loaded, so that they hold off walks.
    pub fn hold_in(registers: &mut El1Registers) -> Walks {
        let walks = Walks { tcr: registers.tcr, sctlr: registers.sctlr };
        registers.tcr |= TCR_EPD;
        registers.sctlr |= SCTLR_M;
        walks
    }

    /// Gives stored registers their own values back.
    pub fn restore_in(&self, registers: &mut El1Registers) {
        registers.tcr = self.tcr;
        registers.sctlr = self.sctlr;
    }

    /// Lets walks happen again, for the VM whose other registers and whose stage 2 have just been
    /// loaded. In force with the next context synchronization event.
    pub fn resume(&self) {
        isb();
        SCTLR_EL1::write(self.sctlr);
        note_sctlr();
        isb();
        TCR_EL1::write(self.tcr);
        note_tcr();
    }
}

/// Tells the trace what a switch has loaded: what the registers hold, not what was
/// meant to be in them.
#[inline(always)]
pub(crate) fn note_loaded() {
    note_tcr();
    note_sctlr();
}

fn isb() {
    barrier::isb(barrier::SY);
    trace::event(|| Event::Isb);
}

#[inline(always)]
fn note_tcr() {
    trace::event(|| Event::Tcr(TCR_EL1::read()));
}

#[inline(always)]
fn note_sctlr() {
    trace::event(|| Event::Sctlr(SCTLR_EL1::read()));
}

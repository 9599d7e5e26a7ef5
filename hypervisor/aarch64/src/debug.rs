// SPDX-License-Identifier: MIT OR Apache-2.0

//! The host's profiling and trace buffers while a guest runs.
//!
//! Both write to memory through EL1's translation, by themselves. They are
//! drained and switched off before that translation becomes a guest's.

use core::arch::asm;

use aarch64_cpu::asm::barrier;

use crate::features::Features;
use crate::sysreg::*;

/// What is needed to switch them on again.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Buffers {
    pmscr: u64,
    pmblimitr: u64,
    trfcr: u64,
    trblimitr: u64,
}

/// Bit E of `PMBLIMITR_EL1` and `TRBLIMITR_EL1`.
const ENABLE: u64 = 1;

/// Switches the buffers off. Their registers still show the host's.
#[cold]
pub(crate) fn stop(features: &Features) -> Buffers {
    let mut buffers = Buffers::default();
    if features.spe != 0 {
        buffers.pmblimitr = PMBLIMITR_EL1::read();
        if buffers.pmblimitr & ENABLE != 0 {
            buffers.pmscr = PMSCR_EL1::read();
            PMSCR_EL1::write(0);
            barrier::isb(barrier::SY);
            // PSB CSYNC, then DSB: samples are in memory (DDI 0487, "Synchronization and Statistical Profiling").
            // SAFETY: a hint.
            unsafe { asm!("hint #17", options(nostack, preserves_flags)) };
            barrier::dsb(barrier::NSH);
            PMBLIMITR_EL1::write(0);
        }
    }
    if features.trbe {
        buffers.trblimitr = TRBLIMITR_EL1::read();
        if buffers.trblimitr & ENABLE != 0 {
            if features.trf {
                buffers.trfcr = TRFCR_EL1::read();
                TRFCR_EL1::write(0);
                barrier::isb(barrier::SY);
            }
            // TSB CSYNC, then DSB: the trace is in memory (DDI 0487, "Trace synchronization").
            // SAFETY: a hint.
            unsafe { asm!("hint #18", options(nostack, preserves_flags)) };
            barrier::dsb(barrier::NSH);
            TRBLIMITR_EL1::write(0);
        }
    }
    barrier::isb(barrier::SY);
    buffers
}

/// Switches them on again as they were.
#[cold]
pub(crate) fn start(features: &Features, buffers: Buffers) {
    if buffers.pmblimitr & ENABLE != 0 {
        PMBLIMITR_EL1::write(buffers.pmblimitr);
        barrier::isb(barrier::SY);
        PMSCR_EL1::write(buffers.pmscr);
    }
    if buffers.trblimitr & ENABLE != 0 {
        TRBLIMITR_EL1::write(buffers.trblimitr);
        barrier::isb(barrier::SY);
        if features.trf {
            TRFCR_EL1::write(buffers.trfcr);
        }
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! The redistributors of the machine's GIC: which CPU has which (IHI 0069, "Redistributor
//! registers").

use core::ptr;

use arrayvec::ArrayVec;
use escrow_platform::board::{Cpu, Gicv3, MAX_CPUS};
use escrow_platform::gicr::{self, SGI_BASE, SIZE, SIZE_GICV4, TYPER, TYPER_LAST, TYPER_VLPIS};
use escrow_platform::range::Range;
use escrow_platform::stage1::{MapError, PAGE, Use};

use crate::mmu::El2Map;

/// The redistributors of the machine's CPUs, mapped at EL2: their frames RD_base and SGI_base.
pub struct Redistributors(ArrayVec<(u64, u64), MAX_CPUS>);

impl Redistributors {
    /// Finds those of CPUs and maps them at EL2.
    ///
    /// # Safety
    ///
    /// The ranges are those of the redistributors.
    pub unsafe fn map(gic: &Gicv3, cpus: &[Cpu], stage1: &mut El2Map) -> Redistributors {
        let mut found = ArrayVec::new();
        for range in &gic.redistributors {
            let mut at = range.start;
            while range.end.saturating_sub(at) >= SIZE {
                // SAFETY: as the caller says.
                let typer = match unsafe { map_page(at, stage1) } {
                    // SAFETY: a register of a redistributor, mapped just now as a device, which has
                    // no side effects.
                    Ok(()) => unsafe { ptr::read_volatile((at + TYPER) as *const u64) },
                    Err(error) => {
                        log::warn!("redistributor at {at:#x}: {error}");
                        break;
                    }
                };
                let affinity = gicr::affinity_of(typer);
                let owner = cpus.iter().find(|cpu| gicr::affinity(cpu.mpidr) == affinity);
                if let Some(cpu) = owner {
                    // SAFETY: as the caller says.
                    match unsafe { map_page(at + SGI_BASE, stage1) } {
                        // As many as CPUs at the most.
                        Ok(()) => drop(found.try_push((cpu.mpidr, at))),
                        Err(error) => log::warn!("redistributor at {at:#x}: {error}"),
                    }
                }
                if typer & TYPER_LAST != 0 {
                    break;
                }
                at += if typer & TYPER_VLPIS != 0 { SIZE_GICV4 } else { SIZE };
            }
        }
        Redistributors(found)
    }

    /// Where that of a CPU is, whose affinity is as in `MPIDR_EL1`.
    pub fn of(&self, mpidr: u64) -> Option<u64> {
        self.0.iter().find(|&&(of, _)| of == mpidr).map(|&(_, at)| at)
    }
}

/// # Safety
///
/// The page is a device's.
unsafe fn map_page(at: u64, stage1: &mut El2Map) -> Result<(), MapError> {
    // SAFETY: as the caller says.
    unsafe { stage1.map(Range::new(at, at + PAGE), Use::Device) }
}

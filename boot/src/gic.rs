// SPDX-License-Identifier: MIT OR Apache-2.0

//! The redistributors of the machine's GIC: which CPU has which (IHI 0069, "Redistributor
//! registers").

use core::ptr;

use arrayvec::ArrayVec;
use escrow_platform::board::{Cpu, Gicv3, MAX_CPUS};
use escrow_platform::range::Range;
use escrow_platform::stage1::{MapError, PAGE, Use};

use crate::mmu::El2Map;

/// Offset of `GICR_TYPER`.
const TYPER: u64 = 8;
/// `GICR_TYPER.VLPIS`: there are two more frames, of a GICv4.
const TYPER_VLPIS: u64 = 1 << 1;
/// `GICR_TYPER.Last`: no further redistributor follows side by side.
const TYPER_LAST: u64 = 1 << 4;
/// Bytes of a redistributor: two frames, or four.
const SIZE: u64 = 0x2_0000;
const SIZE_GICV4: u64 = 0x4_0000;
/// Offset of SGI_base.
const SGI_BASE: u64 = 0x1_0000;

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
                let affinity = typer >> 32;
                let owner = cpus.iter().find(|cpu| packed(cpu.mpidr) == affinity);
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

/// Aff3 to Aff0, a byte each, of an affinity as in `MPIDR_EL1`.
const fn packed(mpidr: u64) -> u64 {
    mpidr >> 8 & 0xff00_0000 | mpidr & 0xff_ffff
}

/// # Safety
///
/// The page is a device's.
unsafe fn map_page(at: u64, stage1: &mut El2Map) -> Result<(), MapError> {
    // SAFETY: as the caller says.
    unsafe { stage1.map(Range::new(at, at + PAGE), Use::Device) }
}

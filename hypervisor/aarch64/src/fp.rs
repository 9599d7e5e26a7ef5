// SPDX-License-Identifier: MIT OR Apache-2.0

//! The lazy switch of floating point, SIMD and the vector extensions: the registers are the host's
//! until a guest uses them in a run, then the guest's until that run ends.
//!
//! A guest has V0 to V31. The host may be using SVE, or be in SME's streaming
//! mode, when its VCPU_RUN comes, so all of the vector registers it can have
//! are saved, at the largest vector length. `ZA` and `ZT0` are out of a guest's
//! reach and stay where they are.
//!
//! So is `FPMR` (`HCRX_EL2.EnFPM`), but it does not stay: each change of PSTATE.SM, in either
//! direction, sets it to 0, with the vector registers and FFR, and gives `FPSR` a value of its own
//! (DDI 0487, the function `ResetSVEState()` of the shared pseudocode, which `MSR SVCR` calls).
//! So it is read before a host leaves streaming mode, and written after the host is in it again.

use core::mem::{MaybeUninit, offset_of};

use aarch64_cpu::asm::barrier;
use escrow_core::controls::registers::cptr;
use escrow_core::vcpu::FpRegisters;

use crate::controls::Controls;
use crate::features::Features;
use crate::sysreg::{CPTR_EL2, FPMR, SVCR};

/// Room for the host's vector registers at 2048 bits, the largest vector
/// length that the architecture has. Registers lie side by side at the length
/// in force.
#[repr(C, align(16))]
pub(crate) struct HostVectors {
    /// V0 to V31, FPSR, FPCR; or Z0 to Z31.
    z: [u8; 32 * 256],
    /// P0 to P15, FFR.
    p: [u8; 17 * 32],
    fpsr: u64,
    fpcr: u64,
}

// What fp.S relies on.
const _: () = assert!(offset_of!(HostVectors, p) == 8192);
const _: () = assert!(offset_of!(HostVectors, fpsr) == 8192 + 544);
const _: () = assert!(offset_of!(FpRegisters, fpsr) == 512);

/// PSTATE.SM as `SVCR` shows it.
const SVCR_SM: u64 = 1 << 0;

unsafe extern "C" {
    fn escrow_fp_save(registers: *mut FpRegisters);
    fn escrow_fp_load(registers: *const FpRegisters);
    fn escrow_sve_save(registers: *mut HostVectors, ffr: bool);
    fn escrow_sve_load(registers: *const HostVectors, ffr: bool);
}

/// Which of the host's vector registers are saved, and have to be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the host's registers are lost unless they are given back"]
pub(crate) enum Aside {
    /// None: they are in the CPU.
    Nothing,
    /// All of them.
    Registers,
    /// All of them, and the host was in streaming mode.
    Streaming {
        /// The host's `FPMR`; 0 without FEAT_FPMR.
        fpmr: u64,
    },
}

/// Saves the host's registers, loads the guest's and ends the trap.
///
/// # Safety
///
/// The registers are the host's.
#[cold]
pub(crate) unsafe fn load_guest(
    features: &Features,
    host: &Controls,
    guest: &Controls,
    room: &mut MaybeUninit<HostVectors>,
    registers: &FpRegisters,
) -> Aside {
    open(host);
    let streaming = features.sme && SVCR::read() & SVCR_SM != 0;
    let fpmr = if streaming && features.fpmr { FPMR::read() } else { 0 };
    // SAFETY: `open` ended all traps. The room is large enough for what each
    // of them writes: `HostVectors` begins with the layout of `FpRegisters`
    // and has room for the longest vectors.
    unsafe {
        if streaming {
            escrow_sve_save(room.as_mut_ptr(), features.sme_fa64);
            // Zeroes the vector registers and FPMR, which are saved, and keeps ZA.
            SVCR::write(SVCR::read() & !SVCR_SM);
        } else if features.sve {
            escrow_sve_save(room.as_mut_ptr(), true);
        } else {
            escrow_fp_save(room.as_mut_ptr().cast());
        }
        escrow_fp_load(registers);
    }
    CPTR_EL2::write(guest.cptr & !cptr::TFP);
    if streaming { Aside::Streaming { fpmr } } else { Aside::Registers }
}

/// Stores the guest's registers, and restores the host's.
///
/// # Safety
///
/// `room` holds what [`load_guest`] put aside.
#[cold]
pub(crate) unsafe fn restore_host(
    features: &Features,
    host: &Controls,
    room: &MaybeUninit<HostVectors>,
    registers: &mut FpRegisters,
    aside: Aside,
) {
    open(host);
    // SAFETY: as in `load_guest`; the loads read what was saved there, at the
    // same vector length.
    unsafe {
        escrow_fp_save(registers);
        if let Aside::Streaming { fpmr } = aside {
            SVCR::write(SVCR::read() | SVCR_SM);
            escrow_sve_load(room.as_ptr(), features.sme_fa64);
            if features.fpmr {
                FPMR::write(fpmr);
            }
        } else if features.sve {
            escrow_sve_load(room.as_ptr(), true);
        } else {
            escrow_fp_load(room.as_ptr().cast());
        }
    }
}

/// Ends all traps of vector instructions, at EL2 too.
fn open(host: &Controls) {
    CPTR_EL2::write(host.cptr);
    barrier::isb(barrier::SY);
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the host answers to an exit, applied to the vCPU.

use escrow_abi::{Error, run};

use super::context::{SCTLR_EE, Vcpu};
use super::exception::Exception;

/// An exit that the host has yet to answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pending {
    /// None: the guest just goes on.
    #[default]
    None,
    /// The access of an MMIO exit.
    Mmio(Mmio),
    /// An abort that only retrying or injecting settles.
    Abort {
        /// Its syndrome.
        esr: u64,
        /// Its guest virtual address.
        far: u64,
        /// Whether `ACTION_EMULATE` counts as `ACTION_RETRY`.
        emulate_retries: bool,
    },
}

/// A decoded access of the guest to an address that is no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mmio {
    /// The abort's syndrome.
    pub esr: u64,
    /// The guest virtual address.
    pub far: u64,
    /// Bytes: 1, 2, 4 or 8.
    pub size: u8,
    /// The register stored or loaded; 31 is XZR.
    pub register: u8,
    /// A store.
    pub write: bool,
    /// A load extends the sign.
    pub sign_extend: bool,
    /// The register is 64 bits wide.
    pub wide: bool,
}

impl Mmio {
    /// `value` without what is beyond the size of the access.
    pub fn truncate(&self, value: u64) -> u64 {
        if self.size >= 8 { value } else { value & ((1 << (8 * self.size)) - 1) }
    }

    /// What a load of `value` puts into its register.
    fn extend(&self, value: u64) -> u64 {
        let unused = 64 - 8 * u32::from(self.size.clamp(1, 8));
        let value = value << unused;
        let value =
            if self.sign_extend { (value as i64 >> unused) as u64 } else { value >> unused };
        if self.wide { value } else { value as u32 as u64 }
    }

    /// Swaps the bytes of a big-endian guest's access.
    pub(super) fn to_endian(self, value: u64, big: bool) -> u64 {
        if big { value.swap_bytes() >> (64 - 8 * u32::from(self.size.clamp(1, 8))) } else { value }
    }
}

impl Vcpu {
    /// Applies the host's resume data (the second to fourth argument of
    /// [`VCPU_RUN`](escrow_abi::call::VCPU_RUN)) to the exit that it answers.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if the data is not 0 where it is reserved, or
    /// the action is none; the exit then stays unanswered.
    pub fn resume(&mut self, data: [u64; 3]) -> Result<(), Error> {
        let [value, action, reserved] = data;
        let pending = self.pending;
        if pending == Pending::None {
            // The usual case; comparing arrays would be a call.
            let empty = value | action | reserved == 0;
            return if empty { Ok(()) } else { Err(Error::InvalidArgument) };
        }
        let takes_value = matches!(pending, Pending::Mmio(Mmio { write: false, .. }))
            && action == run::ACTION_EMULATE;
        if reserved != 0 || (value != 0 && !takes_value) {
            return Err(Error::InvalidArgument);
        }
        match (pending, action) {
            (Pending::Mmio(mmio), run::ACTION_EMULATE) => {
                if !mmio.write {
                    let value = mmio.to_endian(mmio.truncate(value), self.is_big_endian());
                    self.regs.write(mmio.register as usize, mmio.extend(value));
                }
                self.skip_instruction();
            }
            (Pending::Abort { emulate_retries: true, .. }, run::ACTION_EMULATE)
            | (_, run::ACTION_RETRY) => {}
            (
                Pending::Mmio(Mmio { esr, far, .. }) | Pending::Abort { esr, far, .. },
                run::ACTION_FAULT,
            ) => {
                self.inject(Exception::external_abort(esr, far, self.regs.pstate));
            }
            _ => return Err(Error::InvalidArgument),
        }
        self.pending = Pending::None;
        Ok(())
    }

    /// Whether the guest's data accesses are big-endian where it is now.
    pub(super) fn is_big_endian(&self) -> bool {
        // SCTLR_EL1.E0E governs EL0, EE governs EL1; AArch32 has PSTATE.E.
        if self.regs.pstate & 1 << 4 != 0 {
            self.regs.pstate & 1 << 9 != 0
        } else if self.regs.pstate & 0xf == 0 {
            self.el1.sctlr & 1 << 24 != 0
        } else {
            self.el1.sctlr & SCTLR_EE != 0
        }
    }
}

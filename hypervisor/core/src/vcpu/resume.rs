// SPDX-License-Identifier: MIT OR Apache-2.0

//! Applies the host's answer to an exit to the vCPU.

use escrow_abi::{Error, run};

use super::context::{SCTLR_EE, Vcpu};
use super::exception::{Exception, is_aarch32};
use super::interrupts::GicWait;
use super::syndrome::{Abort, DataAccess};

/// An exit that the host has yet to answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pending {
    /// No exit waits for an answer.
    #[default]
    None,
    /// The access of an MMIO exit.
    Mmio {
        /// The access.
        access: DataAccess,
        /// Its guest virtual address.
        far: u64,
    },
    /// An abort that cannot be emulated: the guest retries the access, or takes an external abort.
    Abort {
        /// The abort.
        abort: Abort,
        /// Its guest virtual address.
        far: u64,
        /// Whether `ACTION_EMULATE` counts as `ACTION_RETRY`.
        emulate_retries: bool,
    },
    /// The guest executes the instruction again when the host has mapped what was missing: an access to RAM
    /// of a protected VM, or a call. The host cannot make it fail.
    Again,
    /// An access to the guest's GIC that waits for other vCPUs. The host has nothing to answer.
    Gic(GicWait),
}

impl Vcpu {
    /// Applies the host's resume data (the second to fourth argument of
    /// [`VCPU_RUN`](escrow_abi::call::VCPU_RUN)) to the exit that it answers.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if reserved data is not 0, or the action is not one that this
    /// exit allows; the exit then stays unanswered.
    #[inline(always)]
    pub fn resume(&mut self, data: [u64; 3]) -> Result<(), Error> {
        let [value, action, reserved] = data;
        if self.pending == Pending::None {
            // The usual case; comparing arrays would be a call.
            let empty = value | action | reserved == 0;
            return if empty { Ok(()) } else { Err(Error::InvalidArgument) };
        }
        self.settle_pending(value, action, reserved)
    }

    /// Takes words, not an array: the compiler would write an array to memory on the fast path as well.
    fn settle_pending(&mut self, value: u64, action: u64, reserved: u64) -> Result<(), Error> {
        let pending = self.pending;
        let read = match pending {
            Pending::Mmio { access, .. } if !access.is_write() => Some(access),
            _ => None,
        };
        // Only the answer to a read has a value.
        if let (Some(access), run::ACTION_EMULATE, 0) = (read, action, reserved) {
            let value = access.loaded(value, self.is_big_endian());
            self.regs.write(access.register(), value);
            self.skip_instruction();
            self.pending = Pending::None;
            return Ok(());
        }
        if value | reserved != 0 {
            return Err(Error::InvalidArgument);
        }
        match (pending, action) {
            // The run that begins continues this access (`gic_begins_anew`).
            (Pending::Gic(_), 0) => return Ok(()),
            (Pending::Gic(_), _) => return Err(Error::InvalidArgument),
            (Pending::Mmio { .. }, run::ACTION_EMULATE) => self.skip_instruction(),
            (Pending::Abort { emulate_retries: true, .. }, run::ACTION_EMULATE)
            | (Pending::Again, run::ACTION_EMULATE)
            | (_, run::ACTION_RETRY) => {}
            (Pending::Mmio { access, far }, run::ACTION_FAULT) => {
                self.inject(Exception::external_abort(access.abort(), far, self.regs.pstate));
            }
            (Pending::Abort { abort, far, .. }, run::ACTION_FAULT) => {
                self.inject(Exception::external_abort(abort, far, self.regs.pstate));
            }
            _ => return Err(Error::InvalidArgument),
        }
        self.pending = Pending::None;
        Ok(())
    }

    /// Whether the guest's data accesses are big-endian where it is now.
    #[inline]
    pub(super) fn is_big_endian(&self) -> bool {
        is_big_endian(self.regs.pstate, self.el1.sctlr)
    }
}

/// Whether data accesses are big-endian in a PSTATE, given `SCTLR_EL1`.
#[inline]
pub(crate) const fn is_big_endian(pstate: u64, sctlr: u64) -> bool {
    // SCTLR_EL1.E0E governs EL0, EE governs EL1; AArch32 has PSTATE.E.
    if is_aarch32(pstate) {
        pstate & 1 << 9 != 0
    } else if pstate & 0xf == 0 {
        sctlr & 1 << 24 != 0
    } else {
        sctlr & SCTLR_EE != 0
    }
}

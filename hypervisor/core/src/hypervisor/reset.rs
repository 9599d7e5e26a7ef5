// SPDX-License-Identifier: MIT OR Apache-2.0

//! The end of the machine: a reset keeps what is in DRAM, and whoever boots
//! next reads it.

use core::sync::atomic::Ordering;

use escrow_abi::{Error, FrameState};

use super::Hypervisor;
use crate::addr::{BLOCK_SIZE, PAGE_SIZE, PhysAddr};
use crate::ledger::{Record, VmId};
use crate::machine::Machine;

impl<M: Machine> Hypervisor<M> {
    /// Ends all guests, zeroes all pages that the host has given away, and
    /// allows no new VM until [`Self::reopen`].
    ///
    /// # Errors
    /// [`Error::Busy`] while a vCPU runs on another CPU: none can enter again,
    /// so its next exit is its last. Nothing has been zeroed then.
    pub fn scrub(&self) -> Result<(), Error> {
        self.closed.store(true, Ordering::SeqCst);
        let mut running = false;
        for (number, slot) in (0..).zip(&self.slots).skip(1) {
            let mut vm = slot.lock();
            if vm.is_alive() {
                if slot.end(&mut vm) {
                    self.bury(VmId::new(number), slot, &mut vm);
                } else {
                    running = true;
                }
            }
        }
        if running {
            return Err(Error::Busy);
        }
        for range in self.ledger.ram().ranges() {
            for base in (range.base.0..range.end()).step_by(BLOCK_SIZE as usize) {
                self.scrub_block(PhysAddr(base));
            }
        }
        Ok(())
    }

    /// The machine goes on after all: VMs may be created again.
    pub fn reopen(&self) {
        self.closed.store(false, Ordering::SeqCst);
    }

    fn scrub_block(&self, base: PhysAddr) {
        let Some(block) = self.ledger.ram().locate(base) else { return };
        self.ledger.lock(block);
        let size = if self.ledger.is_split(block) { PAGE_SIZE } else { BLOCK_SIZE };
        for at in (base.0..base.0 + BLOCK_SIZE).step_by(size as usize) {
            if holds_secrets(self.ledger.get_in(block, PhysAddr(at))) {
                self.machine.zero(PhysAddr(at), size);
            }
        }
        self.ledger.unlock(block);
    }
}

/// Whether the host must not see what is in a frame: memory that only a guest
/// reaches, and the tables and registers that EL2 keeps for it.
fn holds_secrets(record: Record) -> bool {
    // What is between guests is no business of the host's, shared or not.
    let of_guest = record.holder().is_some() && record.owner() != VmId::HOST;
    of_guest
        || matches!(
            record.state(),
            Some(
                FrameState::Lent
                    | FrameState::SharedBack
                    | FrameState::UnlockedZeroed
                    | FrameState::UnlockedContents
                    | FrameState::Metadata
            )
        )
}

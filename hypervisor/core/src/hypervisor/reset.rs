// SPDX-License-Identifier: MIT OR Apache-2.0

//! The end of the machine: DRAM may keep its contents over a reset, and the next
//! system would read them.
//!
//! One CPU at a time ends the machine. [`Hypervisor::close`] hands out the only
//! [`Closed`] there is; while it exists no VM is created, and dropping it is
//! the only way in which VMs may be created again.

use core::sync::atomic::{AtomicU64, Ordering};

use escrow_abi::{Error, FrameState};

use super::Hypervisor;
use crate::addr::{BLOCK_SIZE, PAGE_SIZE, PhysAddr};
use crate::gate::{Gate, Shut};
use crate::ledger::{Block, Record, VmId};
use crate::machine::Machine;

/// A machine in which no VM is created, until this is dropped.
#[must_use = "the machine is open again when this is dropped"]
pub struct Closed<'a, M: Machine> {
    hypervisor: &'a Hypervisor<M>,
    _shut: Shut<'a>,
}

/// Frames that one pass over memory zeroes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    Sound,
    /// Writing to these may end in an error of the memory, so they come last.
    Broken,
}

/// How far [`Hypervisor::wipe`] has come: the end of the last frame that it began with, and
/// [`LAST_PASS`] in the second pass.
#[derive(Debug, Default)]
pub struct WipeProgress(AtomicU64);

/// A bit that no physical address has.
const LAST_PASS: u64 = 1 << 63;

impl WipeProgress {
    /// Nothing was done yet.
    pub const fn new() -> WipeProgress {
        WipeProgress(AtomicU64::new(0))
    }

    /// Notes that the frame that ends at `end` is begun with. `false` if it was before.
    fn pass(&self, pass: Pass, end: u64) -> bool {
        if self.has_passed(pass, end) {
            return false;
        }
        self.0.store(place(pass, end), Ordering::Relaxed);
        true
    }

    fn has_passed(&self, pass: Pass, end: u64) -> bool {
        place(pass, end) <= self.0.load(Ordering::Relaxed)
    }
}

/// Frames in the order in which they are zeroed: RAM comes in ascending order.
fn place(pass: Pass, end: u64) -> u64 {
    match pass {
        Pass::Sound => end,
        Pass::Broken => LAST_PASS | end,
    }
}

impl<M: Machine> Hypervisor<M> {
    /// Allows no new VM as long as the result exists. `None` if another CPU is
    /// ending the machine.
    pub fn close(&self) -> Option<Closed<'_, M>> {
        Some(Closed { hypervisor: self, _shut: self.gate.shut()? })
    }

    /// The gate that each new VM passes.
    pub(super) fn gate(&self) -> &Gate {
        &self.gate
    }
}

impl<M: Machine> Closed<'_, M> {
    /// Ends all guests, and zeroes every page of RAM that is not known to be the
    /// host's or EL2's own.
    ///
    /// # Errors
    /// [`Error::Busy`] while a vCPU runs on another CPU: none can enter again,
    /// so its next exit is its last. Nothing has been zeroed then.
    pub fn scrub(&self) -> Result<(), Error> {
        let hypervisor = self.hypervisor;
        let mut running = false;
        for (id, slot) in hypervisor.slots.iter() {
            let mut vm = slot.lock();
            if vm.is_alive() {
                if slot.end(&mut vm) {
                    hypervisor.bury(id, slot, &mut vm);
                } else {
                    running = true;
                }
            }
        }
        if running {
            return Err(Error::Busy);
        }
        hypervisor.for_each_block(|base, pass, block| {
            hypervisor.ledger.lock(block);
            hypervisor.scrub_block(base, pass, block, |_| true);
            hypervisor.ledger.unlock(block);
        });
        Ok(())
    }
}

impl<M: Machine> Hypervisor<M> {
    /// Zeroes the same as [`Closed::scrub`] does, without a lock and whatever else goes on:
    /// for a hypervisor that has failed, on a CPU that never leaves it again. Whoever has a
    /// lock may be that CPU.
    ///
    /// If the call ends early, because the CPU fails in it, it is made again with the same
    /// `progress` and goes on behind the frame at which it ended.
    pub fn wipe(&self, progress: &WipeProgress) {
        self.for_each_block(|base, pass, block| {
            if progress.has_passed(pass, base.0 + BLOCK_SIZE) {
                return;
            }
            self.scrub_block(base, pass, block, |end| progress.pass(pass, end));
        });
    }

    fn for_each_block(&self, mut f: impl FnMut(PhysAddr, Pass, Block)) {
        for pass in [Pass::Sound, Pass::Broken] {
            for range in self.ledger.ram().ranges() {
                for base in (range.base.0..range.end()).step_by(BLOCK_SIZE as usize) {
                    if let Some(block) = self.ledger.locate(PhysAddr(base)) {
                        f(PhysAddr(base), pass, block);
                    }
                }
            }
        }
    }

    /// `take` says of each frame that is to be zeroed, by its end, whether it is.
    fn scrub_block(&self, base: PhysAddr, pass: Pass, block: Block, take: impl Fn(u64) -> bool) {
        let size = if self.ledger.is_split(block) { PAGE_SIZE } else { BLOCK_SIZE };
        for at in (base.0..base.0 + BLOCK_SIZE).step_by(size as usize) {
            let due = pass_of(self.ledger.get_in(block, PhysAddr(at))) == Some(pass);
            if due && take(at + size) {
                // Broken memory cannot be zeroed: nothing else can be done for it.
                let _ = self.machine.zero(PhysAddr(at), size);
            }
        }
    }
}

/// When a frame is zeroed at the end of the machine. `None` for what the next
/// system may read: all else is taken for a guest's secret, also in a state
/// that is not named here.
fn pass_of(record: Record) -> Option<Pass> {
    let hosts = record.owner() == VmId::Host;
    match record.state() {
        Some(FrameState::Owned | FrameState::Pinned) if hosts => None,
        // The host can read this memory anyway.
        Some(FrameState::Shared) if hosts => None,
        // Escrow's code and data, which this CPU uses.
        Some(FrameState::Hypervisor) => None,
        None if record == Record::NO_RAM => None,
        Some(FrameState::Poisoned) => Some(Pass::Broken),
        _ => Some(Pass::Sound),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Ipa;
    use crate::ledger::GuestId;

    fn guest(number: u16) -> GuestId {
        GuestId::new(number).unwrap()
    }

    #[test]
    fn only_what_is_the_host_s_or_escrow_s_is_kept() {
        use FrameState::{Hypervisor, Owned, Pinned, Shared};
        for state in FrameState::ALL {
            for owner in [VmId::Host, VmId::Guest(guest(2))] {
                let record = Record::borrowed(state, owner, guest(1), Ipa(0));
                let known = match state {
                    Owned | Pinned | Shared => owner == VmId::Host,
                    state => state == Hypervisor,
                };
                assert_eq!(pass_of(record).is_none(), known, "{record:?}");
            }
        }
        assert!(pass_of(Record::NO_RAM).is_none());
        assert!(pass_of(Record::HOME).is_none());
        assert!(pass_of(Record::POISONED) == Some(Pass::Broken));
    }
}

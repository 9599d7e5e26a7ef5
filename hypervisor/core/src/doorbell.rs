// SPDX-License-Identifier: MIT OR Apache-2.0

//! Doorbells: how the host interrupts a guest.

use arrayvec::ArrayVec;
use escrow_abi::Error;
use escrow_abi::call::DOORBELLS_MAX;
use escrow_nospec as nospec;

use crate::sync::{AtomicU64, Ordering, TicketMutex, fence};

// One bit for each in `Doorbells::ringing`.
const _: () = assert!(DOORBELLS_MAX <= u64::BITS as usize);

/// A doorbell: 64 flags, those that make it ring, and those that are cleared as soon as
/// they have.
///
/// An enabled flag is never set while the bell is silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Doorbell {
    /// The label by which its guest names it.
    label: u32,
    ringing: bool,
    flags: u64,
    enable: u64,
    ack: u64,
}

impl Doorbell {
    const fn new(label: u32) -> Doorbell {
        Doorbell { label, ringing: false, flags: 0, enable: u64::MAX, ack: 0 }
    }

    /// Sets flags. The effect is the same whether it rings already or not.
    /// Returns the flags before.
    fn send(&mut self, flags: u64) -> u64 {
        let before = self.flags;
        self.flags |= flags;
        if self.is_due() {
            self.ringing = true;
            self.flags &= !self.ack;
        }
        before
    }

    /// Clears flags, and stops the ringing, also that for flags which the ack mask has cleared
    /// already. Returns the flags before.
    fn receive(&mut self, clear: u64) -> u64 {
        let before = self.flags;
        self.flags &= !clear;
        self.ringing = self.is_due();
        before
    }

    fn reset(&mut self) {
        *self = Doorbell::new(self.label);
    }

    /// Sets the masks. Flags that are set and become enabled make it ring. It stops ringing
    /// if the flags that it rings for are disabled, but not if the ack mask has cleared them
    /// already: then the guest has not received them yet.
    fn set_mask(&mut self, enable: u64, ack: u64) {
        let was_due = self.is_due();
        (self.enable, self.ack) = (enable, ack);
        if self.is_due() {
            self.ringing = true;
            self.flags &= !ack;
        } else if was_due {
            self.ringing = false;
        }
    }

    const fn is_due(&self) -> bool {
        self.flags & self.enable != 0
    }
}

/// What is done to a doorbell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Sets flags.
    Send(u64),
    /// Clears flags.
    Receive(u64),
    /// Resets flags and masks.
    Reset,
    /// Sets its masks.
    SetMask {
        /// Flags that make it ring.
        enable: u64,
        /// Flags that are cleared when they have.
        ack: u64,
    },
}

#[derive(Debug)]
struct Table {
    /// The VM whose doorbells these are; 0 for none.
    generation: u64,
    doorbells: ArrayVec<Doorbell, DOORBELLS_MAX>,
}

/// The doorbells of the VM in a slot.
///
/// They have a lock of their own, taken after the VM's. It is held for a few
/// instructions only: the host rings with its interrupts off.
#[derive(Debug)]
pub struct Doorbells {
    table: TicketMutex<Table>,
    /// Those that ring, by index. Written under the lock, read without it.
    ringing: AtomicU64,
}

impl Default for Doorbells {
    fn default() -> Self {
        Self::new()
    }
}

impl Doorbells {
    /// The doorbells of a free slot.
    pub fn new() -> Doorbells {
        let table = Table { generation: 0, doorbells: ArrayVec::new_const() };
        Doorbells { table: TicketMutex::new(table), ringing: AtomicU64::new(0) }
    }

    /// Assigns them to the VM of this generation, which has none yet.
    pub fn open(&self, generation: u64) {
        let mut table = self.table.lock();
        self.clear(&mut table, generation);
    }

    /// Removes the doorbells of a VM. No call about them is in progress afterwards.
    pub fn close(&self) {
        let mut table = self.table.lock();
        self.clear(&mut table, 0);
    }

    fn clear(&self, table: &mut Table, generation: u64) {
        table.generation = generation;
        // Clear all: flags and masks belong to the VM that had this table before.
        for doorbell in &mut table.doorbells {
            *doorbell = Doorbell::new(0);
        }
        table.doorbells.clear();
        self.ringing.store(0, Ordering::Relaxed);
    }

    /// Makes one; returns its index.
    ///
    /// # Errors
    /// [`Error::HandleRevoked`] if the VM of that generation has no doorbells any more,
    /// [`Error::Denied`] if it has one with that label, [`Error::TableFull`].
    pub fn create(&self, generation: u64, label: u32) -> Result<u8, Error> {
        let mut table = self.table.lock();
        if table.generation != generation {
            return Err(Error::HandleRevoked);
        }
        if table.doorbells.iter().any(|doorbell| doorbell.label == label) {
            return Err(Error::Denied);
        }
        let index = table.doorbells.len();
        table.doorbells.try_push(Doorbell::new(label)).map_err(|_| Error::TableFull)?;
        Ok(index as u8)
    }

    /// Does something to a doorbell of the VM of this generation. Returns the flags that
    /// it had before.
    ///
    /// # Errors
    /// [`Error::HandleRevoked`] if that VM has no such doorbell, or no doorbells any more.
    pub fn act(&self, generation: u64, index: u8, action: Action) -> Result<u64, Error> {
        let mut table = self.table.lock();
        // Check this under the lock: while this CPU waits for it, the VM may end, and
        // another one may get the table.
        if table.generation != generation {
            return Err(Error::HandleRevoked);
        }
        self.act_on(&mut table, index.into(), action).ok_or(Error::HandleRevoked)
    }

    /// The same to the doorbell with a label, for the guest whose run makes the call: the slot is not
    /// given to another VM during a run, so the generation need not be checked.
    ///
    /// # Errors
    /// [`Error::HandleNull`] if there is none.
    pub fn act_labelled(&self, label: u64, action: Action) -> Result<u64, Error> {
        let mut table = self.table.lock();
        let index = table.doorbells.iter().position(|doorbell| u64::from(doorbell.label) == label);
        index.and_then(|index| self.act_on(&mut table, index, action)).ok_or(Error::HandleNull)
    }

    fn act_on(&self, table: &mut Table, index: usize, action: Action) -> Option<u64> {
        let index = nospec::index(index, table.doorbells.len())?;
        let doorbell = table.doorbells.get_mut(index)?;
        let before = doorbell.flags;
        match action {
            Action::Send(flags) => doorbell.send(flags),
            Action::Receive(clear) => doorbell.receive(clear),
            Action::Reset => {
                doorbell.reset();
                before
            }
            Action::SetMask { enable, ack } => {
                doorbell.set_mask(enable, ack);
                before
            }
        };
        let others = self.ringing.load(Ordering::Relaxed) & !(1 << index);
        self.ringing.store(others | u64::from(doorbell.ringing) << index, Ordering::Relaxed);
        // Orders this store before the caller's next loads, by which it finds the thread to wake:
        // see `is_ringing_for_sleeper`.
        fence(Ordering::SeqCst);
        Some(before)
    }

    /// Whether any rings (a relaxed load). It may miss a doorbell that another CPU rings at the same
    /// time; that CPU then interrupts this one, which asks again.
    #[inline(always)]
    pub fn is_ringing(&self) -> bool {
        self.ringing.load(Ordering::Relaxed) != 0
    }

    /// Whether any rings, for a vCPU that is about to wait until one does.
    ///
    /// Before it entered EL2, the vCPU's host has stored that its thread will sleep. A CPU that rings
    /// loads that after its call. Both sides store first and load then, with a full barrier in
    /// between, so at least one of them sees the other's store: either the vCPU does not wait, or it
    /// is woken. Exception entry and return are no barriers (DDI 0487, "Memory barriers").
    #[inline(always)]
    pub fn is_ringing_for_sleeper(&self) -> bool {
        fence(Ordering::SeqCst);
        self.is_ringing()
    }
}

#[cfg(test)]
mod tests;

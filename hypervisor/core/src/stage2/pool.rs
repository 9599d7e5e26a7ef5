// SPDX-License-Identifier: MIT OR Apache-2.0

use core::sync::atomic::Ordering;

use crate::addr::PhysAddr;
use crate::machine::Machine;

/// Pages that are a VM's and not in use, chained through their first words.
///
/// Some may be kept back: they count as used, for an entry that may need a
/// table again.
#[derive(Debug, Default)]
pub struct PagePool {
    head: u64,
    free: u64,
    kept_back: u64,
}

impl PagePool {
    /// No pages.
    pub const fn new() -> PagePool {
        PagePool { head: 0, free: 0, kept_back: 0 }
    }

    /// How many there are to be used.
    #[inline]
    pub fn len(&self) -> u64 {
        self.free
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.free == 0
    }

    /// Puts a zeroed page in that is the hypervisor's already.
    pub fn push<M: Machine>(&mut self, machine: &M, page: PhysAddr) {
        machine.table(page)[0].store(self.head, Ordering::Relaxed);
        self.head = page.0;
        self.free += 1;
    }

    /// Takes a zeroed page out.
    pub fn pop<M: Machine>(&mut self, machine: &M) -> Option<PhysAddr> {
        self.free = self.free.checked_sub(1)?;
        let page = PhysAddr(self.head);
        self.head = machine.table(page)[0].swap(0, Ordering::Relaxed);
        Some(page)
    }

    /// Keeps one page back. There must be one.
    pub fn keep_back(&mut self) {
        debug_assert!(self.free > 0);
        self.free = self.free.saturating_sub(1);
        self.kept_back += 1;
    }

    /// Lets go of a page that was kept back.
    pub fn release(&mut self) {
        debug_assert!(self.kept_back > 0);
        self.kept_back = self.kept_back.saturating_sub(1);
        self.free += 1;
    }
}

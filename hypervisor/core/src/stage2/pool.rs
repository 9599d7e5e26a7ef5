// SPDX-License-Identifier: MIT OR Apache-2.0

//! A VM's metadata pages that are not in use.

use super::page::FreePage;
use crate::addr::PhysAddr;
use crate::machine::Machine;

/// Pages that are a VM's and not in use, chained through their first words.
///
/// Some may be kept back: they count as used, for an entry that may need a
/// table again.
#[derive(Debug, Default)]
pub struct PagePool {
    head: Option<FreePage>,
    free: u64,
    kept_back: u64,
}

impl PagePool {
    /// No pages.
    pub const fn new() -> PagePool {
        PagePool { head: None, free: 0, kept_back: 0 }
    }

    /// How many can be taken.
    #[inline]
    pub fn len(&self) -> u64 {
        self.free
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.free == 0
    }

    /// Adopts a zeroed page that the ledger has just made the hypervisor's, for this VM.
    pub fn adopt<M: Machine>(&mut self, machine: &M, page: PhysAddr) {
        machine.map_metadata(page);
        self.push(machine, FreePage::adopted(page));
    }

    /// Puts a page in.
    pub(super) fn push<M: Machine>(&mut self, machine: &M, page: FreePage) {
        machine.table(page.as_table())[0].set_link(self.head.as_ref());
        self.head = Some(page);
        self.free += 1;
    }

    /// Takes a page out.
    pub fn pop<M: Machine>(&mut self, machine: &M) -> Option<FreePage> {
        self.free = self.free.checked_sub(1)?;
        let page = self.head.take()?;
        self.head = machine.table(page.as_table())[0].take_link();
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

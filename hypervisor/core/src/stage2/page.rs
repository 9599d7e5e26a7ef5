// SPDX-License-Identifier: MIT OR Apache-2.0

//! Types for the hypervisor's pages by their contents: free, a translation table, a vCPU, or a part
//! of a guest's interrupt controller.
//!
//! [`Machine::table`], [`Machine::vcpu`] and [`Machine::bank`] make a reference out of an address. They take
//! values of these types, not addresses, and nothing outside of this module's parent can
//! make one out of an address. A [`TablePage`] comes from memory that was set aside at boot,
//! from a page that a VM's [`PagePool`](super::PagePool) has adopted, or from a descriptor
//! that [`Descriptor::table`] wrote. A [`VcpuPage`] is where a vCPU was placed, and a
//! [`BankPage`] where a bank of SPIs was.
//!
//! The types do not express lifetimes. A guest's pages are found through its
//! map and its slot, which forget them when the VM dies; the host's tables are never freed.

use core::marker::PhantomData;
use core::sync::atomic::{AtomicU64, Ordering};

use super::Descriptor;
use crate::addr::{PAGE_SIZE, PhysAddr};
use crate::machine::Machine;
use crate::vcpu::Vcpu;
use crate::vgic;

/// A free, zeroed page. There is one value for each such page: it is consumed when the page becomes a
/// table, when a vCPU or a bank of SPIs is placed in it, or when it returns to its pool.
#[derive(Debug, PartialEq, Eq)]
pub struct FreePage(PhysAddr);

impl FreePage {
    /// A page that is the hypervisor's, is mapped at EL2 and holds zeros.
    pub(super) const fn adopted(page: PhysAddr) -> FreePage {
        FreePage(page)
    }

    /// Where it is.
    pub const fn address(&self) -> PhysAddr {
        self.0
    }

    /// Makes it a table without valid entries.
    pub const fn into_table(self) -> TablePage {
        TablePage(self.0)
    }

    /// Makes it the one that a guest reads its stolen time in.
    pub const fn into_time_page(self) -> TimePage {
        TimePage(self.0)
    }

    /// The same, as a place for its pool's link.
    pub(super) const fn as_table(&self) -> TablePage {
        TablePage(self.0)
    }

    /// Places a vCPU in it.
    pub fn place_vcpu<M: Machine>(self, machine: &M, vcpu: Vcpu) -> VcpuPage {
        machine.place_vcpu(&self, vcpu);
        VcpuPage(self.0)
    }

    /// Places a bank of SPIs in it.
    pub fn place_bank<M: Machine>(self, machine: &M, bank: vgic::Bank) -> BankPage {
        machine.place_bank(&self, bank);
        BankPage(self.0)
    }
}

/// A page that a guest reads its vCPUs' stolen time in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimePage(PhysAddr);

impl TimePage {
    /// Where it is.
    #[inline(always)]
    pub const fn address(self) -> PhysAddr {
        self.0
    }
}

/// A page that is a translation table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TablePage(PhysAddr);

impl TablePage {
    /// A page of the hypervisor's memory that was set aside at boot.
    pub(super) const fn reserved(page: PhysAddr) -> TablePage {
        TablePage(page)
    }

    /// The table that a descriptor leads to.
    #[inline(always)]
    pub(super) const fn of(entry: Descriptor) -> Option<TablePage> {
        if entry.is_table() { Some(TablePage(entry.address())) } else { None }
    }

    /// Where it is.
    #[inline(always)]
    pub const fn address(self) -> PhysAddr {
        self.0
    }

    /// A table that no walker finds any more, and that has no entries.
    pub(super) const fn into_free(self) -> FreePage {
        FreePage(self.0)
    }
}

/// The tables that a walk begins in, side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RootTables {
    first: TablePage,
    count: u64,
}

impl RootTables {
    /// So many pages of memory that was set aside at boot.
    pub const fn reserved(first: PhysAddr, count: u64) -> RootTables {
        RootTables { first: TablePage::reserved(first), count }
    }

    /// The first of them.
    pub const fn first(self) -> TablePage {
        self.first
    }

    /// All of them.
    pub fn all(self) -> impl Iterator<Item = TablePage> {
        (0..self.count).map_while(move |n| self.get(n))
    }

    /// One of them.
    pub fn get(self, n: u64) -> Option<TablePage> {
        (n < self.count).then(|| TablePage(self.first.0.add(n * PAGE_SIZE)))
    }
}

/// A place for a table page that is set once, before anybody asks for it.
#[derive(Debug, Default)]
pub(super) struct TableCell(AtomicU64);

impl TableCell {
    /// Notes the table.
    pub fn set(&self, page: TablePage) {
        self.0.store(page.0.0, Ordering::Relaxed);
    }

    /// The table that was noted.
    #[inline(always)]
    pub fn get(&self) -> TablePage {
        let page = PhysAddr(self.0.load(Ordering::Relaxed));
        debug_assert!(page.0 != 0, "a table that was set aside");
        TablePage(page)
    }
}

/// A page that a vCPU was placed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuPage(PhysAddr);

impl VcpuPage {
    /// Where it is.
    #[inline(always)]
    pub const fn address(self) -> PhysAddr {
        self.0
    }

    /// A page that no machine looks at, for tests of who finds it.
    #[cfg(any(test, loom))]
    pub const fn for_tests(page: PhysAddr) -> VcpuPage {
        VcpuPage(page)
    }
}

/// A page that a bank of SPIs was placed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BankPage(PhysAddr);

impl BankPage {
    /// Where it is.
    #[inline(always)]
    pub const fn address(self) -> PhysAddr {
        self.0
    }
}

/// A page that something was placed in.
pub(crate) trait Placed: Copy {
    fn of(page: PhysAddr) -> Self;
    fn page(self) -> PhysAddr;
}

impl Placed for VcpuPage {
    #[inline(always)]
    fn of(page: PhysAddr) -> Self {
        VcpuPage(page)
    }

    fn page(self) -> PhysAddr {
        self.0
    }
}

impl Placed for TimePage {
    #[inline(always)]
    fn of(page: PhysAddr) -> Self {
        TimePage(page)
    }

    fn page(self) -> PhysAddr {
        self.0
    }
}

impl Placed for BankPage {
    #[inline(always)]
    fn of(page: PhysAddr) -> Self {
        BankPage(page)
    }

    fn page(self) -> PhysAddr {
        self.0
    }
}

/// A cell for a page's address, which other CPUs may read at any time.
#[derive(Debug)]
pub(crate) struct PageCell<P>(crate::sync::AtomicU64, PhantomData<P>);

impl<P: Placed> PageCell<P> {
    /// No page.
    #[inline(always)]
    pub fn new() -> PageCell<P> {
        PageCell(crate::sync::AtomicU64::new(0), PhantomData)
    }

    /// Publishes the page; a reader that finds it finds all that is in it (release store).
    pub fn set(&self, page: P) {
        self.0.store(page.page().0, Ordering::Release);
    }

    /// Forgets the page.
    pub fn clear(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// The page, if there is one.
    #[inline(always)]
    pub fn get(&self) -> Option<P> {
        let page = self.0.load(Ordering::Acquire);
        (page != 0).then_some(P::of(PhysAddr(page)))
    }
}

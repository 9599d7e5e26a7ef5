// SPDX-License-Identifier: MIT OR Apache-2.0

//! A VM to lend to. It never runs: all that matters is that the pages are
//! gone.

use anyhow::{Result, anyhow, ensure};
use escrow_abi::{BLOCK_SIZE, Error, MemEntry, ORDER_PAGE, Rights, call};

use crate::device::{Liar, Refusal};
use crate::region::{PAGE, Region};

/// Pages that the VM gets for its tables.
const METADATA: usize = 12;
/// Where its memory begins.
const GUEST: u64 = 0x1000_0000;

/// A VM, and what it has of the host's.
pub struct Borrower<'a> {
    liar: &'a Liar,
    handle: u64,
    list: Region,
    list_frame: u64,
    metadata: Region,
    /// Physical addresses, with orders.
    away: Vec<u64>,
    lent: u64,
}

impl<'a> Borrower<'a> {
    /// Creates it.
    pub fn new(liar: &'a Liar) -> Result<Borrower<'a>> {
        let list = Region::shared(1)?;
        let list_frame = liar.hold(list.page(0))?.frame;
        let metadata = Region::shared(METADATA)?;
        let mut away = Vec::new();
        for page in 0..METADATA {
            away.push(liar.hold(metadata.page(page))?.frame);
        }
        let mut this = Borrower { liar, handle: 0, list, list_frame, metadata, away, lent: 0 };
        let entries: Vec<_> = this.away.iter().map(|&frame| named(frame)).collect();
        let list = this.write(&entries);
        let [handle, ..] = liar.hypercall(call::VM_CREATE, &list).map_err(failed("VM_CREATE"))?;
        this.handle = handle;
        Ok(this)
    }

    /// Lends a page, with the report that nobody uses it.
    pub fn lend(&mut self, frame: u64) -> Result<()> {
        self.lend_folio(frame, ORDER_PAGE)
    }

    /// Lends a folio of another size the same way.
    pub fn lend_folio(&mut self, frame: u64, order: u32) -> Result<()> {
        let guest = GUEST + self.lent * BLOCK_SIZE;
        let entry = MemEntry::new(frame, order, guest, Rights::ALL);
        let [list, count] = self.write(&[entry]);
        self.liar
            .hypercall(call::MEM_LEND, &[self.handle, list, count])
            .map_err(failed("MEM_LEND"))?;
        self.lent_elsewhere(frame | u64::from(order));
        Ok(())
    }

    /// Notes a page that another process has lent through its copy of this.
    pub fn lent_elsewhere(&mut self, frame: u64) {
        self.lent += 1;
        self.away.push(frame);
    }

    /// Ends the VM, and takes all pages home. What EL2 had of them is zeroed.
    pub fn home(self) -> Result<()> {
        let end = self.liar.hypercall(call::VM_DESTROY, &[self.handle]);
        end.map_err(failed("VM_DESTROY"))?;
        let entries: Vec<_> = self.away.iter().map(|&frame| named(frame)).collect();
        let list = self.write(&entries);
        self.liar.hypercall(call::MEM_RECLAIM, &list).map_err(failed("MEM_RECLAIM"))?;
        ensure!((0..METADATA).all(|page| self.metadata.is_zero(page)), "metadata is not zeroed");
        // Nothing of the VM is left.
        match self.liar.hypercall(call::VM_DESTROY, &[self.handle]) {
            Err(Refusal { error: Some(Error::HandleRevoked), .. }) => Ok(()),
            other => Err(anyhow!("the VM that is gone: {other:?}")),
        }
    }

    fn write(&self, entries: &[MemEntry]) -> [u64; 2] {
        assert!(size_of_val(entries) <= PAGE);
        let list = self.list.page(0) as *mut MemEntry;
        for (index, entry) in entries.iter().enumerate() {
            // SAFETY: there is room, and nobody else has the region.
            unsafe { list.add(index).write_volatile(*entry) };
        }
        [self.list_frame, entries.len() as u64]
    }
}

fn named(frame: u64) -> MemEntry {
    MemEntry::new(frame, ORDER_PAGE, 0, Rights::NONE)
}

fn failed(what: &'static str) -> impl Fn(Refusal) -> anyhow::Error {
    move |refusal| anyhow!("{what}: {refusal:x?}")
}

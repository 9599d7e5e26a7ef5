// SPDX-License-Identifier: MIT OR Apache-2.0

//! Stage-2 descriptors of the 4 KiB granule (DDI 0487, D8.3).

use core::sync::atomic::{AtomicU64, Ordering};

use escrow_abi::Rights;

use super::Stage2Features;
use super::page::{FreePage, TablePage};
use crate::addr::{Ipa, PAGE_SIZE, PhysAddr};

/// A descriptor of a table at level 0 to 3.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Descriptor(u64);

const VALID: u64 = 1 << 0;
/// Table at levels 0 to 2, page at level 3; clear for a block.
const TABLE_OR_PAGE: u64 = 1 << 1;
const READ: u64 = 1 << 6;
const WRITE: u64 = 1 << 7;
const INNER_SHAREABLE: u64 = 0b11 << 8;
const ACCESS_FLAG: u64 = 1 << 10;
/// XN[1:0] = 0b10: not executable at EL1 and EL0. Bit 53 is RES0 without
/// FEAT_XNX, where bit 54 alone says the same.
const EXECUTE_NEVER: u64 = 1 << 54;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
/// Bits that hardware ignores in a stage-2 descriptor (58:55).
const SOFTWARE: u64 = 0xf << 55;
/// At level 2: a table page is kept back for this entry, because its 512 pages
/// came, or may come, one by one.
const HAS_TABLE: u64 = 1 << 55;
/// Broken memory was here.
const POISONED: u64 = 1 << 56;
/// A table descriptor that [`Descriptor::table`] wrote. A page descriptor at level 3 has the same bits 1:0
/// as a table descriptor; without this bit, code never follows it as one.
const IS_TABLE: u64 = 1 << 57;
/// Nothing is mapped, and the guest of a protected VM has declared the address as RAM (RIPAS RAM).
const IS_RAM: u64 = 1 << 58;

/// The attribute bits of a block or page descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attributes(u64);

impl Attributes {
    /// All that the host may access, RAM and devices: all rights, and its stage 1 alone
    /// decides the memory type.
    ///
    /// The memory types of both stages combine to the stricter one: Device before
    /// Normal, Non-cacheable before Write-Back (DDI 0487, D8.6 "Combining stage 1 and
    /// stage 2 memory type attributes"; FEAT_S2FWB is off for the host, `HCR_EL2.FWB`).
    /// So Write-Back here leaves the choice to stage 1: what the host maps as Device
    /// is accessed as Device. EL2 cannot choose a stricter type for devices: it does not know which
    /// addresses outside the RAM of boot are memory (memory that is added later, buffers in BARs)
    /// and which are registers. The host knows, as it does without Escrow.
    pub const HOST: Attributes =
        Attributes(READ | WRITE | INNER_SHAREABLE | ACCESS_FLAG | 0b1111 << 2);

    /// RAM of a guest. With FEAT_S2FWB always cacheable, whatever its stage 1
    /// says (DDI 0487, D8.6.6 "Stage 2 memory region type and Cacheability
    /// attributes when FEAT_S2FWB is enabled").
    pub const fn guest_ram(rights: Rights, features: &Stage2Features) -> Attributes {
        let memory = if features.force_write_back { 0b0110 } else { 0b1111 };
        let mut bits = INNER_SHAREABLE | ACCESS_FLAG | memory << 2;
        if rights.read() {
            bits |= READ;
        }
        if rights.write() {
            bits |= WRITE;
        }
        if !rights.execute() {
            bits |= EXECUTE_NEVER;
        }
        Attributes(bits)
    }
}

impl Descriptor {
    /// Nothing there.
    pub const INVALID: Descriptor = Descriptor(0);

    /// Broken memory was here, and nothing may come in its place.
    pub const POISONED: Descriptor = Descriptor(POISONED);

    /// Nothing is mapped, and the address is RAM for the guest of a protected VM.
    pub const RAM: Descriptor = Descriptor(IS_RAM);

    /// The next level's table.
    pub const fn table(page: TablePage) -> Descriptor {
        Descriptor(page.address().0 & ADDRESS | IS_TABLE | TABLE_OR_PAGE | VALID)
    }

    /// A block, at level 1 or 2.
    pub const fn block(at: PhysAddr, attributes: Attributes) -> Descriptor {
        Descriptor(at.0 & ADDRESS | attributes.0 | VALID)
    }

    /// A page, at level 3.
    pub const fn page(at: PhysAddr, attributes: Attributes) -> Descriptor {
        Descriptor(at.0 & ADDRESS | attributes.0 | TABLE_OR_PAGE | VALID)
    }

    /// A note in the host's map, an invalid entry: a guest owns the frame, and has it at this IPA.
    pub const fn owners(at: Ipa) -> Descriptor {
        Descriptor(at.0 & ADDRESS)
    }

    /// Whether there is anything.
    pub const fn is_valid(self) -> bool {
        self.0 & VALID != 0
    }

    /// The bits, as walkers read them.
    #[inline(always)]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The descriptor with these bits, which a test read from a table.
    #[cfg(test)]
    pub const fn found(bits: u64) -> Descriptor {
        Descriptor(bits)
    }

    /// Whether it leads to a table.
    #[inline(always)]
    pub const fn is_table(self) -> bool {
        const TABLE: u64 = IS_TABLE | TABLE_OR_PAGE | VALID;
        self.0 & TABLE == TABLE
    }

    /// The table that it leads to.
    #[inline(always)]
    pub const fn as_table(self) -> Option<TablePage> {
        TablePage::of(self)
    }

    /// The same for the page that is so many pages behind.
    #[inline(always)]
    pub const fn behind(self, pages: u64) -> Descriptor {
        Descriptor(self.0.wrapping_add(pages * PAGE_SIZE))
    }

    /// Whether nothing is mapped, and the entry is not reserved for anything.
    #[inline]
    pub const fn is_free(self) -> bool {
        self.0 & !(HAS_TABLE | IS_RAM) == 0
    }

    /// Whether nothing is there, and it is RAM to the guest of a protected VM.
    pub const fn is_ram(self) -> bool {
        self.is_free() && self.0 & IS_RAM != 0
    }

    /// The same free entry, as RAM or not.
    pub const fn marked(self, ram: bool) -> Descriptor {
        Descriptor(self.0 & !IS_RAM | if ram { IS_RAM } else { 0 })
    }

    /// Whether it is invalid and records memory that its VM owns and cannot access at the moment.
    pub const fn is_away(self) -> bool {
        !self.is_valid() && !self.is_free() && !self.is_poisoned()
    }

    /// Whether it marks broken memory.
    pub const fn is_poisoned(self) -> bool {
        self.0 & (POISONED | VALID) == POISONED
    }

    /// Whether a table page is kept back for the entry.
    #[inline]
    pub const fn has_table(self) -> bool {
        self.0 & HAS_TABLE != 0
    }

    /// The same, with a table page kept back for it.
    pub const fn with_table(self) -> Descriptor {
        Descriptor(self.0 | HAS_TABLE)
    }

    /// The entry after its memory was unmapped for good: a kept-back table stays noted.
    pub const fn emptied(self) -> Descriptor {
        Descriptor(self.0 & HAS_TABLE)
    }

    /// The entry after its memory turned out to be broken.
    pub const fn poisoned(self) -> Descriptor {
        Descriptor(self.0 & HAS_TABLE | POISONED)
    }

    /// The entry while its memory is unmapped for a time: not valid, all other bits
    /// unchanged. Hardware ignores them in an invalid descriptor (DDI 0487, D8.3).
    pub const fn away(self) -> Descriptor {
        Descriptor(self.0 & !VALID)
    }

    /// The opposite of [`Self::away`].
    pub const fn back(self) -> Descriptor {
        Descriptor(self.0 | VALID)
    }

    /// The table or memory that it leads to.
    pub const fn address(self) -> PhysAddr {
        PhysAddr(self.0 & ADDRESS)
    }

    /// What a block or page descriptor lets its VM do.
    pub const fn rights(self) -> Option<Rights> {
        let bits = (self.0 & READ != 0) as u64
            | ((self.0 & WRITE != 0) as u64) << 1
            | ((self.0 & EXECUTE_NEVER == 0) as u64) << 2;
        Rights::from_bits(bits)
    }

    /// The attributes of a block or page descriptor.
    pub const fn attributes(self) -> Attributes {
        Attributes(self.0 & !(ADDRESS | TABLE_OR_PAGE | VALID | SOFTWARE))
    }
}

/// An entry of a table, which walkers may be reading.
#[derive(Debug)]
#[repr(transparent)]
pub struct DescriptorCell(AtomicU64);

impl DescriptorCell {
    /// The descriptor.
    #[inline(always)]
    pub fn load(&self) -> Descriptor {
        Descriptor(self.0.load(Ordering::Relaxed))
    }

    /// The descriptor of an entry that another CPU may be writing (an acquire load): the table that it
    /// points to is seen with its contents of then.
    #[inline(always)]
    pub fn load_acquire(&self) -> Descriptor {
        Descriptor(self.0.load(Ordering::Acquire))
    }

    /// Writes a descriptor. For [`Machine::write_descriptor`], which is how tables change.
    ///
    /// [`Machine::write_descriptor`]: crate::machine::Machine::write_descriptor
    #[inline(always)]
    pub fn store(&self, to: Descriptor) {
        self.0.store(to.0, Ordering::Release);
    }

    /// Links a page that is no table to the next one of its pool. The entry is not valid.
    pub(super) fn set_link(&self, next: Option<&FreePage>) {
        self.0.store(next.map_or(0, |page| page.address().0), Ordering::Relaxed);
    }

    /// The link, which is zero afterwards.
    pub(super) fn take_link(&self) -> Option<FreePage> {
        let page = self.0.swap(0, Ordering::Relaxed);
        (page != 0).then_some(FreePage::adopted(PhysAddr(page)))
    }

    /// An entry of fake memory.
    #[cfg(test)]
    pub const fn new(bits: u64) -> DescriptorCell {
        DescriptorCell(AtomicU64::new(bits))
    }

    /// The word of fake memory that it is.
    #[cfg(test)]
    pub const fn word(&self) -> &AtomicU64 {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_come_back() {
        for force_write_back in [false, true] {
            let features = Stage2Features { pa_bits: 40, force_write_back, vmid16: false };
            for bits in 0..8 {
                let rights = Rights::from_bits(bits).unwrap();
                let attributes = Attributes::guest_ram(rights, &features);
                let page = Descriptor::page(PhysAddr(0x1234_5000), attributes);
                assert_eq!(page.rights(), Some(rights));
                assert_eq!(page.address(), PhysAddr(0x1234_5000));
                assert_eq!(page.attributes(), attributes);
            }
        }
    }

    #[test]
    fn an_invalid_entry_remembers() {
        let block = Descriptor::block(PhysAddr(0x4000_0000), Attributes::HOST).with_table();
        let away = block.away();
        assert!(!away.is_valid() && away.is_away() && !away.is_free() && !away.is_table());
        assert_eq!(away.back(), block);
        assert_eq!(away.address(), block.address());
        assert!(block.emptied().is_free() && block.emptied().has_table());
        assert!(!block.emptied().is_away());
        let broken = block.poisoned();
        assert!(broken.is_poisoned() && !broken.is_valid() && !broken.is_free());
        assert!(!broken.is_away() && broken.has_table());
        let page = Descriptor::page(PhysAddr(0), Attributes::HOST).away();
        assert!(page.is_away() && !page.is_table());
        assert_eq!(block.attributes(), Attributes::HOST);
    }

    #[test]
    fn kinds_are_told_apart() {
        let block = Descriptor::block(PhysAddr(0x4000_0000), Attributes::HOST);
        assert!(block.is_valid() && !block.is_table());
        assert!(!Descriptor::INVALID.is_valid());
        let table = TablePage::reserved(PhysAddr(0x1000));
        assert_eq!(Descriptor::table(table).as_table(), Some(table));
        // A page's descriptor at level 3 has the same low bits; EL2 tells them apart.
        let page = Descriptor::page(PhysAddr(0x1000), Attributes::HOST);
        assert_eq!(page.0 & 3, Descriptor::table(table).0 & 3);
        assert_eq!(page.as_table(), None);
    }

    /// Nothing that is made of a page or a block leads to a table, and half of a table's
    /// descriptor does not either.
    #[test]
    fn only_a_table_leads_to_one() {
        for leaf in [Descriptor::page, Descriptor::block] {
            let leaf = leaf(PhysAddr(0xffff_ffff_f000), Attributes::HOST);
            for other in [leaf, leaf.with_table(), leaf.behind(511)] {
                for made in [other.away(), other.emptied(), other.poisoned(), other.away().back()] {
                    assert_eq!((other.as_table(), made.as_table()), (None, None), "{made:x?}");
                }
            }
        }
        let table = Descriptor::table(TablePage::reserved(PhysAddr(0x1000)));
        for bit in [VALID, TABLE_OR_PAGE, IS_TABLE] {
            assert_eq!(Descriptor(table.0 & !bit).as_table(), None, "{bit:#x}");
        }
        assert_eq!(table.away().as_table(), None);
    }
}

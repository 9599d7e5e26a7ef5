// SPDX-License-Identifier: MIT OR Apache-2.0

//! Memory in blocks of 512 pages, which leave and come home as one.

use anyhow::{Context as _, Result};
use escrow_abi::call::{MODIFY_SANITIZE, MODIFY_UNLOCK};
use escrow_vmcore::uapi::fdinfo;
use nix::errno::Errno;

use super::{refused, same};
use crate::access::{Pin, read, write};
use crate::guest::{Guest, Order, RAM};
use crate::gunyah::{Device, Mapping, Memory, PAGE, RWX};

/// Pages of a block.
const BLOCK: u64 = 512;
/// Where the guest has the huge memory.
const AT: u64 = RAM + 16 * BLOCK * PAGE;

/// A guest, and a memory of so many blocks that is not bound yet.
fn with_blocks(blocks: u64) -> Result<(Guest, Memory, Mapping)> {
    let device = Device::open()?;
    let guest = Guest::started(&device, 1, 0)?;
    let memory = device.huge_memory(blocks * BLOCK)?;
    let mapping = memory.map(0, blocks * BLOCK)?;
    Ok((guest, memory, mapping))
}

/// One touch brings all of it; it comes home when all of it is unlocked.
pub fn a_block_leaves_and_comes_home_as_one() -> Result<()> {
    let (guest, memory, mapping) = with_blocks(2)?;
    write(&mapping, 3 * PAGE, 0x33)?;
    same(memory.count(fdinfo::PRESENT)?, BLOCK)?;
    guest.vm.bind(AT, RWX, &memory, 0, 2 * BLOCK)?;
    same(guest.ask(Order::Load(AT + 3 * PAGE))?, 0x33)?;
    same(memory.count(fdinfo::LENT)?, BLOCK)?;
    for page in [0, 3, BLOCK - 1] {
        refused(read(&mapping, page * PAGE), Errno::EFAULT).context("lent")?;
    }
    same(read(&mapping, BLOCK * PAGE)?, 0).context("the next block")?;

    guest.ask(Order::Unlock(AT + 3 * PAGE, MODIFY_UNLOCK))?;
    refused(read(&mapping, 3 * PAGE), Errno::EFAULT).context("a part is unlocked")?;
    refused(memory.punch(3, 1), Errno::EBUSY).context("a hole")?;
    same(guest.ask(Order::Load(AT + 3 * PAGE))?, 0x33)?;
    for page in 0..BLOCK {
        guest.ask(Order::Store(AT + page * PAGE, page))?;
        let flags = MODIFY_UNLOCK | if page == 4 { MODIFY_SANITIZE } else { 0 };
        same(guest.ask(Order::Unlock(AT + page * PAGE, flags))?, 0)?;
    }
    same(read(&mapping, 3 * PAGE).context("all of it is unlocked")?, 3)?;
    same(read(&mapping, 4 * PAGE)?, 0)?;
    same(memory.count(fdinfo::LENT)?, 0)?;

    guest.ask(Order::Store(AT, 7))?;
    same(memory.count(fdinfo::LENT)?, BLOCK).context("again")?;
    let Guest { vm, vcpu, .. } = guest;
    drop((vm, vcpu));
    same(read(&mapping, 0).context("the guest is dead")?, 0)?;
    same(read(&mapping, 3 * PAGE)?, 0)
}

/// Bound at an address that blocks do not begin at, or in a part.
pub fn what_fits_no_block_goes_page_by_page() -> Result<()> {
    let (guest, memory, mapping) = with_blocks(2)?;
    write(&mapping, 3 * PAGE, 0x33)?;
    write(&mapping, (BLOCK + 3) * PAGE, 0x44)?;
    guest.vm.bind(AT + PAGE, RWX, &memory, 0, BLOCK)?;
    guest.vm.bind(AT + 4 * BLOCK * PAGE, RWX, &memory, BLOCK, 4)?;

    let pin = Pin::take(&mapping, 5)?;
    let at = AT + 4 * PAGE;
    let refusal = crate::gunyah::Exit::PageFault(at, Errno::EAGAIN);
    same(guest.order(Order::Load(at))?, refusal)?;
    same(memory.refusal()?, "offset=0x0 excess=1 accessible=0".to_owned())?;
    same(memory.count(fdinfo::PRESENT)?, 2 * BLOCK)?;
    pin.drain()?;
    same(guest.run()?, crate::gunyah::Exit::Write(0x6020, 0x33))?;
    same(memory.count(fdinfo::LENT)?, 1)?;
    refused(read(&mapping, 3 * PAGE), Errno::EFAULT).context("lent")?;
    same(read(&mapping, 4 * PAGE)?, 0).context("its neighbour")?;

    same(guest.ask(Order::Load(AT + (4 * BLOCK + 3) * PAGE))?, 0x44)?;
    same(memory.count(fdinfo::LENT)?, 2)?;
    same(memory.count(fdinfo::PRESENT)?, 2 * BLOCK - 2)
}

/// The rest keeps what is in it, also while a guest shares it.
pub fn a_hole_in_a_block_is_zeros() -> Result<()> {
    let (guest, memory, mapping) = with_blocks(1)?;
    for page in 0..4 {
        write(&mapping, page * PAGE, 9)?;
    }
    memory.punch(1, 2)?;
    let seen = (0..4).map(|page| read(&mapping, page * PAGE)).collect::<Result<Vec<_>, _>>()?;
    same(seen, vec![9, 0, 0, 9])?;
    guest.vm.bind(AT, RWX | escrow_vmcore::uapi::MAP_FORCE_SHARE, &memory, 0, BLOCK)?;
    guest.ask(Order::Store(AT + 2 * PAGE, 5))?;
    same(memory.count(fdinfo::SHARED)?, BLOCK)?;
    same(read(&mapping, 2 * PAGE)?, 5)?;
    memory.punch(2, 1)?;
    same([guest.ask(Order::Load(AT + 2 * PAGE))?, guest.ask(Order::Load(AT + 3 * PAGE))?], [0, 9])?;
    memory.punch(0, BLOCK)?;
    same([memory.count(fdinfo::SHARED)?, memory.count(fdinfo::PRESENT)?], [0, 0])?;
    same(guest.ask(Order::Load(AT + 3 * PAGE))?, 0)
}

/// What is left of a block is pages.
pub fn a_block_is_cut() -> Result<()> {
    let (guest, memory, mapping) = with_blocks(2)?;
    guest.vm.bind(AT, RWX, &memory, 0, 2 * BLOCK)?;
    write(&mapping, 9 * PAGE, 9)?;
    let pin = Pin::take(&mapping, 9)?;
    refused(memory.resize(10 * PAGE), Errno::EBUSY).context("a pin")?;
    same(memory.count(fdinfo::PRESENT)?, BLOCK)?;
    pin.drain()?;
    memory.resize(10 * PAGE)?;
    same(memory.count(fdinfo::PRESENT)?, 10)?;
    refused(read(&mapping, 10 * PAGE), Errno::EFAULT).context("beyond the end")?;
    same(guest.ask(Order::Load(AT + 9 * PAGE))?, 9)?;
    same(memory.count(fdinfo::LENT)?, 1)?;
    memory.resize(2 * BLOCK * PAGE)?;
    same(guest.ask(Order::Load(AT + 20 * PAGE))?, 0)?;
    same(memory.count(fdinfo::LENT)?, 2).context("pages stand in a block's way")?;
    guest.ask(Order::Load(AT + BLOCK * PAGE))?;
    same(memory.count(fdinfo::LENT)?, 2 + BLOCK)?;
    refused(memory.resize(BLOCK * PAGE), Errno::EBUSY).context("a lent block")
}

/// Kilobytes of this process's mappings at an address that are mapped by large entries.
fn mapped_as_blocks(mapping: &Mapping) -> Result<u64> {
    let smaps = std::fs::read_to_string("/proc/self/smaps")?;
    let start = format!("{:x}-", mapping.at(0) as u64);
    let lines = smaps.lines().skip_while(|line| !line.starts_with(&start));
    let field = lines.map(|line| line.strip_prefix("FilePmdMapped:")).find_map(|found| found);
    let kilobytes = field.and_then(|text| text.trim().strip_suffix(" kB"));
    Ok(kilobytes.context("no such field")?.parse()?)
}

/// Without the program's asking for an address; and who holds a page of it is seen.
pub fn a_block_is_mapped_by_one_entry() -> Result<()> {
    let (guest, memory, mapping) = with_blocks(2)?;
    same(mapping.at(0) as u64 % (BLOCK * PAGE), 0)?;
    for block in 0..2 {
        write(&mapping, (block * BLOCK + 7) * PAGE, block)?;
    }
    same(mapped_as_blocks(&mapping)?, 4096)?;
    let other = memory.map(0, 2 * BLOCK)?;
    same(read(&other, 7 * PAGE)?, 0)?;
    same(mapped_as_blocks(&other)?, 2048)?;
    guest.vm.bind(AT, RWX, &memory, 0, 2 * BLOCK)?;
    let pin = Pin::take(&mapping, 9)?;
    let refusal = crate::gunyah::Exit::PageFault(AT, Errno::EAGAIN);
    same(guest.order(Order::Load(AT))?, refusal)?;
    same(memory.refusal()?, "offset=0x0 excess=1 accessible=0".to_owned())?;
    same(mapped_as_blocks(&other)?, 0).context("mappings go all the same")?;
    drop(pin);
    same(guest.run()?, crate::gunyah::Exit::Write(0x6020, 0))?;
    same(memory.count(fdinfo::LENT)?, BLOCK)?;
    same(mapped_as_blocks(&mapping)?, 2048).context("the next block")
}

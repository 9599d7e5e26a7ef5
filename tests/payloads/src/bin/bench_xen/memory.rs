// SPDX-License-Identifier: MIT OR Apache-2.0

//! Pages that leave dom0's map and come back, and pages that are granted.
//!
//! Xen has no lending: its nearest calls are each a part of one. What they
//! leave out is said in docs/performance.md.

use escrow_abi::{BLOCK_SIZE, PAGE_SIZE};
use escrow_payloads::samples::Samples;
use fdt::Fdt;

use crate::Outcome;
use crate::xen::{self, GRANT_TABLE_OP, MEMORY_OP, say};

const XENMEM_DECREASE_RESERVATION: u64 = 1;
const XENMEM_POPULATE_PHYSMAP: u64 = 6;
const XENMEM_ADD_TO_PHYSMAP: u64 = 7;
const XENMAPSPACE_GRANT_TABLE: u32 = 1;
const GNTTABOP_MAP_GRANT_REF: u64 = 0;
const GNTTABOP_UNMAP_GRANT_REF: u64 = 1;
const GNTMAP_HOST_MAP: u32 = 1 << 1;
const GTF_PERMIT_ACCESS: u16 = 1;
const DOMID_SELF: u16 = 0x7ff0;
/// What dom0 is called as a partner of its own.
const DOM0: u16 = 0;

const ORDER_BLOCK: u32 = 9;
const PAGES_PER_BLOCK: u64 = BLOCK_SIZE / PAGE_SIZE;
/// Samples of calls about single pages.
const PAGES: u64 = 256;
/// Samples of calls about blocks and lists.
const BLOCKS: u64 = 8;
/// Entries of the grant table that are Xen's own.
const RESERVED_GRANTS: u32 = 8;

/// `struct xen_memory_reservation`
#[repr(C)]
struct Reservation {
    extents: *const u64,
    count: u64,
    order: u32,
    flags: u32,
    domain: u16,
}

/// `struct xen_add_to_physmap`
#[repr(C)]
struct AddToPhysmap {
    domain: u16,
    size: u16,
    space: u32,
    index: u64,
    frame: u64,
}

/// `struct grant_entry_v1`
#[repr(C)]
struct Grant {
    flags: u16,
    domain: u16,
    frame: u32,
}

/// `struct gnttab_map_grant_ref`
#[repr(C)]
struct MapGrant {
    at: u64,
    flags: u32,
    reference: u32,
    domain: u16,
    status: i16,
    handle: u32,
    bus_address: u64,
}

/// `struct gnttab_unmap_grant_ref`
#[repr(C)]
struct UnmapGrant {
    at: u64,
    bus_address: u64,
    handle: u32,
    status: i16,
}

const _: () = assert!(size_of::<Reservation>() == 32 && size_of::<AddToPhysmap>() == 24);
const _: () = assert!(size_of::<MapGrant>() == 32 && size_of::<UnmapGrant>() == 24);

/// Blocks that nobody uses, at the end of dom0's RAM.
fn free_blocks(tree: usize, count: u64) -> Option<u64> {
    // SAFETY: the boot protocol puts a tree there, and it is never written to.
    let fdt = unsafe { Fdt::from_ptr(tree as *const u8) }.ok()?;
    let image = escrow_payloads::board::image();
    let taken = [image, tree as u64..(tree + fdt.total_size()) as u64];
    // Xen writes a node for each bank.
    let is_memory = |node: &fdt::node::FdtNode<'_, '_>| {
        node.property("device_type").and_then(|p| p.as_str()) == Some("memory")
    };
    let root = fdt.find_node("/")?;
    let nodes = root.children().filter(is_memory);
    nodes.filter_map(|node| node.reg()).flatten().find_map(|bank| {
        let start = (bank.starting_address as u64).next_multiple_of(BLOCK_SIZE);
        let end = (bank.starting_address as u64 + bank.size? as u64) & !(BLOCK_SIZE - 1);
        let mut blocks = end.checked_sub(count * BLOCK_SIZE)?;
        while taken.iter().any(|t| t.start < blocks + count * BLOCK_SIZE && blocks < t.end) {
            blocks = blocks.checked_sub(BLOCK_SIZE)?;
        }
        (blocks >= start).then_some(blocks)
    })
}

/// Counts them all.
pub fn measure(tree: usize) -> Outcome {
    let blocks = free_blocks(tree, 1 + BLOCKS + 2).ok_or(("the search for free memory", 0))?;
    for at in (blocks..blocks + (BLOCKS + 1) * BLOCK_SIZE).step_by(PAGE_SIZE as usize) {
        // Memory that was used, as what a host lends is.
        // SAFETY: the block is nobody's.
        unsafe { (at as *mut u64).write_volatile(at) };
    }
    pages(blocks)?;
    lists(blocks + BLOCK_SIZE)?;
    whole_blocks(blocks + BLOCK_SIZE)?;
    grants(blocks + (1 + BLOCKS) * BLOCK_SIZE)
}

/// A call about one reservation; it must do all of it.
fn reserve(samples: &mut Samples, command: u64, extents: &[u64], order: u32) -> Outcome {
    let mut reservation = Reservation {
        extents: extents.as_ptr(),
        count: extents.len() as u64,
        order,
        flags: 0,
        domain: DOMID_SELF,
    };
    let (answer, ticks) = xen::sample_with(MEMORY_OP, command, &mut reservation, 0);
    samples.add(ticks);
    if answer == extents.len() as u64 { Ok(()) } else { Err(("a reservation", answer)) }
}

/// One page a call. The first divides the block.
fn pages(block: u64) -> Outcome {
    let frame = |n: u64| (block + n * PAGE_SIZE) / PAGE_SIZE;
    let mut first = Samples::new("lend_4k_first_of_block");
    reserve(&mut first, XENMEM_DECREASE_RESERVATION, &[frame(0)], 0)?;
    say!("{first}");
    let mut out = Samples::new("lend_4k");
    for n in 1..=PAGES {
        reserve(&mut out, XENMEM_DECREASE_RESERVATION, &[frame(n)], 0)?;
    }
    say!("{out}");
    let mut back = Samples::new("reclaim_4k");
    for n in 1..=PAGES {
        reserve(&mut back, XENMEM_POPULATE_PHYSMAP, &[frame(n)], 0)?;
        // SAFETY: the page is nobody's.
        let word = unsafe { ((block + n * PAGE_SIZE) as *const u64).read_volatile() };
        if word != block + n * PAGE_SIZE {
            return Err(("a page that came back", word));
        }
    }
    say!("{back}");
    Ok(())
}

/// All pages of a block in one call.
fn lists(blocks: u64) -> Outcome {
    let mut extents = [0; PAGES_PER_BLOCK as usize];
    let mut out = Samples::per("lend_512x4k_per_page", PAGES_PER_BLOCK);
    let mut back = Samples::per("reclaim_512x4k_per_page", PAGES_PER_BLOCK);
    for block in 0..BLOCKS {
        for (n, extent) in (0..).zip(&mut extents) {
            *extent = (blocks + block * BLOCK_SIZE) / PAGE_SIZE + n;
        }
        reserve(&mut out, XENMEM_DECREASE_RESERVATION, &extents, 0)?;
        reserve(&mut back, XENMEM_POPULATE_PHYSMAP, &extents, 0)?;
    }
    say!("{out}");
    say!("{back}");
    Ok(())
}

/// A whole block in one call.
fn whole_blocks(blocks: u64) -> Outcome {
    let mut out = Samples::new("lend_2m");
    let mut back = Samples::new("reclaim_2m");
    for block in 0..BLOCKS {
        let extent = [(blocks + block * BLOCK_SIZE) / PAGE_SIZE];
        reserve(&mut out, XENMEM_DECREASE_RESERVATION, &extent, ORDER_BLOCK)?;
        reserve(&mut back, XENMEM_POPULATE_PHYSMAP, &extent, ORDER_BLOCK)?;
    }
    say!("{out}");
    say!("{back}");
    Ok(())
}

/// Pages that dom0 grants to itself and maps a second time. The block after
/// the one with the pages gives the addresses: its pages are out of the map.
fn grants(block: u64) -> Outcome {
    let [table, there] = [block, block + BLOCK_SIZE];
    let mut ignored = Samples::new("");
    reserve(&mut ignored, XENMEM_DECREASE_RESERVATION, &[there / PAGE_SIZE], ORDER_BLOCK)?;
    reserve(&mut ignored, XENMEM_DECREASE_RESERVATION, &[table / PAGE_SIZE], 0)?;
    let mut physmap = AddToPhysmap {
        domain: DOMID_SELF,
        size: 0,
        space: XENMAPSPACE_GRANT_TABLE,
        index: 0,
        frame: table / PAGE_SIZE,
    };
    let (answer, _) = xen::sample_with(MEMORY_OP, XENMEM_ADD_TO_PHYSMAP, &mut physmap, 0);
    if answer != 0 {
        return Err(("XENMEM_add_to_physmap of the grant table", answer));
    }
    let mut map = Samples::new("share_4k");
    let mut unmap = Samples::new("unshare_4k");
    for n in 1..=PAGES {
        let page = block + n * PAGE_SIZE;
        let reference = RESERVED_GRANTS + n as u32;
        // SAFETY: Xen has put its table of 512 entries there.
        unsafe {
            let entry = (table as *mut Grant).add(reference as usize);
            (page as *mut u64).write_volatile(page);
            (&raw mut (*entry).frame).write_volatile((page / PAGE_SIZE) as u32);
            (&raw mut (*entry).domain).write_volatile(DOM0);
            (&raw mut (*entry).flags).write_volatile(GTF_PERMIT_ACCESS);
        }
        let at = there + n * PAGE_SIZE;
        let mut grant = MapGrant {
            at,
            flags: GNTMAP_HOST_MAP,
            reference,
            domain: DOM0,
            status: -1,
            handle: 0,
            bus_address: 0,
        };
        let (answer, ticks) =
            xen::sample_with(GRANT_TABLE_OP, GNTTABOP_MAP_GRANT_REF, &mut grant, 1);
        map.add(ticks);
        if answer != 0 || grant.status != 0 {
            return Err(("GNTTABOP_map_grant_ref", grant.status as u64));
        }
        // SAFETY: the grant is mapped there.
        let word = unsafe { (at as *const u64).read_volatile() };
        if word != page {
            return Err(("a granted page", word));
        }
        let mut grant = UnmapGrant { at, bus_address: 0, handle: grant.handle, status: -1 };
        let (answer, ticks) =
            xen::sample_with(GRANT_TABLE_OP, GNTTABOP_UNMAP_GRANT_REF, &mut grant, 1);
        unmap.add(ticks);
        if answer != 0 || grant.status != 0 {
            return Err(("GNTTABOP_unmap_grant_ref", grant.status as u64));
        }
    }
    say!("{map}");
    say!("{unmap}");
    Ok(())
}

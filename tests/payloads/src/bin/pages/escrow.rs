// SPDX-License-Identifier: MIT OR Apache-2.0

//! Escrow's own memory, and what the host's device tree says of it.

use escrow_abi::PAGE_SIZE;
use escrow_payloads::expect::{escrow_memory, is_in_reach, is_out_of_reach, is_taken_away};
use escrow_payloads::{Host, Outcome, Test, board, check, check_eq, fail, mmu, probe, tests};

pub const TESTS: &[Test] = tests![
    no_page_of_escrow_can_be_reached,
    no_kind_of_access_reaches_escrow,
    table_walks_do_not_reach_escrow,
    the_device_tree_has_no_memory_of_escrow,
    the_rest_can_be_reached,
];

fn no_page_of_escrow_can_be_reached(host: &mut Host) -> Outcome {
    for range in escrow_memory(host)? {
        for at in range.step_by(PAGE_SIZE as usize) {
            is_out_of_reach(at)?;
            is_out_of_reach(at + PAGE_SIZE - 8)?;
        }
    }
    Ok(())
}

fn no_kind_of_access_reaches_escrow(host: &mut Host) -> Outcome {
    for range in escrow_memory(host)? {
        for access in probe::ACCESSES {
            match access.run(range.start, 0xbad) {
                Ok(_) => fail!("{} reaches {:#x}", access.name, range.start),
                Err(fault) => is_taken_away(fault, range.start, access.is_write)?,
            }
        }
        // A hint is no access.
        check_eq!(probe::prefetch(range.start), Ok(()));
    }
    Ok(())
}

fn table_walks_do_not_reach_escrow(host: &mut Host) -> Outcome {
    for range in escrow_memory(host)? {
        // GiB 300 is walked through a table that is Escrow's.
        mmu::set_table(300, range.start);
        let fault = probe::read(300 * mmu::GIB + 0x1000);
        let fetch = probe::fetch(300 * mmu::GIB + 0x1000);
        mmu::clear_table(300);
        // External aborts on a walk, of some level.
        check_eq!(fault.map_err(|f| (f.class(), f.status() & !3)), Err((0x25, 0x14)));
        check_eq!(fetch.map_err(|f| (f.class(), f.status() & !3)), Err((0x21, 0x14)));
    }
    Ok(())
}

fn the_device_tree_has_no_memory_of_escrow(host: &mut Host) -> Outcome {
    for range in escrow_memory(host)? {
        for memory in &host.board.memory {
            check!(
                memory.end <= range.start || range.end <= memory.start,
                "memory {memory:x?} is Escrow's {range:x?}"
            );
        }
    }
    check!(host.board.has_escrow);
    let tree = board::tree();
    let node = tree.find_node("/hypervisor");
    let compatible = node.and_then(|node| node.compatible()).map(|c| c.first());
    check_eq!(compatible, Some("escrow,hypervisor"));
    // The boot loader's modules are gone, their memory is the host's.
    let chosen = tree.find_node("/chosen");
    let modules = chosen.map_or(0, |node| node.children().count());
    check_eq!(modules, 0, "modules in /chosen");
    Ok(())
}

fn the_rest_can_be_reached(host: &mut Host) -> Outcome {
    let mut pages = 0u64;
    for range in &host.board.memory {
        // Both ends, and a page in each block. The payload itself is among
        // them: what is written back is what was there.
        for at in range.clone().step_by(escrow_abi::BLOCK_SIZE as usize).chain([range.end - 8]) {
            if !board::image().contains(&at) {
                is_in_reach(at)?;
                pages += 1;
            }
        }
    }
    check!(pages > 100, "{pages} pages");
    Ok(())
}

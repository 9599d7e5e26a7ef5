// SPDX-License-Identifier: MIT OR Apache-2.0

//! Where lists are, and how long.

use escrow_abi::{Error, LIST_MAX, PAGE_SIZE, call};
use escrow_payloads::expect::{escrow_memory, refusal, refuses};
use escrow_payloads::host::{Lists, frame, page_at, refused};
use escrow_payloads::{Host, Outcome, Test, hvc, tests};

use escrow_payloads::expect::not_ram;
use escrow_payloads::shape::CALLS;

pub const TESTS: &[Test] = tests![
    lists_have_one_to_512_entries,
    lists_begin_on_a_page,
    lists_do_not_wrap,
    lists_are_in_ram,
    lists_are_not_in_escrow,
    lists_are_not_in_pages_that_are_away,
    lists_do_not_run_into_pages_that_are_away,
    lists_may_be_in_shared_pages,
];

const ENTRIES_PER_PAGE: u64 = PAGE_SIZE / 32;

/// Every call that takes a list refuses this one.
fn all_refuse(vm: u64, list: u64, count: u64, error: Error) -> Outcome {
    for shape in CALLS {
        let Some(at) = shape.list() else { continue };
        let (function, length) = (shape.function, shape.arguments.len());
        let mut arguments = [vm, 0, 0, 0];
        arguments[at - 1..at + 1].copy_from_slice(&[list, count]);
        refuses(function, &arguments[..length], refusal(error))?;
    }
    Ok(())
}

fn lists_have_one_to_512_entries(host: &mut Host) -> Outcome {
    let vm = host.vm(4)?;
    for count in [0, LIST_MAX as u64 + 1, 1 << 16, 1 << 32, 1 << 59, u64::MAX] {
        all_refuse(vm, host.lists.address(), count, Error::InvalidSize)?;
    }
    host.end(vm)
}

fn lists_begin_on_a_page(host: &mut Host) -> Outcome {
    let vm = host.vm(4)?;
    for offset in [1, 8, 32, 0x800, 0xfff] {
        all_refuse(vm, host.lists.address() + offset, 1, Error::Misaligned)?;
    }
    all_refuse(vm, u64::MAX, 1, Error::Misaligned)?;
    host.end(vm)
}

fn lists_do_not_wrap(host: &mut Host) -> Outcome {
    let vm = host.vm(4)?;
    all_refuse(vm, !0xfff, ENTRIES_PER_PAGE, Error::AddressOverflow)?;
    all_refuse(vm, !0xfff, 512, Error::AddressOverflow)?;
    all_refuse(vm, !0x1fff, 512, Error::AddressOverflow)?;
    host.end(vm)
}

fn lists_are_in_ram(host: &mut Host) -> Outcome {
    let vm = host.vm(4)?;
    for at in not_ram(host) {
        all_refuse(vm, at, 1, Error::InvalidAddress)?;
    }
    host.end(vm)
}

fn lists_are_not_in_escrow(host: &mut Host) -> Outcome {
    let vm = host.vm(4)?;
    for range in escrow_memory(host)? {
        for at in [range.start, range.end - PAGE_SIZE] {
            all_refuse(vm, at, 1, Error::NotOwner)?;
        }
    }
    host.end(vm)
}

fn lists_are_not_in_pages_that_are_away(host: &mut Host) -> Outcome {
    let metadata = host.arena.pages(4);
    let vm = host.lists.vm_of(metadata, 4)?;
    let lent = host.page();
    host.lists.lend(vm, &[page_at(lent, 0x1000)]).map_err(refused("MEM_LEND"))?;
    for at in [metadata, metadata + 3 * PAGE_SIZE, lent] {
        all_refuse(vm, at, 1, Error::NotOwner)?;
    }
    host.end(vm)
}

fn lists_do_not_run_into_pages_that_are_away(host: &mut Host) -> Outcome {
    // A list over two pages, the second lent: all of it is right to begin with.
    let vm = host.vm(4)?;
    let lists = Lists::new(&mut host.arena);
    let pages = host.arena.pages(200);
    let entries: [_; 200] = core::array::from_fn(|n| frame(pages + n as u64 * PAGE_SIZE));
    let [list, count] = lists.put(&entries);
    let second = list + PAGE_SIZE;
    host.lists.lend(vm, &[page_at(second, 0x1000)]).map_err(refused("MEM_LEND"))?;
    refuses(call::VM_CREATE, &[list, count], refusal(Error::NotOwner))?;
    refuses(call::VM_TOP_UP, &[vm, list, count], refusal(Error::NotOwner))?;
    // As far as the first page goes, it is a list.
    hvc::call(call::VM_TOP_UP, &[vm, list, ENTRIES_PER_PAGE]).map_err(refused("VM_TOP_UP"))?;
    host.end(vm)
}

fn lists_may_be_in_shared_pages(host: &mut Host) -> Outcome {
    let vm = host.vm(4)?;
    let lists = Lists::new(&mut host.arena);
    let page = host.page();
    host.lists.share(vm, &[page_at(lists.address(), 0x1000)]).map_err(refused("MEM_SHARE"))?;
    lists.lend(vm, &[page_at(page, 0x2000)]).map_err(refused("MEM_LEND"))?;
    host.end(vm)
}

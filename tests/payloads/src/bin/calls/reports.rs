// SPDX-License-Identifier: MIT OR Apache-2.0

//! The host's reports: what they say is believed when it speaks against the
//! call, and never when it speaks for it.

use escrow_abi::{Error, FrameState, MemEntry, call};
use escrow_payloads::expect::{escrow_memory, is_in_reach, refusal_of, refuses_with};
use escrow_payloads::host::{frame, page_at, refused};
use escrow_payloads::{Host, Outcome, Test, hvc, tests};

pub const TESTS: &[Test] = tests![
    honest_reports_of_users_refuse,
    reports_of_no_users_are_right_for_owners,
    a_clean_report_of_another_s_page_is_a_lie,
    a_clean_report_of_a_page_lent_to_another_vm_is_a_lie,
];

fn honest_reports_of_users_refuse(host: &mut Host) -> Outcome {
    let vm = host.vm(12)?;
    let page = host.page();
    let entry = page_at(page, 0x1000);
    for (refcount, safe, accessible, error, detail) in [
        (2u32, 1u32, 0u32, Error::Excess, 1u64),
        (1025, 1, 0, Error::Excess, 1024),
        (0, 1, 0, Error::Excess, u64::MAX),
        (u32::MAX, 0, 0, Error::Excess, u32::MAX as u64),
        (0, u32::MAX, 0, Error::Excess, -(u32::MAX as i64) as u64),
        (1, 1, 1, Error::Accessible, 1),
        (0, 0, u32::MAX, Error::Accessible, u32::MAX as u64),
        // Both: the references come first.
        (3, 1, 5, Error::Excess, 2),
    ] {
        let entry = entry.with_report(refcount, safe, accessible);
        let expected = refusal_of(error, 0, detail);
        let what = [refcount as u64, safe as u64, accessible as u64];
        refuses_with(expected, &what, || host.lists.lend(vm, &[entry]))?;
        refuses_with(expected, &what, || host.lists.lend_one(vm, &entry))?;
        let donated = frame(page).with_report(refcount, safe, accessible);
        refuses_with(expected, &what, || host.lists.top_up(vm, &[donated]))?;
    }
    is_in_reach(page)?;
    host.end(vm)
}

fn reports_of_no_users_are_right_for_owners(host: &mut Host) -> Outcome {
    let vm = host.vm(12)?;
    for (n, report) in [(0, 0), (1, 1), (77, 77), (u32::MAX, u32::MAX)].into_iter().enumerate() {
        let page = host.page();
        let entry = page_at(page, 0x1000 + n as u64 * 0x1000).with_report(report.0, report.1, 0);
        host.lists.lend(vm, &[entry]).map_err(refused("MEM_LEND"))?;
    }
    host.end(vm)
}

/// Calls that would take a page from somebody, with a report of no users.
fn lies(host: &Host, vm: u64, at: u64, error: Error, detail: u64) -> Outcome {
    let expected = refusal_of(error, 0, detail);
    for report in [(0, 0), (1, 1)] {
        let map = page_at(at, 0x7000).with_report(report.0, report.1, 0);
        let donate = frame(at).with_report(report.0, report.1, 0);
        refuses_with(expected, &[at], || host.lists.lend(vm, &[map]))?;
        refuses_with(expected, &[at], || host.lists.lend_one(vm, &map))?;
        refuses_with(expected, &[at], || host.lists.top_up(vm, &[donate]))?;
        refuses_with(expected, &[at], || host.lists.vm_create(&[donate]).map(|vm| [vm, 0, 0, 0]))?;
    }
    let map: MemEntry = page_at(at, 0x7000);
    refuses_with(expected, &[at], || host.lists.share(vm, &[map]))
}

fn a_clean_report_of_another_s_page_is_a_lie(host: &mut Host) -> Outcome {
    let vm = host.vm(12)?;
    for range in escrow_memory(host)? {
        for at in [range.start, range.end - 0x1000] {
            lies(host, vm, at, Error::NotOwner, 0)?;
        }
    }
    host.end(vm)
}

fn a_clean_report_of_a_page_lent_to_another_vm_is_a_lie(host: &mut Host) -> Outcome {
    let metadata = host.arena.pages(12);
    let vm = host.lists.vm_of(metadata, 12)?;
    let other = host.vm(12)?;
    let [lent, shared] = [host.page(), host.page()];
    host.lists.lend(vm, &[page_at(lent, 0x1000)]).map_err(refused("MEM_LEND"))?;
    host.lists.share(vm, &[page_at(shared, 0x2000)]).map_err(refused("MEM_SHARE"))?;
    for to in [vm, other] {
        lies(host, to, lent, Error::WrongState, FrameState::Lent as u64)?;
        lies(host, to, shared, Error::WrongState, FrameState::Shared as u64)?;
        lies(host, to, metadata, Error::WrongState, FrameState::Metadata as u64)?;
    }
    hvc::call(call::VM_DESTROY, &[vm]).map_err(refused("VM_DESTROY"))?;
    // Of the dead as of the living.
    lies(host, other, lent, Error::WrongState, FrameState::Lent as u64)?;
    lies(host, other, metadata, Error::WrongState, FrameState::Metadata as u64)?;
    host.end(other)
}

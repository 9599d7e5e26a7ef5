// SPDX-License-Identifier: MIT OR Apache-2.0

//! How much EL2 does in one stretch for a protected VM, and what is left when it refuses more.

use std::sync::atomic::Ordering;

use escrow_abi::{Error, call, rsi, run};

use super::{FREE, Guest, Host, Interrupts, MEMORY, SHARED, Touched, page};
use crate::addr::{BLOCK_SIZE, PAGE_SIZE};
use crate::hypervisor::portions::PORTION_BLOCKS;

#[test]
fn a_question_is_answered_in_parts() {
    let mut guest = Guest::created(16);
    for n in 0..100 {
        guest.lend(page(FREE + 2 * n * PAGE_SIZE, MEMORY + n * PAGE_SIZE)).unwrap();
    }
    guest.start();
    let end = MEMORY + 100 * PAGE_SIZE;
    let asked = [rsi::STATUS_SUCCESS, end, rsi::RAM];
    assert_eq!(guest.asks(rsi::IPA_STATE_GET, &[MEMORY, end]), asked);
    *guest.host.escrow.machine.interrupts.lock().unwrap() = Interrupts::Always;
    let [_, next, _] = guest.asks(rsi::IPA_STATE_GET, &[MEMORY, end]);
    assert!((MEMORY + PAGE_SIZE..=MEMORY + 32 * PAGE_SIZE).contains(&next), "{next:#x}");
    assert_eq!(guest.ripas(MEMORY, end), [(end, rsi::RAM)]);
}

#[test]
fn changes_are_made_in_parts() {
    let mut guest = Guest::created(16);
    for n in 0..40 {
        guest.lend(page(FREE + 2 * n * PAGE_SIZE, MEMORY + n * PAGE_SIZE)).unwrap();
    }
    guest.start();
    let end = MEMORY + 40 * PAGE_SIZE;
    *guest.host.escrow.machine.interrupts.lock().unwrap() = Interrupts::Always;
    // As many as may each be in a block of its own, which a change splits or merges.
    for ripas in [rsi::EMPTY, rsi::RAM] {
        let [_, next, _] = guest.asks(rsi::IPA_STATE_SET, &[MEMORY, end, ripas, 0]);
        assert_eq!(next, MEMORY + PORTION_BLOCKS * PAGE_SIZE);
        guest.sets(next, end, ripas);
        assert_eq!(guest.ripas(MEMORY, end), [(end, ripas)]);
    }
}

#[test]
fn a_declaration_s_work_is_bounded() {
    let mut host = Host::new();
    let (vm, _) = host.create(40);
    host.call(call::VM_PROTECT, &[vm]).unwrap();
    let configure = |key, base, size| [vm, key, base, size];
    let add = call::CONFIGURE_MEMORY_ADD;
    for n in 0..16 {
        let one = configure(add, MEMORY + n * BLOCK_SIZE, PAGE_SIZE);
        host.call(call::VM_CONFIGURE, &one).unwrap();
    }
    for key in [add, call::CONFIGURE_MEMORY_REMOVE] {
        let before = host.escrow.machine.tables_found.load(Ordering::Relaxed);
        let refused = host.call(call::VM_CONFIGURE, &configure(key, 0, SHARED));
        assert_eq!(refused, Err((Error::InvalidSize, 0, 0)));
        let looks = host.escrow.machine.tables_found.load(Ordering::Relaxed) - before;
        assert!(looks <= 4096 * 7, "{looks}");
    }
    // A few tables are no reason.
    host.call(call::VM_CONFIGURE, &configure(add, MEMORY, 4 * BLOCK_SIZE)).unwrap();
}

#[test]
fn a_refused_declaration_changes_nothing() {
    // The root, a table below it, one for each page.
    let mut host = Host::new();
    let (vm, _) = host.create(1 + 1 + 16);
    host.call(call::VM_PROTECT, &[vm]).unwrap();
    let configure = |key, base, size| [vm, key, base, size];
    let (add, remove) = (call::CONFIGURE_MEMORY_ADD, call::CONFIGURE_MEMORY_REMOVE);
    let mut expected = Vec::new();
    for n in 0..16 {
        let at = MEMORY + n * BLOCK_SIZE;
        host.call(call::VM_CONFIGURE, &configure(add, at, PAGE_SIZE)).unwrap();
        expected.extend([(at, rsi::EMPTY), (at + PAGE_SIZE, rsi::RAM)]);
    }
    expected.push((SHARED, rsi::EMPTY));
    for key in [add, remove] {
        let refused = host.call(call::VM_CONFIGURE, &configure(key, MEMORY, SHARED - MEMORY));
        assert_eq!(refused, Err((Error::InvalidSize, 0, 0)));
    }
    // Whole entries, and at their end a page that takes two tables.
    let far = configure(add, MEMORY + (1 << 30) - BLOCK_SIZE, BLOCK_SIZE + PAGE_SIZE);
    assert_eq!(host.call(call::VM_CONFIGURE, &far), Err((Error::NoMemory, 0, 2)));
    let one = host.fresh_metadata(1);
    let [list, count] = host.list(&one);
    host.call(call::VM_TOP_UP, &[vm, list, count]).unwrap();
    let [vcpu, ..] = host.call(call::VCPU_CREATE, &[vm, 0]).unwrap();
    host.call(call::VM_START, &[vm]).unwrap();
    let mut guest = Guest { host, vm, vcpu };
    assert_eq!(guest.ripas(0, SHARED), expected);
    let read = Touched::Exits([run::MMIO_READ, far[2], 4, 0]);
    assert_eq!(guest.touches(far[2] | SHARED, false), read);
}

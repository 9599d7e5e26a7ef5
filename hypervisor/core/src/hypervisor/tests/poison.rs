// SPDX-License-Identifier: MIT OR Apache-2.0

//! Broken memory that guests own.

use escrow_abi::{Error, FrameState, Handle, MemEntry, Rights, call};

use super::fake::{FREE, Host};
use super::{block, page, started};
use crate::addr::{BLOCK_SIZE, Ipa, PAGE_SIZE};
use crate::ledger::GuestId;

pub(super) fn entry_is_poisoned(host: &Host, vm: u64, at: u64) -> bool {
    let slot = Handle::from_register(vm).unwrap().slot;
    let vm = host.escrow.slots.get(GuestId::new(slot).unwrap()).unwrap().lock();
    let map = vm.map.as_ref().unwrap();
    map.lookup(&host.escrow.machine, Ipa(at)).entry.is_poisoned()
}

#[test]
fn broken_memory_that_a_guest_owns_goes_out_of_use() {
    let mut host = Host::new();
    let (vm, vcpu) = started(&mut host);
    host.give(call::MEM_DONATE, vm, &[page(FREE, 0x5000), page(FREE + 0x1000, 0x7000)]).unwrap();
    host.escrow.machine.forget();
    host.take(call::MEM_POISON, &[(FREE, 0)]).unwrap();
    assert!(entry_is_poisoned(&host, vm, 0x5000));
    let context = *host
        .escrow
        .slots
        .get(GuestId::new(1).unwrap())
        .unwrap()
        .lock()
        .map
        .as_ref()
        .unwrap()
        .context();
    assert!(host.escrow.machine.invalidations(context.vttbr, Ipa(0x5000)) > 0);
    assert_eq!(host.guest_frame(vm, 0x7000), Some(FREE + 0x1000), "what is beside it stays");
    assert_eq!(host.escrow.pages(FrameState::Poisoned), 1);
    assert_eq!(host.escrow.pages(FrameState::Donated), 1);
    // Its address is taken, and it is nobody's any more.
    let again = host.lend(vm, &[page(FREE + 0x2000, 0x5000)]);
    assert_eq!(again, Err((Error::GuestMapped, 0, 0)));
    host.write_list(&[MemEntry::new(0x5000, 0, 0, Rights::NONE)], |_| FREE + 0x1000);
    let given_back = host.guest_call(vcpu, call::MEM_DONATE, &[Handle::HOST, 0x7000, 1]);
    assert_eq!(given_back, Err((Error::InvalidAddress, 0, 0)));
    host.call(call::VM_DESTROY, &[vm]).unwrap();
    host.reclaim(&[(FREE + 0x1000, 0)]).unwrap();
}

/// The owner's addresses are in its own map alone.
#[test]
fn broken_memory_that_a_guest_has_given_to_another_leaves_both() {
    for function in [call::MEM_SHARE, call::MEM_LEND] {
        let mut host = Host::new();
        let (owner, owner_vcpu) = started(&mut host);
        let (other, _) = started(&mut host);
        let far = FREE + 3 * BLOCK_SIZE;
        let whole = [page(FREE, 0x1000), page(FREE + 0x1000, 0x5000), block(far, BLOCK_SIZE)];
        host.give(call::MEM_DONATE, owner, &whole).unwrap();
        let rights = call::RIGHT_LEND | call::RIGHT_SHARE;
        let window = [owner, other, rights, 0, 8 * BLOCK_SIZE];
        let [cap, ..] = host.call(call::CAP_GRANT, &window).unwrap();
        // A page of the block, to an address that says nothing of the owner's.
        let entries = [page(0x5000, 0x9000), page(BLOCK_SIZE + 3 * PAGE_SIZE, 5 * BLOCK_SIZE)];
        host.write_list(&entries, |_| FREE);
        host.guest_call(owner_vcpu, function, &[cap, 0x1000, 2]).unwrap();
        let broken = [(FREE + 0x1000, 0), (far + 3 * PAGE_SIZE, 0)];
        host.escrow.machine.forget();
        host.take(call::MEM_POISON, &broken).unwrap();
        for at in [0x5000, BLOCK_SIZE + 3 * PAGE_SIZE] {
            assert!(entry_is_poisoned(&host, owner, at), "the owner at {at:#x}");
        }
        for at in [0x9000, 5 * BLOCK_SIZE] {
            assert!(entry_is_poisoned(&host, other, at), "the borrower at {at:#x}");
        }
        assert_eq!(host.guest_frame(owner, BLOCK_SIZE), Some(far));
        assert_eq!(host.escrow.pages(FrameState::Poisoned), 2);
        assert_eq!(host.escrow.pages(FrameState::Donated), 512);
        for slot in [1, 2] {
            let context = *host
                .escrow
                .slots
                .get(GuestId::new(slot).unwrap())
                .unwrap()
                .lock()
                .map
                .as_ref()
                .unwrap()
                .context();
            let at = [0x5000, 0x9000][usize::from(slot) - 1];
            assert!(host.escrow.machine.invalidations(context.vttbr, Ipa(at)) > 0);
        }
        host.call(call::VM_DESTROY, &[owner]).unwrap();
        host.call(call::VM_DESTROY, &[other]).unwrap();
    }
}

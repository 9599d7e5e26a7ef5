// SPDX-License-Identifier: MIT OR Apache-2.0

//! How many guests there may be, and how they are counted.

use escrow_abi::{Error, FrameState, Handle, call};

use super::fake::{FREE, Host, METADATA};
use super::page;
use crate::hypervisor::SetupError;
use crate::ledger::GuestId;

fn slot_of(vm: u64) -> u16 {
    Handle::from_register(vm).unwrap().slot
}

#[test]
fn there_are_as_many_guests_as_were_asked_for() {
    for (guests, vmid16) in [(2, false), (255, false), (300, true)] {
        let mut host = Host::for_guests(guests, vmid16).unwrap();
        let vms: Vec<_> = (0..guests).map(|_| host.create(1).0).collect();
        let numbers = 1..=guests as u16;
        assert!(vms.iter().map(|&vm| slot_of(vm)).eq(numbers), "a slot, and so a VMID, for each");
        let pages = host.fresh_metadata(1);
        let [list, count] = host.list(&pages);
        assert_eq!(host.call(call::VM_CREATE, &[list, count]).unwrap_err().0, Error::TableFull);
        // The last one is as good as the first, and has its number for VMID.
        let last = *vms.last().unwrap();
        let slot = host.escrow.slots.get(GuestId::new(slot_of(last)).unwrap()).unwrap();
        assert_eq!(slot.vttbr() >> 48, guests as u64);
        host.call(call::VM_TOP_UP, &[last, list, count]).unwrap();
        // One that there is no slot for.
        let beyond = Handle { slot: guests as u16 + 1, ..Handle::from_register(last).unwrap() };
        let none = host.call(call::VM_INFO, &[beyond.to_register()]).unwrap_err();
        assert_eq!(none.0, Error::HandleNull);
        let host_number = Handle { slot: 0, ..beyond };
        let none = host.call(call::VM_INFO, &[host_number.to_register()]).unwrap_err();
        assert_eq!(none.0, Error::HandleNull);
        // A slot that is free again is the next one's.
        host.call(call::VM_DESTROY, &[vms[0]]).unwrap();
        host.reclaim(&[(METADATA, 0)]).unwrap();
        assert_eq!(slot_of(host.create(1).0), 1);
    }
}

#[test]
fn two_guests_never_have_one_vmid() {
    assert_eq!(Host::for_guests(256, false).err(), Some(SetupError::TooManyGuests));
    assert_eq!(Host::for_guests(4096, true).err(), Some(SetupError::TooManyGuests));
    assert!(Host::for_guests(4095, true).is_ok());
}

#[test]
fn counting_takes_no_lock() {
    let mut host = Host::new();
    let (vm, _) = host.create(8);
    host.lend(vm, &[page(FREE, 0), page(FREE + 0x1000, 0x1000)]).unwrap();
    let slot = host.escrow.slots.get(GuestId::new(1).unwrap()).unwrap();
    let all: Vec<_> = host.escrow.slots.iter().map(|(_, slot)| slot.lock()).collect();
    // What would wait for one of them never comes back.
    assert_eq!(host.escrow.pages(FrameState::Lent), 2);
    assert_eq!(host.escrow.pages(FrameState::Metadata), 8);
    assert!(slot.counts().is_taken());
    let mut x = [call::LEDGER_INFO.into(), call::INFO_VMS, 0, 0, 0, 0, 0, 0];
    assert!(host.makes_call(&mut x));
    assert_eq!(x[..2], [0, 1]);
    drop(all);
    host.call(call::VM_DESTROY, &[vm]).unwrap();
    assert!(slot.counts().is_taken(), "as long as a page of its is not home");
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! No memory comes where a guest's interrupt controller is, and the other way round.

use escrow_abi::{BLOCK_SIZE, Error, MemEntry, call};

use super::fake::{FREE, Host};
use super::{block, page};
use crate::addr::PAGE_SIZE;

/// The last page of the 2 MiB before the distributor is memory in some tests: so these
/// have a table, and lending one page there is the fast path.
const GICD: u64 = 0x0810_0000;
const GICR: u64 = 0x0818_0000;
const GICR_SIZE: u64 = 0x2_0000;

/// A VM with vCPU 0 and a GIC.
fn with_gic(host: &mut Host) -> u64 {
    let (vm, _) = host.create(40);
    host.call(call::VCPU_CREATE, &[vm, 0]).unwrap();
    host.call(call::VM_VGIC, &[vm, GICD, GICR, 32]).unwrap();
    vm
}

fn vgic(host: &mut Host, vm: u64, distributor: u64, redistributors: u64) -> Result<(), Error> {
    let called = host.call(call::VM_VGIC, &[vm, distributor, redistributors, 32]);
    called.map(drop).map_err(|(error, ..)| error)
}

/// Pages in the place of frames, and pages beside them.
const TAKEN: [u64; 4] = [GICD, GICD + 0xf000, GICR, GICR + GICR_SIZE - PAGE_SIZE];
const FREE_PLACES: [u64; 4] =
    [GICD - PAGE_SIZE, GICD + 0x1_0000, GICR - PAGE_SIZE, GICR + GICR_SIZE];

#[test]
fn no_call_maps_memory_there() {
    let mut host = Host::new();
    let vm = with_gic(&mut host);
    let gone = Err((Error::GuestMapped, 0, 0));
    for with_table in [false, true] {
        for at in TAKEN {
            assert_eq!(host.lend(vm, &[page(FREE, at)]), gone, "{at:#x}");
            assert_eq!(host.lend_one(vm, &page(FREE, at)), gone, "{at:#x}");
            assert_eq!(host.share(vm, &[page(FREE, at)]), gone, "{at:#x}");
            assert_eq!(host.give(call::MEM_DONATE, vm, &[page(FREE, at)]), gone, "{at:#x}");
            assert_eq!(host.call(call::VM_PV_TIME, &[vm, at]), Err((Error::GuestMapped, 0, 0)));
        }
        if !with_table {
            // A block of them: without a table for its GiB, with one, with one for it.
            let block = block(FREE + BLOCK_SIZE, GICD & !(BLOCK_SIZE - 1));
            assert_eq!(host.lend(vm, &[block]), gone);
            assert_eq!(host.lend_one(vm, &block), gone);
            assert_eq!(host.share(vm, &[block]), gone);
            assert_eq!(host.give(call::MEM_DONATE, vm, &[block]), gone);
            host.share(vm, &[page(FREE + 0x2000, GICD + 0x100_0000)]).unwrap();
            assert_eq!(host.lend_one(vm, &block), gone);
            host.share(vm, &[page(FREE + 0x1000, GICD - PAGE_SIZE)]).unwrap();
            assert_eq!(host.lend(vm, &[block]), gone);
            assert_eq!(host.lend_one(vm, &block), gone);
            host.take(call::MEM_UNSHARE, &[(FREE + 0x1000, 0)]).unwrap();
        }
    }
    // The entry is named: the second of three, in one run or not.
    let run: Vec<_> =
        (0..3).map(|n| page(FREE + n * PAGE_SIZE, GICD - PAGE_SIZE + n * PAGE_SIZE)).collect();
    for step in [1, 2] {
        let apart = run.iter().enumerate().map(|(n, entry)| MemEntry {
            frame: entry.frame + n as u64 * (step - 1) * PAGE_SIZE,
            ..*entry
        });
        let apart: Vec<_> = apart.collect();
        assert_eq!(host.share(vm, &apart), Err((Error::GuestMapped, 1, 0)), "{step}");
        assert_eq!(host.lend(vm, &apart), Err((Error::GuestMapped, 1, 0)), "{step}");
    }
    // Nothing has happened.
    assert!(host.reaches(FREE) && host.reaches(FREE + BLOCK_SIZE));
    for at in FREE_PLACES {
        host.lend_one(vm, &page(FREE, at)).unwrap();
        assert_eq!(host.guest_frame(vm, at), Some(FREE));
        host.give(call::MEM_DONATE, vm, &[page(FREE + 0x1000, at + 0x100_0000)]).unwrap();
        host = Host::new();
        assert_eq!(with_gic(&mut host), vm);
    }
}

#[test]
fn no_guest_maps_memory_there_for_another() {
    let mut host = Host::new();
    let to = with_gic(&mut host);
    let (owner, vcpu) = super::started(&mut host);
    let list = FREE + 0x8000;
    host.give(call::MEM_DONATE, owner, &[page(FREE, 0x1000)]).unwrap();
    host.share(owner, &[page(list, 0x8000)]).unwrap();
    let rights = call::RIGHT_SHARE | call::RIGHT_LEND | call::RIGHT_DONATE;
    let [cap, ..] = host.call(call::CAP_GRANT, &[owner, to, rights, 0, 1 << 39]).unwrap();
    for function in [call::MEM_SHARE, call::MEM_LEND, call::MEM_DONATE] {
        for at in TAKEN {
            host.write_list(&[page(0x1000, at)], |_| list);
            let refused = host.guest_call(vcpu, function, &[cap, 0x8000, 1]);
            assert_eq!(refused, Err((Error::GuestMapped, 0, 0)), "{function:#x} {at:#x}");
        }
    }
}

#[test]
fn frames_are_not_laid_over_what_is_there() {
    // What is at the address, before the GIC comes: a page, a block, and what only was there.
    type Before = fn(&mut Host, u64, u64);
    let lent: Before = |host, vm, at| host.lend(vm, &[page(FREE, at)]).unwrap();
    let whole: Before = |host, vm, at| {
        host.share(vm, &[block(FREE + BLOCK_SIZE, at & !(BLOCK_SIZE - 1))]).unwrap();
    };
    let time: Before = |host, vm, at| {
        host.call(call::VM_PV_TIME, &[vm, at]).unwrap();
    };
    let broken: Before = |host, vm, at| {
        host.lend(vm, &[page(FREE, at)]).unwrap();
        host.take(call::MEM_POISON, &[(FREE, 0)]).unwrap();
    };
    let gone: Before = |host, vm, at| {
        host.share(vm, &[page(FREE, at)]).unwrap();
        host.take(call::MEM_UNSHARE, &[(FREE, 0)]).unwrap();
    };
    for (before, stays) in
        [(lent, true), (whole, true), (time, true), (broken, true), (gone, false)]
    {
        for at in TAKEN {
            let mut host = Host::new();
            let (vm, _) = host.create(40);
            host.call(call::VCPU_CREATE, &[vm, 0]).unwrap();
            before(&mut host, vm, at);
            let [_, _, _, free] = host.call(call::VM_INFO, &[vm]).unwrap();
            let expected = if stays { Err(Error::GuestMapped) } else { Ok(()) };
            assert_eq!(vgic(&mut host, vm, GICD, GICR), expected, "{at:#x}");
            let [_, _, _, after] = host.call(call::VM_INFO, &[vm]).unwrap();
            assert_eq!(free - after, u64::from(!stays));
            // Nothing is kept free by what was refused.
            assert_eq!(vgic(&mut host, vm, 0x1000_0000, 0x1001_0000).is_ok(), stays);
            let lent = host.lend(vm, &[page(FREE + 0x5000, GICD + 0x5000)]);
            assert_eq!(lent.is_ok(), stays && before as usize != whole as usize, "{at:#x}");
        }
    }
}

#[test]
fn what_an_owner_has_keeps_its_address() {
    let mut host = Host::new();
    let (vm, _) = host.create(40);
    let (other, _) = host.create(20);
    host.call(call::VCPU_CREATE, &[vm, 0]).unwrap();
    host.give(call::MEM_DONATE, vm, &[page(FREE, GICD)]).unwrap();
    assert_eq!(vgic(&mut host, vm, GICD, GICR), Err(Error::GuestMapped));
    assert_eq!(vgic(&mut host, other, GICD, GICR), Ok(()), "another VM's is its own");
}

#[test]
fn each_vcpu_needs_room_for_its_redistributor() {
    let mut host = Host::new();
    let vm = with_gic(&mut host);
    host.call(call::VM_START, &[vm]).unwrap();
    let create = |host: &mut Host, index| {
        host.call(call::VCPU_CREATE, &[vm, index]).map(drop).map_err(|(error, ..)| error)
    };
    let second = GICR + GICR_SIZE;
    host.share(vm, &[page(FREE, second + 0x1_f000)]).unwrap();
    let [_, _, _, free] = host.call(call::VM_INFO, &[vm]).unwrap();
    assert_eq!(create(&mut host, 1), Err(Error::GuestMapped));
    assert_eq!(host.call(call::VM_INFO, &[vm]).unwrap()[3], free);
    host.lend(vm, &[page(FREE + 0x1000, second)]).unwrap();
    host.take(call::MEM_UNSHARE, &[(FREE, 0)]).unwrap();
    assert_eq!(create(&mut host, 1), Err(Error::GuestMapped));
    // One that is not beside the others.
    assert_eq!(create(&mut host, 3), Ok(()));
    let third = GICR + 3 * GICR_SIZE;
    assert_eq!(host.lend(vm, &[page(FREE, third)]), Err((Error::GuestMapped, 0, 0)));
    host.lend(vm, &[page(FREE, third - PAGE_SIZE)]).unwrap();
}

#[test]
fn frames_beyond_the_space_or_in_each_other_s_place_are_refused() {
    let mut host = Host::new();
    let (vm, _) = host.create(40);
    for n in [0, 1] {
        host.call(call::VCPU_CREATE, &[vm, n]).unwrap();
    }
    let end = 1 << 39;
    for (distributor, redistributors, error) in [
        (GICD + 0x1000, GICR, Error::Misaligned),
        (GICD, GICR + 0x8000, Error::Misaligned),
        (end, GICR, Error::AddressOverflow),
        (!0xffff, GICR, Error::AddressOverflow),
        (GICD, end - GICR_SIZE, Error::AddressOverflow),
        (GICD, !0xffff, Error::AddressOverflow),
        (GICD, GICD, Error::Overlap),
        (GICR + GICR_SIZE + 0x1_0000, GICR, Error::Overlap),
    ] {
        let refused = vgic(&mut host, vm, distributor, redistributors);
        assert_eq!(refused, Err(error), "{distributor:#x} {redistributors:#x}");
    }
    let below = GICR + 2 * GICR_SIZE;
    assert_eq!(vgic(&mut host, vm, below, GICR), Ok(()));
    // A third one's would be where the distributor is.
    let refused = host.call(call::VCPU_CREATE, &[vm, 2]);
    assert_eq!(refused, Err((Error::Overlap, 0, 0)));
    let (vm, _) = host.create(40);
    assert_eq!(vgic(&mut host, vm, GICD, end - 2 * GICR_SIZE), Ok(()));
    for (index, expected) in [(2, Some(Error::AddressOverflow)), (1, None), (0, None)] {
        let created = host.call(call::VCPU_CREATE, &[vm, index]);
        assert_eq!(created.err().map(|(error, ..)| error), expected, "{index}");
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! Lists that are wrong in ways that random ones seldom are.

use escrow_abi::{Error, FrameState, MemEntry, Rights, call};

use super::fake::{FREE, Host};
use super::{block, page};
use crate::addr::{BLOCK_SIZE, PAGE_SIZE};

/// What looks as if it prolonged a block: it is an entry of its own, and wrong.
#[test]
fn nothing_prolongs_a_block() {
    let mut host = Host::new();
    let (a, _) = host.create(8);
    let (b, _) = host.create(8);
    host.lend(a, &[page(FREE, 0)]).unwrap();
    let before = host.snapshot();
    let rights = Rights::NONE;
    // The words that a page behind a page of address 0 and order 1 would have.
    let behind = MemEntry::new(PAGE_SIZE, 1, PAGE_SIZE, rights);
    for first in [block(FREE, 0x40_0000), block(FREE + BLOCK_SIZE, 0x40_0000)] {
        for function in [call::MEM_SHARE, call::MEM_LEND, call::MEM_DONATE] {
            let refused = host.give(function, b, &[first, behind]);
            assert_eq!(refused, Err((Error::InvalidArgument, 1, 0)), "{function:#x}");
            // The same words as the block's, of the next page.
            let next = MemEntry {
                frame: first.frame + PAGE_SIZE,
                guest: first.guest + PAGE_SIZE,
                ..first
            };
            let refused = host.give(function, b, &[first, next]);
            assert_eq!(refused, Err((Error::Misaligned, 1, 0)), "{function:#x}");
        }
    }
    let behind = MemEntry::new(PAGE_SIZE, 1, 0, rights);
    for function in [call::MEM_UNSHARE, call::MEM_RECLAIM, call::MEM_POISON] {
        let first = MemEntry::new(FREE + BLOCK_SIZE, 9, 0, rights);
        let [list, count] = host.list(&[first, behind]);
        let refused = host.call(function, &[list, count]);
        assert_eq!(refused, Err((Error::InvalidArgument, 1, 0)), "{function:#x}");
    }
    assert_eq!(host.snapshot(), before);
}

/// The `n`th page of a run that goes over two pages of the list, with references of its own.
fn nth(n: u64) -> MemEntry {
    page(FREE + n * PAGE_SIZE, n * PAGE_SIZE).with_report(n as u32 % 3, n as u32 % 3, 0)
}

/// Pages side by side are one piece, and each of them is looked at nevertheless.
#[test]
fn no_entry_goes_unseen_in_a_run() {
    let mut host = Host::new();
    let (vm, _) = host.create(8);
    let right: Vec<_> = (0..300).map(nth).collect();
    let before = host.snapshot();
    for at in [1, 126, 127, 128, 129, 255, 256, 299] {
        let entry = right[at];
        let wrongs = [
            (entry.with_report(7, 6, 0), Error::Excess, 1),
            (entry.with_report(6, 6, 2), Error::Accessible, 2),
            (MemEntry { reserved: 1, ..entry }, Error::InvalidArgument, 0),
            (MemEntry { frame: entry.frame | 1, ..entry }, Error::InvalidArgument, 0),
            (MemEntry { guest: entry.guest & !1, ..entry }, Error::InvalidArgument, 0),
            (MemEntry { guest: entry.guest | 8, ..entry }, Error::InvalidArgument, 0),
            (MemEntry { guest: entry.guest | 1 << 50, ..entry }, Error::AddressOverflow, 0),
        ];
        for (wrong, error, detail) in wrongs {
            let mut list = right.clone();
            list[at] = wrong;
            assert_eq!(host.lend(vm, &list), Err((error, at as u64, detail)), "entry {at}");
        }
    }
    assert_eq!(host.snapshot(), before);
    host.lend(vm, &right).unwrap();
    assert_eq!(host.call(call::VM_INFO, &[vm]).unwrap()[1], 300);
}

/// A run ends with its block, in memory and in the guest.
#[test]
fn a_run_goes_on_in_the_next_block() {
    let mut host = Host::new();
    let (vm, _) = host.create(12);
    for (frame, guest) in [(500_u64, 0_u64), (1024, 508), (2048 + 505, 1024 + 509)] {
        let page_at = |n| page(FREE + (frame + n) * PAGE_SIZE, (guest + n) * PAGE_SIZE);
        let list: Vec<_> = (0..20).map(page_at).collect();
        host.lend(vm, &list).unwrap();
        for entry in list {
            let frame = entry.frame & !(PAGE_SIZE - 1);
            let state = host.call(call::FRAME_INFO, &[frame]).unwrap()[0];
            assert_eq!(state, FrameState::Lent as u64);
        }
    }
    assert_eq!(host.call(call::VM_INFO, &[vm]).unwrap()[1], 60);
}

/// An entry in registers is right and wrong as in a list.
#[test]
fn an_entry_in_registers_is_that_of_a_list() {
    let mut host = Host::new();
    let (vm, _) = host.create(8);
    host.lend(vm, &[page(FREE, 0), page(FREE + PAGE_SIZE, 0x20_0000)]).unwrap();
    let right = page(FREE + 3 * PAGE_SIZE, 0x3000).words();
    let big = block(FREE + BLOCK_SIZE, 0x40_0000).words();
    let values = [
        [0, 1, 8, 9, 0x800, FREE, FREE | 9, FREE + PAGE_SIZE, 1 << 52, 1 << 63, u64::MAX],
        [0, 1, 2, 4, 9, 0x3001, 0x2003, 0x20_0003, 0x80_1003, 1 << 40 | 1, u64::MAX],
        [1, 1 << 32, 1 << 32 | 2, 3 << 32 | 3, u32::MAX as u64, 5, 6, 7, 8, 9, u64::MAX],
        [1, 2, 1 << 32, 1 << 32 | 1, 1 << 63, u32::MAX as u64, 5, 6, 7, 8, u64::MAX],
    ];
    let mut refused = 0;
    for (words, n) in [right, big].into_iter().flat_map(|words| (0..4).map(move |n| (words, n))) {
        for value in values[n] {
            let mut words = words;
            words[n] = value;
            let entry = MemEntry {
                frame: words[0],
                guest: words[1],
                refcount: words[2] as u32,
                safe: (words[2] >> 32) as u32,
                accessible: words[3] as u32,
                reserved: (words[3] >> 32) as u32,
            };
            assert_eq!(entry.words(), words);
            let [one, listed] = [host.lend_one(vm, &entry), host.lend(vm, &[entry])];
            if one.is_err() {
                assert_eq!(one, listed, "{words:x?}");
                refused += 1;
            } else {
                // It is lent now, so neither is it the host's to lend nor is there room for it.
                let error = listed.unwrap_err().0;
                assert!(matches!(error, Error::WrongState | Error::GuestMapped), "{words:x?}");
            }
        }
    }
    assert!(refused > 70, "{refused}");
    // What is behind the words is zero.
    let [frame, guest, references, users] = right;
    for behind in [[1, 0], [0, 1]] {
        let args = [vm, frame, guest, references, users, behind[0], behind[1]];
        let answer = host.call(call::MEM_LEND_ONE, &args);
        assert_eq!(answer, Err((Error::InvalidArgument, 0, 0)), "{behind:?}");
    }
}

/// EL2 has no reference to address 0, and its pools of pages end with it: so neither a table
/// nor a vCPU is there.
#[test]
fn no_metadata_is_at_address_0() {
    let mut host = Host::with_ram_at_0();
    let mut pages = host.fresh_metadata(3);
    pages.push(MemEntry::new(0, 0, 0, Rights::NONE));
    let [list, count] = host.list(&pages);
    let before = host.snapshot();
    let refused = Err((Error::InvalidAddress, 3, 0));
    assert_eq!(host.call(call::VM_CREATE, &[list, count]), refused);
    assert_eq!(host.snapshot(), before);
    let (vm, _) = host.create(4);
    let [list, count] = host.list(&pages);
    assert_eq!(host.call(call::VM_TOP_UP, &[vm, list, count]), refused);
    // A guest may have it, and gives it back.
    host.lend(vm, &[page(0, 0x1000)]).unwrap();
    assert_eq!((host.guest_frame(vm, 0x1000), host.reaches(0)), (Some(0), false));
    host.call(call::VM_DESTROY, &[vm]).unwrap();
    host.reclaim(&[(0, 0)]).unwrap();
    assert!(host.reaches(0));
}

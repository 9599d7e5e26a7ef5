// SPDX-License-Identifier: MIT OR Apache-2.0

//! Lists that are wrong in ways that random ones seldom are.

use escrow_abi::{Error, MemEntry, Rights, call};

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

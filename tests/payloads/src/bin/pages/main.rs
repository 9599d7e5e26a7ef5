// SPDX-License-Identifier: MIT OR Apache-2.0

//! Pages on their way: who reaches them, what is in them, how they come home.

#![no_std]
#![no_main]

mod escrow;
mod faults;
mod home;
mod share;
mod states;
mod unlock;

use escrow_abi::{MemEntry, ORDER_BLOCK, Rights};
use escrow_payloads::payload;

payload!(
    "pages",
    escrow::TESTS,
    faults::TESTS,
    states::TESTS,
    share::TESTS,
    unlock::TESTS,
    home::TESTS,
);

/// An entry that names a block and nothing else.
const fn block(at: u64) -> MemEntry {
    MemEntry::new(at, ORDER_BLOCK, 0, Rights::NONE)
}

/// An entry that names a block and where a guest is to have it.
const fn block_at(at: u64, guest: u64) -> MemEntry {
    MemEntry::new(at, ORDER_BLOCK, guest, Rights::ALL)
}

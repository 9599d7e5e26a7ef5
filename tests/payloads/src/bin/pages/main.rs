// SPDX-License-Identifier: MIT OR Apache-2.0

//! Pages on their way: who reaches them, what is in them, how they come home.

#![no_std]
#![no_main]

mod escrow;
mod faults;
mod home;
mod long;
mod share;
mod states;
mod unlock;

use escrow_payloads::payload;

payload!(
    "pages",
    escrow::TESTS,
    faults::TESTS,
    states::TESTS,
    share::TESTS,
    unlock::TESTS,
    home::TESTS,
    long::TESTS,
);

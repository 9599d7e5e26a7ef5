// SPDX-License-Identifier: MIT OR Apache-2.0

//! Guests: what they see, what their host sees of them, and how runs end.

#![no_std]
#![no_main]

mod doorbells;
mod harm;
mod life;
mod memory;
mod mmio;
mod registers;
mod time;
mod traps;

use escrow_payloads::payload;

payload!(
    "guest",
    life::TESTS,
    doorbells::TESTS,
    mmio::TESTS,
    memory::TESTS,
    registers::TESTS,
    traps::TESTS,
    time::TESTS,
    harm::TESTS,
);

// SPDX-License-Identifier: MIT OR Apache-2.0

//! What CPUs hold in their TLBs: once a call has returned that takes memory
//! from somebody, no access of theirs gets through, on whatever CPU.

#![no_std]
#![no_main]

mod guests;
mod hammer;
mod host;
mod slots;

use escrow_payloads::payload;

payload!("tlb", host::TESTS, guests::TESTS, slots::TESTS);

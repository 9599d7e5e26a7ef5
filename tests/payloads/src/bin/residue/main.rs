// SPDX-License-Identifier: MIT OR Apache-2.0

//! What is left in memory that comes home: nothing, however it is looked at.

#![no_std]
#![no_main]

mod comes_home;
mod views;

use escrow_payloads::payload;

payload!("residue", comes_home::TESTS);

// SPDX-License-Identifier: MIT OR Apache-2.0

//! Guests with a GIC.

#![no_std]
#![no_main]

mod physical_timer;
mod races;
mod sgis;
mod spis;
mod timer;

use escrow_payloads::payload;

payload!("gic", timer::TESTS, physical_timer::TESTS, spis::TESTS, sgis::TESTS, races::TESTS);

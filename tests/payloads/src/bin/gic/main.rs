// SPDX-License-Identifier: MIT OR Apache-2.0

//! Guests with a GIC.

#![no_std]
#![no_main]

mod timer;

use escrow_payloads::payload;

payload!("gic", timer::TESTS);

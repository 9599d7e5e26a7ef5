// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a host could watch a guest with while it runs: counters, breakpoints.
//!
//! Runs on a machine that counts instructions, so that what a counter says does not
//! depend on the build machine.

#![no_std]
#![no_main]

mod breakpoints;
mod counters;

use escrow_payloads::payload;

payload!("observers", counters::TESTS, breakpoints::TESTS);

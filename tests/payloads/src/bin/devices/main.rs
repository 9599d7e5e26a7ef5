// SPDX-License-Identifier: MIT OR Apache-2.0

//! What is not RAM: the host reaches it as it would without Escrow, but for
//! devices that reach memory themselves. Runs without Escrow as well, to show that
//! what it expects is what the machine does, and that what Escrow refuses works there.

#![no_std]
#![no_main]

mod flash;
mod fw_cfg;

use escrow_payloads::payload;

payload!("devices", flash::TESTS, fw_cfg::TESTS);

// SPDX-License-Identifier: MIT OR Apache-2.0

//! Every call of the host's with wrong arguments: refused for the right
//! reason, nothing changed, Escrow alive.

#![no_std]
#![no_main]

mod arguments;
mod entries;
mod handles;
mod identity;
mod lists;
mod reports;

use escrow_payloads::payload;

payload!(
    "calls",
    identity::TESTS,
    arguments::TESTS,
    handles::TESTS,
    lists::TESTS,
    entries::TESTS,
    reports::TESTS,
);

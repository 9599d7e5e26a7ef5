// SPDX-License-Identifier: MIT OR Apache-2.0

//! A reset of the machine: what a guest had in memory is not there for who
//! boots next. The payload runs twice, and tells by a page that stayed its own
//! which time it is.

#![no_std]
#![no_main]

use escrow_abi::{MemEntry, ORDER_PAGE, Rights, psci};
use escrow_payloads::host::{self, fill, is_filled, is_zero};
use escrow_payloads::{Host, Outcome, Test, check, fail, payload, smc, tests};

payload!("reset", TESTS);

const TESTS: &[Test] = tests![what_guests_had_is_gone];

const SECRET: u64 = 0x5ec2;
const MARK: u64 = 0x3a2c;

fn what_guests_had_is_gone(host: &mut Host) -> Outcome {
    let [own, lent] = [host.page(), host.page()];
    if is_filled(own, MARK) {
        check!(is_zero(lent, escrow_abi::PAGE_SIZE), "the secret is still there");
        return Ok(());
    }
    fill(own, MARK);
    fill(lent, SECRET);
    let vm = host.vm(8)?;
    let entry = MemEntry::new(lent, ORDER_PAGE, 0x8000_0000, Rights::ALL);
    host.lists.lend(vm, &[entry]).map_err(host::refused("MEM_LEND"))?;
    let answer = smc::firmware(psci::SYSTEM_RESET, &[]) as i64;
    fail!("SYSTEM_RESET came back with {answer}")
}

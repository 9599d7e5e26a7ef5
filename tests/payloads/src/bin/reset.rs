// SPDX-License-Identifier: MIT OR Apache-2.0

//! A reset of the machine: what a guest had in memory is not there for who
//! boots next. The payload runs twice, and tells by a page that stayed its own
//! which time it is.

#![no_std]
#![no_main]

use escrow_abi::{MemEntry, ORDER_PAGE, PAGE_SIZE, Rights, call, psci};
use escrow_payloads::host::{self, fill, is_filled, is_zero, refused};
use escrow_payloads::{Host, Outcome, Test, check, fail, hvc, payload, smc, tests};

payload!("reset", TESTS);

const TESTS: &[Test] = tests![what_guests_had_is_gone];

const SECRET: u64 = 0x5ec2;
const MARK: u64 = 0x3a2c;

fn what_guests_had_is_gone(host: &mut Host) -> Outcome {
    let [own, lent, poisoned] = [host.page(), host.page(), host.page()];
    if is_filled(own, MARK) {
        check!(is_zero(lent, PAGE_SIZE), "the secret is still there");
        check!(is_zero(poisoned, PAGE_SIZE), "the poisoned secret is still there");
        return Ok(());
    }
    fill(own, MARK);
    let vm = host.vm(8)?;
    for (at, guest) in [(lent, 0x8000_0000), (poisoned, 0x8000_1000)] {
        fill(at, SECRET);
        let entry = MemEntry::new(at, ORDER_PAGE, guest, Rights::ALL);
        host.lists.lend(vm, &[entry]).map_err(host::refused("MEM_LEND"))?;
    }
    // A host may say so of any page.
    let broken = MemEntry::new(poisoned, ORDER_PAGE, 0, Rights::NONE);
    hvc::call(call::MEM_POISON, &host.lists.put(&[broken])).map_err(refused("MEM_POISON"))?;
    let answer = smc::firmware(psci::SYSTEM_RESET, &[]) as i64;
    fail!("SYSTEM_RESET came back with {answer}")
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! A reset of the machine: what a guest had in memory is not there for who
//! boots next. The payload runs twice, and tells by a page that stayed its own
//! which time it is.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicUsize, Ordering};

use escrow_abi::{Handle, MemEntry, ORDER_PAGE, PAGE_SIZE, Rights, call, psci};
use escrow_payloads::guest::{Agent, Exit, FREE, routine};
use escrow_payloads::host::{self, fill, is_filled, is_zero, refused};
use escrow_payloads::{Host, Outcome, Test, check, check_eq, cpus, fail, hvc, payload, smc, tests};

payload!("reset", TESTS);

const TESTS: &[Test] = tests![what_guests_had_is_gone];

const SECRET: u64 = 0x5ec2;
const MARK: u64 = 0x3a2c;
/// The complement of what a guest has in its registers, for the test to search RAM for
/// (`tests/tests/payload.rs`). The values themselves are nowhere but in the guest.
const SEED: u64 = 0x5ec2_e7ab_10c5_f00d;
/// Addresses of the guest without memory.
const NOWHERE: u64 = 0x0a00_0000;

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
    guests_run_everywhere(host)?;
    let answer = smc::firmware(psci::SYSTEM_RESET, &[]) as i64;
    fail!("SYSTEM_RESET came back with {answer}")
}

/// A guest with secrets in its registers exits for several reasons, on each CPU.
fn guests_run_everywhere(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    let page = host.page();
    let entry = MemEntry::new(page, ORDER_PAGE, FREE, Rights::READ_WRITE);
    host.lists.lend(agent.vm, &[entry]).map_err(refused("MEM_LEND"))?;
    let donation = u64::from(call::MEM_DONATE);
    agent.command(routine::hold_secrets(), &[SEED, NOWHERE, FREE, donation, Handle::HOST]);
    let exits = AtomicUsize::new(0);
    for cpu in 0..cpus::count() {
        cpus::try_on_all(|n| {
            for _ in 0..if n == cpu { 6 } else { 0 } {
                match agent.run([0; 3])? {
                    Exit::MmioWrite(NOWHERE, 8, 0) => exits.fetch_add(1, Ordering::Relaxed),
                    Exit::Wakeup(_) => exits.fetch_add(1, Ordering::Relaxed),
                    exit => fail!("the guest ends its run with {exit:x?}"),
                };
            }
            Ok(())
        })?;
    }
    check_eq!(exits.load(Ordering::Relaxed), 6 * cpus::count());
    Ok(())
}

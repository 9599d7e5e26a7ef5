// SPDX-License-Identifier: MIT OR Apache-2.0

//! VMIDs that are used again: the next VM with the same number has other memory
//! at the same addresses, and finds that and nothing else.

use core::sync::atomic::{AtomicU64, Ordering};

use arrayvec::ArrayVec;
use escrow_abi::{Error, Handle, MemEntry, PAGE_SIZE, call};
use escrow_payloads::expect::refusal;
use escrow_payloads::guest::{Agent, FREE};
use escrow_payloads::host::{frame, page_at, poke, refused};
use escrow_payloads::{Host, Outcome, Test, check, check_eq, cpus, fail, hvc, tests};

pub const TESTS: &[Test] = tests![every_slot_is_used_twice, one_slot_is_used_over_and_over];

/// VMs at a time, at the most; more would be a new limit of Escrow's.
const SLOTS: usize = 128;

/// A guest, its page and what is in it.
struct Tenant {
    agent: Agent,
    value: u64,
}

/// Makes guests until there is no slot any more, each with a page of its own at
/// the same address.
fn fill_all_slots(host: &mut Host, generation: u64) -> Outcome<ArrayVec<Tenant, SLOTS>> {
    let mut tenants = ArrayVec::new();
    loop {
        let probe = host.page();
        match host.lists.vm_create(&[frame(probe)]) {
            Ok(vm) => {
                hvc::call(call::VM_DESTROY, &[vm]).map_err(refused("VM_DESTROY"))?;
                host.lists.reclaim(&[frame(probe)]).map_err(refused("MEM_RECLAIM"))?;
            }
            Err(seen) if seen == refusal(Error::TableFull) => return Ok(tenants),
            Err(other) => fail!("VM_CREATE: {other:?}"),
        }
        let agent = Agent::start(host)?;
        let page = host.page();
        let value = (generation << 32) | (tenants.len() as u64 + 1);
        poke(page + 0x10, value);
        host.lists.lend(agent.vm, &[page_at(page, FREE)]).map_err(refused("MEM_LEND"))?;
        check!(!tenants.is_full(), "there is no end of VMs");
        tenants.push(Tenant { agent, value });
    }
}

fn slot(handle: u64) -> u16 {
    Handle::from_register(handle).map_or(0, |handle| handle.slot)
}

fn every_slot_is_used_twice(host: &mut Host) -> Outcome {
    let mut first_slots: ArrayVec<u16, SLOTS> = ArrayVec::new();
    for generation in 1..=2 {
        let tenants = fill_all_slots(host, generation)?;
        let slots: ArrayVec<u16, SLOTS> = tenants.iter().map(|t| slot(t.agent.vm)).collect();
        check!(slots.len() >= 16, "only {} VMs", slots.len());
        if generation == 1 {
            first_slots = slots;
        } else {
            check_eq!(slots, first_slots, "the same slots, and with them VMIDs");
        }
        // Each CPU runs all of them, so that each has each VMID in its TLB.
        let turn = AtomicU64::new(0);
        cpus::try_on_all(|n| {
            for round in 0..cpus::count() {
                for (k, tenant) in tenants.iter().enumerate() {
                    if (k + round) % cpus::count() != n {
                        continue;
                    }
                    check_eq!(tenant.agent.load(FREE + 0x10)?, tenant.value, "CPU {n}, VM {k}");
                    tenant.agent.store(FREE + 0x18 + 8 * n as u64, tenant.value)?;
                }
                // A vCPU runs on one CPU at a time.
                turn.fetch_add(1, Ordering::SeqCst);
                let all = (round as u64 + 1) * cpus::count() as u64;
                cpus::wait_until(|| turn.load(Ordering::SeqCst) >= all, "a CPU does not come")?;
            }
            Ok(())
        })?;
        host.destroy_all()?;
        host.bring_home()?;
        // The next generation has other memory at the same addresses.
    }
    Ok(())
}

fn one_slot_is_used_over_and_over(host: &mut Host) -> Outcome {
    // Two sets of pages in turns, one VM after the other in one slot, run by each CPU.
    let sets = [host.arena.pages(Agent::PAGES + 1), host.arena.pages(Agent::PAGES + 1)];
    let mut last = None;
    for generation in 0..40u64 {
        let pages = sets[generation as usize % 2];
        let page = pages + Agent::PAGES * PAGE_SIZE;
        let agent = Agent::start_with(&host.lists, pages)?;
        if let Some(last) = last.replace(slot(agent.vm)) {
            check_eq!(slot(agent.vm), last, "the slot is used again");
        }
        poke(page + 0x10, generation);
        host.lists.lend(agent.vm, &[page_at(page, FREE)]).map_err(refused("MEM_LEND"))?;
        let turn = AtomicU64::new(0);
        cpus::try_on_all(|n| {
            let mine = || turn.load(Ordering::SeqCst) == n as u64;
            cpus::wait_until(mine, "a CPU does not come to its end")?;
            let outcome = (|| {
                check_eq!(agent.load(FREE + 0x10)?, generation, "CPU {n}");
                // Nothing of the VM before it: that had counted here.
                check_eq!(agent.load(FREE + 0x20)?, n as u64, "CPU {n}, VM {generation}");
                agent.store(FREE + 0x20, n as u64 + 1)
            })();
            turn.fetch_add(1, Ordering::SeqCst);
            outcome
        })?;
        hvc::call(call::VM_DESTROY, &[agent.vm]).map_err(refused("VM_DESTROY"))?;
        let list: ArrayVec<MemEntry, 64> =
            (0..=Agent::PAGES).map(|n| frame(pages + n * PAGE_SIZE)).collect();
        host.lists.reclaim(&list).map_err(refused("MEM_RECLAIM"))?;
    }
    Ok(())
}

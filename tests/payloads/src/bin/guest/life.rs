// SPDX-License-Identifier: MIT OR Apache-2.0

//! A vCPU's life: what it starts as, and that of several.

use arrayvec::ArrayVec;
use escrow_abi::{Error, PAGE_SIZE, call, psci};
use escrow_payloads::expect::refusal;
use escrow_payloads::guest::{Agent, CODE, Exit, FREE, routine, run_once};
use escrow_payloads::host::{fill, frame, page_at, peek, refused};
use escrow_payloads::{Host, Outcome, Test, check_eq, hvc, tests};

pub const TESTS: &[Test] = tests![
    a_guest_starts_and_answers,
    a_guest_uses_what_it_was_lent,
    two_vcpus_of_a_vm,
    a_vm_does_not_die_twice,
    a_guest_survives_the_end_of_others,
];

fn a_guest_starts_and_answers(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    check_eq!(agent.call(routine::current_el(), &[])?.x[0], 1 << 2);
    host.end(agent.vm)
}

fn a_guest_uses_what_it_was_lent(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    let page = host.page();
    fill(page, 1);
    let seen = [peek(page), peek(page + 0xff8)];
    host.lists.lend(agent.vm, &[page_at(page, FREE)]).map_err(refused("MEM_LEND"))?;
    // It finds what the host left there, and keeps what it writes.
    check_eq!([agent.load(FREE)?, agent.load(FREE + 0xff8)?], seen);
    for n in 0..16 {
        agent.store(FREE + n * 0x100, n * 7)?;
    }
    for n in 0..16 {
        check_eq!(agent.load(FREE + n * 0x100)?, n * 7);
    }
    host.end(agent.vm)
}

fn two_vcpus_of_a_vm(host: &mut Host) -> Outcome {
    let agent = Agent::create(host)?;
    let mailbox = host.page();
    host.lists.share(agent.vm, &[page_at(mailbox, FREE)]).map_err(refused("MEM_SHARE"))?;
    let [second, ..] =
        hvc::call(call::VCPU_CREATE, &[agent.vm, 1]).map_err(refused("VCPU_CREATE"))?;
    hvc::call(call::VM_START, &[agent.vm]).map_err(refused("VM_START"))?;
    check_eq!(agent.run([0; 3])?, Exit::DOORBELL);
    let second = Agent { vcpu: second, mailbox, mailbox_at: FREE, ..agent };
    // The second is off until the first switches it on.
    let exit = run_once(second.vcpu, [0; 3]).map_err(refused("VCPU_RUN"))?;
    let off_until_on = exit == Exit::PoweredOff;
    if off_until_on {
        let on = [psci::CPU_ON_64 as u64, 1, CODE, FREE];
        check_eq!(agent.switch_on(&on)?, Exit::SwitchedOn(1));
        // Only a call that does it says so.
        check_eq!(agent.hvc(&on)?, psci::ALREADY_ON);
        check_eq!(agent.hvc(&[psci::AFFINITY_INFO_64 as u64, 1, 0])?, 0);
        // X0 is the context.
        check_eq!(second.run([0; 3])?, Exit::doorbell(FREE));
    }
    check_eq!(off_until_on, true, "{exit:x?}");
    // Each has its own registers.
    check_eq!(agent.call(routine::id(), &[])?.x[1] & 0xff, 0);
    check_eq!(second.call(routine::id(), &[])?.x[1] & 0xff, 1);
    host.end(agent.vm)
}

fn a_vm_does_not_die_twice(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    hvc::call(call::VM_DESTROY, &[agent.vm]).map_err(refused("VM_DESTROY"))?;
    let again = hvc::call(call::VM_DESTROY, &[agent.vm]);
    check_eq!(again, Err(refusal(Error::HandleRevoked)));
    host.bring_home()
}

fn a_guest_survives_the_end_of_others(host: &mut Host) -> Outcome {
    // Others come and go around one that keeps its secret.
    let agent = Agent::start(host)?;
    let page = host.page();
    host.lists.lend(agent.vm, &[page_at(page, FREE)]).map_err(refused("MEM_LEND"))?;
    agent.store(FREE, 0x5ec7e7)?;
    let pages = host.arena.pages(Agent::PAGES);
    for _ in 0..10 {
        let other = Agent::start_with(&host.lists, pages)?;
        hvc::call(call::VM_DESTROY, &[other.vm]).map_err(refused("VM_DESTROY"))?;
        let list: ArrayVec<_, 64> =
            (0..Agent::PAGES).map(|n| frame(pages + n * PAGE_SIZE)).collect();
        host.lists.reclaim(&list).map_err(refused("MEM_RECLAIM"))?;
        check_eq!(agent.load(FREE)?, 0x5ec7e7);
    }
    host.end(agent.vm)
}

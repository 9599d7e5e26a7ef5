// SPDX-License-Identifier: MIT OR Apache-2.0

//! Doorbells: what the host rings, the guest takes as an interrupt.

use core::sync::atomic::{AtomicBool, Ordering};

use escrow_abi::{Error, PAGE_SIZE, call, psci};
use escrow_payloads::guest::{Agent, Exit, FREE, routine, run_once};
use escrow_payloads::host::{page_at, peek, refused};
use escrow_payloads::{
    Failure, Host, Outcome, Test, check, check_eq, cpus, hvc, interrupts, tests,
};

pub const TESTS: &[Test] = tests![
    an_interrupt_comes_where_it_may,
    it_is_there_until_it_is_received,
    masks_and_resets,
    no_wait_while_it_rings,
    keys_do_not_silence_it,
    the_second_vcpu_has_none,
    another_vm_hears_nothing,
    it_reaches_a_guest_that_runs,
];

const LABEL: u64 = 0xbe11;
/// `ISR_EL1.I` and `PSTATE.I`, both.
const IRQ: u64 = 1 << 7;

fn create(vm: u64, label: u64) -> Outcome<u64> {
    let [doorbell, ..] =
        hvc::call(call::BELL_CREATE, &[vm, label]).map_err(refused("BELL_CREATE"))?;
    Ok(doorbell)
}

fn start(host: &mut Host) -> Outcome<(Agent, u64)> {
    let agent = Agent::start(host)?;
    let doorbell = create(agent.vm, LABEL)?;
    Ok((agent, doorbell))
}

/// Sends flags; those before.
fn send(doorbell: u64, flags: u64) -> Outcome<u64> {
    let [before, ..] =
        hvc::call(call::BELL_SEND, &[doorbell, flags]).map_err(refused("BELL_SEND"))?;
    Ok(before)
}

fn receive(clear: u64) -> [u64; 4] {
    [call::BELL_RECEIVE as u64, LABEL, clear, 0]
}

/// Whether an interrupt is pending for the guest.
fn is_pending(agent: &Agent) -> Outcome<bool> {
    Ok(agent.call(routine::pending(), &[])?.x[2] & IRQ != 0)
}

/// The guest makes a call: X0, X1, and whether an interrupt is pending for it before it
/// has left for its host again.
fn calls(agent: &Agent, arguments: &[u64]) -> Outcome<(u64, u64, bool)> {
    let x = agent.call(routine::hvc_pending(), arguments)?.x;
    Ok((x[0], x[1], x[2] & IRQ != 0))
}

fn an_interrupt_comes_where_it_may(host: &mut Host) -> Outcome {
    let (agent, doorbell) = start(host)?;
    agent.at_interrupts(Some(receive(u64::MAX)));
    agent.call(routine::unmask(), &[])?;
    check_eq!(agent.interrupts().0, 0, "none before it rings");
    check_eq!(send(doorbell, 6)?, 0);
    // Masked, as it begins.
    check!(is_pending(&agent)?);
    check_eq!(agent.interrupts().0, 0, "masked");
    // The handler receives: it comes once.
    let unmasked = agent.call(routine::unmask(), &[])?;
    check_eq!(unmasked.x[2] & IRQ, 0);
    check_eq!(agent.interrupts(), (1, [0, 6]));
    check!(!is_pending(&agent)?);
    agent.call(routine::unmask(), &[])?;
    check_eq!(agent.interrupts().0, 1, "no more");
    // One that does not receive masks it, and finds it again.
    agent.at_interrupts(None);
    send(doorbell, 1)?;
    for n in 1..4 {
        let unmasked = agent.call(routine::unmask(), &[])?;
        check_eq!(unmasked.x[2] & IRQ, IRQ);
        check_eq!(agent.interrupts().0, n);
    }
    host.end(agent.vm)
}

fn it_is_there_until_it_is_received(host: &mut Host) -> Outcome {
    let (agent, doorbell) = start(host)?;
    let other = create(agent.vm, 0)?;
    send(doorbell, 1 << 63)?;
    check_eq!(send(doorbell, 3)?, 1 << 63);
    send(other, 1)?;
    // Registers behind the arguments hold anything.
    let [function, label, ..] = receive(0);
    let receive = |clear| calls(&agent, &[function, label, clear, 0, 4, 5, 6, 7]);
    check_eq!(receive(2)?, (0, 1 << 63 | 3, true));
    check_eq!(receive(u64::MAX)?, (0, 1 << 63 | 1, true), "the other one rings");
    check_eq!(calls(&agent, &[function, 0, 1, 0])?, (0, 1, false));
    check!(!is_pending(&agent)?);
    // The host may receive as well.
    send(doorbell, 5)?;
    check!(is_pending(&agent)?);
    let [before, ..] =
        hvc::call(call::BELL_RECEIVE, &[doorbell, 5]).map_err(refused("BELL_RECEIVE"))?;
    check_eq!(before, 5);
    check!(!is_pending(&agent)?);
    host.end(agent.vm)
}

fn masks_and_resets(host: &mut Host) -> Outcome {
    let (agent, doorbell) = start(host)?;
    let mask = |enable, ack| calls(&agent, &[call::BELL_SET_MASK as u64, LABEL, enable, ack, 0]);
    check_eq!(mask(2, 2)?, (0, 0, false));
    send(doorbell, 1)?;
    check!(!is_pending(&agent)?, "not enabled");
    check_eq!(mask(1, 0)?, (0, 0, true));
    check_eq!(mask(2, 2)?, (0, 0, false));
    // Acknowledged by itself, it rings until the guest has heard.
    check_eq!(send(doorbell, 2)?, 1);
    check!(is_pending(&agent)?);
    check_eq!(calls(&agent, &receive(4))?, (0, 1, false));
    send(doorbell, 2)?;
    let reset = [call::BELL_RESET as u64, LABEL, 0];
    check_eq!(calls(&agent, &reset)?, (0, 0, false));
    check_eq!(send(doorbell, 1)?, 0, "nothing is left");
    check!(is_pending(&agent)?, "and all is enabled");
    hvc::call(call::BELL_RESET, &[doorbell]).map_err(refused("BELL_RESET"))?;
    check!(!is_pending(&agent)?);
    hvc::call(call::BELL_SET_MASK, &[doorbell, 0, 0]).map_err(refused("BELL_SET_MASK"))?;
    send(doorbell, u64::MAX)?;
    check!(!is_pending(&agent)?);
    host.end(agent.vm)
}

fn no_wait_while_it_rings(host: &mut Host) -> Outcome {
    let (agent, doorbell) = start(host)?;
    let suspend = [psci::CPU_SUSPEND_64 as u64, 0, 0, 0];
    check_eq!(agent.begin(routine::wfi(), &[])?, Exit::Wakeup(u64::MAX));
    send(doorbell, 1)?;
    // Its run goes on behind the instruction, and none of the next ones waits.
    agent.finish([0; 3])?;
    for _ in 0..3 {
        agent.call(routine::wfi(), &[])?;
        check_eq!(calls(&agent, &suspend)?, (psci::SUCCESS, 0, true));
    }
    agent.call(routine::hvc(), &receive(1))?;
    check_eq!(agent.begin(routine::wfi(), &[])?, Exit::Wakeup(u64::MAX));
    agent.finish([0; 3])?;
    check_eq!(agent.begin(routine::hvc(), &suspend)?, Exit::Wakeup(u64::MAX));
    agent.finish([0; 3])?;
    host.end(agent.vm)
}

fn keys_do_not_silence_it(host: &mut Host) -> Outcome {
    let (agent, doorbell) = start(host)?;
    send(doorbell, 1)?;
    // The first use of its keys is when it gets them, and in all runs after that it has
    // them from the start.
    for _ in 0..2 {
        let results = agent.call(routine::keys_pending(), &[0, 77])?;
        if results.exception.is_some() {
            host.end(agent.vm)?;
            return Err(Failure::Skipped("no pointer authentication"));
        }
        check!(results.x[2] & IRQ != 0);
    }
    host.end(agent.vm)
}

fn the_second_vcpu_has_none(host: &mut Host) -> Outcome {
    let agent = Agent::create(host)?;
    let mailbox = host.page();
    let second = agent.add_vcpu(&host.lists, 1, mailbox, FREE)?;
    let doorbell = create(agent.vm, LABEL)?;
    hvc::call(call::VM_START, &[agent.vm]).map_err(refused("VM_START"))?;
    check_eq!(agent.run([0; 3])?, Exit::DOORBELL);
    agent.wake(&second, 1)?;
    send(doorbell, 1)?;
    check!(is_pending(&agent)? && !is_pending(&second)?);
    check_eq!(second.begin(routine::wfi(), &[])?, Exit::Wakeup(u64::MAX));
    second.finish([0; 3])?;
    // It may receive for the first.
    check_eq!(calls(&second, &receive(1))?, (0, 1, false));
    check!(!is_pending(&agent)?);
    host.end(agent.vm)
}

fn another_vm_hears_nothing(host: &mut Host) -> Outcome {
    let (agent, doorbell) = start(host)?;
    let other = Agent::start(host)?;
    create(other.vm, LABEL + 1)?;
    send(doorbell, 1)?;
    check!(!is_pending(&other)?);
    let reset = call::BELL_RESET as u64;
    for (arguments, error) in [
        (receive(1), Error::HandleNull),
        ([reset, doorbell, 0, 0], Error::HandleNull),
        ([reset, LABEL, 0, 0], Error::HandleNull),
        ([reset, 1 << 32 | (LABEL + 1), 0, 0], Error::HandleNull),
        ([call::BELL_SEND as u64, LABEL + 1, 1, 0], Error::Denied),
        ([call::BELL_SEND as u64, doorbell, 1, 0], Error::Denied),
        ([call::BELL_RECEIVE as u64, LABEL + 1, 0, 0], Error::InvalidArgument),
        ([call::BELL_RECEIVE as u64, LABEL + 1, 1, 1], Error::InvalidArgument),
        ([reset, LABEL + 1, 1, 0], Error::InvalidArgument),
        ([call::BELL_CREATE as u64, 7, 0, 0], Error::Unimplemented),
    ] {
        let (x0, _, pending) = calls(&other, &arguments)?;
        check_eq!((Error::from_register(x0), pending), (Some(error), false), "{arguments:x?}");
    }
    // All that has not touched the first one's.
    check_eq!(calls(&agent, &receive(1))?, (0, 1, false));
    // Nor is it there for whoever comes after its VM.
    send(doorbell, 1)?;
    host.end(agent.vm)?;
    check!(!is_pending(&other)?);
    let next = Agent::start(host)?;
    check!(!is_pending(&next)?);
    host.end(next.vm)?;
    host.end(other.vm)
}

/// The guest spins on one CPU, another one rings, and the first is interrupted.
fn it_reaches_a_guest_that_runs(host: &mut Host) -> Outcome {
    cpus::need(2)?;
    let (agent, doorbell) = start(host)?;
    let page = host.page();
    host.lists.share(agent.vm, &[page_at(page, FREE)]).map_err(refused("MEM_SHARE"))?;
    let counter = page + PAGE_SIZE - 8;
    for round in 0..20 {
        let done = AtomicBool::new(false);
        agent.at_interrupts(Some(receive(u64::MAX)));
        let from = peek(counter);
        agent.command(routine::r#await(), &[from, FREE + PAGE_SIZE - 8]);
        cpus::try_on_all(|cpu| match cpu {
            0 => {
                let deadline = cpus::deadline(20);
                loop {
                    interrupts::start_timer(1000);
                    let exit = run_once(agent.vcpu, [0; 3]);
                    interrupts::stop_timer();
                    let exit = exit.map_err(refused("VCPU_RUN"))?;
                    if exit == Exit::DOORBELL {
                        break;
                    }
                    check_eq!(exit, Exit::Ready);
                    check!(!cpus::is_past(deadline), "the guest hears nothing");
                }
                done.store(true, Ordering::Release);
                Ok(())
            }
            1 => {
                // While the guest is at it, not before.
                cpus::wait_until(|| peek(counter) > from + 100, "the guest does not run")?;
                check_eq!(send(doorbell, 1 << round)?, 0);
                cpus::wait_until(|| done.load(Ordering::Acquire), "the run does not end")
            }
            _ => Ok(()),
        })?;
        check_eq!(agent.interrupts(), (1, [0, 1 << round]), "round {round}");
    }
    host.end(agent.vm)
}

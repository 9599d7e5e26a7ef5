// SPDX-License-Identifier: MIT OR Apache-2.0

//! Time and interrupts: a guest cannot hold a CPU, and its timer is its own.

use core::arch::asm;

use aarch64_cpu::registers::{CNTFRQ_EL0, CNTPCT_EL0, CNTVCT_EL0, Readable as _};
use escrow_abi::{PAGE_SIZE, call, pv_time, run};
use escrow_payloads::guest::{Agent, Exit, FREE, routine, run_once};
use escrow_payloads::host::refused;
use escrow_payloads::{Host, Outcome, Test, check, check_eq, cpus, hvc, interrupts, tests};

pub const TESTS: &[Test] = tests![
    an_interrupt_ends_an_endless_loop,
    a_pending_interrupt_ends_a_run_at_once,
    the_counter_runs,
    a_timer_tells_when_to_wake,
    the_host_s_timer_is_its_own,
    stolen_time_is_told,
];

fn an_interrupt_ends_an_endless_loop(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    agent.command(routine::spin(), &[0]);
    for _ in 0..20 {
        interrupts::start_timer(1000);
        let exit = run_once(agent.vcpu, [0; 3]).map_err(refused("VCPU_RUN"))?;
        check_eq!(exit, Exit::Ready);
        check!(interrupts::is_pending(), "the run ended without an interrupt");
        interrupts::stop_timer();
        cpus::wait_until(|| !interrupts::is_pending(), "the interrupt stays")?;
    }
    host.end(agent.vm)
}

fn a_pending_interrupt_ends_a_run_at_once(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    agent.command(routine::spin(), &[0]);
    interrupts::start_timer(1);
    cpus::wait_until(interrupts::is_pending, "no interrupt")?;
    for _ in 0..20 {
        let exit = run_once(agent.vcpu, [0; 3]).map_err(refused("VCPU_RUN"))?;
        check_eq!(exit, Exit::Ready);
    }
    interrupts::stop_timer();
    host.end(agent.vm)
}

fn the_counter_runs(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    let first = agent.call(routine::counter(), &[])?.x;
    let second = agent.call(routine::counter(), &[])?.x;
    check!(second[0] > first[0], "{} then {}", first[0], second[0]);
    check_eq!(first[1], CNTFRQ_EL0.get());
    host.end(agent.vm)
}

fn a_timer_tells_when_to_wake(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    let now = agent.call(routine::counter(), &[])?.x[0];
    let hour = 3600 * CNTFRQ_EL0.get();
    agent.call(routine::set_timer(), &[now + hour, 1])?;
    let Exit::Wakeup(at) = agent.begin(routine::wfi(), &[])? else {
        escrow_payloads::fail!("no wake-up time")
    };
    // On the host's virtual counter, as near as the time between the reads.
    let from_now = at.wrapping_sub(CNTVCT_EL0.get());
    check!(from_now <= hour && from_now > hour - 60 * CNTFRQ_EL0.get(), "{from_now}");
    agent.finish([0; 3])?;
    let kept = agent.call(routine::get_timer(), &[])?.x;
    check_eq!((kept[0], kept[1] & 3), (now + hour, 1));
    // Masked, it wakes nobody.
    agent.call(routine::set_timer(), &[now + hour, 3])?;
    check_eq!(agent.begin(routine::wfi(), &[])?, Exit::Wakeup(u64::MAX));
    agent.finish([0; 3])?;
    // One that has fired lets it go on.
    agent.call(routine::set_timer(), &[now, 1])?;
    agent.call(routine::wfi(), &[])?;
    host.end(agent.vm)
}

fn the_host_s_timer_is_its_own(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    let set: u64 = 0x1234_5678_9abc;
    // SAFETY: the payload has no other use for its virtual timer.
    unsafe { asm!("msr cntv_cval_el0, {}", "msr cntv_ctl_el0, {}", in(reg) set, in(reg) 3_u64) };
    agent.call(routine::set_timer(), &[77, 1])?;
    let (cval, ctl): (u64, u64);
    // SAFETY: reading has no effect, and switching it off undoes the above.
    unsafe {
        asm!(
            "mrs {}, cntv_cval_el0",
            "mrs {}, cntv_ctl_el0",
            "msr cntv_ctl_el0, xzr",
            out(reg) cval,
            out(reg) ctl,
        );
    }
    check_eq!((cval, ctl & 3), (set, 3));
    host.end(agent.vm)
}

/// Time that the host does not give a guest which could run; not what it waits, and not what it runs.
fn stolen_time_is_told(host: &mut Host) -> Outcome {
    const PAGE: u64 = FREE + 5 * PAGE_SIZE;
    const TIME: u64 = PAGE + pv_time::TIME;
    /// What the host takes, in microseconds.
    const TAKEN: u64 = 20_000;
    let prepare = |vm| {
        hvc::call(call::VM_PV_TIME, &[vm, PAGE]).map_err(refused("VM_PV_TIME"))?;
        Ok(())
    };
    let agent = Agent::create_prepared(host, prepare)?;
    hvc::call(call::VM_START, &[agent.vm]).map_err(refused("VM_START"))?;
    check_eq!(agent.run([0; 3])?, Exit::DOORBELL);
    check_eq!(agent.hvc(&[pv_time::FEATURES as u64, pv_time::ST as u64])?, 0);
    check_eq!(agent.hvc(&[pv_time::ST as u64])?, PAGE);
    // Revision and attributes.
    check_eq!(agent.load(PAGE)?, 0);
    let take = || {
        let end = CNTPCT_EL0.get() + TAKEN * CNTFRQ_EL0.get() / 1_000_000;
        while CNTPCT_EL0.get() < end {
            core::hint::spin_loop();
        }
    };
    // At its doorbell it waits for its host, and in WFI for an interrupt.
    let before = agent.load(TIME)?;
    take();
    check_eq!(agent.begin(routine::wfi(), &[])?, Exit::Wakeup(u64::MAX));
    take();
    agent.finish([0; 3])?;
    let waited = agent.load(TIME)? - before;
    check!(waited < TAKEN * 1000, "{waited} ns");
    // An interrupt of its host's ends its run.
    let before = agent.load(TIME)?;
    agent.command(routine::work(), &[50_000_000]);
    interrupts::start_timer(1000);
    let exit = run_once(agent.vcpu, [0; 3]).map_err(refused("VCPU_RUN"))?;
    interrupts::stop_timer();
    check_eq!(exit, Exit::Ready);
    cpus::wait_until(|| !interrupts::is_pending(), "the interrupt stays")?;
    take();
    agent.finish([0; 3])?;
    let stolen = agent.load(TIME)? - before;
    check!(stolen >= TAKEN * 1000, "{stolen} ns");
    check!(stolen < 100 * TAKEN * 1000, "{stolen} ns");
    // It cannot write there: its host is told, as of any address that is no memory.
    let exit = agent.begin(routine::str_x(), &[0, TIME, 7])?;
    check_eq!(exit, Exit::MmioWrite(TIME, 8, 7));
    agent.finish([0, run::ACTION_FAULT, 0])?;
    check!(agent.load(TIME)? >= stolen);
    host.end(agent.vm)
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! The performance monitors of the host do not see what a guest does.

use core::arch::asm;

use aarch64_cpu::asm::barrier;
use escrow_payloads::guest::{Agent, Exit, routine, run_once};
use escrow_payloads::host::refused;
use escrow_payloads::{Failure, Host, Outcome, Test, check, check_eq, interrupts, tests};

pub const TESTS: &[Test] = tests![
    counters_do_not_count_a_guest,
    a_guest_s_work_overflows_no_counter,
    the_host_s_counters_go_on,
];

/// Rounds of a guest's loop, of two instructions each.
const WORK: u64 = 1_000_000;
/// How far two runs that do the same may differ, in whatever is counted: the
/// guest's own instructions of a run that does nothing are fewer.
const SAME: u64 = 100;

/// Events: instructions executed, cycles.
const EVENTS: [u64; 2] = [0x08, 0x11];
/// `PMCR_EL0`: E enables, P and C reset, LC makes the cycle counter overflow at 64 bits.
const ENABLE: u64 = 1 << 0;
const RESET: u64 = 1 << 1 | 1 << 2;
const LONG: u64 = 1 << 6;
/// The cycle counter, among the bits of `PMCNTENSET_EL0` and its like.
const CYCLES: u32 = 31;

macro_rules! register {
    ($read:ident, $write:ident, $name:literal) => {
        #[allow(dead_code)]
        fn $read() -> u64 {
            let value;
            // SAFETY: reading it has no effect on memory.
            unsafe { asm!(concat!("isb", "\nmrs {}, ", $name), out(reg) value) };
            value
        }

        #[allow(dead_code)]
        fn $write(value: u64) {
            // SAFETY: it governs the performance monitors alone.
            unsafe { asm!(concat!("msr ", $name, ", {}", "\nisb"), in(reg) value) };
        }
    };
}

register!(control, set_control, "pmcr_el0");
register!(selected, select, "pmselr_el0");
register!(event, set_event, "pmxevtyper_el0");
register!(counter, set_counter, "pmxevcntr_el0");
register!(cycles, set_cycles, "pmccntr_el0");
register!(cycle_filter, set_cycle_filter, "pmccfiltr_el0");
register!(enabled, enable, "pmcntenset_el0");
register!(enabled_too, disable, "pmcntenclr_el0");
register!(overflowed, set_overflowed, "pmovsset_el0");
register!(overflowed_too, clear_overflowed, "pmovsclr_el0");
register!(interrupting, enable_interrupts, "pmintenset_el1");
register!(interrupting_too, disable_interrupts, "pmintenclr_el1");

/// The counters, all of which count everything at EL1 and EL0.
struct Counters {
    events: u64,
}

impl Counters {
    fn new() -> Outcome<Counters> {
        let version: u64;
        // SAFETY: reading it has no effect.
        unsafe { asm!("mrs {}, id_aa64dfr0_el1", out(reg) version, options(nomem, nostack)) };
        if matches!(version >> 8 & 0xf, 0 | 0xf) {
            return Err(Failure::Skipped("no performance monitors"));
        }
        let counters = Counters { events: control() >> 11 & 0x1f };
        check!(counters.events >= 2, "{} counters", counters.events);
        set_control(RESET | LONG);
        disable_interrupts(u64::MAX);
        clear_overflowed(u64::MAX);
        for n in 0..counters.events {
            select(n);
            set_event(EVENTS[n as usize % EVENTS.len()]);
        }
        set_cycle_filter(0);
        enable(counters.all());
        Ok(counters)
    }

    fn all(&self) -> u64 {
        1 << CYCLES | ((1 << self.events) - 1)
    }

    fn set(&self, value: u64) {
        for n in 0..self.events {
            select(n);
            set_counter(value);
        }
        set_cycles(value);
    }

    /// What each has counted while `f` ran; the last one is that of cycles.
    fn count(&self, f: impl FnOnce() -> Outcome) -> Outcome<[u64; 32]> {
        self.set(0);
        set_control(ENABLE | LONG);
        let result = f();
        set_control(LONG);
        result?;
        let mut counted = [0; 32];
        for n in 0..self.events {
            select(n);
            counted[n as usize] = counter();
        }
        counted[CYCLES as usize] = cycles();
        Ok(counted)
    }

    fn end(self) {
        disable(u64::MAX);
        disable_interrupts(u64::MAX);
        clear_overflowed(u64::MAX);
        set_control(RESET);
        barrier::isb(barrier::SY);
    }
}

/// What the counters say of a guest that goes round its loop `rounds` times.
fn count_a_guest(counters: &Counters, agent: &Agent, rounds: u64) -> Outcome<[u64; 32]> {
    agent.command(routine::work(), &[rounds]);
    counters.count(|| {
        let exit = run_once(agent.vcpu, [0; 3]).map_err(refused("VCPU_RUN"))?;
        check_eq!(exit, Exit::DOORBELL);
        Ok(())
    })
}

fn counters_do_not_count_a_guest(host: &mut Host) -> Outcome {
    let counters = Counters::new()?;
    let agent = Agent::start(host)?;
    let idle = count_a_guest(&counters, &agent, 1)?;
    let busy = count_a_guest(&counters, &agent, WORK)?;
    for (n, (idle, busy)) in idle.iter().zip(busy).enumerate() {
        check!(idle.abs_diff(busy) <= SAME, "counter {n}: {idle} with an idle guest, {busy}");
    }
    // They do count, all of them.
    let host_s = counters.count(|| {
        spin(WORK);
        Ok(())
    })?;
    for n in (0..counters.events).chain([CYCLES as u64]) {
        check!(host_s[n as usize] >= WORK, "counter {n} sees {} of the host", host_s[n as usize]);
    }
    counters.end();
    host.end(agent.vm)
}

fn a_guest_s_work_overflows_no_counter(host: &mut Host) -> Outcome {
    let counters = Counters::new()?;
    let agent = Agent::start(host)?;
    agent.command(routine::work(), &[WORK]);
    // 32 bits; the cycle counter has 64.
    counters.set(0_u64.wrapping_sub(WORK / 2));
    for n in 0..counters.events {
        select(n);
        set_counter((1 << 32) - WORK / 2);
    }
    enable_interrupts(counters.all());
    set_control(ENABLE | LONG);
    let exit = run_once(agent.vcpu, [0; 3]);
    let (overflows, pending) = (overflowed(), interrupts::is_pending());
    // What the host does itself makes them overflow.
    spin(WORK);
    let own = overflowed();
    set_control(LONG);
    let all = counters.all();
    counters.end();
    check_eq!(exit.map_err(refused("VCPU_RUN"))?, Exit::DOORBELL, "the guest's run ends by itself");
    check_eq!(overflows & all, 0, "overflows of the guest's work");
    check!(!pending, "an interrupt for the guest's work");
    check_eq!(own & all, all, "overflows of the host's work");
    host.end(agent.vm)
}

fn the_host_s_counters_go_on(host: &mut Host) -> Outcome {
    let counters = Counters::new()?;
    let agent = Agent::start(host)?;
    counters.set(0);
    let settings = || (control(), enabled(), interrupting(), overflowed(), cycle_filter());
    for control in [ENABLE | LONG, LONG] {
        set_control(control);
        let before = settings();
        agent.call(routine::work(), &[1])?;
        check_eq!(settings(), before);
        let counts = control & ENABLE != 0;
        let from = cycles();
        spin(1000);
        check_eq!(cycles() > from, counts);
    }
    counters.end();
    host.end(agent.vm)
}

/// As much work as the guest's routine does in `rounds`.
fn spin(rounds: u64) {
    // SAFETY: changes one register.
    unsafe {
        asm!("1: subs {0}, {0}, #1", "b.ne 1b", inout(reg) rounds => _, options(nomem, nostack));
    }
}

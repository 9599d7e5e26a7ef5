// SPDX-License-Identifier: MIT OR Apache-2.0

//! Breakpoints, watchpoints and single steps of the host are for the host alone.

use core::arch::asm;

use aarch64_cpu::asm::barrier;
use escrow_payloads::guest::{Agent, CODE, MAILBOX, routine};
use escrow_payloads::{Host, Outcome, Test, check, check_eq, tests};

pub const TESTS: &[Test] =
    tests![breakpoints_do_not_stop_a_guest, a_guest_does_not_write_the_host_s];

/// `MDSCR_EL1`: MDE and KDE let breakpoints and watchpoints act, at EL1 too; SS makes
/// single steps.
const ACT: u64 = 1 << 15 | 1 << 13;
const STEP: u64 = 1 << 0;
/// TDCC, which Linux always has set: nothing acts.
const TDCC: u64 = 1 << 12;
/// `DBGBCR<n>_EL1`: enabled, EL1 and EL0, any byte of the instruction.
const BREAK: u64 = 1 | 0b11 << 1 | 0xf << 5;
/// `DBGWCR<n>_EL1`: enabled, EL1 and EL0, loads and stores of any byte of a double word.
const WATCH: u64 = 1 | 0b11 << 1 | 0b11 << 3 | 0xff << 5;

fn control() -> u64 {
    let value;
    // SAFETY: reading it has no effect.
    unsafe { asm!("mrs {}, mdscr_el1", out(reg) value, options(nomem, nostack)) };
    value
}

/// The host's debug registers that its guest tries to write.
fn registers() -> [u64; 4] {
    let (control, lock, address, breaks);
    // SAFETY: reading them has no effect.
    unsafe {
        asm!(
            "mrs {}, mdscr_el1", "mrs {}, oslsr_el1", "mrs {}, dbgbvr0_el1", "mrs {}, dbgbcr0_el1",
            out(reg) control, out(reg) lock, out(reg) address, out(reg) breaks,
            options(nomem, nostack)
        );
    }
    [control, lock, address, breaks]
}

/// Sets `MDSCR_EL1`. The payload masks debug exceptions, so none is its own.
fn set_control(value: u64) {
    // SAFETY: as above.
    unsafe { asm!("msr oslar_el1, xzr", "msr mdscr_el1, {}", in(reg) value) };
    barrier::isb(barrier::SY);
}

/// Sets the first two breakpoints and watchpoints on what a guest does at its next command.
fn set(break_at: [u64; 2], watch: [u64; 2], how: (u64, u64)) {
    // SAFETY: they do not act before `set_control`.
    unsafe {
        asm!(
            "msr dbgbvr0_el1, {0}", "msr dbgbvr1_el1, {1}",
            "msr dbgwvr0_el1, {2}", "msr dbgwvr1_el1, {3}",
            "msr dbgbcr0_el1, {4}", "msr dbgbcr1_el1, {4}",
            "msr dbgwcr0_el1, {5}", "msr dbgwcr1_el1, {5}",
            in(reg) break_at[0], in(reg) break_at[1],
            in(reg) watch[0], in(reg) watch[1],
            in(reg) how.0, in(reg) how.1,
        );
    }
    barrier::isb(barrier::SY);
}

fn breakpoints_do_not_stop_a_guest(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    set([CODE + routine::unmasked_work().offset(), 0], [MAILBOX, MAILBOX + 72], (BREAK, WATCH));
    for control_set in [ACT, ACT | STEP, TDCC, ACT | TDCC] {
        set_control(control_set);
        let results = agent.call(routine::unmasked_work(), &[3]);
        let seen = control();
        set_control(0);
        let results = results?;
        check!(results.exception.is_none(), "the host's breakpoint stops the guest: {results:x?}");
        check_eq!(results.x[0], 0, "rounds left");
        check_eq!(seen, control_set, "MDSCR_EL1 of the host");
    }
    set([0; 2], [0; 2], (0, 0));
    host.end(agent.vm)
}

fn a_guest_does_not_write_the_host_s(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    set([CODE; 2], [MAILBOX; 2], (0, 0));
    set_control(0);
    let before = registers();
    for (routine, value) in [
        (routine::msr_mdscr(), ACT),
        (routine::msr_dbgbvr(), 0x1234_5678),
        (routine::msr_dbgbcr(), BREAK),
        (routine::msr_oslar(), 1),
    ] {
        let results = agent.call(routine, &[value])?;
        check!(results.exception.is_none(), "{results:x?}");
        check_eq!(registers(), before);
    }
    set([0; 2], [0; 2], (0, 0));
    host.end(agent.vm)
}

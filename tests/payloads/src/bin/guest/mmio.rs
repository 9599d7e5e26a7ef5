// SPDX-License-Identifier: MIT OR Apache-2.0

//! MMIO: loads and stores of every size, with every way to extend what was
//! loaded, decoded for the host and answered by it.

use escrow_abi::run;
use escrow_payloads::guest::{Agent, Exit, Routine, routine, run_once};
use escrow_payloads::{Host, Outcome, Test, check, check_eq, tests};

pub const TESTS: &[Test] = tests![
    loads_of_every_size,
    stores_of_every_size,
    the_zero_register,
    addresses_are_exact,
    retries_happen_again,
    faults_are_the_guest_s,
    what_has_no_syndrome_is_told,
    an_unanswered_exit_is_not_lost,
];

/// Where there is no memory.
const DEVICE: u64 = 0x0a00_0000;

fn loads_of_every_size(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    // Every bit above the access is junk: none of it may come through.
    let value = 0xfedc_ba98_f6d4_b2f0;
    let expected: [(Routine, u64, u64); 9] = [
        (routine::ldrb_w(), 1, 0xf0),
        (routine::ldrh_w(), 2, 0xb2f0),
        (routine::ldr_w(), 4, 0xf6d4_b2f0),
        (routine::ldr_x(), 8, value),
        (routine::ldrsb_w(), 1, 0xffff_fff0),
        (routine::ldrsb_x(), 1, 0xffff_ffff_ffff_fff0),
        (routine::ldrsh_w(), 2, 0xffff_b2f0),
        (routine::ldrsh_x(), 2, 0xffff_ffff_ffff_b2f0),
        (routine::ldrsw_x(), 4, 0xffff_ffff_f6d4_b2f0),
    ];
    for (routine, size, loaded) in expected {
        // What the register held before must be gone.
        let exit = agent.begin(routine, &[u64::MAX, DEVICE + 0x40])?;
        check_eq!(exit, Exit::MmioRead(DEVICE + 0x40, size), "{routine:?}");
        let results = agent.finish([value, run::ACTION_EMULATE, 0])?;
        check_eq!((results.x[0], results.exception), (loaded, None), "{routine:?}");
        // A positive value stays positive.
        agent.begin(routine, &[u64::MAX, DEVICE])?;
        let results = agent.finish([0x7f, run::ACTION_EMULATE, 0])?;
        check_eq!(results.x[0], 0x7f, "{routine:?}");
    }
    host.end(agent.vm)
}

fn stores_of_every_size(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    let value = 0xfedc_ba98_f6d4_b2f0;
    for (routine, size, stored) in [
        (routine::strb(), 1, 0xf0),
        (routine::strh(), 2, 0xb2f0),
        (routine::str_w(), 4, 0xf6d4_b2f0),
        (routine::str_x(), 8, value),
    ] {
        let exit = agent.begin(routine, &[0, DEVICE + 0x48, value])?;
        check_eq!(exit, Exit::MmioWrite(DEVICE + 0x48, size, stored), "{routine:?}");
        let results = agent.finish([0, run::ACTION_EMULATE, 0])?;
        check_eq!((results.x[2], results.exception), (value, None), "{routine:?}");
    }
    host.end(agent.vm)
}

fn the_zero_register(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    let exit = agent.begin(routine::ldr_xzr(), &[u64::MAX, DEVICE])?;
    check_eq!(exit, Exit::MmioRead(DEVICE, 8));
    // XZR stays zero, and SP, which has the same number, stays what it is.
    check_eq!(agent.finish([0x1234, 0, 0])?.x[0], 0);
    let exit = agent.begin(routine::str_xzr(), &[0, DEVICE])?;
    check_eq!(exit, Exit::MmioWrite(DEVICE, 8, 0));
    agent.finish([0; 3])?;
    host.end(agent.vm)
}

fn addresses_are_exact(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    for at in [0, 8, DEVICE + 0xff8, DEVICE + 0x1000, 0x3f_ffff_fff8, 0x7_ffff_f000] {
        check_eq!(agent.begin(routine::ldr_x(), &[0, at])?, Exit::MmioRead(at, 8));
        check_eq!(agent.finish([at ^ 5, 0, 0])?.x[0], at ^ 5);
    }
    for at in [1, DEVICE + 3, DEVICE + 0xfff] {
        check_eq!(agent.begin(routine::ldrb_w(), &[0, at])?, Exit::MmioRead(at, 1));
        check_eq!(agent.finish([0x33, 0, 0])?.x[0], 0x33);
    }
    host.end(agent.vm)
}

fn retries_happen_again(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    let exit = agent.begin(routine::ldr_x(), &[0, DEVICE])?;
    for _ in 0..3 {
        check_eq!(exit, Exit::MmioRead(DEVICE, 8));
        check_eq!(agent.run([0, run::ACTION_RETRY, 0])?, exit);
    }
    check_eq!(agent.finish([9, run::ACTION_EMULATE, 0])?.x[0], 9);
    host.end(agent.vm)
}

fn faults_are_the_guest_s(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    for (routine, write) in [(routine::ldr_w(), 0), (routine::str_x(), 1)] {
        agent.begin(routine, &[0x77, DEVICE + 0x10, 1])?;
        let results = agent.finish([0, run::ACTION_FAULT, 0])?;
        let Some(exception) = results.exception else { escrow_payloads::fail!("no exception") };
        // A synchronous external abort from EL1, with its address and direction.
        check_eq!(exception.esr >> 26, 0x25, "{exception:x?}");
        check_eq!((exception.esr & 0x3f, exception.esr >> 6 & 1), (0x10, write), "{exception:x?}");
        check_eq!(exception.far, DEVICE + 0x10);
        check_eq!(exception.spsr & 0xf, 5, "it was at EL1h");
        check_eq!(results.x[0], 0x77, "nothing was loaded");
    }
    host.end(agent.vm)
}

fn what_has_no_syndrome_is_told(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    for routine in [routine::ldp(), routine::stp(), routine::ldr_post(), routine::ldr_q()] {
        match agent.begin(routine, &[0, DEVICE])? {
            Exit::Fault(esr, DEVICE) => {
                check_eq!((esr >> 26, esr >> 24 & 1), (0x24, 0), "{routine:?}: {esr:#x}");
            }
            exit => escrow_payloads::fail!("{routine:?}: {exit:x?}"),
        }
        // It cannot be emulated; the guest gets the fault.
        let refused = run_once(agent.vcpu, [0, run::ACTION_EMULATE, 0]);
        check!(refused.is_err(), "{refused:x?}");
        let results = agent.finish([0, run::ACTION_FAULT, 0])?;
        check_eq!(results.exception.map(|e| e.esr >> 26), Some(0x25), "{routine:?}");
    }
    host.end(agent.vm)
}

fn an_unanswered_exit_is_not_lost(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    agent.begin(routine::ldrb_w(), &[u64::MAX, DEVICE])?;
    // Answers that are none: refused, and the load still waits for its value.
    for resume in [[0, 3, 0], [0, 0, 1], [5, run::ACTION_RETRY, 0], [5, run::ACTION_FAULT, 0]] {
        let refused = run_once(agent.vcpu, resume);
        check!(refused.is_err(), "{resume:x?}: {refused:x?}");
    }
    check_eq!(agent.finish([0x1a5, 0, 0])?.x[0], 0xa5);
    host.end(agent.vm)
}

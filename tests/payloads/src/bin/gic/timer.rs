// SPDX-License-Identifier: MIT OR Apache-2.0

//! The virtual timer: it interrupts a guest that runs, that waits, and that did not run when it
//! fired.

use escrow_abi::call;
use escrow_payloads::gic_guest::{GicGuest, Read, Step, Taken, Write};
use escrow_payloads::{Host, Outcome, Test, check, check_eq, tests};

pub const TESTS: &[Test] = tests![it_interrupts_a_guest_that_runs, an_edge_interrupts_a_guest];

const TIMER: u64 = 27;
/// A tick or so.
const SOON: u64 = 1000;

/// Enables the timer's interrupt, with a priority.
fn enable(guest: &GicGuest) -> [Step; 2] {
    let private = guest.vcpus[0].private();
    [Step::store_b(private + 0x400 + TIMER, 0x80), Step::store(private + 0x100, 1 << TIMER)]
}

fn it_interrupts_a_guest_that_runs(host: &mut Host) -> Outcome {
    let guest = GicGuest::start(host, 1, 32)?;
    guest.set_up(0)?;
    let vcpu = guest.vcpus[0];
    let [priority, enable] = enable(&guest);
    vcpu.script(
        &[
            priority,
            enable,
            Step::read(Read::Pfr0),
            Step::read(Read::Sre),
            Step::write(Write::CntvTval, SOON),
            Step::write(Write::CntvCtl, 1),
            Step::UNMASK,
            Step::until_interrupts(1),
            Step::write(Write::CntvTval, SOON),
            Step::write(Write::CntvCtl, 1),
            Step::until_interrupts(2),
            Step::loops(1000),
            Step::MASK,
        ],
        &[Step::write(Write::CntvCtl, 0), Step::END],
    )?;
    check_eq!(vcpu.result(2) >> 24 & 0xf, 1, "ID_AA64PFR0_EL1.GIC");
    check_eq!(vcpu.result(3), 7, "ICC_SRE_EL1");
    let timer = Taken { intid: TIMER as u32, priority: 0x80 };
    check_eq!(vcpu.taken().as_slice(), [timer; 2]);
    host.end(guest.vm)
}

fn an_edge_interrupts_a_guest(host: &mut Host) -> Outcome {
    let guest = GicGuest::start(host, 1, 32)?;
    guest.set_up(0)?;
    let vcpu = guest.vcpus[0];
    vcpu.write_script(
        &[
            Step::store(escrow_payloads::gic_guest::GICD + 0x84, u64::from(u32::MAX)),
            Step::store(escrow_payloads::gic_guest::GICD + 0x104, 1 << 8),
            Step::device(1),
            Step::UNMASK,
            Step::until_interrupts(1),
            Step::loops(1000),
            Step::MASK,
        ],
        &[Step::END],
    );
    vcpu.device(1)?;
    check_eq!(guest.input(40, call::INPUT_EDGE)?, 0);
    vcpu.ends()?;
    check_eq!(vcpu.taken().as_slice(), [Taken { intid: 40, priority: 0 }]);
    check!(guest.done()? == 0);
    host.end(guest.vm)
}

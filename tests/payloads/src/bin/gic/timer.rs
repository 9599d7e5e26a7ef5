// SPDX-License-Identifier: MIT OR Apache-2.0

//! The virtual timer: it interrupts a guest that runs, that waits, and that did not run when it
//! fired.

use aarch64_cpu::registers::{CNTFRQ_EL0, CNTPCT_EL0, Readable as _};
use escrow_abi::call;
use escrow_payloads::gic_guest::{GicGuest, Read, Step, Taken, Write};
use escrow_payloads::guest::Exit;
use escrow_payloads::{Host, Outcome, Test, check, check_eq, cpus, fail, tests};

pub const TESTS: &[Test] = tests![
    it_interrupts_a_guest_that_runs,
    an_edge_interrupts_a_guest,
    the_physical_timer_is_there_as_well,
];

const TIMER: u64 = 27;
const PHYSICAL: u64 = 30;
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

/// The physical timer, which EL2 emulates: while the guest runs, masked, and while it waits.
fn the_physical_timer_is_there_as_well(host: &mut Host) -> Outcome {
    let guest = GicGuest::start(host, 1, 32)?;
    guest.set_up(0)?;
    let vcpu = guest.vcpus[0];
    let private = vcpu.private();
    let switch_off = [Step::write(Write::CntpCtl, 0), Step::END];
    let timer = Taken { intid: PHYSICAL as u32, priority: 0x90 };
    vcpu.script(
        &[
            Step::store_b(private + 0x400 + PHYSICAL, 0x90),
            Step::store(private + 0x100, 1 << PHYSICAL),
            Step::write(Write::CntpTval, SOON),
            Step::write(Write::CntpCtl, 1),
            Step::UNMASK,
            Step::until_interrupts(1),
            Step::write(Write::CntpTval, SOON),
            Step::write(Write::CntpCtl, 1),
            Step::until_interrupts(2),
            // Its time is past.
            Step::write(Write::CntpCtl, 1),
            Step::until_interrupts(3),
            Step::loops(1000),
            Step::MASK,
        ],
        &switch_off,
    )?;
    check_eq!(vcpu.taken().as_slice(), [timer; 3]);
    let far = 1 << 60;
    vcpu.script(
        &[
            Step::write(Write::CntpCval, 5),
            Step::write(Write::CntpCtl, u64::MAX),
            Step::read(Read::CntpCtl),
            Step::read(Read::CntpCval),
            Step::UNMASK,
            Step::loops(1000),
            Step::write(Write::CntpCval, far),
            Step::write(Write::CntpCtl, 1),
            Step::read(Read::CntpCtl),
            Step::read(Read::Cntpct),
            Step::read(Read::Cntvct),
            Step::write(Write::CntpTval, 0xffff_0000),
            Step::read(Read::CntpTval),
            Step::write(Write::CntpCtl, 0),
            Step::MASK,
        ],
        &switch_off,
    )?;
    // The handler switches it off at the interrupt of a time that is long past.
    check_eq!(vcpu.taken().as_slice(), [timer]);
    check_eq!([vcpu.result(2), vcpu.result(3)], [7, 5], "enabled, masked, met");
    check_eq!(vcpu.result(8), 1, "enabled");
    check!(vcpu.result(9) <= vcpu.result(10), "one counter");
    check_eq!(vcpu.result(12) >> 31, 1, "its time is past");
    // In 50 ms, for which its host waits.
    vcpu.write_script(
        &[
            Step::write(Write::CntpTval, CNTFRQ_EL0.get() / 20),
            Step::write(Write::CntpCtl, 1),
            Step::UNMASK,
            Step::WFI,
            Step::until_interrupts(1),
            Step::MASK,
        ],
        &switch_off,
    );
    let exit = vcpu.run()?;
    let Exit::Wakeup(deadline) = exit else { fail!("{exit:x?}") };
    check!(deadline < CNTPCT_EL0.get() + CNTFRQ_EL0.get(), "{deadline:#x}");
    cpus::wait_until(|| CNTPCT_EL0.get() >= deadline, "the deadline")?;
    vcpu.ends()?;
    check_eq!(vcpu.taken().as_slice(), [timer]);
    host.end(guest.vm)
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! The physical timer, which EL2 emulates.

use aarch64_cpu::registers::{CNTFRQ_EL0, CNTPCT_EL0, Readable as _};
use escrow_payloads::gic_guest::{GicGuest, Read, Step, Taken, Write};
use escrow_payloads::guest::Exit;
use escrow_payloads::{Host, Outcome, Test, check, check_eq, cpus, fail, tests};

pub const TESTS: &[Test] = tests![the_physical_timer_is_there_as_well];

const PHYSICAL: u64 = 30;

/// While the guest runs, masked, and while it waits.
fn the_physical_timer_is_there_as_well(host: &mut Host) -> Outcome {
    let guest = GicGuest::start(host, 1, 32)?;
    guest.set_up(0)?;
    let vcpu = guest.vcpus[0];
    let private = vcpu.private();
    // Long enough for the guest to be in its loop by then.
    let soon = CNTFRQ_EL0.get() / 100;
    let switch_off = [Step::write(Write::CntpCtl, 0), Step::END];
    let timer = Taken { intid: PHYSICAL as u32, priority: 0x90 };
    vcpu.script(
        &[
            Step::store_b(private + 0x400 + PHYSICAL, 0x90),
            Step::store(private + 0x100, 1 << PHYSICAL),
            Step::write(Write::CntpTval, soon),
            Step::write(Write::CntpCtl, 1),
            Step::UNMASK,
            Step::until_interrupts(1),
            Step::write(Write::CntpTval, soon),
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

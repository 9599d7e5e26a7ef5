// SPDX-License-Identifier: MIT OR Apache-2.0

//! The virtual timer: it interrupts a guest that runs, that waits, and that did not run when it
//! fired.

use escrow_payloads::gic_guest::{
    GicGuest, GicVcpu, Read, Step, Taken, Write, counter, milliseconds,
};
use escrow_payloads::guest::Exit;
use escrow_payloads::{Host, Outcome, Test, check, check_eq, cpus, fail, tests};

pub const TESTS: &[Test] = tests![
    it_interrupts_a_guest_that_runs,
    it_interrupts_a_guest_that_waits,
    it_interrupts_a_guest_that_did_not_run,
    one_that_is_disabled_wakes_nobody,
    one_that_is_set_anew_is_not_pending,
    it_is_deactivated_by_itself_in_eoi_mode_1,
];

const TIMER: u32 = 27;
const TAKEN: Taken = Taken { intid: TIMER, priority: 0x80 };
/// A tick or so.
const SOON: u64 = 1000;
/// Long enough for the guest to wait for it.
const LATER: u64 = 50;

fn start(host: &mut Host, eoi_mode: u64) -> Outcome<(GicGuest, GicVcpu)> {
    let guest = GicGuest::start(host, 1, 32)?;
    guest.set_up(eoi_mode)?;
    let vcpu = guest.vcpus[0];
    let private = vcpu.private();
    vcpu.script(
        &[
            Step::store_b(private + 0x400 + u64::from(TIMER), 0x80),
            Step::store(private + 0x100, 1 << TIMER),
        ],
        &[],
    )?;
    Ok((guest, vcpu))
}

fn set(ticks: u64) -> [Step; 2] {
    [Step::write(Write::CntvTval, ticks), Step::write(Write::CntvCtl, 1)]
}

const OFF: Step = Step::write(Write::CntvCtl, 0);

/// Goes on with a guest that waits, when its timer has fired.
fn wait(vcpu: &GicVcpu) -> Outcome {
    match vcpu.run()? {
        Exit::Wakeup(deadline) => {
            check!(deadline != u64::MAX, "the timer wakes it");
            cpus::wait_until(|| counter() >= deadline, "time does not pass")
        }
        exit => fail!("{exit:?}"),
    }
}

fn it_interrupts_a_guest_that_runs(host: &mut Host) -> Outcome {
    let (guest, vcpu) = start(host, 0)?;
    let [tval, ctl] = set(SOON);
    vcpu.script(
        &[
            Step::read(Read::Pfr0),
            Step::read(Read::Sre),
            tval,
            ctl,
            Step::UNMASK,
            Step::until_interrupts(1),
            tval,
            ctl,
            Step::until_interrupts(2),
            Step::loops(1000),
            Step::MASK,
        ],
        &[OFF, Step::END],
    )?;
    check_eq!(vcpu.result(0) >> 24 & 0xf, 1, "ID_AA64PFR0_EL1.GIC");
    check_eq!(vcpu.result(1), 7, "ICC_SRE_EL1");
    check_eq!(vcpu.taken().as_slice(), [TAKEN; 2]);
    host.end(guest.vm)
}

fn it_interrupts_a_guest_that_waits(host: &mut Host) -> Outcome {
    let (guest, vcpu) = start(host, 0)?;
    for round in 1..4 {
        let [tval, ctl] = set(milliseconds(LATER));
        let script = [tval, ctl, Step::WFI, Step::UNMASK, Step::until_interrupts(1), Step::MASK];
        vcpu.write_script(&script, &[OFF, Step::END]);
        wait(&vcpu)?;
        vcpu.ends()?;
        check_eq!(vcpu.taken().as_slice(), [TAKEN], "round {round}");
    }
    // Pending already: it does not wait.
    let [tval, ctl] = set(1);
    let script = [tval, ctl, Step::UNTIL_TIMER, Step::WFI, Step::UNMASK, Step::until_interrupts(1)];
    vcpu.script(&script, &[OFF, Step::END])?;
    check_eq!(vcpu.taken().as_slice(), [TAKEN]);
    host.end(guest.vm)
}

fn it_interrupts_a_guest_that_did_not_run(host: &mut Host) -> Outcome {
    let (guest, vcpu) = start(host, 0)?;
    for _ in 0..3 {
        let [tval, ctl] = set(milliseconds(LATER));
        let script =
            [tval, ctl, Step::device(7), Step::UNMASK, Step::until_interrupts(1), Step::MASK];
        vcpu.write_script(&script, &[OFF, Step::END]);
        vcpu.device(7)?;
        let end = counter() + milliseconds(2 * LATER);
        cpus::wait_until(|| counter() >= end, "time does not pass")?;
        vcpu.ends()?;
        check_eq!(vcpu.taken().as_slice(), [TAKEN]);
        // An exit while it is pending, and one while it is active: it comes once nevertheless.
        let [tval, ctl] = set(SOON);
        let script = [
            tval,
            ctl,
            Step::UNTIL_TIMER,
            Step::device(8),
            Step::UNMASK,
            Step::until_interrupts(1),
            Step::loops(1000),
            Step::MASK,
        ];
        vcpu.write_script(&script, &[Step::device(9), OFF, Step::device(10), Step::END]);
        for exit in 8..=10 {
            vcpu.device(exit)?;
        }
        vcpu.ends()?;
        check_eq!(vcpu.taken().as_slice(), [TAKEN]);
    }
    host.end(guest.vm)
}

fn one_that_is_disabled_wakes_nobody(host: &mut Host) -> Outcome {
    let (guest, vcpu) = start(host, 0)?;
    let [tval, ctl] = set(SOON);
    let private = vcpu.private();
    let script = [
        Step::store(private + 0x180, 1 << TIMER),
        tval,
        ctl,
        Step::UNMASK,
        Step::UNTIL_TIMER,
        Step::WFI,
        Step::load(private + 0x200),
        // It comes when it is enabled.
        Step::store(private + 0x100, 1 << TIMER),
        Step::until_interrupts(1),
        Step::MASK,
    ];
    vcpu.write_script(&script, &[OFF, Step::END]);
    check_eq!(vcpu.run()?, Exit::Wakeup(u64::MAX));
    check_eq!(vcpu.count(), 0);
    vcpu.ends()?;
    check_eq!(vcpu.result(6), 1 << TIMER, "ISPENDR0 shows its level");
    check_eq!(vcpu.taken().as_slice(), [TAKEN]);
    host.end(guest.vm)
}

fn one_that_is_set_anew_is_not_pending(host: &mut Host) -> Outcome {
    let (guest, vcpu) = start(host, 0)?;
    let [tval, ctl] = set(SOON);
    let private = vcpu.private();
    let script = [
        tval,
        ctl,
        Step::UNTIL_TIMER,
        Step::load(private + 0x200),
        Step::write(Write::CntvTval, milliseconds(LATER)),
        Step::load(private + 0x200),
        Step::WFI,
        Step::UNMASK,
        Step::until_interrupts(1),
        Step::MASK,
    ];
    vcpu.write_script(&script, &[OFF, Step::END]);
    wait(&vcpu)?;
    check_eq!(vcpu.result(3), 1 << TIMER);
    check_eq!(vcpu.result(5), 0);
    vcpu.ends()?;
    check_eq!(vcpu.taken().as_slice(), [TAKEN]);
    host.end(guest.vm)
}

fn it_is_deactivated_by_itself_in_eoi_mode_1(host: &mut Host) -> Outcome {
    let (guest, vcpu) = start(host, 1)?;
    let [tval, ctl] = set(SOON);
    let private = vcpu.private();
    let script = [
        tval,
        ctl,
        Step::UNMASK,
        Step::until_interrupts(1),
        // Active still: it does not come again.
        tval,
        ctl,
        Step::UNTIL_TIMER,
        Step::load(private + 0x300),
        Step::load(private + 0x200),
        Step::write(Write::Dir, TIMER as u64),
        Step::until_interrupts(2),
        OFF,
        Step::write(Write::Dir, TIMER as u64),
        Step::load(private + 0x300),
        Step::MASK,
    ];
    vcpu.script(&script, &[OFF, Step::END])?;
    check_eq!([vcpu.result(7), vcpu.result(8)], [1 << TIMER; 2], "active and pending");
    check_eq!(vcpu.result(13), 0);
    check_eq!(vcpu.taken().as_slice(), [TAKEN; 2]);
    host.end(guest.vm)
}

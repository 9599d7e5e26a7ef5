// SPDX-License-Identifier: MIT OR Apache-2.0

//! SPIs: what the host sets, the guest takes as its GIC says.

use arrayvec::ArrayVec;
use escrow_abi::{Error, call};
use escrow_payloads::expect::refusal;
use escrow_payloads::gic_guest::{GICD, GicGuest, GicVcpu, Read, Step, Taken, Write};
use escrow_payloads::guest::Exit;
use escrow_payloads::{Host, Outcome, Test, check_eq, hvc, tests};

pub const TESTS: &[Test] = tests![
    an_edge_comes_once,
    a_level_comes_until_it_is_low,
    one_that_is_done_is_told,
    the_most_urgent_comes_first_and_preempts,
    more_come_than_there_are_list_registers,
    more_are_active_than_there_are_list_registers,
    one_goes_where_it_is_routed,
    another_vcpu_deactivates,
    a_guest_that_waits_is_woken,
    a_host_names_spis_alone,
];

const EDGE: u64 = call::INPUT_EDGE;

/// Has SPIs enabled at vCPU 0, the first at a priority, each next one 8 more urgent, or not.
fn start(host: &mut Host, vcpus: u64, eoi_mode: u64) -> Outcome<(GicGuest, GicVcpu)> {
    let guest = GicGuest::start(host, vcpus, 64)?;
    guest.switch_on_others()?;
    guest.set_up(eoi_mode)?;
    let vcpu = guest.vcpus[0];
    let mut script: ArrayVec<Step, 64> = ArrayVec::new();
    script.push(Step::store(GICD + 0x84, u64::from(u32::MAX)));
    for intid in FIRST..FIRST + COUNT {
        script.push(Step::store_b(GICD + 0x400 + intid, priority(intid).into()));
    }
    script.push(Step::store(GICD + 0x104, ((1 << COUNT) - 1) << (FIRST - 32)));
    vcpu.script(&script, &[])?;
    Ok((guest, vcpu))
}

const FIRST: u64 = 40;
const COUNT: u64 = 12;

const fn priority(intid: u64) -> u32 {
    0xa0 - (intid - FIRST) as u32 * 8
}

const fn taken(intid: u64) -> Taken {
    Taken { intid: intid as u32, priority: priority(intid) }
}

fn an_edge_comes_once(host: &mut Host) -> Outcome {
    let (guest, vcpu) = start(host, 1, 0)?;
    let script =
        [Step::device(1), Step::UNMASK, Step::until_interrupts(1), Step::loops(1000), Step::MASK];
    vcpu.write_script(&script, &[Step::END]);
    vcpu.device(1)?;
    // Two before it is acknowledged are one.
    for _ in 0..2 {
        check_eq!(guest.input(FIRST, EDGE)?, 0);
    }
    vcpu.ends()?;
    check_eq!(vcpu.taken().as_slice(), [taken(FIRST)]);
    // One while it is active is another.
    vcpu.write_script(&script, &[Step::device(2), Step::END]);
    vcpu.device(1)?;
    guest.input(FIRST, EDGE)?;
    vcpu.device(2)?;
    guest.input(FIRST, EDGE)?;
    vcpu.device(2)?;
    vcpu.ends()?;
    check_eq!(vcpu.taken().as_slice(), [taken(FIRST); 2]);
    check_eq!(guest.done()?, 0);
    host.end(guest.vm)
}

fn a_level_comes_until_it_is_low(host: &mut Host) -> Outcome {
    let (guest, vcpu) = start(host, 1, 0)?;
    let script =
        [Step::device(1), Step::UNMASK, Step::until_interrupts(3), Step::loops(1000), Step::MASK];
    vcpu.write_script(&script, &[Step::device(2), Step::END]);
    vcpu.device(1)?;
    guest.input(FIRST, call::INPUT_HIGH)?;
    vcpu.device(2)?;
    vcpu.device(2)?;
    vcpu.device(2)?;
    guest.input(FIRST, call::INPUT_LOW)?;
    vcpu.ends()?;
    check_eq!(vcpu.taken().as_slice(), [taken(FIRST); 3]);
    check_eq!(guest.done()?, 0);
    // Low before it is acknowledged: it does not come.
    let script = [Step::device(1), Step::UNMASK, Step::loops(1000), Step::MASK];
    vcpu.write_script(&script, &[Step::END]);
    vcpu.device(1)?;
    guest.input(FIRST, call::INPUT_HIGH)?;
    guest.input(FIRST, call::INPUT_LOW)?;
    vcpu.ends()?;
    check_eq!(vcpu.count(), 0);
    host.end(guest.vm)
}

fn one_that_is_done_is_told(host: &mut Host) -> Outcome {
    let (guest, vcpu) = start(host, 1, 0)?;
    let high = call::INPUT_HIGH_UNTIL_DONE;
    let script =
        [Step::device(1), Step::UNMASK, Step::until_interrupts(2), Step::loops(1000), Step::MASK];
    vcpu.write_script(&script, &[Step::END]);
    vcpu.device(1)?;
    guest.input(FIRST, high)?;
    check_eq!(vcpu.run()?, Exit::SpiDone(0));
    check_eq!([guest.done()?, guest.done()?], [FIRST, 0]);
    // The device still asserts it.
    guest.input(FIRST, high)?;
    check_eq!(vcpu.run()?, Exit::SpiDone(0));
    check_eq!([guest.done()?, guest.done()?], [FIRST, 0]);
    vcpu.ends()?;
    check_eq!(vcpu.taken().as_slice(), [taken(FIRST); 2]);
    host.end(guest.vm)
}

fn the_most_urgent_comes_first_and_preempts(host: &mut Host) -> Outcome {
    let (guest, vcpu) = start(host, 1, 0)?;
    let script =
        [Step::device(1), Step::UNMASK, Step::until_interrupts(3), Step::loops(1000), Step::MASK];
    vcpu.write_script(&script, &[Step::UNMASK, Step::loops(100), Step::MASK, Step::END]);
    vcpu.device(1)?;
    for intid in [41, 40, 42] {
        guest.input(intid, EDGE)?;
    }
    vcpu.ends()?;
    check_eq!(vcpu.taken().as_slice(), [taken(42), taken(41), taken(40)]);
    // The second comes while the first is active, the third does not before it has ended.
    let handler = [
        Step::if_intid(41, 1),
        Step::device(2),
        Step::UNMASK,
        Step::loops(1000),
        Step::MASK,
        Step::END,
    ];
    vcpu.write_script(&script, &handler);
    vcpu.device(1)?;
    guest.input(41, EDGE)?;
    vcpu.device(2)?;
    guest.input(40, EDGE)?;
    guest.input(48, EDGE)?;
    vcpu.ends()?;
    check_eq!(vcpu.taken().as_slice(), [taken(41), taken(48), taken(40)]);
    host.end(guest.vm)
}

/// All of them in the order in which they come.
fn all() -> ArrayVec<Taken, 12> {
    (FIRST..FIRST + COUNT).rev().map(taken).collect()
}

fn more_come_than_there_are_list_registers(host: &mut Host) -> Outcome {
    let (guest, vcpu) = start(host, 1, 0)?;
    let script = [
        Step::device(1),
        Step::load(GICD + 0x204),
        Step::UNMASK,
        Step::until_interrupts(COUNT),
        Step::loops(1000),
        Step::MASK,
    ];
    for input in [EDGE, call::INPUT_HIGH_UNTIL_DONE] {
        vcpu.write_script(&script, &[Step::END]);
        vcpu.device(1)?;
        for intid in FIRST..FIRST + COUNT {
            guest.input(intid, input)?;
        }
        let mut done = 0;
        while let Exit::SpiDone(0) = vcpu.run()? {
            while guest.done()? != 0 {
                done += 1;
            }
        }
        check_eq!(vcpu.exception(), None);
        check_eq!(done, if input == EDGE { 0 } else { COUNT });
        check_eq!(vcpu.result(1), ((1 << COUNT) - 1) << (FIRST - 32), "ISPENDR1");
        check_eq!(vcpu.taken().as_slice(), all().as_slice());
    }
    host.end(guest.vm)
}

fn more_are_active_than_there_are_list_registers(host: &mut Host) -> Outcome {
    for eoi_mode in [0, 1] {
        let (guest, vcpu) = start(host, 1, eoi_mode)?;
        let active = ((1 << COUNT) - 1) << (FIRST - 32);
        let mut script: ArrayVec<Step, 64> = ArrayVec::new();
        script.extend([Step::device(1), Step::read(Read::Rpr)]);
        if eoi_mode == 0 {
            // Masked: acknowledged one by one, least urgent first, as the host makes them pending.
            for intid in FIRST..FIRST + COUNT {
                script.extend([Step::device(intid), Step::read(Read::Iar1)]);
            }
            script.push(Step::load(GICD + 0x304));
            for intid in (FIRST..FIRST + COUNT).rev() {
                script.push(Step::write(Write::Eoir1, intid));
            }
        } else {
            for intid in FIRST..FIRST + COUNT {
                script.extend([Step::device(intid), Step::read(Read::Iar1)]);
                script.push(Step::write(Write::Eoir1, intid));
            }
            script.push(Step::load(GICD + 0x304));
            for intid in FIRST..FIRST + COUNT {
                script.push(Step::write(Write::Dir, intid));
            }
        }
        script.extend([Step::load(GICD + 0x304), Step::read(Read::Rpr)]);
        vcpu.write_script(&script, &[]);
        vcpu.device(1)?;
        for intid in FIRST..FIRST + COUNT {
            vcpu.device(intid)?;
            guest.input(intid, EDGE)?;
        }
        vcpu.ends()?;
        let each = if eoi_mode == 0 { 2 } else { 3 };
        for n in 0..COUNT {
            check_eq!(vcpu.result(2 + each * n + 1), FIRST + n, "acknowledged");
        }
        let last = script.len() as u64 - 1;
        check_eq!(vcpu.result(2 + each * COUNT), active, "all are active");
        check_eq!([vcpu.result(last - 1), vcpu.result(last)], [0, 0xff], "none is");
        // All come again.
        let script = [Step::device(1), Step::UNMASK, Step::until_interrupts(COUNT), Step::MASK];
        let handler = [Step::END, Step::DEACTIVATE];
        vcpu.write_script(&script, if eoi_mode == 0 { &handler[..1] } else { &handler });
        vcpu.device(1)?;
        for intid in FIRST..FIRST + COUNT {
            guest.input(intid, EDGE)?;
        }
        vcpu.ends()?;
        check_eq!(vcpu.taken().as_slice(), all().as_slice());
        host.end(guest.vm)?;
    }
    Ok(())
}

fn one_goes_where_it_is_routed(host: &mut Host) -> Outcome {
    let (guest, first) = start(host, 2, 0)?;
    let second = guest.vcpus[1];
    let script =
        [Step::device(1), Step::UNMASK, Step::until_interrupts(1), Step::loops(1000), Step::MASK];
    let masked = [Step::device(2), Step::UNMASK, Step::loops(1000), Step::MASK];
    first.script(&[Step::store_x(GICD + 0x6000 + 8 * FIRST, 1)], &[])?;
    first.write_script(&masked, &[Step::END]);
    second.write_script(&script, &[Step::END]);
    first.device(2)?;
    second.device(1)?;
    guest.input(FIRST, EDGE)?;
    first.ends()?;
    second.ends()?;
    check_eq!([first.count(), second.count()], [0, 1]);
    // Pending, it goes with its route.
    let route = [
        Step::device(1),
        Step::store_x(GICD + 0x6000 + 8 * FIRST, 0),
        Step::UNMASK,
        Step::until_interrupts(1),
        Step::MASK,
    ];
    first.write_script(&route, &[Step::END]);
    second.write_script(&masked, &[Step::END]);
    first.device(1)?;
    second.device(2)?;
    guest.input(FIRST, EDGE)?;
    first.ends()?;
    second.ends()?;
    check_eq!([first.count(), second.count()], [1, 0]);
    host.end(guest.vm)
}

fn another_vcpu_deactivates(host: &mut Host) -> Outcome {
    let (guest, first) = start(host, 2, 1)?;
    let second = guest.vcpus[1];
    let script = [
        Step::device(1),
        Step::UNMASK,
        Step::until_interrupts(1),
        Step::add_word(1, 1),
        // From here on it is inside.
        Step::until_interrupts(2),
        Step::MASK,
    ];
    first.write_script(&script, &[Step::END]);
    first.device(1)?;
    guest.input(FIRST, call::INPUT_HIGH)?;
    let script = [
        Step::until_word(1, 1),
        Step::load(GICD + 0x304),
        Step::write(Write::Dir, FIRST),
        // High still: it came again, and is active there.
        Step::loops(1),
    ];
    second.write_script(&script, &[]);
    guest.run_all()?;
    check_eq!(second.result(1), 1 << (FIRST - 32), "active at the other");
    check_eq!(first.taken().as_slice(), [taken(FIRST); 2]);
    host.end(guest.vm)
}

fn a_guest_that_waits_is_woken(host: &mut Host) -> Outcome {
    let (guest, vcpu) = start(host, 1, 0)?;
    for _ in 0..3 {
        let script = [Step::WFI, Step::UNMASK, Step::until_interrupts(1), Step::MASK];
        vcpu.write_script(&script, &[Step::END]);
        check_eq!(vcpu.run()?, Exit::Wakeup(u64::MAX));
        check_eq!(guest.input(FIRST, EDGE)?, 1, "it is to be run");
        check_eq!(guest.input(FIRST + 1, EDGE)?, 0, "once");
        vcpu.ends()?;
        check_eq!(vcpu.count(), 2);
        // One that is not enabled wakes nobody.
        vcpu.write_script(&[Step::WFI], &[]);
        check_eq!(vcpu.run()?, Exit::Wakeup(u64::MAX));
        check_eq!(guest.input(FIRST + COUNT, EDGE)?, 0);
        vcpu.ends()?;
    }
    host.end(guest.vm)
}

fn a_host_names_spis_alone(host: &mut Host) -> Outcome {
    let (guest, vcpu) = start(host, 1, 0)?;
    for intid in [0, 15, 16, 27, 31, 96, 1019, 1020, 1 << 32 | 40] {
        check_eq!(
            hvc::call(call::SPI_INPUT, &[guest.vm, intid, EDGE]).err().map(|r| r.error),
            Some(Error::InvalidArgument)
        );
    }
    let script = [Step::UNMASK, Step::loops(1000), Step::MASK];
    vcpu.script(&script, &[])?;
    check_eq!(vcpu.count(), 0);
    let arguments = [guest.vm, GICD, GICD + 0x10_0000, 32];
    check_eq!(hvc::call(call::VM_VGIC, &arguments).err(), Some(refusal(Error::Denied)));
    host.end(guest.vm)
}

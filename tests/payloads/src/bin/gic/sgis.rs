// SPDX-License-Identifier: MIT OR Apache-2.0

//! SGIs, from vCPUs to others, which run, wait, or are off.

use escrow_payloads::gic_guest::{GicGuest, Step, Taken, Write};
use escrow_payloads::guest::Exit;
use escrow_payloads::{Host, Outcome, Test, check, check_eq, tests};

pub const TESTS: &[Test] = tests![
    one_to_itself_comes,
    one_wakes_whoever_waits,
    they_come_to_vcpus_that_run,
    storms_come_to_an_end,
    a_crowd_s_storm_loses_nobody,
];

const SGI: u64 = 3;

const fn to(targets: u64) -> Step {
    Step::write(Write::Sgi1r, SGI << 24 | targets)
}

/// All but the sender.
const TO_OTHERS: Step = Step::write(Write::Sgi1r, SGI << 24 | 1 << 40);

fn start(host: &mut Host, vcpus: u64) -> Outcome<GicGuest> {
    let guest = GicGuest::start(host, vcpus, 32)?;
    guest.switch_on_others()?;
    guest.set_up(0)?;
    for vcpu in &guest.vcpus {
        vcpu.script(&[Step::store(vcpu.private() + 0x100, 1 << SGI)], &[])?;
    }
    Ok(guest)
}

fn one_to_itself_comes(host: &mut Host) -> Outcome {
    let guest = start(host, 1)?;
    let vcpu = guest.vcpus[0];
    let script =
        [to(1), Step::UNMASK, Step::until_interrupts(1), to(1), Step::until_interrupts(2), to(2)];
    vcpu.script(&script, &[Step::END])?;
    check_eq!(vcpu.taken().as_slice(), [Taken { intid: SGI as u32, priority: 0 }; 2]);
    vcpu.script(&[TO_OTHERS, Step::loops(1000), Step::MASK], &[Step::END])?;
    check_eq!(vcpu.count(), 0);
    host.end(guest.vm)
}

fn one_wakes_whoever_waits(host: &mut Host) -> Outcome {
    let guest = start(host, 3)?;
    let [first, second, third] = [guest.vcpus[0], guest.vcpus[1], guest.vcpus[2]];
    for vcpu in [second, third] {
        let script = [Step::WFI, Step::UNMASK, Step::until_interrupts(1), Step::MASK];
        vcpu.write_script(&script, &[Step::END]);
        check_eq!(vcpu.run()?, Exit::Wakeup(u64::MAX));
    }
    first.write_script(&[to(2), to(2), TO_OTHERS], &[]);
    check_eq!(first.run()?, Exit::Wake(1 << 1));
    // The second has been told; the third has not.
    check_eq!(first.run()?, Exit::Wake(1 << 2));
    first.ends()?;
    for vcpu in [second, third] {
        vcpu.ends()?;
        check_eq!(vcpu.count(), 1);
    }
    host.end(guest.vm)
}

fn they_come_to_vcpus_that_run(host: &mut Host) -> Outcome {
    let guest = start(host, 2)?;
    let [first, second] = [guest.vcpus[0], guest.vcpus[1]];
    const ROUNDS: u64 = 30;
    for wait in [Step::loops(1), Step::WFI] {
        let mut script = arrayvec::ArrayVec::<Step, 64>::new();
        for n in 1..=ROUNDS {
            script.extend([to(2), Step::until_word(1, n)]);
        }
        first.write_script(&script, &[]);
        let script = [Step::UNMASK, wait, wait, wait, Step::until_interrupts(ROUNDS), Step::MASK];
        second.write_script(&script, &[Step::add_word(1, 1), Step::END]);
        guest.run_all()?;
        check_eq!(second.word(), ROUNDS);
        check_eq!(second.count(), ROUNDS);
    }
    host.end(guest.vm)
}

fn storms_come_to_an_end(host: &mut Host) -> Outcome {
    let guest = start(host, 4)?;
    const SENT: usize = 40;
    for _ in 0..4 {
        for (n, vcpu) in (0..).zip(&guest.vcpus) {
            let mut script = arrayvec::ArrayVec::<Step, 64>::new();
            // All of them, then the storm, then all of them again.
            script.push(Step::add_word(n, 1));
            script.extend((0..4).map(|other| Step::until_word(other, 1)));
            script.push(Step::UNMASK);
            script.extend([TO_OTHERS; SENT]);
            script.push(Step::add_word(n, 1));
            script.extend((0..4).map(|other| Step::until_word(other, 2)));
            script.extend([Step::loops(1000), Step::MASK]);
            vcpu.write_script(&script, &[Step::END]);
        }
        guest.run_all()?;
        for vcpu in &guest.vcpus {
            check_eq!(vcpu.word(), 2);
            check!((1..=3 * SENT as u64).contains(&vcpu.count()), "{} came", vcpu.count());
        }
    }
    host.end(guest.vm)
}

/// Each of eight vCPUs sends to all others; there are mostly fewer CPUs, so half of them are out of their
/// guests at any time.
fn a_crowd_s_storm_loses_nobody(host: &mut Host) -> Outcome {
    const VCPUS: u64 = 8;
    const SENT: usize = 40;
    let guest = start(host, VCPUS)?;
    for _ in 0..4 {
        for vcpu in &guest.vcpus {
            let mut script = arrayvec::ArrayVec::<Step, 64>::new();
            script.push(Step::UNMASK);
            script.extend([TO_OTHERS; SENT]);
            script.push(Step::MASK);
            vcpu.write_script(&script, &[Step::END]);
        }
        guest.run_in_turn()?;
        let early = guest.vcpus.iter().map(|vcpu| vcpu.count());
        let mut came: arrayvec::ArrayVec<u64, 8> = early.collect();
        // What came to those that were out; then nothing is left.
        for last in [false, true] {
            for vcpu in &guest.vcpus {
                let script = [Step::UNMASK, Step::loops(1000), Step::MASK];
                vcpu.write_script(&script, &[Step::END]);
            }
            guest.run_in_turn()?;
            for (came, vcpu) in came.iter_mut().zip(&guest.vcpus) {
                check!(!last || vcpu.count() == 0, "{} more came", vcpu.count());
                *came += vcpu.count();
            }
        }
        for came in came {
            check!((1..=(VCPUS - 1) * SENT as u64).contains(&came), "{came} came");
        }
    }
    host.end(guest.vm)
}

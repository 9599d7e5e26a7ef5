// SPDX-License-Identifier: MIT OR Apache-2.0

//! A host that sets inputs of SPIs, and asks which are done, on CPUs of their own, while a vCPU runs and
//! while its VM ends.

use core::sync::atomic::{AtomicBool, Ordering};

use escrow_abi::{Error, call};
use escrow_payloads::expect::refusal;
use escrow_payloads::gic_guest::{GICD, GicGuest, Step};
use escrow_payloads::hvc::{self, Refusal};
use escrow_payloads::{Host, Outcome, Test, check, check_eq, cpus, fail, tests};

pub const TESTS: &[Test] = tests![inputs_meet_runs_and_the_end];

const FIRST: u64 = 40;
const COUNT: u64 = 12;
/// Interrupts that the guest takes.
const TAKEN: u64 = 30;

/// A guest with its SPIs enabled.
fn start(host: &mut Host) -> Outcome<GicGuest> {
    let guest = GicGuest::start(host, 1, 64)?;
    guest.set_up(0)?;
    let script = [
        Step::store(GICD + 0x84, u64::from(u32::MAX)),
        Step::store(GICD + 0x104, ((1 << COUNT) - 1) << (FIRST - 32)),
    ];
    guest.vcpus[0].script(&script, &[])?;
    Ok(guest)
}

/// Makes calls about a VM for as long as that lives; how many were done.
fn until_it_is_dead(call: impl Fn(u64) -> Result<[u64; 4], Refusal>) -> Outcome<u64> {
    let deadline = cpus::deadline(20);
    for n in 0.. {
        match call(n) {
            Ok(_) => {}
            Err(Refusal { error: Error::HandleRevoked, .. }) => return Ok(n),
            Err(refused) => fail!("{refused:?}"),
        }
        check!(!cpus::is_past(deadline), "the VM lives on");
    }
    Ok(0)
}

fn inputs_meet_runs_and_the_end(host: &mut Host) -> Outcome {
    cpus::need(3)?;
    for round in 0..6 {
        let guest = start(host)?;
        let (vm, vcpu) = (guest.vm, guest.vcpus[0]);
        let script = [Step::UNMASK, Step::until_interrupts(TAKEN), Step::MASK];
        vcpu.write_script(&script, &[Step::END]);
        let taken = AtomicBool::new(false);
        cpus::try_on_all(|n| match n {
            0 => {
                guest.run_alone()?;
                taken.store(true, Ordering::Release);
                let deadline = cpus::deadline(20);
                // Somebody may be in the middle of a call about it.
                while let Err(refused) = hvc::call(call::VM_DESTROY, &[vm]) {
                    check_eq!(refused.error, Error::Busy);
                    check!(!cpus::is_past(deadline), "it does not end");
                }
                Ok(())
            }
            1 => {
                let inputs = [call::INPUT_EDGE, call::INPUT_HIGH_UNTIL_DONE];
                let calls = until_it_is_dead(|n| {
                    let input = inputs[(n / COUNT % 2) as usize];
                    hvc::call(call::SPI_INPUT, &[vm, FIRST + n % COUNT, input])
                })?;
                check!(taken.load(Ordering::Acquire) && calls != 0, "{calls} inputs");
                Ok(())
            }
            2 => until_it_is_dead(|_| hvc::call(call::SPI_DONE, &[vm])).map(drop),
            _ => Ok(()),
        })?;
        check!(vcpu.count() >= TAKEN, "{} interrupts", vcpu.count());
        host.bring_home()?;
        // The next VM has nothing of what was set for the last one, whose handle sets nothing of its.
        let next = start(host)?;
        for intid in FIRST..FIRST + COUNT {
            let dead = hvc::call(call::SPI_INPUT, &[vm, intid, call::INPUT_HIGH]);
            check_eq!(dead.err(), Some(refusal(Error::HandleRevoked)), "round {round}");
        }
        let pending = [Step::load(GICD + 0x204), Step::load(GICD + 0x208)];
        next.vcpus[0].script(&pending, &[])?;
        check_eq!([0, 1].map(|n| next.vcpus[0].result(n)), [0, 0], "round {round}");
        host.end(next.vm)?;
    }
    Ok(())
}

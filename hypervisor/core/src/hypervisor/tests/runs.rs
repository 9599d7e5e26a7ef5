// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a guest's exits do beyond its vCPU.

use escrow_abi::{Error, call, psci, run};

use super::super::{Hypervisor, Reply, Scratch};
use super::fake::{FREE, Fake, HVC, Host, exit_of};
use super::page;
use crate::addr::Ipa;
use crate::vcpu::syndrome::{Ec, IL, abort};
use crate::vcpu::{Answer, GuestExit, GuestIds, Next, READY};
use crate::vm::Run;

const MEMORY: u64 = 0x8000_0000;
const ON: u64 = 0;
const OFF: u64 = 1;

fn ids() -> GuestIds {
    GuestIds::new(|_, _| 0, 39)
}

/// A load of 4 bytes into X3 that stage 2 has no translation for.
fn load(at: u64) -> GuestExit {
    let esr = Ec::DATA_ABORT_LOWER.bits() | IL | abort::ISV | 2 << 22 | 3 << 16 | 0x7;
    exit_of(esr, Some(Ipa(at)))
}

fn hvc(escrow: &Hypervisor<Fake>, run: &mut Run<'_>, args: &[u64]) -> Next {
    run.regs.x[..args.len()].copy_from_slice(args);
    escrow.guest_exit(&mut Scratch::new(), run, HVC, &ids())
}

/// A started VM with declared memory and `N` vCPUs.
fn started<const N: usize>(host: &mut Host) -> (u64, [u64; N]) {
    let (vm, _) = host.create(8);
    host.call(call::VM_CONFIGURE, &[vm, call::CONFIGURE_MEMORY_ADD, MEMORY, 0x10_0000]).unwrap();
    let vcpus = core::array::from_fn(|n| {
        let [vcpu, ..] = host.call(call::VCPU_CREATE, &[vm, n as u64]).unwrap();
        vcpu
    });
    host.call(call::VM_START, &[vm]).unwrap();
    (vm, vcpus)
}

fn leaves(next: Next) -> Answer {
    match next {
        Next::Exit(answer) => answer,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_address_is_memory_where_it_was_declared() {
    let mut host = Host::new();
    let (vm, [vcpu]) = started(&mut host);
    host.run(vcpu, |escrow, mut run| {
        let inside =
            leaves(escrow.guest_exit(&mut Scratch::new(), &mut run, load(MEMORY + 0x1234), &ids()));
        assert_eq!(inside, [run::PAGE_FAULT, MEMORY + 0x1000, 0x1000, 0]);
        let outside =
            leaves(escrow.guest_exit(&mut Scratch::new(), &mut run, load(MEMORY - 4), &ids()));
        assert_eq!(outside, [run::MMIO_READ, MEMORY - 4, 4, 0]);
    });
    // The read is answered by the next run, and only once.
    let resume = [call::VCPU_RUN as u64, vcpu, 77, run::ACTION_EMULATE, 0, 0, 0, 0];
    let mut x = resume;
    let run = host.escrow.host_runs(&mut x).expect("a run");
    assert_eq!((run.regs.x[3], run.regs.pc), (77, 4));
    drop(run);
    let mut x = resume;
    assert!(host.escrow.host_runs(&mut x).is_none());
    assert_eq!(x[0], Error::InvalidArgument.to_register());
    // Memory that is withdrawn is none.
    host.call(call::VM_CONFIGURE, &[vm, call::CONFIGURE_MEMORY_REMOVE, MEMORY, 0x1000]).unwrap();
    host.run(vcpu, |escrow, mut run| {
        let withdrawn =
            leaves(escrow.guest_exit(&mut Scratch::new(), &mut run, load(MEMORY), &ids()));
        assert_eq!(withdrawn[0], run::MMIO_READ);
    });
}

#[test]
fn a_guest_unlocks_by_its_own_call() {
    let mut host = Host::new();
    let (vm, [vcpu]) = started(&mut host);
    host.lend(vm, &[page(FREE, MEMORY)]).unwrap();
    let call = |at, flags| [call::MODIFY_PAGES as u64, 0, at, 0x1000, flags, 0, 0, 0];
    host.run(vcpu, |escrow, mut run| {
        let missing = call(MEMORY + 0x1000, call::MODIFY_UNLOCK);
        assert_eq!(hvc(escrow, &mut run, &missing), Next::Enter);
        assert!(Error::from_register(run.regs.x[0]).is_some());
        let unlock = call(MEMORY, call::MODIFY_UNLOCK | call::MODIFY_SANITIZE);
        assert_eq!(hvc(escrow, &mut run, &unlock), Next::Enter);
        assert_eq!(run.regs.x[..4], [0; 4]);
    });
    host.reclaim(&[(FREE, 0)]).unwrap();
}

#[test]
fn runs_that_do_more_than_others() {
    // None, each, both; before the vCPU is there and after.
    for asks in 0..4 {
        for before in [false, true] {
            let mut host = Host::new();
            let (vm, _) = host.create(40);
            let calls = [
                (call::VM_VGIC, [vm, 0x0800_0000, 0x080a_0000, call::SPIS_MIN]),
                (call::VM_PV_TIME, [vm, 0x0b00_0000, 0, 0]),
            ];
            let mut vcpu = None;
            for create in [!before, before] {
                if create {
                    vcpu = Some(host.call(call::VCPU_CREATE, &[vm, 0]).unwrap()[0]);
                } else {
                    for (_, (function, arguments)) in
                        calls.iter().enumerate().filter(|(n, _)| asks >> n & 1 != 0)
                    {
                        host.call(*function, arguments).unwrap();
                    }
                }
            }
            host.call(call::VM_START, &[vm]).unwrap();
            let does = host.run(vcpu.unwrap(), |_, run| {
                assert_eq!(run.does_more(), run.has_gic || run.stolen.is_some());
                run.does_more()
            });
            assert_eq!(does, asks != 0, "{asks}");
        }
    }
}

#[test]
fn a_guest_that_is_down_stays_down() {
    for (function, reason) in [(psci::SYSTEM_OFF, 0), (psci::SYSTEM_RESET, 1)] {
        let mut host = Host::new();
        let (_, [vcpu, other]) = started(&mut host);
        host.run(vcpu, |escrow, mut run| {
            let answer = leaves(hvc(escrow, &mut run, &[function.into()]));
            assert_eq!(answer, [run::SYSTEM_DOWN, reason, 0, 0]);
        });
        for vcpu in [vcpu, other] {
            let answer = host.call(call::VCPU_RUN, &[vcpu]).unwrap();
            assert_eq!(answer, [run::SYSTEM_DOWN, reason, 0, 0]);
        }
    }
}

#[test]
fn vcpus_switch_each_other_on() {
    let mut host = Host::new();
    let (_, [first, second]) = started(&mut host);
    let affinity = |target| [psci::AFFINITY_INFO_64.into(), target, 0];
    // Off until it is asked for.
    host.run(second, |escrow, run| {
        assert_eq!(leaves(escrow.guest_entry(&run))[0], run::POWERED_OFF);
    });
    host.run(first, |escrow, mut run| {
        assert_eq!(escrow.guest_entry(&run), Next::Enter);
        hvc(escrow, &mut run, &affinity(1));
        assert_eq!(run.regs.x[0], OFF);
        let on = [psci::CPU_ON_64.into(), 1, MEMORY, 99];
        // Its host has to know, once.
        assert_eq!(leaves(hvc(escrow, &mut run, &on)), [run::SWITCHED_ON, 1, 0, 0]);
        assert_eq!(run.regs.x[0], psci::SUCCESS);
        assert_eq!(hvc(escrow, &mut run, &on), Next::Enter);
        assert_eq!(run.regs.x[0], psci::ALREADY_ON);
        hvc(escrow, &mut run, &affinity(1));
        assert_eq!(run.regs.x[0], ON);
        for nobody in [2, 0x100, 1 << 32] {
            let on = [psci::CPU_ON_64.into(), nobody, MEMORY, 0];
            assert_eq!(hvc(escrow, &mut run, &on), Next::Enter);
            assert_eq!(run.regs.x[0], psci::INVALID_PARAMETERS);
        }
        hvc(escrow, &mut run, &[psci::CPU_ON_64.into(), 0, MEMORY, 0]);
        assert_eq!(run.regs.x[0], psci::ALREADY_ON, "itself");
        // Nobody can begin there. A wrong CPU counts first, and that it is on last.
        for nowhere in [MEMORY + 1, MEMORY + 2, 1 << 39, u64::MAX - 3] {
            for (target, answer) in [
                (0, psci::INVALID_ADDRESS),
                (1, psci::INVALID_ADDRESS),
                (2, psci::INVALID_PARAMETERS),
            ] {
                let on = [psci::CPU_ON_64.into(), target, nowhere, 0];
                assert_eq!(hvc(escrow, &mut run, &on), Next::Enter);
                assert_eq!(run.regs.x[0], answer, "{target}, {nowhere:#x}");
            }
        }
    });
    host.run(second, |escrow, mut run| {
        assert_eq!(escrow.guest_entry(&run), Next::Enter);
        assert_eq!((run.regs.pc, run.regs.x[0]), (MEMORY, 99));
        assert_eq!(leaves(hvc(escrow, &mut run, &[psci::CPU_OFF.into()]))[0], run::POWERED_OFF);
        assert_eq!(leaves(escrow.guest_entry(&run))[0], run::POWERED_OFF);
    });
    host.run(first, |escrow, mut run| {
        hvc(escrow, &mut run, &affinity(1));
        assert_eq!(run.regs.x[0], OFF);
    });
}

#[test]
fn a_vcpu_that_comes_after_the_start_waits_to_be_switched_on() {
    let mut host = Host::new();
    let (vm, [first]) = started(&mut host);
    let on = [psci::CPU_ON_64.into(), 1, MEMORY, 99];
    host.run(first, |escrow, mut run| {
        hvc(escrow, &mut run, &on);
        assert_eq!(run.regs.x[0], psci::INVALID_PARAMETERS, "nobody yet");
    });
    let [late, ..] = host.call(call::VCPU_CREATE, &[vm, 1]).unwrap();
    host.run(late, |escrow, run| {
        assert_eq!(leaves(escrow.guest_entry(&run))[0], run::POWERED_OFF);
    });
    host.run(first, |escrow, mut run| {
        assert_eq!(leaves(hvc(escrow, &mut run, &on)), [run::SWITCHED_ON, 1, 0, 0]);
    });
    host.run(late, |escrow, run| {
        assert_eq!(escrow.guest_entry(&run), Next::Enter);
        assert_eq!((run.regs.pc, run.regs.x[0]), (MEMORY, 99));
    });
    // A number that runs is no other's, and index 0 is no boot vCPU any more.
    assert_eq!(host.call(call::VCPU_CREATE, &[vm, 1]).unwrap_err().0, Error::Denied);
    let (vm, _) = host.create(8);
    host.call(call::VCPU_CREATE, &[vm, 1]).unwrap();
    host.call(call::VM_START, &[vm]).unwrap();
    let [zero, ..] = host.call(call::VCPU_CREATE, &[vm, 0]).unwrap();
    host.run(zero, |escrow, run| {
        assert_eq!(leaves(escrow.guest_entry(&run))[0], run::POWERED_OFF);
    });
}

/// Levels above 0 are about all vCPUs of a cluster, which has 16.
#[test]
fn affinity_levels() {
    let mut host = Host::new();
    let (vm, _) = host.create(8);
    let [first, in_cluster, beyond] = [0, 15, 16].map(|n| {
        let [vcpu, ..] = host.call(call::VCPU_CREATE, &[vm, n]).unwrap();
        vcpu
    });
    host.call(call::VM_START, &[vm]).unwrap();
    let affinities = |host: &mut Host, vcpu| {
        let asked: [(u64, u64); 13] = [
            (0, 0),
            (15, 0),
            (0x100, 0),
            (1, 0),
            (0, 1),
            (7, 1),
            (0x1ff, 1),
            (0x200, 1),
            (0xffff, 2),
            (0x1_0000, 2),
            (0xff_ffff, 3),
            (0x1_0000_0000, 3),
            (0x8000_0000, 3),
        ];
        asked.map(|(target, level)| {
            let [answer, ..] =
                host.guest_asks(vcpu, &[psci::AFFINITY_INFO_64.into(), target, level]);
            answer
        })
    };
    const NOBODY: u64 = psci::INVALID_PARAMETERS;
    let expected = [ON, OFF, OFF, NOBODY, ON, ON, OFF, NOBODY, ON, NOBODY, ON, NOBODY, ON];
    assert_eq!(affinities(&mut host, first), expected);
    // The other cluster's vCPU is on, and the first one off.
    host.run(first, |escrow, mut run| {
        let on = [psci::CPU_ON_64.into(), 0x100, MEMORY, 0];
        assert_eq!(leaves(hvc(escrow, &mut run, &on)), [run::SWITCHED_ON, 16, 0, 0]);
        assert_eq!(leaves(hvc(escrow, &mut run, &[psci::CPU_OFF.into()]))[0], run::POWERED_OFF);
    });
    let expected = [OFF, OFF, ON, NOBODY, OFF, OFF, ON, NOBODY, ON, NOBODY, ON, NOBODY, ON];
    assert_eq!(affinities(&mut host, beyond), expected);
    // The next VM in the slot begins with its first vCPU on, and no other.
    host.end(in_cluster);
    let (vm, _) = host.create(8);
    let [vcpu, _] = [0, 16].map(|n| host.call(call::VCPU_CREATE, &[vm, n]).unwrap()[0]);
    host.call(call::VM_START, &[vm]).unwrap();
    let expected = [ON, NOBODY, OFF, NOBODY, ON, ON, OFF, NOBODY, ON, NOBODY, ON, NOBODY, ON];
    assert_eq!(affinities(&mut host, vcpu), expected);
}

/// That a sibling is inside its run holds nobody up who asks whether it is on.
#[test]
fn a_vcpu_that_is_inside_is_on() {
    let mut host = Host::new();
    let (_, [first, second]) = started(&mut host);
    let on = [psci::CPU_ON_64.into(), 1, MEMORY, 0];
    host.run(first, |escrow, mut run| {
        assert_eq!(leaves(hvc(escrow, &mut run, &on))[0], run::SWITCHED_ON);
        let mut args = [call::VCPU_RUN as u64, second, 0, 0, 0, 0, 0, 0];
        let mut sibling = escrow.host_runs(&mut args).expect("a run");
        for (ask, answer) in [
            (&on[..], psci::ALREADY_ON),
            (&[psci::AFFINITY_INFO_64.into(), 1, 0], ON),
            (&[psci::AFFINITY_INFO_64.into(), 0, 1], ON),
        ] {
            run.regs.pc = MEMORY + 4;
            assert_eq!(hvc(escrow, &mut run, ask), Next::Enter);
            assert_eq!((run.regs.pc, run.regs.x[0]), (MEMORY + 4, answer));
        }
        // As soon as it has switched itself off, it is off.
        leaves(hvc(escrow, &mut sibling, &[psci::CPU_OFF.into()]));
        hvc(escrow, &mut run, &[psci::AFFINITY_INFO_64.into(), 1, 0]);
        assert_eq!((run.regs.pc, run.regs.x[0]), (MEMORY + 4, OFF));
    });
}

#[test]
fn a_call_about_a_vcpu_in_use_is_made_again() {
    let mut host = Host::new();
    let (_, [first, second]) = started(&mut host);
    host.run(first, |escrow, mut run| {
        let mut args = [call::VCPU_RUN as u64, second, 0, 0, 0, 0, 0, 0];
        let sibling = escrow.host_runs(&mut args).expect("a run");
        run.regs.pc = MEMORY + 4;
        let on = [psci::CPU_ON_64.into(), 1, MEMORY, 0];
        assert_eq!(hvc(escrow, &mut run, &on), Next::Enter);
        assert_eq!((run.regs.pc, &run.regs.x[..4]), (MEMORY, &on[..]));
        drop(sibling);
        run.regs.pc += 4;
        assert_eq!(leaves(hvc(escrow, &mut run, &on))[0], run::SWITCHED_ON);
        assert_eq!((run.regs.pc, run.regs.x[0]), (MEMORY + 4, psci::SUCCESS));
    });
}

/// One that is made while its siblings run is not switched on, and does not run, before it has
/// joined the VM's GIC: that would reset what it has there.
#[test]
fn a_vcpu_is_locked_until_the_gic_has_it() {
    let mut host = Host::new();
    let (vm, _) = host.create(40);
    host.call(call::VM_VGIC, &[vm, 0x0800_0000, 0x080a_0000, 32]).unwrap();
    host.call(call::VCPU_CREATE, &[vm, 0]).unwrap();
    host.call(call::VM_START, &[vm]).unwrap();
    *host.escrow.machine.locked.lock().unwrap() = Some(Vec::new());
    let [vcpu, ..] = host.call(call::VCPU_CREATE, &[vm, 1]).unwrap();
    let locked = host.escrow.machine.locked.lock().unwrap().take().unwrap();
    assert!(!locked.is_empty() && locked.iter().all(|&locked| locked), "{locked:?}");
    host.run(vcpu, |_, run| assert!(!run.is_on()));
}

#[test]
fn a_vm_that_ends_is_left_at_its_next_exit() {
    let mut host = Host::new();
    let (vm, [vcpu]) = started(&mut host);
    let mut other_cpu = Scratch::new();
    host.run(vcpu, |escrow, mut run| {
        assert_eq!(hvc(escrow, &mut run, &[psci::VERSION.into()]), Next::Enter);
        let mut destroy = [call::VM_DESTROY as u64, vm, 0, 0, 0, 0, 0, 0];
        assert!(matches!(escrow.host_call(&mut other_cpu, &mut destroy), Reply::Answer));
        assert_eq!(hvc(escrow, &mut run, &[psci::VERSION.into()]), Next::Exit(READY));
        assert_eq!(run.regs.x[0], 0x1_0001, "answered nonetheless");
    });
    host.call(call::VM_DESTROY, &[vm]).unwrap();
}

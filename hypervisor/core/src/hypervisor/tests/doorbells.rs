// SPDX-License-Identifier: MIT OR Apache-2.0

//! Calls about doorbells, and what a guest feels of them.

use escrow_abi::{Error, Handle, HandleKind, call, psci, run};

use super::super::{Hypervisor, Reply, Scratch};
use super::fake::{Fake, HVC, Host, exit_of};
use crate::vcpu::syndrome::{Ec, IL};
use crate::vcpu::{GuestExit, GuestIds, Next, READY};
use crate::vm::Run;

const LABEL: u64 = 0xffff_fff7;
const WFI: GuestExit = exit_of(Ec::WAIT.bits() | IL, None);
const WFE: GuestExit = exit_of(Ec::WAIT.bits() | IL | 1, None);
/// WFIT with a limit in X3.
const WFIT: GuestExit = exit_of(Ec::WAIT.bits() | IL | 3 << 5 | 1 << 2 | 2, None);
const ASLEEP: Next = Next::Exit([run::EXPECTS_WAKEUP, 0, 0, u64::MAX]);
const INTERRUPTED: Next = Next::EnterWith { interrupt: true };
const QUIET: Next = Next::EnterWith { interrupt: false };

fn exit(escrow: &Hypervisor<Fake>, run: &mut Run<'_>, exit: GuestExit) -> Next {
    escrow.guest_exit(&mut Scratch::new(), run, exit, &GuestIds::new(|_, _| 0, 39))
}

/// A call of the guest's, with what the registers behind its arguments happen to hold.
fn guest(escrow: &Hypervisor<Fake>, run: &mut Run<'_>, args: &[u64]) -> (Next, [u64; 2]) {
    run.regs.x[..8].fill(0xdead);
    run.regs.x[..args.len()].copy_from_slice(args);
    let next = exit(escrow, run, HVC);
    assert_eq!(run.regs.x[args.len()..8], [0xdead; 8][args.len()..]);
    (next, [run.regs.x[0], run.regs.x[1]])
}

/// A call of the host's on another CPU than the one that runs the guest.
fn elsewhere(escrow: &Hypervisor<Fake>, function: u32, args: &[u64]) -> [u64; 2] {
    let mut x = [0; 8];
    x[0] = function.into();
    x[1..=args.len()].copy_from_slice(args);
    assert!(matches!(escrow.host_call(&mut Scratch::new(), &mut x), Reply::Answer));
    [x[0], x[1]]
}

/// A started VM: its handle, two vCPUs, a doorbell.
fn started(host: &mut Host) -> (u64, [u64; 2], u64) {
    let (vm, _) = host.create(8);
    let vcpus = [0, 1].map(|n| host.call(call::VCPU_CREATE, &[vm, n]).unwrap()[0]);
    let [doorbell, ..] = host.call(call::BELL_CREATE, &[vm, LABEL]).unwrap();
    host.call(call::VM_START, &[vm]).unwrap();
    (vm, vcpus, doorbell)
}

fn refused(error: Error) -> Result<[u64; 4], (Error, u64, u64)> {
    Err((error, 0, 0))
}

#[test]
fn a_guest_s_wait_is_over_as_long_as_it_rings() {
    let mut host = Host::new();
    let (_, [vcpu, _], doorbell) = started(&mut host);
    let suspend = [psci::CPU_SUSPEND_64.into(), 0, 0, 0];
    host.run(vcpu, |escrow, mut run| {
        assert!(!run.has_interrupt());
        assert_eq!(exit(escrow, &mut run, WFI), ASLEEP);
        assert_eq!(guest(escrow, &mut run, &suspend).0, ASLEEP);
        // It rings while the guest is inside.
        assert_eq!(elsewhere(escrow, call::BELL_SEND, &[doorbell, 5]), [0, 0]);
        assert!(run.has_interrupt());
        let pc = run.regs.pc;
        for waits in [WFI, WFIT] {
            assert_eq!(exit(escrow, &mut run, waits), INTERRUPTED);
        }
        assert_eq!(run.regs.pc, pc + 8, "past its waits");
        assert_eq!(guest(escrow, &mut run, &suspend), (INTERRUPTED, [psci::SUCCESS, 0]));
        // Events are another matter.
        assert_eq!(exit(escrow, &mut run, WFE), Next::Exit(READY));
    });
    host.run(vcpu, |escrow, mut run| {
        let receive = |clear| [call::BELL_RECEIVE.into(), LABEL, clear, 0];
        assert!(run.has_interrupt(), "in the next run as well");
        assert_eq!(guest(escrow, &mut run, &receive(4)), (INTERRUPTED, [0, 5]));
        assert_eq!(guest(escrow, &mut run, &receive(u64::MAX)), (QUIET, [0, 1]));
        assert!(!run.has_interrupt());
        assert_eq!(exit(escrow, &mut run, WFI), ASLEEP);
    });
}

#[test]
fn the_first_vcpu_takes_the_interrupts() {
    let mut host = Host::new();
    let (_, [first, second], doorbell) = started(&mut host);
    host.call(call::BELL_SEND, &[doorbell, 1]).unwrap();
    host.run(second, |escrow, mut run| {
        assert!(!run.has_interrupt());
        assert_eq!(exit(escrow, &mut run, WFI), ASLEEP);
        // It may answer for the first, which has none then.
        let receive = [call::BELL_RECEIVE.into(), LABEL, 1, 0];
        assert_eq!(guest(escrow, &mut run, &receive), (QUIET, [0, 1]));
    });
    host.run(first, |_, run| assert!(!run.has_interrupt()));
}

#[test]
fn the_host_does_with_a_handle_what_the_guest_does_with_a_label() {
    let mut host = Host::new();
    let (_, [vcpu, _], doorbell) = started(&mut host);
    let enable = |enable, ack| [call::BELL_SET_MASK.into(), LABEL, enable, ack, 0];
    host.run(vcpu, |escrow, mut run| {
        assert_eq!(guest(escrow, &mut run, &enable(2, 2)), (QUIET, [0, 0]));
        assert_eq!(elsewhere(escrow, call::BELL_SEND, &[doorbell, 1]), [0, 0]);
        assert!(!run.has_interrupt());
        assert_eq!(guest(escrow, &mut run, &enable(1, 0)), (INTERRUPTED, [0, 0]));
        let reset = [call::BELL_RESET.into(), LABEL, 0];
        assert_eq!(guest(escrow, &mut run, &reset), (QUIET, [0, 0]));
        for (function, args) in [
            (call::BELL_SEND, &[doorbell, 6][..]),
            (call::BELL_SET_MASK, &[doorbell, 4, 4]),
            (call::BELL_SEND, &[doorbell, 1]),
        ] {
            assert_eq!(elsewhere(escrow, function, args)[0], 0);
            assert!(run.has_interrupt());
        }
        assert_eq!(elsewhere(escrow, call::BELL_RECEIVE, &[doorbell, 8]), [0, 3]);
        assert!(!run.has_interrupt(), "4 was acknowledged, the others are masked");
        assert_eq!(elsewhere(escrow, call::BELL_RESET, &[doorbell]), [0, 0]);
        assert_eq!(elsewhere(escrow, call::BELL_SEND, &[doorbell, 1]), [0, 0]);
        assert!(run.has_interrupt());
    });
}

#[test]
fn a_guest_rings_nobody_and_names_its_own() {
    let mut host = Host::new();
    let (_, [vcpu, _], doorbell) = started(&mut host);
    let (other, _, others) = started(&mut host);
    host.call(call::BELL_CREATE, &[other, 1]).unwrap();
    host.call(call::BELL_SEND, &[others, 1]).unwrap();
    let create = [call::BELL_CREATE.into(), LABEL];
    let cases: &[(&[u64], Error)] = &[
        (&[call::BELL_SEND.into(), LABEL, 1, 0], Error::Denied),
        (&[call::BELL_SEND.into(), doorbell, 1, 0], Error::Denied),
        (&create, Error::Unimplemented),
        (&[call::BELL_RECEIVE.into(), LABEL, 0, 0], Error::InvalidArgument),
        (&[call::BELL_RECEIVE.into(), LABEL, 1, 1], Error::InvalidArgument),
        (&[call::BELL_RESET.into(), LABEL, 1 << 63], Error::InvalidArgument),
        (&[call::BELL_SET_MASK.into(), LABEL, 1, 1, 1], Error::InvalidArgument),
        // The other one's, a handle, more than a label.
        (&[call::BELL_RECEIVE.into(), 1, 1, 0], Error::HandleNull),
        (&[call::BELL_RESET.into(), doorbell, 0], Error::HandleNull),
        (&[call::BELL_SET_MASK.into(), LABEL | 1 << 32, 1, 1, 0], Error::HandleNull),
    ];
    host.run(vcpu, |escrow, mut run| {
        for &(args, error) in cases {
            let (_, [x0, _]) = guest(escrow, &mut run, args);
            assert_eq!(Error::from_register(x0), Some(error), "{args:x?}");
        }
        assert!(!run.has_interrupt());
        // What the other one of that label was sent is not here.
        let receive = [call::BELL_RECEIVE.into(), LABEL, 1, 0];
        assert_eq!(guest(escrow, &mut run, &receive), (QUIET, [0, 0]));
    });
    assert_eq!(host.call(call::BELL_RECEIVE, &[others, 1]), Ok([1, 0, 0, 0]));
}

#[test]
fn handles_name_one_doorbell_or_none() {
    let mut host = Host::new();
    let (vm, [vcpu, _], doorbell) = started(&mut host);
    let handle = Handle::from_register(doorbell).unwrap();
    assert_eq!((handle.kind, handle.index), (HandleKind::Doorbell, 0));
    let other = |change: fn(&mut Handle)| {
        let mut handle = handle;
        change(&mut handle);
        handle.to_register()
    };
    let cases = [
        (0, Error::HandleNull),
        (other(|handle| handle.slot = 0), Error::HandleNull),
        (other(|handle| handle.slot = 64), Error::HandleNull),
        (vm, Error::HandleType),
        (vcpu, Error::HandleType),
        (other(|handle| handle.index = 1), Error::HandleRevoked),
        (other(|handle| handle.index = 255), Error::HandleRevoked),
        (other(|handle| handle.generation += 1), Error::HandleRevoked),
        (other(|handle| handle.slot += 1), Error::HandleRevoked),
    ];
    for (handle, error) in cases {
        assert_eq!(host.call(call::BELL_SEND, &[handle, 1]), refused(error));
        assert_eq!(host.call(call::BELL_RECEIVE, &[handle, 1]), refused(error));
        assert_eq!(host.call(call::BELL_RESET, &[handle]), refused(error));
        assert_eq!(host.call(call::BELL_SET_MASK, &[handle, 1, 1]), refused(error));
    }
    for (handle, error) in [(doorbell, Error::HandleType), (vcpu, Error::HandleType)] {
        assert_eq!(host.call(call::BELL_CREATE, &[handle, 1]), refused(error));
    }
    assert_eq!(host.call(call::BELL_RECEIVE, &[doorbell, 0]), refused(Error::InvalidArgument));
    assert_eq!(host.call(call::BELL_CREATE, &[vm, 1 << 32]), refused(Error::InvalidArgument));
    assert_eq!(host.call(call::BELL_CREATE, &[vm, LABEL]), refused(Error::Denied));
    for n in 1..call::DOORBELLS_MAX as u64 {
        host.call(call::BELL_CREATE, &[vm, n]).unwrap();
    }
    assert_eq!(host.call(call::BELL_CREATE, &[vm, 0]), refused(Error::TableFull));
    assert_eq!(host.call(call::BELL_CREATE, &[vm, LABEL]), refused(Error::Denied));
    // All of that rang nothing.
    host.run(vcpu, |_, run| assert!(!run.has_interrupt()));
}

#[test]
fn doorbells_die_with_their_vm() {
    let mut host = Host::new();
    let (vm, [vcpu, _], doorbell) = started(&mut host);
    host.call(call::BELL_SEND, &[doorbell, 1]).unwrap();
    host.run(vcpu, |escrow, mut run| {
        assert!(run.has_interrupt());
        let revoked = Error::HandleRevoked.to_register();
        // At once, also while a run keeps the VM from being buried.
        assert_eq!(elsewhere(escrow, call::VM_DESTROY, &[vm])[0], Error::Busy.to_register());
        assert_eq!(elsewhere(escrow, call::BELL_SEND, &[doorbell, 1])[0], revoked);
        assert_eq!(elsewhere(escrow, call::BELL_CREATE, &[vm, 1])[0], revoked);
        assert!(!run.has_interrupt());
        // The run ends, whatever the guest does.
        assert_eq!(exit(escrow, &mut run, WFI), ASLEEP);
        let receive = [call::BELL_RECEIVE.into(), LABEL, 1, 0];
        assert_eq!(guest(escrow, &mut run, &receive).0, Next::Exit(READY));
    });
    host.call(call::VM_DESTROY, &[vm]).unwrap();
    assert_eq!(host.call(call::BELL_SEND, &[doorbell, 1]), refused(Error::HandleRevoked));
}

#[test]
fn the_next_vm_in_the_slot_has_no_doorbell() {
    let mut host = Host::new();
    let (vm, metadata) = host.create(2);
    let [doorbell, ..] = host.call(call::BELL_CREATE, &[vm, LABEL]).unwrap();
    host.call(call::BELL_SEND, &[doorbell, 1]).unwrap();
    host.call(call::VM_DESTROY, &[vm]).unwrap();
    host.reclaim(&metadata).unwrap();
    let (next, _) = host.create(8);
    assert_eq!(Handle::from_register(next).unwrap().slot, Handle::from_register(vm).unwrap().slot);
    let [vcpu, ..] = host.call(call::VCPU_CREATE, &[next, 0]).unwrap();
    host.call(call::VM_START, &[next]).unwrap();
    for action in [call::BELL_SEND, call::BELL_RECEIVE] {
        assert_eq!(host.call(action, &[doorbell, 1]), refused(Error::HandleRevoked));
    }
    host.run(vcpu, |escrow, mut run| {
        assert!(!run.has_interrupt());
        let reset = [call::BELL_RESET.into(), LABEL, 0];
        let (_, [x0, _]) = guest(escrow, &mut run, &reset);
        assert_eq!(Error::from_register(x0), Some(Error::HandleNull));
    });
    // The same label, another doorbell.
    let [again, ..] = host.call(call::BELL_CREATE, &[next, LABEL]).unwrap();
    assert_ne!(again, doorbell);
    assert_eq!(host.call(call::BELL_SEND, &[again, 1]), Ok([0; 4]));
    assert_eq!(host.call(call::BELL_SEND, &[doorbell, 1]), refused(Error::HandleRevoked));
}

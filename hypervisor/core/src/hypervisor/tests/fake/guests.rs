// SPDX-License-Identifier: MIT OR Apache-2.0

//! Guests: their calls, and their other exits.

use escrow_abi::{Error, Handle, HandleKind, call};

use super::host::{Host, Refused};
use super::machine::Fake;
use crate::addr::Ipa;
use crate::hypervisor::Hypervisor;
use crate::vcpu::syndrome::{Ec, IL, Syndrome};
use crate::vcpu::{FaultAddress, GuestExit, Next};
use crate::vm::Run;

pub const HVC: GuestExit = exit_of(Ec::HVC64.bits() | IL, None);

/// The exit of a synchronous exception, at the same virtual address if it is an abort.
pub const fn exit_of(esr: u64, ipa: Option<Ipa>) -> GuestExit {
    match Syndrome::of(esr) {
        Syndrome::Wait(wait) => GuestExit::Wait(wait),
        Syndrome::Trapped(trapped) => GuestExit::Trapped(trapped),
        Syndrome::Abort(abort) => {
            let far = match ipa {
                Some(at) => at.0,
                None => 0,
            };
            GuestExit::Abort(abort, FaultAddress { far, ipa })
        }
    }
}

/// What a guest's call comes to.
#[derive(Debug, PartialEq, Eq)]
pub enum Called {
    /// `x1` to `x3`, or why not.
    Returned(Result<[u64; 3], Refused>),
    /// The host has to do something first: what `VCPU_RUN` answers in `x1` to
    /// `x4`.
    Exited([u64; 4]),
}

/// A started VM with a vCPU.
pub fn guest(host: &mut Host) -> u64 {
    let (vm, _) = host.create(4);
    let [vcpu, ..] = host.call(call::VCPU_CREATE, &[vm, 0]).unwrap();
    host.call(call::VM_START, &[vm]).unwrap();
    vcpu
}

impl Host {
    /// A call of a guest that is no call about memory; X0 to X3 of the answer.
    pub fn guest_asks(&mut self, vcpu: u64, args: &[u64]) -> [u64; 4] {
        let mut run = run_of(&self.escrow, vcpu);
        run.regs.x[..args.len()].copy_from_slice(args);
        let next = self.escrow.guest_exit(&mut self.scratch, &mut run, HVC, &self.ids);
        assert_eq!(next, Next::Enter);
        core::array::from_fn(|n| run.regs.x[n])
    }

    /// Ends the VM of a vCPU.
    pub fn end(&mut self, vcpu: u64) {
        let vcpu = Handle::from_register(vcpu).unwrap();
        let vm = Handle { kind: HandleKind::Vm, index: 0, ..vcpu };
        self.call(call::VM_DESTROY, &[vm.to_register()]).unwrap();
    }

    /// A call of a guest, made by a vCPU that is run for it.
    pub fn guest_call(
        &mut self,
        vcpu: u64,
        function: u32,
        args: &[u64],
    ) -> Result<[u64; 3], Refused> {
        match self.begin_guest_call(vcpu, function, args) {
            Called::Returned(result) => result,
            Called::Exited(answer) => panic!("the guest left: {answer:x?}"),
        }
    }

    /// The same for a call that may have to wait for the host.
    pub fn begin_guest_call(&mut self, vcpu: u64, function: u32, args: &[u64]) -> Called {
        self.guest_exits(vcpu, |run| {
            run.regs.x[..8].fill(0);
            run.regs.x[0] = function as u64;
            run.regs.x[1..=args.len()].copy_from_slice(args);
        })
    }

    /// The vCPU runs on after its call left for the host.
    pub fn resume_guest_call(&mut self, vcpu: u64) -> Called {
        self.guest_exits(vcpu, |_| {})
    }

    /// Runs a vCPU up to the HVC behind where it is, and past it.
    fn guest_exits(&mut self, vcpu: u64, prepare: impl FnOnce(&mut Run<'_>)) -> Called {
        let mut run = run_of(&self.escrow, vcpu);
        prepare(&mut run);
        let pc = run.regs.pc;
        loop {
            self.escrow.machine.begin_call();
            run.regs.pc = pc.wrapping_add(4);
            let before = run.regs.x;
            match self.escrow.guest_exit(&mut self.scratch, &mut run, HVC, &self.ids) {
                Next::Enter if run.regs.pc == pc => {
                    assert_eq!(run.regs.x[..7], before[..7], "only the progress has changed");
                    assert_ne!(run.regs.x[7], before[7], "no progress");
                    self.restarts += 1;
                }
                Next::Enter => {
                    assert_eq!(run.regs.pc, pc.wrapping_add(4), "past its call");
                    let x = run.regs.x;
                    assert!(x[7] == 0 || x[7] == before[7], "no progress is left over");
                    self.done = if x[0] == 0 { 0 } else { x[3] };
                    return Called::Returned(match x {
                        [0, x1, x2, x3, ..] => Ok([x1, x2, x3]),
                        [x0, x1, x2, ..] => Err((Error::from_register(x0).unwrap(), x1, x2)),
                    });
                }
                Next::Exit(answer) => {
                    assert_eq!(run.regs.pc, pc, "it makes its call again");
                    return Called::Exited(answer);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// What follows when a vCPU that is run for it leaves its code.
    pub fn guest_exit(&mut self, vcpu: u64, exit: GuestExit) -> Next {
        let mut run = run_of(&self.escrow, vcpu);
        self.escrow.guest_exit(&mut self.scratch, &mut run, exit, &self.ids)
    }
    /// Runs a vCPU of a started VM, as the CPU would.
    pub fn run<R>(&mut self, vcpu: u64, f: impl FnOnce(&Hypervisor<Fake>, Run<'_>) -> R) -> R {
        f(&self.escrow, run_of(&self.escrow, vcpu))
    }
}

/// A run of a vCPU.
fn run_of(escrow: &Hypervisor<Fake>, vcpu: u64) -> Run<'_> {
    let mut x = [call::VCPU_RUN as u64, vcpu, 0, 0, 0, 0, 0, 0];
    escrow.host_runs(&mut x).unwrap_or_else(|| panic!("no run: {x:x?}"))
}

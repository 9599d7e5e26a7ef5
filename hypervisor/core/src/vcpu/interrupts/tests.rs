// SPDX-License-Identifier: MIT OR Apache-2.0

//! Runs of vCPUs with a GIC, on CPUs that are a few fields.

use std::sync::MutexGuard;

use escrow_abi::call;

use super::*;
use crate::hypervisor::tests::fake::{Fake, Host, Interrupts, exit_of};
use crate::vcpu::syndrome::{Ec, IL};

const DISTRIBUTOR: u64 = 0x0800_0000;
const REDISTRIBUTORS: u64 = 0x080a_0000;
const SGI_BASE: u32 = 0x1_0000;
/// `ICH_LR<n>_EL2`: pending, group 1.
const PENDING: u64 = 1 << 62 | 1 << 60;
/// `ICH_VMCR_EL2`: group 1 is enabled, and all priorities.
const VMCR: u64 = 2 | 0xff << 24;
const NO_INTERRUPT: u32 = 1023;

/// A CPU.
struct Cpu {
    affinity: u32,
    registers: [u64; 4],
    hcr: u64,
    vmcr: u64,
    /// What is pending, and what is found to be when it is acknowledged.
    pending: [u32; 2],
    acknowledged: Vec<u32>,
    holds_timer: bool,
    alarm: Option<u64>,
    /// Whether the maintenance interrupt is asserted, and stays so whatever is written.
    maintenance: [bool; 2],
}

impl Cpu {
    fn new(affinity: u32) -> Cpu {
        Cpu {
            affinity,
            registers: [0; 4],
            hcr: 0,
            vmcr: VMCR,
            pending: [NO_INTERRUPT; 2],
            acknowledged: Vec::new(),
            holds_timer: false,
            alarm: None,
            maintenance: [false; 2],
        }
    }

    /// A run begins, as the machine half has it. `ran_last`: no other vCPU ran here since.
    fn begins(&mut self, escrow: &Hypervisor<Fake>, run: &mut Run<'_>, ran_last: bool) -> Next {
        let all = !ran_last || run.interface_on != self.affinity.into();
        if all {
            run.interface_on = self.affinity.into();
        }
        escrow.gic_begins(run, self, all)
    }

    /// A physical interrupt ends the guest's part.
    fn interrupts(&mut self, escrow: &Hypervisor<Fake>, run: &mut Run<'_>, intid: u32) -> Next {
        self.pending = [intid; 2];
        escrow.gic_interrupted(run, self)
    }
}

impl Interface for Cpu {
    fn list_registers(&self) -> usize {
        self.registers.len()
    }

    fn list_register(&self, n: usize) -> u64 {
        self.registers[n]
    }

    fn set_list_register(&mut self, n: usize, value: u64) {
        self.registers[n] = value;
    }

    fn hcr(&self) -> u64 {
        self.hcr
    }

    fn set_hcr(&mut self, value: u64) {
        self.hcr = value;
    }

    fn vmcr(&self) -> u64 {
        self.vmcr
    }

    fn has_maintenance(&self) -> bool {
        self.maintenance[0]
    }

    fn active_priorities(&self) -> [u32; 4] {
        [0; 4]
    }

    fn preemption_shift(&self) -> u32 {
        3
    }
}

impl GuestCpu for Cpu {
    fn still_has_maintenance(&self) -> bool {
        self.maintenance[1]
    }

    fn affinity(&self) -> u32 {
        self.affinity
    }

    fn pending(&self) -> u32 {
        self.pending[0]
    }

    fn hold_timer(&mut self) -> bool {
        self.acknowledged.push(self.pending[1]);
        self.holds_timer |= self.pending[1] == VIRTUAL_TIMER;
        self.pending[1] == VIRTUAL_TIMER
    }

    fn holds_timer(&self) -> bool {
        self.holds_timer
    }

    fn release_timer(&mut self) {
        self.holds_timer = false;
    }

    fn set_alarm(&mut self, at: Option<u64>) {
        self.alarm = at;
    }
}

/// The vCPUs of a started VM with a GIC.
fn started(host: &mut Host) -> [u64; 2] {
    let (vm, _) = host.create(40);
    host.call(call::VM_VGIC, &[vm, DISTRIBUTOR, REDISTRIBUTORS, 32]).unwrap();
    let vcpus = [0, 1].map(|n| host.call(call::VCPU_CREATE, &[vm, n]).unwrap()[0]);
    host.call(call::VM_START, &[vm]).unwrap();
    vcpus
}

fn interrupts(escrow: &Hypervisor<Fake>) -> MutexGuard<'_, Interrupts> {
    escrow.machine.interrupts.lock().unwrap()
}

/// A run that ends before its guest is entered, as an access to the GIC still waits, has not
/// written the list registers: what another vCPU has left in them is not for the next run.
#[test]
fn a_run_that_is_not_entered_leaves_no_list_registers_of_others() {
    let mut host = Host::new();
    let [vcpu, _] = started(&mut host);
    host.run(vcpu, |escrow, mut run| {
        let vgic = escrow.vgic(run.slot());
        let mut effects = Effects::default();
        let mut write =
            |frame, offset, value| vgic.access(0, frame, offset, 4, Some(value), &mut effects);
        // The sibling is inside with an SGI in a list register.
        let sibling = Frame::Redistributor(1);
        write(Frame::Distributor, 0, 2);
        write(sibling, SGI_BASE + 0x80, 1);
        write(sibling, SGI_BASE + 0x100, 1);
        let mut effects = Effects::default();
        vgic.send(0, SgiRegister::Group1, 1 << 1, &mut effects);
        let mut other_cpu = Cpu::new(1);
        vgic.enter(1, &mut other_cpu, 1, true, &mut effects);
        assert_eq!(other_cpu.registers, [PENDING, 0, 0, 0]);
        // Its ICENABLER0: a change that waits until it has left.
        let access = vgic.access(0, sibling, SGI_BASE + 0x180, 4, Some(1), &mut effects);
        let Access::Wait(waits) = access else { panic!("{access:?}") };
        run.pending = Pending::Gic(GicWait { waits, read: None });

        let mut cpu = Cpu::new(0);
        const ANOTHERS: u64 = PENDING | 27;
        cpu.registers = [ANOTHERS; 4];
        *interrupts(escrow) = Interrupts::Always;
        assert_eq!(cpu.begins(escrow, &mut run, false), Next::Exit(READY));
        assert_eq!(cpu.registers, [ANOTHERS; 4], "not entered");
        *interrupts(escrow) = Interrupts::Never;
        vgic.exit(1, &mut other_cpu);
        assert_eq!(cpu.begins(escrow, &mut run, true), Next::Enter);
        assert_eq!(cpu.registers, [0; 4]);
        vgic.exit(0, &mut cpu);
    });
}

/// What EL2 acknowledges, the host does not get. So it is the timer's, while the timer says so,
/// or nothing.
#[test]
fn only_the_timer_of_a_guest_is_acknowledged() {
    let mut host = Host::new();
    let [vcpu, _] = started(&mut host);
    host.run(vcpu, |escrow, mut run| {
        let mut cpu = Cpu::new(0);
        assert_eq!(cpu.begins(escrow, &mut run, false), Next::Enter);
        // The guest has masked it, or the host has made its interrupt pending.
        for ctl in [0, 1, 0b111, 0b100] {
            run.timer.ctl = ctl;
            assert_eq!(cpu.interrupts(escrow, &mut run, VIRTUAL_TIMER), Next::Exit(READY));
            assert_eq!(cpu.begins(escrow, &mut run, true), Next::Enter);
        }
        assert_eq!(cpu.acknowledged, []);
        run.timer.ctl = 0b101;
        assert_eq!(cpu.interrupts(escrow, &mut run, VIRTUAL_TIMER), Next::Enter);
        assert!(cpu.holds_timer);
        cpu.release_timer();
        // The host has disabled it meanwhile, on another CPU.
        cpu.pending = [VIRTUAL_TIMER, 40];
        assert_eq!(escrow.gic_interrupted(&mut run, &mut cpu), Next::Exit(READY));
        assert_eq!((&cpu.acknowledged[..], cpu.holds_timer), (&[VIRTUAL_TIMER, 40][..], false));
    });
}

/// The alarm is off once the GIC knows of it. If its interrupt comes all the same, it is of the host's
/// making, and would come for ever.
#[test]
fn an_alarm_comes_once() {
    let mut host = Host::new();
    let [vcpu, _] = started(&mut host);
    host.run(vcpu, |escrow, mut run| {
        let mut cpu = Cpu::new(0);
        assert_eq!(cpu.begins(escrow, &mut run, false), Next::Enter);
        escrow.machine.set_time(10);
        for (op2, value) in [(2, 50), (1, 1)] {
            // MSR CNTP_CVAL_EL0, X0; MSR CNTP_CTL_EL0, X0.
            run.regs.x[0] = value;
            let esr = Ec::SYSTEM.bits() | IL | 3 << 20 | op2 << 17 | 3 << 14 | 14 << 10 | 2 << 1;
            let (mut scratch, ids) = (Scratch::new(), GuestIds::new(|_, _| 0, 39));
            let next = escrow.gic_exit(&mut scratch, &mut run, &mut cpu, exit_of(esr, None), &ids);
            assert_eq!(next, Next::Enter);
        }
        assert_eq!(cpu.alarm, Some(50));
        escrow.machine.set_time(60);
        assert_eq!(cpu.interrupts(escrow, &mut run, ALARM), Next::Enter);
        assert_eq!(cpu.alarm, None);
        assert_eq!(cpu.interrupts(escrow, &mut run, ALARM), Next::Exit(READY));
    });
}

/// A maintenance interrupt that stays asserted is the host's to see: entered again and again, the guest would keep
/// it from its own.
#[test]
fn a_maintenance_interrupt_without_end_ends_the_run() {
    let mut host = Host::new();
    let [vcpu, _] = started(&mut host);
    host.run(vcpu, |escrow, mut run| {
        let mut cpu = Cpu::new(0);
        assert_eq!(cpu.begins(escrow, &mut run, false), Next::Enter);
        // The host has made it pending.
        assert_eq!(cpu.interrupts(escrow, &mut run, MAINTENANCE), Next::Exit(READY));
        for (stays, expected) in [(false, Next::Enter), (true, Next::Exit(READY))] {
            assert_eq!(cpu.begins(escrow, &mut run, true), Next::Enter);
            cpu.maintenance = [true, stays];
            assert_eq!(cpu.interrupts(escrow, &mut run, MAINTENANCE), expected);
            escrow.gic_ends(&mut run, &mut cpu, READY);
            cpu.maintenance = [false; 2];
        }
    });
}

/// A guest that waits, and has nothing, sleeps by the short way; what comes meanwhile wakes it, or keeps it awake.
#[test]
fn a_guest_that_has_nothing_sleeps() {
    let mut host = Host::new();
    let [vcpu, _] = started(&mut host);
    host.run(vcpu, |escrow, mut run| {
        let wfi = match exit_of(Ec::WAIT.bits() | IL, None) {
            GuestExit::Wait(wait) => wait,
            other => panic!("{other:?}"),
        };
        let forever = |deadline| Waited::Exit([run::EXPECTS_WAKEUP, 0, 0, deadline]);
        let mut cpu = Cpu::new(0);
        // Its first run does what the group's enable takes.
        assert_eq!(cpu.begins(escrow, &mut run, false), Next::Enter);
        assert_eq!(escrow.gic_waits(&mut run, &mut cpu, wfi), forever(u64::MAX));
        // A timer that is to fire has a deadline; one that is masked has none.
        for (ctl, deadline) in [(0b001, 1234), (0b011, u64::MAX), (0b111, u64::MAX)] {
            assert_eq!(cpu.begins(escrow, &mut run, true), Next::Enter);
            (run.timer.ctl, run.timer.cval) = (ctl, 1234);
            let pc = run.regs.pc;
            assert_eq!(escrow.gic_waits(&mut run, &mut cpu, wfi), forever(deadline));
            assert_eq!(run.regs.pc, pc + 4);
        }
        // An SGI from its sibling while it is awake: it does not sleep.
        let vgic = escrow.vgic(run.slot());
        let mut effects = Effects::default();
        let mut write =
            |frame, offset, value| vgic.access(1, frame, offset, 4, Some(value), &mut effects);
        write(Frame::Distributor, 0, 2);
        write(Frame::Redistributor(0), SGI_BASE + 0x80, 1);
        write(Frame::Redistributor(0), SGI_BASE + 0x100, 1);
        assert_eq!(cpu.begins(escrow, &mut run, true), Next::Enter);
        let mut effects = Effects::default();
        vgic.send(1, SgiRegister::Group1, 1, &mut effects);
        assert_eq!(effects.inside, 1);
        assert_eq!(escrow.gic_waits(&mut run, &mut cpu, wfi), Waited::Enter { interrupt: false });
        assert_eq!(cpu.registers[0], PENDING);
        // Taken and ended: it sleeps, and the next one wakes it.
        cpu.registers[0] &= !(3 << 62);
        assert_eq!(escrow.gic_waits(&mut run, &mut cpu, wfi), forever(u64::MAX));
        let mut effects = Effects::default();
        vgic.send(1, SgiRegister::Group1, 1, &mut effects);
        assert_eq!((effects.inside, effects.asleep), (0, 1));
    });
}

/// What the GIC was told of the timer before a reset is not true any more.
#[test]
fn a_timer_is_low_after_a_reset() {
    let mut host = Host::new();
    let [vcpu, _] = started(&mut host);
    host.run(vcpu, |escrow, mut run| {
        let vgic = escrow.vgic(run.slot());
        let pending = || {
            let frame = Frame::Redistributor(0);
            let access = vgic.access(0, frame, SGI_BASE + 0x200, 4, None, &mut Effects::default());
            let Access::Done(value) = access else { panic!("{access:?}") };
            value & 1 << VIRTUAL_TIMER
        };
        let mut cpu = Cpu::new(0);
        cpu.begins(escrow, &mut run, false);
        run.timer.ctl = 0b101;
        assert_eq!(cpu.interrupts(escrow, &mut run, VIRTUAL_TIMER), Next::Enter);
        escrow.gic_ends(&mut run, &mut cpu, READY);
        assert_ne!(pending(), 0);
        run.reset();
        cpu.begins(escrow, &mut run, true);
        escrow.gic_ends(&mut run, &mut cpu, READY);
        assert_eq!(pending(), 0);
    });
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! The protocols between CPUs at EL2, in every order in which their steps can be seen:
//! runs against a VM's end, lists read without a lock, the end of the machine, doorbells,
//! handles against death, interrupts of guests against entries, exits and sleep.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --release -p escrow-core --test interleavings`

#![cfg(loom)]

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64 as Plain, Ordering as PlainOrdering};

use escrow_abi::Error;
use escrow_core::addr::PhysAddr;
use escrow_core::doorbell::{Action, Doorbells};
use escrow_core::gate::Gate;
use escrow_core::ledger::{GuestId, TicketLock};
use escrow_core::stage2::{Stage2Context, VcpuPage};
use escrow_core::vgic::{
    Access, Bank, Cpu, Effects, Frame, Input, Interface, LIST_REGISTERS, Pages, SgiRegister, Spi,
    Vgic,
};
use escrow_core::vm::{Counts, Life, Slot};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use loom::thread;

/// Plays a scene in every order; prints how many there were.
fn play(name: &str, scene: impl Fn() + Sync + Send + 'static) {
    // Not loom's: it counts what loom does.
    static SEEN: LazyLock<std::sync::Mutex<()>> = LazyLock::new(Default::default);
    let seen = std::sync::Arc::new(Plain::new(0));
    let count = seen.clone();
    loom::model(move || {
        count.fetch_add(1, PlainOrdering::Relaxed);
        scene();
    });
    let _one_line = SEEN.lock();
    println!("{name}: {} interleavings", seen.load(PlainOrdering::Relaxed));
}

fn slot() -> Slot {
    // No part of any protocol: written under the VM's lock.
    static COUNTS: LazyLock<Counts> = LazyLock::new(Counts::default);
    Slot::new(GuestId::new(1).unwrap(), &COUNTS)
}

/// A slot with what a run uses and the VM's end takes away.
struct Guest {
    slot: Slot,
    registers: UnsafeCell<u64>,
}

impl Guest {
    /// Of generation 1, started.
    fn started() -> Arc<Guest> {
        let guest = Guest { slot: slot(), registers: UnsafeCell::new(0) };
        guest.slot.open(&Stage2Context::default(), 1);
        guest.slot.allow_runs(1);
        Arc::new(guest)
    }

    /// A run of generation 1; whether there was one.
    fn run(&self) -> bool {
        let Some(_entered) = self.slot.enter(1) else { return false };
        // loom fails if somebody else writes meanwhile.
        self.registers.with(|_| ());
        true
    }

    /// The end of the VM; whether it could be ended.
    fn end(&self) -> bool {
        let mut vm = self.slot.lock();
        if !self.slot.end(&mut vm) {
            return false;
        }
        self.slot.close();
        self.registers.with_mut(|_| ());
        true
    }

    /// Another VM in the slot.
    fn next(&self) {
        let vm = self.slot.lock();
        self.registers.with_mut(|_| ());
        self.slot.open(&Stage2Context::default(), 2);
        self.slot.allow_runs(2);
        drop(vm);
    }
}

#[test]
fn no_run_overlaps_the_end_of_its_vm() {
    play("a run, an end", || {
        let guest = Guest::started();
        let runner = guest.clone();
        let run = thread::spawn(move || runner.run());
        let ended = guest.end();
        run.join().unwrap();
        // Not kept by a run that is over.
        assert!(ended || guest.end());
        assert!(!guest.run());
    });
}

#[test]
fn two_runs_and_an_end() {
    play("two runs, an end", || {
        let guest = Guest::started();
        let runners = [guest.clone(), guest.clone()];
        let runs = runners.map(|guest| thread::spawn(move || guest.run()));
        guest.end();
        for run in runs {
            run.join().unwrap();
        }
        assert!(guest.end());
    });
}

/// A handle of a VM that is dead enters no run of the next one in its slot.
#[test]
fn a_dead_vm_s_handle_runs_nobody() {
    play("a run, an end and the next VM", || {
        let guest = Guest::started();
        let runner = guest.clone();
        let run = thread::spawn(move || runner.run());
        if guest.end() {
            guest.next();
            let next = guest.slot.enter(2);
            assert!(next.is_some());
            // As if its registers were written now.
            drop(next);
        }
        run.join().unwrap();
    });
}

/// Who sees that a VM is dead sees it for good, and who looks it up under the lock sees
/// all that was done to it.
#[test]
fn a_dead_vm_stays_dead() {
    play("a look, an end and the next VM", || {
        let guest = Guest::started();
        let looker = guest.clone();
        let look = thread::spawn(move || [looker.slot.lives(1), looker.slot.lives(1)]);
        if guest.end() {
            assert!(!guest.slot.lives(1));
            guest.next();
        }
        let [first, second] = look.join().unwrap();
        assert!(first || !second, "dead, and alive again");
        assert!(!guest.slot.lives(1));
    });
}

/// What the host has in a page, and what a guest has once it is lent.
const HOSTS: u64 = 1;
const SECRET: u64 = 2;

/// A page of a list: the lock of its block, its record and what is in it.
#[derive(Default)]
struct Page {
    lock: TicketLock,
    is_lent: AtomicBool,
    contents: AtomicU64,
}

impl Page {
    fn new() -> Arc<Page> {
        Arc::new(Page { contents: AtomicU64::new(HOSTS), ..Page::default() })
    }

    /// As `lend_one` and lists are read: what is not the host's is not looked at. `None`
    /// if it is to be read again with the lock.
    fn read(&self) -> Option<Option<u64>> {
        self.lock.read(|| {
            let mine = !self.is_lent.load(Ordering::Relaxed);
            mine.then(|| self.contents.load(Ordering::Relaxed))
        })
    }

    /// A lend; the guest has it then, and writes to it.
    fn lend(&self) {
        self.lock.lock();
        self.is_lent.store(true, Ordering::Relaxed);
        self.lock.unlock();
        self.contents.store(SECRET, Ordering::Relaxed);
    }

    fn reclaim(&self) {
        self.lock.lock();
        self.contents.store(0, Ordering::Relaxed);
        self.is_lent.store(false, Ordering::Relaxed);
        self.lock.unlock();
    }
}

#[test]
fn a_list_is_read_before_its_page_is_lent_or_not_at_all() {
    play("a list read without the lock, a lend", || {
        let page = Page::new();
        let lender = page.clone();
        let lend = thread::spawn(move || lender.lend());
        if let Some(Some(seen)) = page.read() {
            assert_eq!(seen, HOSTS, "a guest's secret is taken for a list");
        }
        lend.join().unwrap();
    });
}

#[test]
fn a_page_that_leaves_and_comes_home_is_not_read_on_the_way() {
    play("a list read without the lock, a lend and a reclaim", || {
        let page = Page::new();
        let other = page.clone();
        let calls = thread::spawn(move || {
            other.lend();
            other.reclaim();
        });
        if let Some(Some(seen)) = page.read() {
            assert_ne!(seen, SECRET);
        }
        calls.join().unwrap();
    });
}

#[test]
fn a_block_s_lock_excludes() {
    play("two holders of a lock", || {
        let block = Arc::new((TicketLock::default(), UnsafeCell::new(0)));
        let holds = |block: &(TicketLock, UnsafeCell<u64>)| {
            block.0.lock();
            block.1.with_mut(|_| ());
            block.0.unlock();
        };
        let other = block.clone();
        let holder = thread::spawn(move || holds(&other));
        holds(&block);
        holder.join().unwrap();
    });
}

/// A machine of one slot, as far as its end is concerned.
struct Machine {
    gate: Gate,
    slot: Slot,
    /// A guest's, or zero.
    memory: AtomicU64,
    /// The firmware was asked to reset the machine.
    is_reset: AtomicBool,
}

impl Machine {
    fn new() -> Arc<Machine> {
        Arc::new(Machine {
            gate: Gate::new(),
            slot: slot(),
            memory: AtomicU64::new(0),
            is_reset: AtomicBool::new(false),
        })
    }

    /// `VM_CREATE`, and a guest that writes a secret.
    fn create(&self) {
        let mut vm = self.slot.lock();
        if vm.life == Life::Free && self.gate.is_open() {
            vm.life = Life::Created;
            self.memory.store(SECRET, Ordering::Relaxed);
        }
    }

    /// One CPU's way through the end of the machine; what the memory is left with.
    fn end(&self, fails: bool) -> Option<u64> {
        let _shut = self.gate.shut()?;
        {
            let mut vm = self.slot.lock();
            if vm.life != Life::Free {
                vm.life = Life::Free;
            }
        }
        if fails {
            // Its patience is over, or the firmware refuses.
            return None;
        }
        self.memory.store(0, Ordering::Relaxed);
        self.is_reset.store(true, Ordering::Relaxed);
        thread::yield_now();
        Some(self.memory.load(Ordering::Relaxed))
    }
}

#[test]
fn no_guest_comes_to_be_under_the_end_of_the_machine() {
    play("an end of the machine, a new VM", || {
        let machine = Machine::new();
        let other = machine.clone();
        let create = thread::spawn(move || other.create());
        assert_eq!(machine.end(false), Some(0), "a secret survives the reset");
        create.join().unwrap();
    });
}

#[test]
fn who_gives_up_opens_nothing_for_another() {
    play("two ends of the machine, a new VM", || {
        let machine = Machine::new();
        let [creator, other] = [machine.clone(), machine.clone()];
        let create = thread::spawn(move || creator.create());
        let gives_up = thread::spawn(move || other.end(true));
        if let Some(left) = machine.end(false) {
            assert_eq!(left, 0, "a secret survives the reset");
        }
        create.join().unwrap();
        gives_up.join().unwrap();
        // Whoever shut the gate has opened it.
        assert!(machine.gate.shut().is_some());
    });
}

#[test]
fn a_wait_is_over_or_somebody_wakes_it() {
    play("a wait, a ring", || {
        let bells = Arc::new((Doorbells::new(), AtomicBool::new(false)));
        bells.0.open(1);
        bells.0.create(1, 7).unwrap();
        let ringer = bells.clone();
        let ring = thread::spawn(move || {
            ringer.0.act(1, 0, Action::Send(1)).unwrap();
            // The ringer's host looks whom it has to wake.
            ringer.1.load(Ordering::Relaxed)
        });
        let (doorbells, sleeps) = &*bells;
        // The sleeper's host notes that it has to be woken, before the run.
        sleeps.store(true, Ordering::Relaxed);
        let waits = !doorbells.is_ringing_for_sleeper();
        let woken = ring.join().unwrap();
        assert!(!waits || woken, "it sleeps while a bell rings");
    });
}

#[test]
fn nobody_rings_for_the_next_vm() {
    play("a ring, an end and the next VM", || {
        let bells = Arc::new(Doorbells::new());
        bells.open(1);
        bells.create(1, 7).unwrap();
        let ringer = bells.clone();
        let ring = thread::spawn(move || ringer.act(1, 0, Action::Send(1)));
        bells.close();
        assert!(!bells.is_ringing(), "a bell of a VM that is gone");
        bells.open(2);
        bells.create(2, 7).unwrap();
        let rung = ring.join().unwrap();
        assert!(!bells.is_ringing(), "a dead VM's handle rings");
        assert!(matches!(rung, Ok(0) | Err(Error::HandleRevoked)));
    });
}

/// A ring and an acknowledgement: the word beside the lock says in the end what the bell
/// does.
#[test]
fn the_word_beside_the_lock_is_the_bell_s() {
    play("a ring, another, a receive", || {
        let bells = Arc::new(Doorbells::new());
        bells.open(1);
        bells.create(1, 7).unwrap();
        bells.create(1, 8).unwrap();
        let [first, second] = [bells.clone(), bells.clone()];
        let send = thread::spawn(move || first.act(1, 0, Action::Send(1)).unwrap());
        let receive = thread::spawn(move || second.act(1, 0, Action::Receive(1)).unwrap());
        bells.act(1, 1, Action::Send(2)).unwrap();
        send.join().unwrap();
        let had = receive.join().unwrap();
        assert!(bells.is_ringing(), "the other one's flag is its own");
        bells.act(1, 1, Action::Receive(2)).unwrap();
        assert_eq!(bells.is_ringing(), had == 0, "{had}");
    });
}

#[test]
fn a_vcpu_that_is_entered_is_the_one_that_was_put_together() {
    const PAGE: VcpuPage = VcpuPage::for_tests(PhysAddr(0x1000));
    play("a start, a run", || {
        let guest = Arc::new(Guest { slot: slot(), registers: UnsafeCell::new(0) });
        let host = guest.clone();
        let start = thread::spawn(move || {
            let vm = host.slot.lock();
            host.slot.open(&Stage2Context::default(), 1);
            host.slot.set_vcpu(0, PAGE);
            host.registers.with_mut(|_| ());
            host.slot.allow_runs(1);
            drop(vm);
        });
        if let Some(_entered) = guest.slot.enter(1) {
            guest.registers.with(|_| ());
            assert_eq!(guest.slot.vcpu(0), Some(PAGE));
        }
        start.join().unwrap();
    });
}

/// The virtual CPU interface of a CPU.
struct ListRegisters([u64; LIST_REGISTERS]);

impl ListRegisters {
    fn has(&self, intid: u64) -> bool {
        self.0.iter().any(|lr| lr & 0xffff_ffff == intid && lr >> 62 == 1)
    }
}

impl Interface for ListRegisters {
    fn list_registers(&self) -> usize {
        4
    }
    fn list_register(&self, n: usize) -> u64 {
        self.0[n]
    }
    fn set_list_register(&mut self, n: usize, value: u64) {
        self.0[n] = value;
    }
    fn hcr(&self) -> u64 {
        1
    }
    fn set_hcr(&mut self, _: u64) {}
    fn vmcr(&self) -> u64 {
        // Group 0, all priorities, a binary point of 2.
        1 | 2 << 21 | 0xff << 24
    }
    fn has_maintenance(&self) -> bool {
        false
    }
    fn active_priorities(&self) -> [u32; 4] {
        [0; 4]
    }
    fn preemption_shift(&self) -> u32 {
        3
    }
}

/// The interrupt controller of two vCPUs, and the list registers of vCPU 1's CPU.
struct Controller {
    bank: Bank,
    cpus: [Cpu; 2],
}

impl Pages for &Controller {
    fn bank(&self, n: usize) -> Option<&Bank> {
        (n == 0).then_some(&self.bank)
    }
    fn cpu(&self, index: u8) -> Option<&Cpu> {
        self.cpus.get(usize::from(index))
    }
    fn intids(&self) -> u32 {
        64
    }

    fn is_interrupted(&self) -> bool {
        false
    }
}

const SGI: u64 = 3;
const SPI: u64 = 40;

impl Controller {
    /// The SGI and the SPI are enabled, and vCPU 1's.
    fn new() -> Arc<Controller> {
        let controller = Controller { bank: Bank::new(), cpus: [Cpu::new(), Cpu::new()] };
        let vgic = Vgic::new(&controller);
        let mut effects = Effects::default();
        vgic.admit(0, true, &mut effects);
        vgic.admit(1, true, &mut effects);
        let mut write = |frame, offset, size, value| {
            vgic.access(0, frame, offset, size, Some(value), &mut effects);
        };
        write(Frame::Distributor, 0, 4, 1);
        write(Frame::Redistributor(1), 0x1_0100, 4, 1 << SGI);
        write(Frame::Distributor, 0x104, 4, 1 << (SPI - 32));
        write(Frame::Distributor, 0x6000 + 8 * SPI as u32, 8, 1);
        // What that made to be looked at is looked at.
        let mut registers = ListRegisters([0; LIST_REGISTERS]);
        vgic.enter(1, &mut registers, 0, true, &mut effects);
        vgic.exit(1, &mut registers);
        Arc::new(controller)
    }

    /// vCPU 0 sends the SGI.
    fn send(&self) -> Effects {
        let mut effects = Effects::default();
        let value = SGI << 24 | 1 << 1;
        Vgic::new(self).send(0, SgiRegister::Group1, value, &mut effects);
        effects
    }

    /// The host raises the SPI.
    fn raise(&self) -> Effects {
        let mut effects = Effects::default();
        Vgic::new(self).input(Spi::new(SPI as u32).unwrap(), Input::Edge, &mut effects);
        effects
    }

    /// vCPU 1 enters its guest.
    fn enter(&self, registers: &mut ListRegisters) -> Effects {
        let mut effects = Effects::default();
        Vgic::new(self).enter(1, registers, 0, false, &mut effects);
        effects
    }
}

/// The interrupt is in the list registers, or the CPU is interrupted and has it after its next
/// entry.
fn comes(controller: &Controller, registers: &mut ListRegisters, intid: u64, inside: u32) {
    if inside == 1 << 1 {
        Vgic::new(controller).exit(1, registers);
        controller.enter(registers);
    }
    assert!(registers.has(intid), "{intid} is lost");
}

#[test]
fn an_interrupt_meets_an_entry() {
    play("an entry, an SGI, an SPI", || {
        let controller = Controller::new();
        let [sender, host] = [controller.clone(), controller.clone()];
        let sends = thread::spawn(move || sender.send());
        let raises = thread::spawn(move || host.raise());
        let mut registers = ListRegisters([0; LIST_REGISTERS]);
        controller.enter(&mut registers);
        let (sent, raised) = (sends.join().unwrap(), raises.join().unwrap());
        let inside = sent.inside | raised.inside;
        comes(&controller, &mut registers, SGI, inside);
        assert!(registers.has(SPI), "the SPI is lost");
    });
}

#[test]
fn an_interrupt_meets_an_exit_and_an_entry() {
    play("an exit and an entry with a list register in use, an SPI", || {
        let controller = Controller::new();
        let mut registers = ListRegisters([0; LIST_REGISTERS]);
        controller.send();
        controller.enter(&mut registers);
        assert!(registers.has(SGI));
        let host = controller.clone();
        let raises = thread::spawn(move || host.raise());
        Vgic::new(&*controller).exit(1, &mut registers);
        controller.enter(&mut registers);
        let raised = raises.join().unwrap();
        comes(&controller, &mut registers, SPI, raised.inside);
        assert!(registers.has(SGI));
    });
}

#[test]
fn an_interrupt_ends_a_vcpu_s_sleep() {
    play("a sleep, an SGI", || {
        let controller = Controller::new();
        let sender = controller.clone();
        let sends = thread::spawn(move || sender.send());
        let mut registers = ListRegisters([0; LIST_REGISTERS]);
        let sleeps = Vgic::new(&*controller).sleep(1, &registers);
        let sent = sends.join().unwrap();
        assert!(!sleeps || sent.asleep == 1 << 1, "it sleeps over an interrupt");
        controller.enter(&mut registers);
        assert!(registers.has(SGI));
    });
}

#[test]
fn who_waits_for_an_exit_sees_it() {
    play("a read of what is in a list register, the exit of its CPU", || {
        let controller = Controller::new();
        let mut registers = ListRegisters([0; LIST_REGISTERS]);
        controller.send();
        controller.enter(&mut registers);
        // The guest acknowledges it.
        let lr = registers.0.iter_mut().find(|lr| **lr != 0).unwrap();
        *lr = *lr & !(3 << 62) | 2 << 62;
        let reader = controller.clone();
        let read = thread::spawn(move || {
            let vgic = Vgic::new(&*reader);
            let mut effects = Effects::default();
            let frame = Frame::Redistributor(1);
            (vgic.access(0, frame, 0x1_0300, 4, None, &mut effects), effects)
        });
        Vgic::new(&*controller).exit(1, &mut registers);
        let vgic = Vgic::new(&*controller);
        match read.join().unwrap() {
            (Access::Done(value), _) => assert_eq!(value, 1 << SGI),
            (Access::Wait(waits), effects) => {
                assert_eq!((waits, effects.inside), (1 << 1, 1 << 1));
                assert_eq!(vgic.poll(0, waits), 0, "it waits for good");
                assert_eq!(vgic.read_after_wait(0, Frame::Redistributor(1), 0x1_0300, 4), 1 << SGI);
            }
        }
    });
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! The protocols between CPUs at EL2, in every order in which their steps can be seen:
//! runs against a VM's end, lists read without a lock, the end of the machine, doorbells,
//! handles against death.
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

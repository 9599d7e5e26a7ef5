// SPDX-License-Identifier: MIT OR Apache-2.0

//! Protected VMs.

mod histories;
mod parts;

use std::env;

use escrow_abi::{Error, FrameState, MemEntry, ORDER_BLOCK, Rights, call, psci, rsi, run};

use super::fake::{FREE, HVC, Host, Interrupts, exit_of};
use super::{block, page};
use crate::addr::{BLOCK_SIZE, Ipa, PAGE_SIZE};
use crate::hypervisor::Scratch;
use crate::vcpu::syndrome::{Ec, IL, abort};
use crate::vcpu::{GuestExit, GuestIds, Next};

/// The bit of the shared half, of 39.
const SHARED: u64 = 1 << 38;
const MEMORY: u64 = 0x4000_0000;
const SIZE: u64 = 64 << 20;
const DEVICE: u64 = 0x0900_0000;

struct Guest {
    host: Host,
    vm: u64,
    vcpu: u64,
}

/// What becomes of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Touched {
    Enters,
    Aborts,
    Exits([u64; 4]),
}

impl Guest {
    /// A protected VM with 64 MiB declared, before its start.
    fn created(pages: u64) -> Guest {
        let mut host = Host::new();
        let (vm, _) = host.create(pages);
        assert_eq!(host.call(call::VM_PROTECT, &[vm]), Ok([SHARED, 0, 0, 0]));
        host.call(call::VM_CONFIGURE, &[vm, call::CONFIGURE_MEMORY_ADD, MEMORY, SIZE]).unwrap();
        let [vcpu, ..] = host.call(call::VCPU_CREATE, &[vm, 0]).unwrap();
        Guest { host, vm, vcpu }
    }

    fn started(pages: u64) -> Guest {
        let mut guest = Guest::created(pages);
        guest.start();
        guest
    }

    fn start(&mut self) {
        self.host.call(call::VM_START, &[self.vm]).unwrap();
    }

    /// `x0` to `x2` of a call that is answered.
    fn asks(&mut self, function: u32, args: &[u64]) -> [u64; 3] {
        let mut x = vec![function.into()];
        x.extend(args);
        let [x0, x1, x2, _] = self.host.guest_asks(self.vcpu, &x);
        [x0, x1, x2]
    }

    /// The same, or what the host is told by a call that is not answered yet.
    fn asks_anything(&mut self, function: u32, args: &[u64]) -> Result<[u64; 3], [u64; 4]> {
        self.host.run(self.vcpu, |escrow, mut run| {
            run.regs.x[0] = function.into();
            run.regs.x[1..=args.len()].copy_from_slice(args);
            let pc = run.regs.pc;
            let ids = GuestIds::new(|_, _| 0, 39);
            match escrow.guest_exit(&mut Scratch::new(), &mut run, HVC, &ids) {
                Next::Enter => Ok([run.regs.x[0], run.regs.x[1], run.regs.x[2]]),
                Next::Exit(answer) => {
                    assert_eq!(run.regs.pc, pc.wrapping_sub(4), "it makes its call again");
                    Err(answer)
                }
                other => panic!("{other:?}"),
            }
        })
    }

    /// What the host is told by a call that is not.
    fn begins(&mut self, function: u32, args: &[u64]) -> [u64; 4] {
        self.asks_anything(function, args).unwrap_err()
    }

    /// Makes pages RAM or empty, all that is asked for.
    fn sets(&mut self, base: u64, top: u64, ripas: u64) {
        let mut at = base;
        while at < top {
            let [x0, next, x2] = self.asks(rsi::IPA_STATE_SET, &[at, top, ripas, 0]);
            assert_eq!((x0, x2), (rsi::STATUS_SUCCESS, rsi::ACCEPT));
            assert!(next > at && next <= top);
            at = next;
        }
    }

    /// The RIPAS of ranges, as they follow each other.
    fn ripas(&mut self, base: u64, top: u64) -> Vec<(u64, u64)> {
        let mut ranges = Vec::new();
        let mut at = base;
        while at < top {
            let [x0, end, ripas] = self.asks(rsi::IPA_STATE_GET, &[at, top]);
            assert_eq!(x0, rsi::STATUS_SUCCESS);
            assert!(end > at && end <= top);
            match ranges.last_mut() {
                Some((last, same)) if *same == ripas => *last = end,
                _ => ranges.push((end, ripas)),
            }
            at = end;
        }
        ranges
    }

    fn touches(&mut self, at: u64, write: bool) -> Touched {
        match self.host.guest_exit(self.vcpu, access(at, write)) {
            Next::Enter => Touched::Enters,
            Next::Inject(_) => Touched::Aborts,
            Next::Exit(answer) => Touched::Exits(answer),
            other => panic!("{other:?}"),
        }
    }

    /// The host answers what the guest touched last: the instruction runs again.
    fn retries(&mut self) {
        let mut x = [call::VCPU_RUN as u64, self.vcpu, 0, run::ACTION_RETRY, 0, 0, 0, 0];
        drop(self.host.escrow.host_runs(&mut x).expect("a run"));
    }

    fn declares(&mut self, base: u64, size: u64) {
        let add = [self.vm, call::CONFIGURE_MEMORY_ADD, base, size];
        self.host.call(call::VM_CONFIGURE, &add).unwrap();
    }

    fn lend(&mut self, entry: MemEntry) -> Result<(), Error> {
        self.host.lend(self.vm, &[entry]).map_err(|refused| refused.0)
    }
}

/// Histories of a normal run.
fn cases() -> u32 {
    env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(1_000)
}

/// A load or store of 4 bytes.
fn access(at: u64, write: bool) -> GuestExit {
    let write = if write { 1 << 6 } else { 0 };
    let esr = Ec::DATA_ABORT_LOWER.bits() | IL | abort::ISV | 2 << 22 | 3 << 16 | write | 0x7;
    exit_of(esr, Some(Ipa(at)))
}

const fn fault(at: u64) -> Touched {
    Touched::Exits([run::PAGE_FAULT, at, PAGE_SIZE, 0])
}

#[test]
fn what_is_given_goes_into_its_half() {
    let mut guest = Guest::created(12);
    assert_eq!(guest.lend(page(FREE, MEMORY | SHARED)), Err(Error::Denied));
    let one = page(FREE, MEMORY | SHARED);
    assert_eq!(guest.host.lend_one(guest.vm, &one), Err((Error::Denied, 0, 0)));
    let shared = guest.host.share(guest.vm, &[page(FREE, MEMORY)]);
    assert_eq!(shared, Err((Error::Denied, 0, 0)));
    let donated = guest.host.give(call::MEM_DONATE, guest.vm, &[one]);
    assert_eq!(donated, Err((Error::Denied, 0, 0)));
    let second = [page(FREE, MEMORY | SHARED), page(FREE + PAGE_SIZE, MEMORY)];
    assert_eq!(guest.host.share(guest.vm, &second), Err((Error::Denied, 1, 0)));
    assert!(guest.host.reaches(FREE));
    guest.lend(page(FREE, MEMORY)).unwrap();
    guest.host.share(guest.vm, &[page(FREE + PAGE_SIZE, MEMORY | SHARED)]).unwrap();
    // EL2's own.
    let time = [guest.vm, SHARED | 0x0b00_0000];
    assert_eq!(guest.host.call(call::VM_PV_TIME, &time), Err((Error::Denied, 0, 0)));
    let gic = [guest.vm, SHARED | 0x0800_0000, 0x080a_0000, call::SPIS_MIN];
    assert_eq!(guest.host.call(call::VM_VGIC, &gic), Err((Error::Denied, 0, 0)));
}

#[test]
fn a_vm_is_protected_before_anything_else() {
    let mut host = Host::new();
    let (vm, _) = host.create(8);
    host.lend(vm, &[page(FREE, MEMORY)]).unwrap();
    assert_eq!(host.call(call::VM_PROTECT, &[vm]), Err((Error::GuestMapped, 0, 0)));
    let (vm, _) = host.create(8);
    host.call(call::VM_VGIC, &[vm, 0x0800_0000, 0x080a_0000, call::SPIS_MIN]).unwrap();
    assert_eq!(host.call(call::VM_PROTECT, &[vm]), Err((Error::Denied, 0, 0)));
    let (vm, _) = host.create(8);
    let declared = |key| [vm, key, MEMORY, PAGE_SIZE];
    host.call(call::VM_CONFIGURE, &declared(call::CONFIGURE_MEMORY_ADD)).unwrap();
    assert_eq!(host.call(call::VM_PROTECT, &[vm]), Err((Error::Denied, 0, 0)));
    host.call(call::VM_CONFIGURE, &declared(call::CONFIGURE_MEMORY_REMOVE)).unwrap();
    host.call(call::VM_PROTECT, &[vm]).unwrap();
    let mut guest = Guest::started(8);
    assert_eq!(guest.host.call(call::VM_PROTECT, &[guest.vm]), Err((Error::Denied, 0, 0)));
    // Nobody is given a capability for it, and it may have some.
    let (other, _) = guest.host.create(8);
    let grant = |to, object| [to, object, call::RIGHT_LEND, MEMORY, PAGE_SIZE];
    let refused = guest.host.call(call::CAP_GRANT, &grant(other, guest.vm));
    assert_eq!(refused, Err((Error::Denied, 0, 0)));
    guest.host.call(call::CAP_GRANT, &grant(guest.vm, other)).unwrap();
}

#[test]
fn others_have_no_realm_services() {
    let mut host = Host::new();
    let (vm, _) = host.create(8);
    let [vcpu, ..] = host.call(call::VCPU_CREATE, &[vm, 0]).unwrap();
    host.call(call::VM_START, &[vm]).unwrap();
    for function in rsi::FIRST..=rsi::LAST {
        let args = [function.into(), rsi::VERSION_1_0, MEMORY];
        assert_eq!(host.guest_asks(vcpu, &args)[0], psci::NOT_SUPPORTED);
    }
}

#[test]
fn calls_without_memory() {
    let mut guest = Guest::started(8);
    let version = |status| [status, rsi::VERSION_1_0, rsi::VERSION_1_0];
    assert_eq!(guest.asks(rsi::VERSION, &[rsi::VERSION_1_0]), version(rsi::STATUS_SUCCESS));
    assert_eq!(guest.asks(rsi::VERSION, &[2 << 16]), version(rsi::STATUS_ERROR_INPUT));
    assert_eq!(guest.asks(rsi::FEATURES, &[0]), [0; 3]);
    assert_eq!(guest.asks(rsi::LAST, &[0])[0], psci::NOT_SUPPORTED);
    let page = PAGE_SIZE;
    for (base, top, ripas, flags) in [
        (MEMORY, MEMORY, rsi::RAM, 0),
        (MEMORY + page, MEMORY, rsi::RAM, 0),
        (MEMORY + 1, MEMORY + page, rsi::RAM, 0),
        (MEMORY, MEMORY + 1, rsi::RAM, 0),
        (MEMORY, SHARED + page, rsi::RAM, 0),
        (SHARED, SHARED + page, rsi::RAM, 0),
        (u64::MAX << 12, 0, rsi::RAM, 0),
        (MEMORY, MEMORY + page, rsi::DESTROYED, 0),
        (MEMORY, MEMORY + page, rsi::DEV, 0),
        (MEMORY, MEMORY + page, 1 << 32 | rsi::RAM, 0),
        (MEMORY, MEMORY + page, rsi::RAM, 2),
    ] {
        let [status, ..] = guest.asks(rsi::IPA_STATE_SET, &[base, top, ripas, flags]);
        assert_eq!(status, rsi::STATUS_ERROR_INPUT, "{base:#x} {top:#x} {ripas} {flags}");
        if ripas == rsi::RAM && flags == 0 {
            let [status, ..] = guest.asks(rsi::IPA_STATE_GET, &[base, top]);
            assert_eq!(status, rsi::STATUS_ERROR_INPUT);
        }
    }
    for at in [1, SHARED, u64::MAX << 12, MEMORY + SIZE] {
        assert_eq!(guest.asks(rsi::REALM_CONFIG, &[at])[0], rsi::STATUS_ERROR_INPUT, "{at:#x}");
    }
}

#[test]
fn what_is_declared_before_the_start_is_ram() {
    let mut guest = Guest::created(12);
    guest.lend(page(FREE, MEMORY)).unwrap();
    let hole = MEMORY + 5 * BLOCK_SIZE + 7 * PAGE_SIZE;
    let remove = [guest.vm, call::CONFIGURE_MEMORY_REMOVE, hole, PAGE_SIZE];
    guest.host.call(call::VM_CONFIGURE, &remove).unwrap();
    guest.start();
    let (end, after) = (MEMORY + SIZE, hole + PAGE_SIZE);
    let declared = [(MEMORY, rsi::EMPTY), (hole, rsi::RAM), (after, rsi::EMPTY), (end, rsi::RAM)];
    assert_eq!(guest.ripas(0, end), declared);
    assert_eq!(guest.ripas(end, SHARED), [(SHARED, rsi::EMPTY)]);
    // Before the guest says anything, its host is asked for memory there, and it is zeroed.
    let at = MEMORY + 4 * PAGE_SIZE;
    assert_eq!(guest.touches(at, false), fault(at));
    guest.host.escrow.machine.scribble(FREE + PAGE_SIZE);
    guest.lend(page(FREE + PAGE_SIZE, at)).unwrap();
    guest.retries();
    assert_eq!(guest.host.guest_word(guest.vm, at), 0);
    assert_eq!(guest.touches(hole, true), Touched::Aborts);
    // What is declared and withdrawn later is nothing to the guest.
    for key in [call::CONFIGURE_MEMORY_ADD, call::CONFIGURE_MEMORY_REMOVE] {
        guest.host.call(call::VM_CONFIGURE, &[guest.vm, key, hole, BLOCK_SIZE]).unwrap();
        assert_eq!(guest.ripas(0, end), declared);
    }
    // And what it has given up stays so.
    guest.sets(MEMORY, MEMORY + BLOCK_SIZE, rsi::EMPTY);
    assert_eq!(guest.touches(MEMORY + PAGE_SIZE, true), Touched::Aborts);
}

#[test]
fn what_is_declared_may_need_pages_for_tables() {
    let mut host = Host::new();
    let (vm, _) = host.create(8);
    host.call(call::VM_PROTECT, &[vm]).unwrap();
    let add = |base, size| [vm, call::CONFIGURE_MEMORY_ADD, base, size];
    // As many as there are at the most, in tables of their own each.
    let refused = (0..8).find_map(|n| {
        host.call(call::VM_CONFIGURE, &add(MEMORY + (n << 30) + PAGE_SIZE, PAGE_SIZE)).err()
    });
    assert!(matches!(refused, Some((Error::NoMemory, 0, 1..=2))), "{refused:?}");
    // Whole entries need none, and the shared half is nothing of that.
    host.call(call::VM_CONFIGURE, &add(1 << 37, 4 << 30)).unwrap();
    host.call(call::VM_CONFIGURE, &add(SHARED | MEMORY, PAGE_SIZE)).unwrap();
}

#[test]
fn nothing_is_ram_that_the_guest_does_not_say() {
    let mut guest = Guest::created(12);
    let remove = [guest.vm, call::CONFIGURE_MEMORY_REMOVE, MEMORY, SIZE];
    guest.host.call(call::VM_CONFIGURE, &remove).unwrap();
    guest.lend(page(FREE, MEMORY)).unwrap();
    guest.start();
    let end = MEMORY + SIZE;
    assert_eq!(guest.ripas(MEMORY, end), [(MEMORY + PAGE_SIZE, rsi::RAM), (end, rsi::EMPTY)]);
    assert_eq!(guest.ripas(0, MEMORY), [(MEMORY, rsi::EMPTY)]);
    // Neither memory nor a device of the host's is there.
    let at = MEMORY + 4 * PAGE_SIZE;
    for write in [false, true] {
        assert_eq!(guest.touches(at, write), Touched::Aborts);
        assert_eq!(guest.touches(DEVICE, write), Touched::Aborts);
    }
    let entry = page(FREE + PAGE_SIZE, at);
    assert_eq!(guest.lend(entry), Err(Error::GuestMapped));
    assert_eq!(guest.host.lend_one(guest.vm, &entry), Err((Error::GuestMapped, 0, 0)));
    let whole = block(FREE + BLOCK_SIZE, MEMORY + BLOCK_SIZE);
    assert_eq!(guest.lend(whole), Err(Error::GuestMapped));
    // It says RAM of what is declared: now the host is asked for it.
    guest.declares(MEMORY, SIZE);
    guest.sets(MEMORY, end, rsi::RAM);
    assert_eq!(guest.ripas(0, end), [(MEMORY, rsi::EMPTY), (end, rsi::RAM)]);
    assert_eq!(guest.touches(at, false), fault(at));
    guest.lend(entry).unwrap();
    guest.lend(whole).unwrap();
    guest.retries();
    assert_eq!(guest.ripas(0, end), [(MEMORY, rsi::EMPTY), (end, rsi::RAM)]);
}

/// Its marks take tables, and its host pays for them: so no more than what is declared needs.
#[test]
fn what_is_not_declared_cannot_become_ram() {
    let mut guest = Guest::created(40);
    let end = MEMORY + SIZE;
    let far = end + 100 * BLOCK_SIZE;
    guest.lend(page(FREE, far)).unwrap();
    guest.start();
    let pool = |guest: &mut Guest| guest.host.call(call::VM_INFO, &[guest.vm]).unwrap()[3];
    let before = pool(&mut guest);
    for n in 0..64 {
        let at = end + n * BLOCK_SIZE + PAGE_SIZE;
        let refused = guest.asks(rsi::IPA_STATE_SET, &[at, at + PAGE_SIZE, rsi::RAM, 0]);
        assert_eq!(refused, [rsi::STATUS_SUCCESS, at, rsi::REJECT]);
        guest.sets(at, at + PAGE_SIZE, rsi::EMPTY);
        assert_eq!(guest.touches(at, false), Touched::Aborts);
    }
    assert_eq!(pool(&mut guest), before);
    assert_eq!(guest.ripas(end, far), [(far, rsi::EMPTY)]);
    // It comes as far as that goes.
    let [_, next, response] = guest.asks(rsi::IPA_STATE_SET, &[MEMORY, far, rsi::RAM, 0]);
    assert_eq!((next, response), (end, rsi::ACCEPT));
    // What it was lent there is RAM, until it gives that up and its host fetches it.
    let one = [far, far + PAGE_SIZE, rsi::RAM, 0];
    guest.sets(far, far + PAGE_SIZE, rsi::EMPTY);
    assert_eq!(guest.asks(rsi::IPA_STATE_SET, &one)[2], rsi::ACCEPT);
    guest.sets(far, far + PAGE_SIZE, rsi::EMPTY);
    guest.host.reclaim(&[(FREE, 0)]).unwrap();
    assert_eq!(guest.asks(rsi::IPA_STATE_SET, &one)[2], rsi::REJECT);
    // What is declared later may become RAM, and what is withdrawn may no more.
    guest.declares(far, 2 * PAGE_SIZE);
    let [_, next, response] = guest.asks(rsi::IPA_STATE_SET, &[far, far + BLOCK_SIZE, rsi::RAM, 0]);
    assert_eq!((next, response), (far + 2 * PAGE_SIZE, rsi::ACCEPT));
    let withdraw = [guest.vm, call::CONFIGURE_MEMORY_REMOVE, far, 2 * PAGE_SIZE];
    guest.host.call(call::VM_CONFIGURE, &withdraw).unwrap();
    guest.sets(far, far + PAGE_SIZE, rsi::EMPTY);
    assert_eq!(guest.asks(rsi::IPA_STATE_SET, &one)[2], rsi::REJECT);
    let rest = [far + PAGE_SIZE, far + 2 * PAGE_SIZE, rsi::RAM, 0];
    assert_eq!(guest.asks(rsi::IPA_STATE_SET, &rest)[2], rsi::ACCEPT, "it is still RAM");
}

/// The host lets it wait, or ends it: it does not choose an instruction of the guest's that fails.
#[test]
fn its_host_answers_no_access_to_ram_with_an_abort() {
    let mut guest = Guest::started(12);
    let answers = |guest: &mut Guest, action, value| {
        let mut x = [call::VCPU_RUN as u64, guest.vcpu, value, action, 0, 0, 0, 0];
        guest.host.escrow.host_runs(&mut x).ok_or(Error::from_register(x[0])).map(|run| run.regs.pc)
    };
    let refused = Err(Some(Error::InvalidArgument));
    for action in [run::ACTION_RETRY, run::ACTION_EMULATE] {
        let pc = guest.host.run(guest.vcpu, |_, run| run.regs.pc);
        assert_eq!(
            guest.touches(MEMORY, true),
            Touched::Exits([run::PAGE_FAULT, MEMORY, PAGE_SIZE, run::FAULT_WRITE,])
        );
        for (action, value) in [(run::ACTION_FAULT, 0), (3, 0), (run::ACTION_RETRY, 1)] {
            assert_eq!(answers(&mut guest, action, value), refused);
        }
        assert_eq!(answers(&mut guest, action, 0), Ok(pc), "the same instruction");
    }
    // A call neither.
    let config = [run::PAGE_FAULT, MEMORY, PAGE_SIZE, run::FAULT_WRITE];
    assert_eq!(guest.begins(rsi::REALM_CONFIG, &[MEMORY]), config);
    assert_eq!(answers(&mut guest, run::ACTION_FAULT, 0), refused);
    guest.retries();
    // In the shared half it does what it likes.
    assert_eq!(guest.touches(MEMORY | SHARED, false), fault(MEMORY | SHARED));
    answers(&mut guest, run::ACTION_FAULT, 0).unwrap();
}

#[test]
fn nothing_in_the_shared_half_is_executed() {
    let mut guest = Guest::started(12);
    let entry = page(FREE, MEMORY | SHARED);
    guest.host.share(guest.vm, &[entry]).unwrap();
    let rights = guest.host.guest_rights(guest.vm, MEMORY | SHARED);
    assert_eq!(rights, Rights::READ_WRITE);
    for (at, fault) in [(MEMORY, 0xf), (MEMORY + PAGE_SIZE, 0x7), (DEVICE, 0x7)] {
        let fetch = Ec::INSTRUCTION_ABORT_LOWER.bits() | IL | fault;
        let next = guest.host.guest_exit(guest.vcpu, exit_of(fetch, Some(Ipa(at | SHARED))));
        assert!(matches!(next, Next::Inject(_)), "{at:#x}: {next:?}");
    }
}

/// Its host could do nothing about a write there, and the guest would try for ever.
#[test]
fn a_write_to_the_page_with_stolen_time_is_an_abort() {
    let mut guest = Guest::created(12);
    let time = MEMORY + 5 * PAGE_SIZE;
    let withdraw = [guest.vm, call::CONFIGURE_MEMORY_REMOVE, time, PAGE_SIZE];
    guest.host.call(call::VM_CONFIGURE, &withdraw).unwrap();
    guest.host.call(call::VM_PV_TIME, &[guest.vm, time]).unwrap();
    guest.start();
    let esr = Ec::DATA_ABORT_LOWER.bits() | IL | abort::ISV | 2 << 22 | 3 << 16 | 1 << 6 | 0xf;
    let next = guest.host.guest_exit(guest.vcpu, exit_of(esr, Some(Ipa(time))));
    assert!(matches!(next, Next::Inject(_)), "{next:?}");
}

#[test]
fn what_comes_after_the_start_is_zeroed() {
    let mut guest = Guest::created(12);
    let first = FREE;
    guest.host.escrow.machine.scribble(first);
    let scribbled = guest.host.word_of(first);
    guest.lend(page(first, MEMORY)).unwrap();
    guest.start();
    assert_eq!(guest.host.guest_word(guest.vm, MEMORY), scribbled, "its first contents");
    guest.sets(MEMORY, MEMORY + SIZE, rsi::RAM);
    // One by one, by a list, as a block, and in registers; each with a table and without.
    let mut next = FREE + BLOCK_SIZE;
    let mut at = MEMORY + BLOCK_SIZE;
    for round in 0..2 {
        for (order, one) in [(0, true), (0, false), (ORDER_BLOCK, true), (ORDER_BLOCK, false)] {
            guest.host.escrow.machine.scribble(next);
            guest.host.escrow.machine.scribble(next + PAGE_SIZE * if order == 0 { 0 } else { 77 });
            let entry = MemEntry::new(next, order, at, Rights::ALL);
            if one {
                guest.host.lend_one(guest.vm, &entry).unwrap();
            } else {
                guest.lend(entry).unwrap();
            }
            assert_eq!(guest.host.guest_word(guest.vm, at), 0, "{order} {one} {round}");
            if order != 0 {
                assert_eq!(guest.host.guest_word(guest.vm, at + PAGE_SIZE * 77), 0);
            }
            next += BLOCK_SIZE;
            at += BLOCK_SIZE;
        }
    }
    // Donated pages as well; what is shared stays what it is.
    guest.host.escrow.machine.scribble(next);
    guest.host.give(call::MEM_DONATE, guest.vm, &[page(next, at)]).unwrap();
    assert_eq!(guest.host.guest_word(guest.vm, at), 0);
    next += PAGE_SIZE;
    guest.host.escrow.machine.scribble(next);
    guest.host.share(guest.vm, &[page(next, at | SHARED)]).unwrap();
    assert_ne!(guest.host.guest_word(guest.vm, at | SHARED), 0);
}

#[test]
fn what_is_opened_comes_home_zeroed_and_is_shared() {
    let mut guest = Guest::created(16);
    for n in 0..4 {
        guest.lend(page(FREE + n * PAGE_SIZE, MEMORY + n * PAGE_SIZE)).unwrap();
    }
    guest.start();
    guest.sets(MEMORY, MEMORY + SIZE, rsi::RAM);
    let (frame, at) = (FREE + PAGE_SIZE, MEMORY + PAGE_SIZE);
    guest.host.escrow.machine.scribble(frame);
    assert_eq!(guest.host.reclaim(&[(frame, 0)]), Err((Error::Locked, 0, 0)));
    guest.sets(at, at + PAGE_SIZE, rsi::EMPTY);
    let end = MEMORY + SIZE;
    let opened = [(at, rsi::RAM), (at + PAGE_SIZE, rsi::EMPTY), (end, rsi::RAM)];
    assert_eq!(guest.ripas(MEMORY, end), opened);
    // Its host fetches it, and shares it.
    assert!(!guest.host.reaches(frame));
    guest.host.reclaim(&[(frame, 0)]).unwrap();
    assert!(guest.host.reaches(frame));
    assert_eq!(guest.host.word_of(frame), 0);
    assert_eq!(guest.ripas(MEMORY, end), opened);
    assert_eq!(guest.touches(at, true), Touched::Aborts);
    assert_eq!(guest.touches(at | SHARED, false), fault(at | SHARED));
    guest.retries();
    guest.host.share(guest.vm, &[page(frame, at | SHARED)]).unwrap();
    assert_eq!(guest.host.guest_frame(guest.vm, at | SHARED), Some(frame));
    // It is RAM again: it comes when its host has lost sight of it, and zeroed.
    guest.host.escrow.machine.scribble(frame);
    guest.sets(at, at + PAGE_SIZE, rsi::RAM);
    assert_eq!(guest.ripas(MEMORY, end), [(end, rsi::RAM)]);
    assert_eq!(guest.touches(at, false), fault(at));
    guest.retries();
    let shared = FrameState::Shared as u64;
    assert_eq!(guest.host.lend(guest.vm, &[page(frame, at)]), Err((Error::WrongState, 0, shared)));
    guest.host.take(call::MEM_UNSHARE, &[(frame, 0)]).unwrap();
    guest.lend(page(frame, at)).unwrap();
    assert!(!guest.host.reaches(frame));
    assert_eq!(guest.host.guest_word(guest.vm, at), 0);
}

#[test]
fn what_its_host_has_not_fetched_is_still_its_own() {
    let mut guest = Guest::created(16);
    guest.lend(block(FREE, MEMORY)).unwrap();
    guest.start();
    let mine = FREE + 5 * PAGE_SIZE;
    guest.host.escrow.machine.scribble(mine);
    let word = guest.host.word_of(mine);
    let (at, end) = (MEMORY + 4 * PAGE_SIZE, MEMORY + 8 * PAGE_SIZE);
    guest.sets(at, end, rsi::EMPTY);
    guest.host.reclaim(&[(FREE + 4 * PAGE_SIZE, 0)]).unwrap();
    guest.sets(at, end, rsi::RAM);
    assert_eq!(guest.ripas(MEMORY, MEMORY + BLOCK_SIZE), [(MEMORY + BLOCK_SIZE, rsi::RAM)]);
    assert_eq!(guest.host.reclaim(&[(mine, 0)]), Err((Error::Locked, 0, 0)));
    assert_eq!(guest.host.guest_word(guest.vm, MEMORY + 5 * PAGE_SIZE), word);
    assert_eq!(guest.touches(at, false), fault(at));
    guest.retries();
    // By its other call as well.
    let unlock = [0, end, PAGE_SIZE, call::MODIFY_UNLOCK];
    guest.host.guest_call(guest.vcpu, call::MODIFY_PAGES, &unlock).unwrap();
    assert_eq!(guest.ripas(end, end + PAGE_SIZE), [(end + PAGE_SIZE, rsi::EMPTY)]);
    guest.sets(end, end + PAGE_SIZE, rsi::RAM);
    assert_eq!(guest.host.reclaim(&[(FREE + 8 * PAGE_SIZE, 0)]), Err((Error::Locked, 0, 0)));
}

#[test]
fn devices_are_in_the_shared_half() {
    let mut guest = Guest::started(12);
    let read = Touched::Exits([run::MMIO_READ, DEVICE + 4, 4, 0]);
    assert_eq!(guest.touches((DEVICE + 4) | SHARED, false), read);
    guest.retries();
    // What is declared is memory there, too.
    assert_eq!(guest.touches(MEMORY | SHARED, false), fault(MEMORY | SHARED));
    guest.retries();
    let beyond = MEMORY + SIZE;
    let read = Touched::Exits([run::MMIO_READ, beyond, 4, 0]);
    assert_eq!(guest.touches(beyond | SHARED, false), read);
}

#[test]
fn a_call_waits_for_tables_and_memory() {
    // One for the table of what is declared.
    let mut guest = Guest::started(1 + 1 + 1);
    let base = MEMORY + (1 << 30);
    guest.declares(base, SIZE);
    let range = [base + PAGE_SIZE, base + SIZE, rsi::RAM, 0];
    // Level 2 and level 3.
    assert_eq!(guest.begins(rsi::IPA_STATE_SET, &range), [run::TOP_UP, 2, 0, 0]);
    let mut x = [call::VCPU_RUN as u64, guest.vcpu, 0, 9, 0, 0, 0, 0];
    assert!(guest.host.escrow.host_runs(&mut x).is_none(), "no such action");
    let top_up = |guest: &mut Guest, pages| {
        let entries = guest.host.fresh_metadata(pages);
        let [list, count] = guest.host.list(&entries);
        guest.host.call(call::VM_TOP_UP, &[guest.vm, list, count]).unwrap();
    };
    top_up(&mut guest, 1);
    assert_eq!(guest.begins(rsi::IPA_STATE_SET, &range), [run::TOP_UP, 1, 0, 0]);
    top_up(&mut guest, 4);
    guest.sets(range[0], range[1], rsi::RAM);
    // A page that is not there is asked for.
    let at = base + 3 * PAGE_SIZE;
    let asked = [run::PAGE_FAULT, at, PAGE_SIZE, run::FAULT_WRITE];
    assert_eq!(guest.begins(rsi::REALM_CONFIG, &[at]), asked);
    guest.retries();
    assert_eq!(guest.begins(rsi::REALM_CONFIG, &[at]), asked);
    guest.lend(page(FREE, at)).unwrap();
    guest.host.escrow.machine.scribble(FREE);
    assert_eq!(guest.asks(rsi::REALM_CONFIG, &[at])[0], rsi::STATUS_SUCCESS);
    let words: Vec<u64> = (0..512).map(|n| guest.host.word_of(FREE + 8 * n)).collect();
    assert_eq!(words[0], 39);
    assert!(words[1..].iter().all(|&word| word == 0));
    // Not into what it cannot write to.
    let read_only = MemEntry::new(FREE + PAGE_SIZE, 0, at + PAGE_SIZE, Rights::READ);
    guest.lend(read_only).unwrap();
    assert_eq!(guest.asks(rsi::REALM_CONFIG, &[at + PAGE_SIZE])[0], rsi::STATUS_ERROR_INPUT);
    guest.sets(at, at + PAGE_SIZE, rsi::EMPTY);
    assert_eq!(guest.asks(rsi::REALM_CONFIG, &[at])[0], rsi::STATUS_ERROR_INPUT);
}

#[test]
fn a_call_is_done_in_parts() {
    let mut guest = Guest::created(40);
    for n in 0..16 {
        let n = n * BLOCK_SIZE;
        guest.lend(block(FREE + n, MEMORY + n)).unwrap();
    }
    guest.start();
    *guest.host.escrow.machine.interrupts.lock().unwrap() = Interrupts::Always;
    let (at, end) = (MEMORY + PAGE_SIZE, MEMORY + SIZE);
    let [_, next, _] = guest.asks(rsi::IPA_STATE_SET, &[at, end, rsi::EMPTY, 0]);
    assert!(next > at && next - at <= 2 * BLOCK_SIZE, "{:#x}", next - at);
    guest.sets(next, end, rsi::EMPTY);
    assert_eq!(guest.ripas(MEMORY, end), [(at, rsi::RAM), (end, rsi::EMPTY)]);
    guest.sets(MEMORY, end, rsi::RAM);
    assert_eq!(guest.ripas(MEMORY, end), [(end, rsi::RAM)]);
}

#[test]
fn what_it_has_in_other_ways_it_cannot_give_up_so() {
    let mut guest = Guest::created(16);
    guest.host.give(call::MEM_DONATE, guest.vm, &[page(FREE, MEMORY)]).unwrap();
    let at = MEMORY + PAGE_SIZE;
    guest.lend(page(FREE + PAGE_SIZE, at)).unwrap();
    guest.host.call(call::VM_PV_TIME, &[guest.vm, 0x0b00_0000]).unwrap();
    guest.start();
    guest.host.guest_call(guest.vcpu, call::MEM_SHARE_BACK, &[at, PAGE_SIZE]).unwrap();
    for (at, opened) in [(MEMORY, false), (at, true), (0x0b00_0000, false)] {
        let [status, next, response] =
            guest.asks(rsi::IPA_STATE_SET, &[at, at + PAGE_SIZE, rsi::EMPTY, 0]);
        assert_eq!((status, next, response), (rsi::STATUS_SUCCESS, at, rsi::REJECT));
        let [_, next, response] =
            guest.asks(rsi::IPA_STATE_SET, &[at, at + PAGE_SIZE, rsi::RAM, 0]);
        match opened {
            true => assert_eq!((next, response), (at, rsi::REJECT)),
            false => assert_eq!((next, response), (at + PAGE_SIZE, rsi::ACCEPT)),
        }
    }
    assert_eq!(guest.ripas(0x0b00_0000, 0x0b00_1000), [(0x0b00_1000, rsi::DEV)]);
}

#[test]
fn broken_memory_is_destroyed() {
    let mut guest = Guest::created(16);
    guest.lend(page(FREE, MEMORY)).unwrap();
    guest.start();
    guest.host.take(call::MEM_POISON, &[(FREE, 0)]).unwrap();
    let end = MEMORY + PAGE_SIZE;
    assert_eq!(guest.ripas(MEMORY, end), [(end, rsi::DESTROYED)]);
    for ripas in [rsi::RAM, rsi::EMPTY] {
        let [status, next, response] =
            guest.asks(rsi::IPA_STATE_SET, &[MEMORY, end, ripas, rsi::CHANGE_DESTROYED]);
        assert_eq!((status, next, response), (rsi::STATUS_SUCCESS, end, rsi::ACCEPT));
        assert_eq!(guest.ripas(MEMORY, end), [(end, rsi::DESTROYED)]);
    }
    assert_eq!(guest.touches(MEMORY, false), Touched::Aborts);
    assert_eq!(guest.lend(page(FREE + PAGE_SIZE, MEMORY)), Err(Error::GuestMapped));
}

#[test]
fn the_gic_is_a_device_that_the_host_cannot_play() {
    let mut guest = Guest::created(16);
    let (distributor, redistributors) = (0x0800_0000, 0x080a_0000);
    let gic = [guest.vm, distributor, redistributors, call::SPIS_MIN];
    guest.host.call(call::VM_VGIC, &gic).unwrap();
    guest.start();
    let expected = [
        (distributor, rsi::EMPTY),
        (distributor + 0x1_0000, rsi::DEV),
        (redistributors, rsi::EMPTY),
        (redistributors + 0x2_0000, rsi::DEV),
        (DEVICE, rsi::EMPTY),
    ];
    assert_eq!(guest.ripas(0x0700_0000, DEVICE), expected);
    guest.sets(distributor, distributor + 0x1_0000, rsi::RAM);
    let behind = [distributor + 0x1_0000, redistributors, rsi::RAM, 0];
    assert_eq!(guest.asks(rsi::IPA_STATE_SET, &behind)[2], rsi::REJECT);
    let [_, _, state] = guest.asks(rsi::IPA_STATE_GET, &[distributor, distributor + PAGE_SIZE]);
    assert_eq!(state, rsi::DEV);
}

#[test]
fn everything_comes_home() {
    let mut guest = Guest::created(24);
    let before = Host::new().snapshot().0;
    for n in 0..4 {
        guest.lend(block(FREE + n * BLOCK_SIZE, MEMORY + n * BLOCK_SIZE)).unwrap();
    }
    guest.start();
    guest.sets(MEMORY, MEMORY + SIZE, rsi::RAM);
    guest.sets(MEMORY + PAGE_SIZE, MEMORY + 3 * BLOCK_SIZE, rsi::EMPTY);
    guest.host.reclaim(&[(FREE + BLOCK_SIZE, ORDER_BLOCK)]).unwrap();
    let shared = block(FREE + BLOCK_SIZE, (MEMORY + BLOCK_SIZE) | SHARED);
    guest.host.share(guest.vm, &[shared]).unwrap();
    guest.host.call(call::VM_DESTROY, &[guest.vm]).unwrap();
    guest.host.take(call::MEM_UNSHARE, &[(FREE + BLOCK_SIZE, ORDER_BLOCK)]).unwrap();
    for n in [0, 2, 3] {
        let frames: Vec<_> =
            (0..512).map(|page| (FREE + n * BLOCK_SIZE + page * PAGE_SIZE, 0)).collect();
        guest.host.reclaim(&frames).unwrap();
    }
    let metadata = guest.host.escrow.pages(FrameState::Metadata);
    assert_eq!(metadata, 24);
    let owned = guest.host.escrow.pages(FrameState::Owned);
    assert_eq!(owned + metadata, before[FrameState::Owned as usize]);
}

/// A capability of before does not lead into a protected VM.
#[test]
fn no_guest_gives_it_anything() {
    let mut host = Host::new();
    let (target, _) = host.create(12);
    let (giver, _) = host.create(12);
    let rights = call::RIGHT_SHARE | call::RIGHT_LEND | call::RIGHT_DONATE;
    let grant = [giver, target, rights, 0, 2 * SHARED];
    let [capability, ..] = host.call(call::CAP_GRANT, &grant).unwrap();
    let own = [page(FREE, MEMORY), page(FREE + PAGE_SIZE, MEMORY + PAGE_SIZE)];
    host.give(call::MEM_DONATE, giver, &own).unwrap();
    let [vcpu, ..] = host.call(call::VCPU_CREATE, &[giver, 0]).unwrap();
    host.call(call::VM_START, &[giver]).unwrap();
    host.call(call::VM_PROTECT, &[target]).unwrap();
    let declare = [target, call::CONFIGURE_MEMORY_ADD, MEMORY, SIZE];
    host.call(call::VM_CONFIGURE, &declare).unwrap();
    host.call(call::VCPU_CREATE, &[target, 0]).unwrap();
    for started in [false, true] {
        if started {
            host.call(call::VM_START, &[target]).unwrap();
        }
        for function in [call::MEM_SHARE, call::MEM_LEND, call::MEM_DONATE] {
            for half in [0, SHARED] {
                let entry = page(MEMORY + PAGE_SIZE, MEMORY | half);
                host.write_list(&[entry], |_| FREE);
                let refused = host.guest_call(vcpu, function, &[capability, MEMORY, 1]);
                assert_eq!(refused, Err((Error::Denied, 0, 0)), "{function:#x}");
            }
        }
    }
}

/// Each step may compare the records of a block.
#[test]
fn a_late_vcpu_s_registers_are_no_ram() {
    let mut guest = Guest::created(16);
    // The second redistributor would be in the first of its RAM.
    let gic = [guest.vm, 0x0800_0000, MEMORY - 0x2_0000, call::SPIS_MIN];
    guest.host.call(call::VM_VGIC, &gic).unwrap();
    guest.start();
    let late = guest.host.call(call::VCPU_CREATE, &[guest.vm, 1]);
    assert_eq!(late, Err((Error::GuestMapped, 0, 0)));
}

#[test]
fn what_is_given_up_with_contents_is_zeroed_all_the_same() {
    let mut guest = Guest::created(16);
    guest.lend(page(FREE, MEMORY)).unwrap();
    guest.start();
    guest.host.escrow.machine.scribble(FREE);
    let unlock = [0, MEMORY, PAGE_SIZE, call::MODIFY_UNLOCK];
    guest.host.guest_call(guest.vcpu, call::MODIFY_PAGES, &unlock).unwrap();
    guest.sets(MEMORY, MEMORY + PAGE_SIZE, rsi::EMPTY);
    guest.host.reclaim(&[(FREE, 0)]).unwrap();
    assert_eq!(guest.host.word_of(FREE), 0);
}

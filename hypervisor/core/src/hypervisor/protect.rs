// SPDX-License-Identifier: MIT OR Apache-2.0

//! Protected VMs: what their host may map where, and what their guests say of their own addresses
//! (`docs/protected.md`).

use escrow_abi::{Error, FrameState, HandleKind, Rights, rsi, run};

use super::extents::{Extent, check_all};
use super::memory::Give;
use super::oracle::Asked;
use super::portions::{PORTION_BLOCKS, PORTION_PAGES};
use super::{Hypervisor, Refusal};
use crate::addr::{Ipa, PAGE_SIZE};
use crate::ledger::Record;
use crate::machine::{Machine, MemoryError};
use crate::stage2::{Found, GuestMap};
use crate::vcpu::{Answer, Outcome, Stage2Abort};
use crate::vm::{Life, Run, Slot, Vm};

/// Entries that a call looks at before it returns to its guest, which goes on where it stopped.
const STEPS: usize = 512;

/// Entries of these before it looks for interrupts, where each may be one of many alike.
const STEPS_AT_ONCE: usize = 32;

/// Entries that one declaration of memory looks at, at the most; if it is refused then, as many again.
const DECLARED_LOOKS: usize = 2048;

/// What a guest's call of the Realm Services Interface comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RealmCall {
    /// An answer, in `x0`–`x2`.
    Return([u64; 3]),
    /// The host has to do something first, and the guest makes its call again.
    Ask(Answer),
}

const ERROR_INPUT: RealmCall = RealmCall::Return([rsi::STATUS_ERROR_INPUT, 0, 0]);

/// Why a page's state does not change.
enum Stop {
    /// The VM lacks pages for tables, so many at the most.
    NoMemory(u64),
    /// The guest cannot give it up by this call.
    Rejected,
}

/// What is to be done first.
enum First {
    /// Memory at this address.
    Memory(u64),
    /// Nothing helps: the argument is wrong.
    Refuse,
}

impl<M: Machine> Hypervisor<M> {
    /// [`call::VM_PROTECT`](escrow_abi::call::VM_PROTECT)
    pub(super) fn vm_protect(&self, vm: u64) -> Result<u64, Refusal> {
        let (_, _, slot, mut vm) = self.lock_named(vm, HandleKind::Vm)?;
        let has_gic = slot.controller().exists();
        let Vm { life: Life::Created, map: Some(map), ranges, .. } = &mut *vm else {
            return Err(Error::Denied.into());
        };
        // Declarations of before would be marked nowhere.
        if has_gic || !ranges.is_empty() || map.shared_bit().is_some() {
            return Err(Error::Denied.into());
        }
        let shared = map.protect(&self.machine).ok_or(Error::GuestMapped)?;
        slot.set_protected();
        Ok(shared)
    }

    /// Whether a handle may be a protected VM's, without a lock.
    #[inline]
    pub(super) fn is_protected(&self, vm: u64) -> bool {
        self.slot(vm, HandleKind::Vm).is_ok_and(|(_, _, slot)| slot.is_protected())
    }

    /// Declares memory, or withdraws it: all of it or, if that is refused, nothing.
    ///
    /// What a protected VM has declared before its start is RAM, until its guest says that it is not: a
    /// kernel uses memory before it makes its first call. A realm's memory begins so as well (the RMM
    /// specification's RMI_RTT_INIT_RIPAS).
    pub(super) fn declare(
        &self,
        vm: &mut Vm,
        base: u64,
        end: u64,
        add: bool,
    ) -> Result<(), Refusal> {
        let is_marked = vm.life == Life::Created;
        let shared = vm.map.as_ref().and_then(GuestMap::shared_bit).filter(|_| is_marked);
        let before = shared.map(|_| vm.ranges.clone());
        match add {
            true => vm.ranges.add(base, end)?,
            false => vm.ranges.remove(base, end)?,
        }
        let (Some(shared), Some(before)) = (shared, before) else { return Ok(()) };
        let marked = self.mark_declared(vm, base, end.min(shared), DECLARED_LOOKS);
        let marked = marked.map_err(|(reached, refusal)| {
            // The tables for what was there are still there, so this needs none: before the start, what the
            // guest has been lent does not come back, and takes no table with it.
            vm.ranges = before;
            let _ = self.mark_declared(vm, base, reached, usize::MAX);
            refusal
        });
        self.machine.publish();
        marked
    }

    /// Marks what is absent as RAM where memory is declared, before the start.
    ///
    /// # Errors
    /// How far it came, and why no further. It looks at as many entries as an interrupt can wait for: there may be
    /// many tables in a range.
    fn mark_declared(
        &self,
        vm: &mut Vm,
        base: u64,
        end: u64,
        looks: usize,
    ) -> Result<(), (u64, Refusal)> {
        let Vm { map: Some(map), pool, ranges, .. } = vm else { return Ok(()) };
        let mut at = base;
        for _ in 0..looks {
            if at >= end {
                return Ok(());
            }
            let (found, size) = map.find(&self.machine, Ipa(at));
            let (ram, next) = ranges.look(Ipa(at));
            let to = next.min(end).min(at + size);
            at = match found {
                Found::Absent { .. } => match map.mark(&self.machine, pool, Ipa(at), to, ram) {
                    Ok(size) => at + size,
                    Err(missing) => {
                        let refusal = Refusal { detail: missing, ..Error::NoMemory.into() };
                        return Err((at, refusal));
                    }
                },
                Found::Present | Found::Broken => to,
            };
        }
        if at < end { Err((at, Error::InvalidSize.into())) } else { Ok(()) }
    }

    /// What a VM is given goes into the half of its addresses that is for it, if it has two. Its host may
    /// write at any time to what is shared, so the guest executes nothing of it.
    #[inline(always)]
    pub(super) fn check_halves(
        &self,
        extents: &mut [Extent],
        kind: Give,
        map: &GuestMap,
    ) -> Result<(), Refusal> {
        let Some(shared) = map.shared_bit() else { return Ok(()) };
        check_all(extents.iter_mut(), |extent| {
            let is_shared = extent.guest().0 & shared != 0;
            if is_shared {
                extent.forbid_execution();
            }
            if is_shared == kind.hides() { Err(extent.refuse(Error::Denied, 0)) } else { Ok(()) }
        })
    }

    /// What the guest of a protected VM finds at an address in the protected half, and for how many
    /// bytes at least.
    fn ripas(&self, slot: &Slot, vm: &mut Vm, at: u64, end: u64) -> (u64, u64) {
        if self.is_device(slot, at) {
            return (rsi::DEV, PAGE_SIZE);
        }
        let Some(map) = &vm.map else { return (rsi::EMPTY, PAGE_SIZE) };
        let (found, size) = map.find(&self.machine, Ipa(at));
        let size = size.min(end - at);
        match found {
            Found::Broken => (rsi::DESTROYED, size),
            Found::Absent { ram: true } => (rsi::RAM, size),
            // The GIC's frames may begin in it.
            Found::Absent { ram: false } if slot.controller().exists() => {
                (rsi::EMPTY, size.min(FRAME_SIZE - at % FRAME_SIZE))
            }
            Found::Absent { ram: false } => (rsi::EMPTY, size),
            Found::Present => {
                use FrameState::{Metadata, UnlockedContents, UnlockedZeroed};
                let mut ripas = rsi::RAM;
                let size = self.find(vm, Ipa(at), size, |found, _| {
                    ripas = match found.piece.record.state() {
                        Some(UnlockedZeroed | UnlockedContents) => rsi::EMPTY,
                        // The page with its stolen time.
                        Some(Metadata) => rsi::DEV,
                        _ => rsi::RAM,
                    };
                });
                (ripas, size.unwrap_or(PAGE_SIZE))
            }
        }
    }

    /// Whether a frame of the guest's GIC is at an address.
    fn is_device(&self, slot: &Slot, at: u64) -> bool {
        slot.controller().exists() && self.vgic(slot).pages().find(Ipa(at)).is_some()
    }

    /// Decides about an abort of a protected VM's guest.
    #[cold]
    pub(crate) fn settle_protected(
        &self,
        run: &mut Run<'_>,
        vm: &mut Vm,
        abort: &Stage2Abort,
        shared: u64,
    ) -> Outcome {
        let at = abort.at;
        if at.0 & shared == 0 {
            if !self.may_come(run.slot(), vm, at) {
                return run.unreachable(abort);
            }
            return run.waits_for_ram(abort);
        }
        // Nothing is executed there, so no page that comes would do.
        if abort.is_fetch() {
            return run.unreachable(abort);
        }
        let own = Ipa(at.0 & !shared);
        if vm.ranges.contains(own) {
            return run.settle(abort, true);
        }
        let mut of_device = *abort;
        of_device.at = own;
        run.settle(&of_device, false)
    }

    /// Whether the guest of a protected VM may wait for memory at an address in the protected half at
    /// which it has faulted.
    fn may_come(&self, slot: &Slot, vm: &mut Vm, at: Ipa) -> bool {
        let Some(map) = &vm.map else { return false };
        let (end, at) = (map.end(), at.align_down(PAGE_SIZE).0);
        if at >= end {
            return false;
        }
        let present = map.find(&self.machine, Ipa(at)).0 == Found::Present;
        match self.ripas(slot, vm, at, end).0 {
            rsi::RAM => true,
            // What it has given up and its host has not fetched is still there.
            rsi::EMPTY => present,
            // The page with its stolen time is for reading, whatever its host does.
            _ => false,
        }
    }

    /// A call of the Realm Services Interface, by the guest of a VM that may be no protected one.
    #[cold]
    pub(crate) fn realm_call(&self, run: &Run<'_>, x: &[u64; 8]) -> Option<RealmCall> {
        let half = {
            let vm = run.slot().lock();
            vm.map.as_ref().and_then(GuestMap::shared_bit)?
        };
        let [function, x1, x2, x3, x4, ..] = *x;
        Some(match function as u32 {
            rsi::VERSION => {
                let status = match x1 {
                    rsi::VERSION_1_0 => rsi::STATUS_SUCCESS,
                    _ => rsi::STATUS_ERROR_INPUT,
                };
                RealmCall::Return([status, rsi::VERSION_1_0, rsi::VERSION_1_0])
            }
            rsi::FEATURES => RealmCall::Return([rsi::STATUS_SUCCESS, 0, 0]),
            rsi::REALM_CONFIG => self.realm_config(run, x1, half),
            rsi::IPA_STATE_SET if is_range(x1, x2, half) && x4 & !rsi::CHANGE_DESTROYED == 0 => {
                match x3 {
                    rsi::RAM => self.ipa_state_set(run, x1, x2, true),
                    rsi::EMPTY => self.ipa_state_set(run, x1, x2, false),
                    _ => ERROR_INPUT,
                }
            }
            rsi::IPA_STATE_GET if is_range(x1, x2, half) => self.ipa_state_get(run, x1, x2),
            rsi::IPA_STATE_SET | rsi::IPA_STATE_GET => ERROR_INPUT,
            _ => return None,
        })
    }

    fn ipa_state_get(&self, run: &Run<'_>, base: u64, top: u64) -> RealmCall {
        let slot = run.slot();
        let mut vm = slot.lock();
        let (ripas, size) = self.ripas(slot, &mut vm, base, top);
        let mut at = base + size;
        for step in 1..STEPS {
            // A step may compare the records of a block.
            let is_pause = step % STEPS_AT_ONCE == 0 && self.machine.interrupt_pending();
            if at >= top || is_pause {
                break;
            }
            let (next, size) = self.ripas(slot, &mut vm, at, top);
            if next != ripas {
                break;
            }
            at += size;
        }
        RealmCall::Return([rsi::STATUS_SUCCESS, at.min(top), ripas])
    }

    /// Makes pages RAM, or empty. What the guest gives up, the host may fetch, and finds zeroed.
    /// What it makes RAM again before that is still its own.
    fn ipa_state_set(&self, run: &Run<'_>, base: u64, top: u64, ram: bool) -> RealmCall {
        let slot = run.slot();
        let mut at = base;
        loop {
            let mut vm = slot.lock();
            let (mut pages, mut blocks) = (0, 0);
            for _ in 0..STEPS_AT_ONCE {
                if at >= top || pages >= PORTION_PAGES || blocks >= PORTION_BLOCKS {
                    break;
                }
                match self.set_ripas(run, &mut vm, at, top, ram) {
                    Ok((size, changed)) => {
                        at += size;
                        pages += changed;
                        // A change of a single page may split its block, or merge it.
                        blocks += changed.min(1);
                    }
                    // The guest has come further, and calls for the rest.
                    Err(_) if at > base => {
                        self.machine.publish();
                        return accepted(at);
                    }
                    Err(Stop::NoMemory(missing)) => {
                        return RealmCall::Ask([run::TOP_UP, missing, 0, 0]);
                    }
                    Err(Stop::Rejected) => {
                        return RealmCall::Return([rsi::STATUS_SUCCESS, at, rsi::REJECT]);
                    }
                }
            }
            self.machine.publish();
            drop(vm);
            if at >= top || self.machine.interrupt_pending() {
                return accepted(at);
            }
        }
    }

    /// The same for what is alike at an address. Returns how many bytes that was, and how many pages
    /// have changed in the ledger.
    fn set_ripas(
        &self,
        run: &Run<'_>,
        vm: &mut Vm,
        at: u64,
        top: u64,
        ram: bool,
    ) -> Result<(u64, u64), Stop> {
        if self.is_device(run.slot(), at) {
            return Ok((PAGE_SIZE, 0));
        }
        let Vm { map: Some(map), pool, ranges, .. } = &mut *vm else { return Ok((top - at, 0)) };
        let (found, size) = map.find(&self.machine, Ipa(at));
        let size = size.min(top - at);
        match found {
            Found::Broken => Ok((size, 0)),
            // Marks take tables, and the host pays for them: no more than its declarations need.
            Found::Absent { ram: false } if ram => {
                let (true, end) = ranges.look(Ipa(at)) else { return Err(Stop::Rejected) };
                let end = end.min(at + size);
                let marked = map.mark(&self.machine, pool, Ipa(at), end, true);
                Ok((marked.map_err(Stop::NoMemory)?, 0))
            }
            Found::Absent { .. } => {
                let marked = map.mark(&self.machine, pool, Ipa(at), at + size, ram);
                Ok((marked.map_err(Stop::NoMemory)?, 0))
            }
            Found::Present => {
                let mut changed = 0;
                let mut rejected = false;
                let me = (run.id().into(), if ram { Asked::Relock } else { Asked::Unlock });
                let found = self.find(vm, Ipa(at), size, |found, vm| {
                    let record: Record = found.piece.record;
                    let mine = record.holder() == Some(run.id());
                    let to = match (ram, record.state()) {
                        (false, Some(FrameState::Lent)) if mine => FrameState::UnlockedZeroed,
                        // What it gave up by its other call, with its contents, is zeroed now as well.
                        (false, Some(FrameState::UnlockedContents)) if mine => {
                            FrameState::UnlockedZeroed
                        }
                        (false, Some(FrameState::UnlockedZeroed)) => return,
                        // What it owns, what it has opened, the page with its stolen time.
                        (false, _) => {
                            rejected = true;
                            return;
                        }
                        (true, Some(FrameState::UnlockedZeroed | FrameState::UnlockedContents)) => {
                            FrameState::Lent
                        }
                        // Its owner still sees what the guest has opened by its other call.
                        (true, Some(FrameState::SharedBack)) => {
                            rejected = true;
                            return;
                        }
                        _ => return,
                    };
                    if mine {
                        changed = found.piece.pages as u64;
                        self.set_state(found, vm, to, me);
                    }
                });
                match found {
                    Ok(size) if !rejected => Ok((size, changed)),
                    Ok(_) => Err(Stop::Rejected),
                    // What is away it owns, and keeps.
                    Err(_) if ram => Ok((PAGE_SIZE, 0)),
                    Err(_) => Err(Stop::Rejected),
                }
            }
        }
    }

    fn realm_config(&self, run: &Run<'_>, at: u64, half: u64) -> RealmCall {
        if !is_range(at, at.wrapping_add(PAGE_SIZE), half) {
            return ERROR_INPUT;
        }
        let bits = u64::from(half.trailing_zeros() + 1);
        let mut config = [0; 4];
        config[(rsi::CONFIG_IPA_BITS / 8) as usize] = bits;
        match self.fill_page(run, at, config) {
            Ok(()) => RealmCall::Return([rsi::STATUS_SUCCESS, 0, 0]),
            Err(First::Refuse) => ERROR_INPUT,
            Err(First::Memory(at)) => {
                RealmCall::Ask([run::PAGE_FAULT, at, PAGE_SIZE, run::FAULT_WRITE])
            }
        }
    }

    /// Fills a page of the guest's memory: with words, and zeros behind them.
    fn fill_page(&self, run: &Run<'_>, at: u64, words: [u64; 4]) -> Result<(), First> {
        let mut vm = run.slot().lock();
        if self.is_device(run.slot(), at) {
            return Err(First::Refuse);
        }
        let map = vm.map.as_ref().ok_or(First::Refuse)?;
        match map.find(&self.machine, Ipa(at)).0 {
            Found::Absent { ram: true } => return Err(First::Memory(at)),
            Found::Absent { ram: false } | Found::Broken => return Err(First::Refuse),
            Found::Present => {}
        }
        if !map.lookup(&self.machine, Ipa(at)).entry.rights().is_some_and(Rights::write) {
            return Err(First::Refuse);
        }
        let mut filled = None;
        let found = self.find(&mut vm, Ipa(at), PAGE_SIZE, |found, _| {
            let record = found.piece.record;
            let own = record.is(FrameState::Lent) || record.is(FrameState::Donated);
            if own && record.holder() == Some(run.id()) {
                let page = found.frame;
                filled = Some(self.write_page(page, words));
            }
        });
        match (found, filled) {
            // A page that is broken it finds out when it reads there.
            (Ok(_), Some(_)) => Ok(()),
            _ => Err(First::Refuse),
        }
    }

    fn write_page(&self, page: crate::addr::PhysAddr, words: [u64; 4]) -> Result<(), MemoryError> {
        self.machine.zero(page, PAGE_SIZE)?;
        self.machine.write_entry(page, words)?;
        self.machine.clean_to_poc(page, PAGE_SIZE)
    }
}

/// Frames of a guest's GIC begin at multiples of this.
const FRAME_SIZE: u64 = 0x1_0000;

/// The answer to a call that is done below an address.
const fn accepted(at: u64) -> RealmCall {
    RealmCall::Return([rsi::STATUS_SUCCESS, at, rsi::ACCEPT])
}

/// Whether these are the ends of a range of pages in the protected half.
const fn is_range(base: u64, top: u64, half: u64) -> bool {
    base.is_multiple_of(PAGE_SIZE) && top.is_multiple_of(PAGE_SIZE) && base < top && top <= half
}

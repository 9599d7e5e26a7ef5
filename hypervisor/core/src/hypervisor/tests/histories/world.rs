// SPDX-License-Identifier: MIT OR Apache-2.0

//! The machine twice, and steps done to both.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::mem;

use escrow_abi::{Error, FrameState, Handle, LIST_MAX, MemEntry, PAGE_SIZE, Rights, call};
use escrow_spec::{CapId, Frame, Refused, Spec, Target, VmId};

use super::super::fake::{ESCROW, Host, Interrupts, METADATA, PINNED, WITHHELD};
use super::choose::{first_with_some, spoilt};
use super::compare::{self, View};
use super::steps::{Frames, Step, Taking, To, VMS, Who};
use super::tally::Tally;
use crate::addr::PhysRange;

/// Where guests' addresses end.
pub const GUEST_END: u64 = 1 << 39;
/// Pages that become metadata, and come back.
const METADATA_PAGES: u64 = 64;
/// From the host's list to the list of a step that comes between.
const OTHER_LIST: u64 = 0x8_0000;
/// After so many steps, everything is compared, not only what the
/// specification has changed.
const ALL_EVERY: u32 = 8;

/// A VM on both sides.
#[derive(Clone, Debug)]
pub struct Pair {
    pub id: VmId,
    pub handle: u64,
    pub vcpu: Option<u64>,
    /// The capabilities that the guest was ever given: what it calls them, and
    /// what they name.
    capabilities: Vec<(u64, VmId)>,
}

pub struct World {
    pub host: Host,
    pub spec: Spec,
    /// The VMs that may be used: a dead one's handles stay until the next.
    pub vms: [Option<Pair>; VMS],
    /// The handles of those that others have taken the place of.
    dead: Vec<(u64, VmId)>,
    /// All handles that guests were ever given.
    granted: Vec<u64>,
    pub view: View,
    /// As it was at the last check.
    pub checked: Spec,
    steps: u32,
    ram: PhysRange,
    pub tally: Tally,
    /// The steps that are to come, the last one first.
    coming: Vec<Step>,
}

impl World {
    pub fn new(ram: PhysRange) -> World {
        World::on(Host::on(ram), ram)
    }

    /// The same for a host that has been set up, on a machine with that RAM.
    pub fn on(host: Host, ram: PhysRange) -> World {
        let mut world = World {
            view: View::default(),
            spec: Spec::new(0..0, 0),
            checked: Spec::new(0..0, 0),
            steps: 0,
            vms: Default::default(),
            dead: Vec::new(),
            granted: Vec::new(),
            tally: Tally::default(),
            coming: Vec::new(),
            host,
            ram,
        };
        world.begin();
        world
    }

    /// Begins a history: nothing is away, and memory holds whatever the last one
    /// left in it.
    pub fn begin(&mut self) {
        self.spec = Spec::new(self.ram.base.0..self.ram.end(), GUEST_END);
        self.spec.set_aside(ESCROW.base.0..ESCROW.end(), FrameState::Hypervisor);
        self.spec.set_aside(WITHHELD.base.0..WITHHELD.end(), FrameState::Hypervisor);
        self.spec.set_aside(PINNED.base.0..PINNED.end(), FrameState::Pinned);
        self.vms = Default::default();
        self.dead.clear();
        self.granted.clear();
        // The same in each run of a history.
        *self.host.escrow.machine.interrupts.lock().unwrap() = Interrupts::Random(0x9e37_79b9);
        for at in compare::sampled() {
            self.spec.write(at, self.host.escrow.machine.is_zero(at));
        }
        self.view = View::default();
        self.steps = 0;
        self.check(true);
    }

    /// Does steps one after the other, and some in the middle of others: in every second
    /// history wherever an interrupt can come.
    pub fn play(&mut self, steps: &[Step]) {
        self.coming = steps.iter().rev().cloned().collect();
        if steps.len().is_multiple_of(2) {
            *self.host.escrow.machine.interrupts.lock().unwrap() = Interrupts::Always;
        }
        while let Some(step) = self.coming.pop() {
            self.apply(&step);
        }
    }

    /// Does the step that comes next between two portions of a call of the host's: another CPU
    /// makes it, or the host in its interrupt. Whether there was one.
    pub(super) fn comes_between(&mut self) -> bool {
        let Some(step) = self.coming.pop() else { return false };
        // In its middle nothing else happens: two calls are enough.
        let coming = mem::take(&mut self.coming);
        self.host.list_at += OTHER_LIST;
        self.apply(&step);
        self.host.list_at -= OTHER_LIST;
        self.coming = coming;
        true
    }

    /// Does one step on both sides, and compares.
    pub fn apply(&mut self, step: &Step) {
        match *step {
            Step::Create { pages, start, gic, time } => self.create(pages, start, (gic, time)),
            Step::Vcpu { vm, index } => self.create_vcpu(vm, index),
            Step::Vgic { to, frames } => self.vgic(to, frames),
            Step::PvTime { to, at } => self.pv_time(to, at),
            Step::Input { to, intid, input } => self.spi_input(to, intid, input),
            Step::Done { to } => self.spi_done(to),
            Step::TopUp { vm, pages } => self.top_up(vm, pages),
            Step::Start { vm } => self.start(vm),
            Step::Destroy { vm } => self.destroy(vm),
            Step::Bury { vm } => self.bury(vm),
            Step::Grant { to, object, rights, window } => self.grant(to, object, rights, window),
            Step::Revoke { from, which } => self.revoke(from, which),
            Step::Give { who, gift, to, ref parts, fault } => {
                let entries = |who| {
                    parts.iter().flat_map(|part| self.entries(who, to, part)).collect::<Vec<_>>()
                };
                let Some((who, entries)) = first_with_some(who, entries) else { return };
                self.give(who, gift, to, &spoilt(entries, fault));
            }
            Step::Take { who, taking, ref parts, fault } => {
                let entries = |who| {
                    let parts = parts.iter();
                    parts.flat_map(|&part| self.takeable(who, taking, part)).collect::<Vec<_>>()
                };
                let who = self.taker(taking, parts).unwrap_or(who);
                let Some((who, entries)) = first_with_some(who, entries) else { return };
                self.take(who, taking, &spoilt(entries, fault));
            }
            Step::BadList { who, gift, to, bad } => self.bad_list(who, gift, to, bad),
            Step::Modify { vm, at, flags } => {
                let Some((pair, at, size)) = self.range(vm, at, is_lent) else { return };
                let args = [0, at, size, flags];
                let real = self.host.guest_call(vcpu(&pair), call::MODIFY_PAGES, &args);
                let spec = self.spec.modify(pair.id, at, size, flags);
                self.agree("modify", Some(&pair), &real, &spec.map_err(bare));
            }
            Step::ShareBack { vm, at } => {
                let Some((pair, at, size)) = self.range(vm, at, is_lent) else { return };
                let real = self.host.guest_call(vcpu(&pair), call::MEM_SHARE_BACK, &[at, size]);
                let spec = self.spec.share_back(pair.id, at, size);
                self.agree("share back", Some(&pair), &real, &spec.map_err(bare));
            }
            Step::AskBack { vm, at, reaction } => self.ask_back(vm, at, reaction),
            Step::Touch { vm, at } => self.touch(vm, at),
            Step::Write { who, at } => self.write(who, at),
        }
        self.steps += 1;
        self.check(self.steps.is_multiple_of(ALL_EVERY));
    }

    /// Ends all VMs and takes everything home.
    pub fn end(&mut self) {
        self.check(true);
        for vm in 0..VMS {
            self.destroy(vm);
        }
        self.take_home(is_away);
        assert!(!self.spec.frames().any(|(_, frame)| is_away(frame)), "all is home");
        assert_eq!(self.spec.existing(), 0);
        self.check(true);
    }

    fn bury(&mut self, vm: usize) {
        let Some(id) = self.vms[vm].as_ref().map(|pair| pair.id) else { return };
        self.destroy(vm);
        self.take_home(|frame| {
            let lent_on = frame.owner == id && frame.borrower.is_some();
            is_away(frame) && !lent_on && (frame.owner == id || frame.borrower == Some(id))
        });
    }

    /// The host takes frames home that are left behind by the dead.
    fn take_home(&mut self, which: impl Fn(Frame) -> bool) {
        let mut by_vms = BTreeMap::<_, Vec<_>>::new();
        for (at, frame) in self.spec.frames().filter(|(_, frame)| which(*frame)) {
            by_vms.entry((frame.owner, frame.borrower)).or_default().push(at);
        }
        for pages in by_vms.values() {
            for pages in pages.chunks(LIST_MAX) {
                let bare = |&at| MemEntry::new(at, 0, 0, Rights::NONE);
                self.take(Who::Host, Taking::Reclaim, &pages.iter().map(bare).collect::<Vec<_>>());
            }
        }
    }

    /// Whether memory is lost for good.
    pub fn has_broken_memory(&self) -> bool {
        self.spec.counts()[FrameState::Poisoned as usize] != 0
    }

    // VMs.

    fn create(&mut self, pages: u64, start: bool, (gic, time): (Option<Frames>, Option<u64>)) {
        let usable = |pair: &Option<Pair>| match pair {
            Some(pair) => !self.spec.guest(pair.id).is_alive(),
            None => true,
        };
        let Some(free) = self.vms.iter().position(usable) else { return };
        let Some(list) = self.metadata(pages) else { return };
        let [at, count] = self.host.list(&list);
        let real = self.host.call(call::VM_CREATE, &[at, count]);
        let spec = self.spec.create(&list);
        self.agree("create", None, &real, &spec);
        let (Ok([handle, ..]), Ok(id)) = (real, spec) else { return };
        let pair = Pair { id, handle, vcpu: None, capabilities: Vec::new() };
        let last = self.vms[free].replace(pair);
        self.dead.extend(last.map(|pair| (pair.handle, pair.id)));
        // Before the vCPU, or with it.
        let first = gic.is_some_and(|gic| gic.spis.is_multiple_of(64));
        if let Some(gic) = gic.filter(|_| first) {
            self.vgic(To::Vm(free), gic);
        }
        self.create_vcpu(free, 0);
        if let Some(gic) = gic.filter(|_| !first) {
            self.vgic(To::Vm(free), gic);
        }
        if let Some(at) = time {
            self.pv_time(To::Vm(free), at);
        }
        if start {
            self.start(free);
        }
    }

    fn top_up(&mut self, vm: usize, pages: u64) {
        let Some(pair) = self.vms[vm].clone() else { return };
        let Some(list) = self.metadata(pages) else { return };
        let real = self.host.give(call::VM_TOP_UP, pair.handle, &list);
        let spec = self.spec.top_up(Target::Vm(pair.id), &list);
        self.agree("top up", None, &real, &spec);
    }

    fn start(&mut self, vm: usize) {
        let Some(pair) = self.vms[vm].clone() else { return };
        let real = self.host.call(call::VM_START, &[pair.handle]);
        let spec = self.spec.start(pair.id);
        self.agree("start", None, &real, &spec);
    }

    fn destroy(&mut self, vm: usize) {
        let Some(pair) = self.vms[vm].clone() else { return };
        let real = self.host.call(call::VM_DESTROY, &[pair.handle]);
        let spec = self.spec.destroy(pair.id);
        self.agree("destroy", None, &real, &spec);
    }

    /// Pages for the host to donate that it has at the moment, with something in
    /// them.
    fn metadata(&mut self, pages: u64) -> Option<Vec<MemEntry>> {
        let all = (0..METADATA_PAGES).map(|n| METADATA + n * PAGE_SIZE);
        let mine = all.filter(|&at| self.spec.frame(at) == Frame::HOME);
        let list: Vec<_> = mine.take(pages as usize).collect();
        if list.len() < pages as usize {
            return None;
        }
        for &at in &list {
            self.host.escrow.machine.scribble(at);
            self.spec.write(at, false);
        }
        Some(list.into_iter().map(|at| MemEntry::new(at, 0, 0, Rights::NONE)).collect())
    }

    fn grant(&mut self, to: usize, object: To, rights: u64, (base, size): (u64, u64)) {
        let Some(holder) = self.vms[to].clone() else { return };
        let (object, target) = self.host_target(object);
        // Of two VMs that have lived in one slot, one is dead.
        let target = match target {
            Target::Vm(_) if slot(object) == slot(holder.handle) => Target::Vm(holder.id),
            target => target,
        };
        let args = [holder.handle, object, rights, base, size];
        let real = self.host.call(call::CAP_GRANT, &args);
        let spec = self.spec.grant(Target::Vm(holder.id), target, rights, base, size);
        self.agree("grant", None, &real, &spec);
        let (Ok([handle, ..]), Target::Vm(object)) = (real, target) else { return };
        if let Some(pair) = &mut self.vms[to] {
            let known = pair.capabilities.iter().any(|&(known, _)| known == handle);
            assert!(!known, "{handle:#x} names something else already");
            pair.capabilities.push((handle, object));
            self.granted.push(handle);
        }
    }

    fn revoke(&mut self, from: usize, which: To) {
        let Some(holder) = self.vms[from].clone() else { return };
        let (handle, target) = self.guest_target(which, &holder);
        let which = match target {
            Target::Capability(which) => Some(which),
            Target::Null => None,
            _ => return,
        };
        let real = self.host.call(call::CAP_REVOKE, &[holder.handle, handle]);
        let spec = self.spec.revoke(Target::Vm(holder.id), which);
        self.agree("revoke", None, &real, &spec);
    }

    /// What the host calls a VM.
    pub(super) fn host_target(&self, to: To) -> (u64, Target) {
        let vcpu = self.vms.iter().flatten().find_map(|pair| pair.vcpu);
        match (to, vcpu) {
            (To::Vm(vm), _) => {
                let there: Vec<_> = self.vms.iter().flatten().collect();
                let nth = vm.checked_rem(there.len()).map(|n| there[n]);
                nth.map_or((0, Target::Null), |pair| (pair.handle, Target::Vm(pair.id)))
            }
            (To::WrongType, Some(vcpu)) => (vcpu, Target::WrongType),
            // Not the host's to use.
            (To::Host, _) => (Handle::HOST, Target::Null),
            (To::Nth(n), _) => match self.dead.iter().nth_back(n) {
                Some(&(handle, id)) => (handle, Target::Vm(id)),
                None => (0, Target::Null),
            },
            (To::Anybodys(_) | To::Null | To::WrongType, _) => (0, Target::Null),
        }
    }

    /// What a guest calls a VM.
    pub(super) fn guest_target(&self, to: To, holder: &Pair) -> (u64, Target) {
        let nth = |n: Option<usize>| {
            let held = n.and_then(|n| Some((n, holder.capabilities.get(n)?.0)));
            held.map_or((0, Target::Null), |(n, handle)| (handle, Target::Capability(CapId(n))))
        };
        match to {
            To::Vm(vm) => {
                let held = holder.capabilities.iter().enumerate();
                let live = held.filter(|(_, (_, object))| self.spec.is_alive(*object));
                let live: Vec<_> = live.map(|(n, _)| n).collect();
                nth(vm.checked_rem(live.len()).map(|n| live[n]))
            }
            To::Nth(n) => nth(Some(n)),
            To::Anybodys(n) => match self.granted.get(n) {
                None => (0, Target::Null),
                Some(&handle) => {
                    let own = holder.capabilities.iter().position(|held| held.0 == handle);
                    // Numbers that are not its own name nothing.
                    (handle, Target::Capability(CapId(own.unwrap_or(usize::MAX))))
                }
            },
            To::Host => (Handle::HOST, Target::Host),
            To::Null => (0, Target::Null),
            To::WrongType => (A_VCPU, Target::WrongType),
        }
    }

    /// Both give the same answer, but for which of two overlapping entries is
    /// named, and what goes with a call that nobody knows.
    pub(super) fn agree<A: Debug, B>(
        &mut self,
        name: &'static str,
        by: Option<&Pair>,
        real: &Result<A, Refused>,
        spec: &Result<B, Refused>,
    ) {
        let essence = |refused: &Refused| match refused.0 {
            error @ (Error::Overlap | Error::Unimplemented) => bare(error),
            _ => *refused,
        };
        let expected = spec.as_ref().err().map(essence);
        assert_eq!(real.as_ref().err().map(essence), expected, "{name} by {by:x?}: {real:x?}");
        self.tally.call(name, by.is_some(), expected.map(|refused| refused.0));
    }
}

/// A handle of a vCPU's kind.
const A_VCPU: u64 = 1 << 24 | 2 << 20;

fn slot(handle: u64) -> Option<u16> {
    Handle::from_register(handle).map(|handle| handle.slot)
}

pub(super) fn vcpu(pair: &Pair) -> u64 {
    pair.vcpu.expect("a VM that runs has a vCPU")
}

pub(super) fn bare(error: Error) -> Refused {
    (error, 0, 0)
}

fn is_lent(frame: Frame) -> bool {
    frame.state == FrameState::Lent
}

/// Whether a frame comes home when all VMs are dead.
fn is_away(frame: Frame) -> bool {
    let stays = [FrameState::Hypervisor, FrameState::Pinned, FrameState::Poisoned];
    frame != Frame::HOME && !stays.contains(&frame.state)
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! The machine twice, and steps done to both.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;

use escrow_abi::{
    BLOCK_SIZE, Error, FrameState, Handle, LIST_MAX, MemEntry, ORDER_BLOCK, PAGE_SIZE, Rights,
    call, run,
};
use escrow_spec::{
    Asked, CapId, Entry, Event, Frame, Life, Refused, Spec, Target, Transition, VmId, step,
};

use super::super::fake::{Called, ESCROW, FREE, Host, LIST, METADATA, PINNED};
use super::compare::{self, View};
use super::steps::{
    BadList, Fault, Gift, Pages, Part, Place, Reaction, Step, Taking, To, VMS, Who, is_of_interest,
};
use crate::addr::{Ipa, PhysRange};
use crate::vcpu::syndrome::{Ec, IL, abort};
use crate::vcpu::{GuestExit, Next, Trap};

/// Where guests' addresses end.
pub const GUEST_END: u64 = 1 << 39;
/// Pages that become metadata, and come back.
const METADATA_PAGES: u64 = 64;
/// After so many steps, everything is compared, not only what the
/// specification has changed.
const ALL_EVERY: u32 = 4;

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

/// How often each call, by the host or by a guest, ended how.
pub type Outcomes = HashMap<(&'static str, bool, Option<Error>), u64>;

pub struct World {
    pub host: Host,
    pub spec: Spec,
    /// The VMs that may be used: a dead one's handles stay until the next.
    pub vms: [Option<Pair>; VMS],
    pub view: View,
    /// As it was at the last check.
    pub checked: Spec,
    steps: u32,
    ram: PhysRange,
    pub outcomes: Outcomes,
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
            outcomes: Outcomes::new(),
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
        self.spec.set_aside(PINNED.base.0..PINNED.end(), FrameState::Pinned);
        self.vms = Default::default();
        for at in compare::sampled() {
            self.spec.write(at, self.host.escrow.machine.is_zero(at));
        }
        self.view = View::default();
        self.steps = 0;
        self.check(true);
    }

    /// Does one step on both sides, and compares.
    pub fn apply(&mut self, step: &Step) {
        match *step {
            Step::Create { pages, start } => self.create(pages, start),
            Step::TopUp { vm, pages } => self.top_up(vm, pages),
            Step::Start { vm } => self.start(vm),
            Step::Destroy { vm } => self.destroy(vm),
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
        let mut by_vms = BTreeMap::<_, Vec<_>>::new();
        for (at, frame) in self.spec.frames().filter(|(_, frame)| is_away(*frame)) {
            by_vms.entry((frame.owner, frame.borrower)).or_default().push(at);
        }
        for pages in by_vms.values() {
            for pages in pages.chunks(512) {
                let bare = |&at| MemEntry::new(at, 0, 0, Rights::NONE);
                self.take(Who::Host, Taking::Reclaim, &pages.iter().map(bare).collect::<Vec<_>>());
            }
        }
        assert!(!self.spec.frames().any(|(_, frame)| is_away(frame)), "all is home");
        assert_eq!(self.spec.existing(), 0);
        self.check(true);
    }

    /// Whether memory is lost for good.
    pub fn has_broken_memory(&self) -> bool {
        self.spec.counts()[FrameState::Poisoned as usize] != 0
    }

    // VMs.

    fn create(&mut self, pages: u64, start: bool) {
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
        let real = self.host.call(call::VCPU_CREATE, &[handle, 0]);
        let spec = self.spec.create_vcpu(id);
        self.agree("create vCPU", None, &real, &spec);
        let vcpu = real.ok().map(|x| x[0]);
        self.vms[free] = Some(Pair { id, handle, vcpu, capabilities: Vec::new() });
        if start {
            self.start(free);
        }
    }

    fn top_up(&mut self, vm: usize, pages: u64) {
        let (Some(pair), Some(list)) = (self.vms[vm].clone(), self.metadata(pages)) else { return };
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

    /// Pages for the host to donate that it has at the moment.
    fn metadata(&self, pages: u64) -> Option<Vec<MemEntry>> {
        let all = (0..METADATA_PAGES).map(|n| METADATA + n * PAGE_SIZE);
        let mine = all.filter(|&at| self.spec.frame(at) == Frame::HOME);
        let list: Vec<_> = mine.take(pages as usize).collect();
        let entry = |&at: &u64| MemEntry::new(at, 0, 0, Rights::NONE);
        (list.len() == pages as usize).then(|| list.iter().map(entry).collect())
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
    fn host_target(&self, to: To) -> (u64, Target) {
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
            (To::Nth(_) | To::Null | To::WrongType, _) => (0, Target::Null),
        }
    }

    /// What a guest calls a VM.
    fn guest_target(&self, to: To, holder: &Pair) -> (u64, Target) {
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
            To::Host => (Handle::HOST, Target::Host),
            To::Null => (0, Target::Null),
            To::WrongType => (A_VCPU, Target::WrongType),
        }
    }

    // Calls that take a list.

    fn give(&mut self, who: Who, gift: Gift, to: To, entries: &[MemEntry]) {
        let Some(by) = self.caller(who) else { return };
        let (handle, target) = match &by {
            None => self.host_target(to),
            Some(pair) => self.guest_target(to, pair),
        };
        let (name, function) = match gift {
            Gift::Share => ("share", call::MEM_SHARE),
            Gift::Lend => ("lend", call::MEM_LEND),
            Gift::Donate => ("donate", call::MEM_DONATE),
        };
        let (real, list) = self.list_call(by.as_ref(), function, Some(handle), entries);
        let id = by.as_ref().map_or(VmId::HOST, |pair| pair.id);
        let spec = list.and_then(|()| match gift {
            Gift::Share => self.spec.share(id, target, entries),
            Gift::Lend => self.spec.lend(id, target, entries),
            Gift::Donate => self.spec.donate(id, target, entries),
        });
        self.agree(name, by.as_ref(), &real, &spec);
    }

    fn take(&mut self, who: Who, taking: Taking, entries: &[MemEntry]) {
        let Some(by) = self.caller(who) else { return };
        let (name, function) = match taking {
            Taking::Unshare => ("unshare", call::MEM_UNSHARE),
            Taking::Reclaim => ("reclaim", call::MEM_RECLAIM),
            Taking::TakeBack => ("take back", call::MEM_TAKE_BACK),
            Taking::Poison => ("poison", call::MEM_POISON),
        };
        let (real, list) = self.list_call(by.as_ref(), function, None, entries);
        let id = by.as_ref().map_or(VmId::HOST, |pair| pair.id);
        let spec = match taking {
            Taking::Poison if by.is_some() => Err(bare(Error::Unimplemented)),
            Taking::Poison => self.spec.poison(entries),
            taking => list.and_then(|()| match taking {
                Taking::Unshare => self.spec.unshare(id, entries),
                Taking::Reclaim => self.spec.reclaim(id, entries),
                _ => self.spec.take_back(id, entries),
            }),
        };
        self.agree(name, by.as_ref(), &real, &spec);
    }

    /// Makes a call with a list in its caller's memory. If that has no room
    /// for it, the second answer is the one that is expected.
    fn list_call(
        &mut self,
        by: Option<&Pair>,
        function: u32,
        handle: Option<u64>,
        entries: &[MemEntry],
    ) -> (Result<(), Refused>, Result<(), Refused>) {
        let args = |list: u64| -> Vec<u64> {
            handle.into_iter().chain([list, entries.len() as u64]).collect()
        };
        let Some(pair) = by else {
            let [list, _] = self.host.list(entries);
            return (self.host.call(function, &args(list)).map(drop), Ok(()));
        };
        let room = self.room_for_list(pair, entries.len());
        let (list, there) = match &room {
            Some((at, _)) => (*at, Ok(())),
            None if entries.is_empty() => (GUEST_END / 2, Ok(())),
            None => (GUEST_END / 2, Err(bare(Error::InvalidAddress))),
        };
        if let Some((_, frames)) = room {
            for &frame in &frames {
                self.host.escrow.machine.scribble(frame);
                self.spec.write(frame, false);
            }
            self.host.write_list(entries, |page| frames[page as usize]);
        }
        (self.host.guest_call(vcpu(pair), function, &args(list)).map(drop), there)
    }

    /// Pages of a guest's that a list goes into, side by side in its space, and
    /// the frames that they are.
    fn room_for_list(&self, pair: &Pair, entries: usize) -> Option<(u64, Vec<u64>)> {
        let pages = (entries * 32).div_ceil(PAGE_SIZE as usize);
        let mut run = (0, Vec::new());
        for (at, entry) in self.spec.guest(pair.id).entries() {
            let Entry::Valid(frame, _) = entry else { continue };
            if run.0 + run.1.len() as u64 * PAGE_SIZE != at {
                run = (at, Vec::new());
            }
            run.1.push(frame);
            if run.1.len() == pages {
                return Some(run);
            }
        }
        None
    }

    fn bad_list(&mut self, who: Who, gift: Gift, to: To, bad: BadList) {
        let Some(by) = self.caller(who) else { return };
        let function = match gift {
            Gift::Share => call::MEM_SHARE,
            Gift::Lend => call::MEM_LEND,
            Gift::Donate => call::MEM_DONATE,
        };
        let handle = match &by {
            None => self.host_target(to).0,
            Some(pair) => self.guest_target(to, pair).0,
        };
        let host = by.is_none();
        let list = if host { LIST } else { 0 };
        let (args, error) = match bad {
            BadList::Reserved => (vec![handle, list, 1, 1], Error::InvalidArgument),
            BadList::Empty => (vec![handle, list, 0], Error::InvalidSize),
            BadList::TooLong => (vec![handle, list, 513], Error::InvalidSize),
            BadList::Misaligned => (vec![handle, list + 8, 1], Error::Misaligned),
            BadList::Overflow => (vec![handle, !0xfff, 512], Error::AddressOverflow),
            BadList::NotThere if host => (vec![handle, ESCROW.base.0, 1], Error::NotOwner),
            BadList::NotThere => (vec![handle, GUEST_END, 1], Error::InvalidAddress),
        };
        let real = match &by {
            None => self.host.call(function, &args).map(drop),
            Some(pair) => self.host.guest_call(vcpu(pair), function, &args).map(drop),
        };
        self.agree("bad list", by.as_ref(), &real, &Err::<(), _>(bare(error)));
    }

    // A guest's calls about its own addresses.

    fn ask_back(&mut self, vm: usize, at: (Pages, u64), reaction: Reaction) {
        let opened = |frame: Frame| frame.state == FrameState::SharedBack;
        let Some((pair, at, size)) = self.range(vm, at, opened) else { return };
        let mut real = self.host.begin_guest_call(vcpu(&pair), call::MEM_ASK_BACK, &[at, size]);
        let mut spec = self.spec.ask_back(pair.id, at, size);
        if spec == Ok(Asked::HostIsAsked) {
            assert_eq!(real, Called::Left([run::TAKE_BACK, at, size, 0]));
            self.react(&pair, at, size, reaction);
            real = self.host.resume_guest_call(vcpu(&pair));
            spec = match self.spec.ask_back(pair.id, at, size) {
                Ok(Asked::HostIsAsked) => Err(Error::Busy),
                other => other,
            };
        }
        let Called::Returned(real) = real else { panic!("{real:x?}, not {spec:?}") };
        self.agree("ask back", Some(&pair), &real, &spec.map_err(bare));
    }

    /// The host lets go of pages that it was asked about, or does not.
    fn react(&mut self, pair: &Pair, at: u64, size: u64, reaction: Reaction) {
        let pages = (at..at + size).step_by(PAGE_SIZE as usize);
        let frames = pages.filter_map(|at| self.spec.guest(pair.id).entry(at).frame());
        let opened = frames.filter(|&at| {
            let frame = self.spec.frame(at);
            frame.state == FrameState::SharedBack && frame.owner == VmId::HOST
        });
        let most = match reaction {
            Reaction::Nothing => return,
            Reaction::TakeFirst => 1,
            Reaction::TakeAll => 512,
        };
        let list: Vec<_> =
            opened.take(most).map(|at| MemEntry::new(at, 0, 0, Rights::NONE)).collect();
        self.take(Who::Host, Taking::TakeBack, &list);
    }

    /// A guest touches what it has lent.
    fn touch(&mut self, vm: usize, at: Pages) {
        let Some(pair) = self.running(vm) else { return };
        let own = |frame: Frame| frame.owner == pair.id;
        let Some(at) = self.first_of(Who::Guest(vm), at, own) else { return };
        if !matches!(self.spec.guest(pair.id).entry(at), Entry::Away(..) | Entry::Poisoned) {
            return;
        }
        let esr = Ec::DATA_ABORT_LOWER.bits() | IL | abort::ISV | 2 << 22 | 3 << 16 | 0x7;
        let trap = Trap { esr, far: at, ipa: Some(Ipa(at)) };
        let real = self.host.guest_exit(vcpu(&pair), GuestExit::Abort(trap));
        let reached = self.spec.touch(pair.id, at);
        match real {
            Next::Enter => assert!(reached, "{at:#x} is reached"),
            Next::Inject(_) => assert!(!reached, "{at:#x} is not reached"),
            other => panic!("{other:?}"),
        }
    }

    /// Somebody writes to memory that it reaches.
    fn write(&mut self, who: Who, at: Pages) {
        let by = match who {
            Who::Host => VmId::HOST,
            Who::Guest(vm) => match self.running(vm) {
                Some(pair) => pair.id,
                None => return,
            },
        };
        let Some(at) = self.first_of(who, at, |frame| frame.is_reached_by(by)) else { return };
        let frame = match who {
            Who::Host => at,
            Who::Guest(_) => match self.spec.guest(by).entry(at) {
                Entry::Valid(frame, rights) if rights.write() => frame,
                _ => return,
            },
        };
        if self.spec.frame(frame).is_reached_by(by) {
            self.host.escrow.machine.scribble(frame);
            self.spec.write(frame, false);
        }
    }

    // Choosing.

    /// A guest that can make a call, `None` inside for the host.
    fn caller(&self, who: Who) -> Option<Option<Pair>> {
        match who {
            Who::Host => Some(None),
            Who::Guest(vm) => self.running(vm).map(Some),
        }
    }

    fn running(&self, vm: usize) -> Option<Pair> {
        let pair = self.vms[vm].as_ref()?;
        (self.spec.guest(pair.id).life == Life::Started).then(|| pair.clone())
    }

    /// The addresses at which a caller has frames of a kind: pages that tests
    /// are about, or whole blocks.
    fn all_of(&self, who: Who, blocks: bool, kind: impl Fn(Frame) -> bool) -> Vec<u64> {
        let mut found = Vec::new();
        // A block is one if all of its pages are, and they come in order.
        let mut run = 0;
        let mut look = |at: u64, frame: Frame| {
            if blocks {
                run = if at.is_multiple_of(BLOCK_SIZE) { 0 } else { run };
                run += u64::from(kind(frame));
                if run == BLOCK_SIZE / PAGE_SIZE {
                    found.push(at & !(BLOCK_SIZE - 1));
                    run = 0;
                }
            } else if (is_of_interest(at) || frame.state == FrameState::Metadata) && kind(frame) {
                found.push(at);
            }
        };
        match who {
            // Not the pages that hold the host's lists.
            Who::Host => {
                self.spec.frames().filter(|(at, _)| *at >= METADATA).for_each(|(at, f)| look(at, f))
            }
            Who::Guest(vm) => {
                let Some(pair) = &self.vms[vm] else { return found };
                for (at, entry) in self.spec.guest(pair.id).entries() {
                    if let Some(frame) = entry.frame() {
                        look(at, self.spec.frame(frame));
                    }
                }
            }
        }
        found
    }

    /// The pages and blocks, by the caller's addresses, that `pages` means for a
    /// call that is about frames of a kind.
    fn choose(&self, who: Who, pages: Pages, kind: impl Fn(Frame) -> bool) -> Vec<(u64, u32)> {
        let base = if who == Who::Host { FREE } else { 0 };
        match pages {
            Pages::Run(at, n) => (0..n).map(|n| (base + at + n * PAGE_SIZE, 0)).collect(),
            Pages::Block(at) => vec![(base + at, ORDER_BLOCK)],
            Pages::Known(n, pages) => {
                let blocks = pages == 0;
                let (order, pages) = if blocks { (ORDER_BLOCK, 1) } else { (0, pages) };
                // What guests have of each other is rare, and found every other time.
                let between = |frame: Frame| {
                    frame.owner != VmId::HOST && frame.borrower.is_some() && kind(frame)
                };
                let mut known = Vec::new();
                if n.is_multiple_of(2) {
                    known = self.all_of(who, blocks, between);
                }
                if known.is_empty() {
                    known = self.all_of(who, blocks, &kind);
                }
                let Some(n) = n.checked_rem(known.len()) else { return Vec::new() };
                (0..pages).map(|page| (known[n] + page * PAGE_SIZE, order)).collect()
            }
        }
    }

    fn first_of(&self, who: Who, pages: Pages, kind: impl Fn(Frame) -> bool) -> Option<u64> {
        self.choose(who, pages, kind).first().map(|&(at, _)| at)
    }

    fn id_of(&self, who: Who) -> Option<VmId> {
        match who {
            Who::Host => Some(VmId::HOST),
            Who::Guest(vm) => self.running(vm).map(|pair| pair.id),
        }
    }

    /// Entries that give pages away.
    fn entries(&self, who: Who, to: To, part: &Part) -> Vec<MemEntry> {
        let Some(id) = self.id_of(who) else { return Vec::new() };
        let own = |frame: Frame| {
            frame.owner == id && matches!(frame.state, FrameState::Owned | FrameState::Donated)
        };
        let pages = self.choose(who, part.pages, own);
        let Some(&(first, _)) = pages.first() else { return Vec::new() };
        let returned = who != Who::Host && matches!(to, To::Host);
        let entry = |&(at, order): &(u64, u32)| {
            let guest = match part.place {
                _ if returned => return MemEntry::new(at, order, 0, Rights::NONE),
                Place::Same if who == Who::Host => at.wrapping_sub(FREE) % (1 << 32),
                Place::Same => at,
                Place::At(place) => place + (at - first),
            };
            MemEntry::new(at, order, guest, part.rights)
        };
        pages.iter().map(entry).collect()
    }

    /// Pages that a call may take.
    fn takeable(&self, who: Who, taking: Taking, pages: Pages) -> Vec<MemEntry> {
        let Some(by) = self.id_of(who) else { return Vec::new() };
        let transition = match taking {
            Taking::Unshare => Transition::Unshare(0),
            Taking::Reclaim => Transition::Reclaim(0),
            Taking::TakeBack => Transition::TakeBack,
            Taking::Poison => Transition::Poison,
        };
        let fits = |frame| {
            let event = Event { by, transition, living: self.spec.living(frame) };
            frame != Frame::HOME && step(frame, event).is_ok()
        };
        let pages = self.choose(who, pages, fits).into_iter();
        pages.map(|(at, order)| MemEntry::new(at, order, 0, Rights::NONE)).collect()
    }

    /// A running guest and a range of its addresses, mostly one that it borrows
    /// in a state.
    fn range(
        &self,
        vm: usize,
        (pages, size): (Pages, u64),
        kind: impl Fn(Frame) -> bool,
    ) -> Option<(Pair, u64, u64)> {
        let found = (vm..VMS).chain(0..vm).find_map(|vm| {
            let pair = self.running(vm)?;
            let borrows = |frame: Frame| frame.borrower == Some(pair.id) && kind(frame);
            let at = self.first_of(Who::Guest(vm), pages, borrows)?;
            Some((pair, at))
        });
        found.map(|(pair, at)| (pair, at, size * PAGE_SIZE))
    }

    /// Both give the same answer, but for which of two overlapping entries is
    /// named, and what goes with a call that nobody knows.
    fn agree<A: Debug, B>(
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
        *self.outcomes.entry((name, by.is_some(), expected.map(|e| e.0))).or_default() += 1;
    }
}

/// A handle of a vCPU's kind.
const A_VCPU: u64 = 1 << 24 | 2 << 20;

fn slot(handle: u64) -> Option<u16> {
    Handle::from_register(handle).map(|handle| handle.slot)
}

fn vcpu(pair: &Pair) -> u64 {
    pair.vcpu.expect("a VM that runs has a vCPU")
}

fn bare(error: Error) -> Refused {
    (error, 0, 0)
}

fn spoilt(mut entries: Vec<MemEntry>, fault: Option<(usize, Fault)>) -> Vec<MemEntry> {
    entries.truncate(LIST_MAX);
    if let (Some((at, fault)), false) = (fault, entries.is_empty()) {
        let at = at % entries.len();
        fault.spoil(&mut entries[at]);
    }
    entries
}

/// The caller, or the one that stands in for it because it has nothing that the
/// call can be about.
fn first_with_some(
    who: Who,
    entries: impl Fn(Who) -> Vec<MemEntry>,
) -> Option<(Who, Vec<MemEntry>)> {
    let others = (0..VMS).map(Who::Guest).chain([Who::Host]);
    let mut found = [who].into_iter().chain(others).map(|who| (who, entries(who)));
    found.find(|(_, entries)| !entries.is_empty())
}

fn is_lent(frame: Frame) -> bool {
    frame.state == FrameState::Lent
}

/// Whether a frame comes home when all VMs are dead.
fn is_away(frame: Frame) -> bool {
    let stays = [FrameState::Hypervisor, FrameState::Pinned, FrameState::Poisoned];
    frame != Frame::HOME && !stays.contains(&frame.state)
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! A guest's interrupt controller beside the specification of one: every step is made on
//! both, and what the guest could see is compared.

use std::sync::atomic::{AtomicBool, Ordering};

use super::sim::{self, SPURIOUS, Simulated};
use super::spec::{self, Field, Gic, IRM};
use crate::vgic::{
    Access, Bank, Cpu, Effects, Frame, Input, Interface, Intid, Pages, SgiRegister, Spi, Vgic,
};

pub struct FakePages {
    pub banks: [Bank; 2],
    pub cpus: Vec<Cpu>,
    pub intids: u32,
    pub interrupted: AtomicBool,
}

impl FakePages {
    pub fn new(cpus: usize, intids: u32) -> FakePages {
        FakePages {
            banks: [Bank::new(), Bank::new()],
            cpus: (0..cpus).map(|_| Cpu::new()).collect(),
            intids,
            interrupted: AtomicBool::new(false),
        }
    }
}

impl Pages for FakePages {
    fn bank(&self, n: usize) -> Option<&Bank> {
        self.banks.get(n)
    }

    fn cpu(&self, index: u8) -> Option<&Cpu> {
        self.cpus.get(usize::from(index))
    }

    fn intids(&self) -> u32 {
        self.intids
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Inside,
    Out,
    Asleep,
}

pub const INTIDS: usize = 1024;

/// What there was of what the tests are about.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub acknowledged: u64,
    pub preempted: u64,
    /// vCPUs that were interrupted in their guest, or woken.
    pub kicks: u64,
    pub wakes: u64,
    /// Accesses that had to wait.
    pub waits: u64,
    /// Accesses by the short way.
    pub quick: u64,
    /// Maintenance interrupts.
    pub maintenance: u64,
    /// Entries with more pending than list registers, and of both groups.
    pub overflow: u64,
    pub overflow_of_both: u64,
    /// Entries with something pending of a disabled group that has no list register.
    pub disabled_group: u64,
    /// Entries with active interrupts in no list register, and deactivations of these.
    pub active_outside: u64,
    pub ended_outside: u64,
    /// Entries with something pending and active.
    pub pending_and_active: u64,
    /// Writes to ICC_DIR_EL1 that trapped.
    pub trapped: u64,
    pub done: u64,
    pub slept: u64,
}

impl Seen {
    pub fn add(&mut self, other: &Seen) {
        self.acknowledged += other.acknowledged;
        self.preempted += other.preempted;
        self.kicks += other.kicks;
        self.wakes += other.wakes;
        self.waits += other.waits;
        self.quick += other.quick;
        self.maintenance += other.maintenance;
        self.overflow += other.overflow;
        self.overflow_of_both += other.overflow_of_both;
        self.disabled_group += other.disabled_group;
        self.active_outside += other.active_outside;
        self.ended_outside += other.ended_outside;
        self.pending_and_active += other.pending_and_active;
        self.trapped += other.trapped;
        self.done += other.done;
        self.slept += other.slept;
    }
}

pub struct World {
    pub vgic: Vgic<FakePages>,
    pub spec: Gic,
    pub sims: Vec<Simulated>,
    pub places: Vec<Place>,
    /// Acknowledged and not ended, with their groups.
    pub stacks: Vec<Vec<(u32, usize)>>,
    /// Ended in EOImode 1, not deactivated.
    pub split: Vec<Vec<u32>>,
    pub seen: Seen,
    said_done: bool,
    pub done: Vec<u32>,
}

impl World {
    pub fn new(cpus: usize, registers: usize) -> World {
        let vgic = Vgic::new(FakePages::new(cpus, INTIDS as u32));
        let mut effects = Effects::default();
        for index in 0..cpus {
            vgic.admit(index as u8, true, &mut effects);
        }
        assert_eq!(effects, Effects::default());
        World {
            vgic,
            spec: Gic::new(cpus, INTIDS),
            sims: vec![Simulated::new(registers); cpus],
            places: vec![Place::Out; cpus],
            stacks: vec![Vec::new(); cpus],
            split: vec![Vec::new(); cpus],
            seen: Seen::default(),
            said_done: false,
            done: Vec::new(),
        }
    }

    pub fn cpus(&self) -> usize {
        self.places.len()
    }

    /// Carries the effects out at once.
    pub fn take(&mut self, effects: Effects) {
        let mut inside = effects.inside;
        self.said_done |= effects.done;
        for pe in 0..self.cpus() {
            if effects.asleep & 1 << pe != 0 {
                assert_eq!(self.places[pe], Place::Asleep, "vCPU {pe} is woken");
                self.places[pe] = Place::Out;
                self.seen.wakes += 1;
            }
        }
        for pe in 0..self.cpus() {
            if inside & 1 << pe != 0 {
                inside &= !(1 << pe);
                assert_eq!(self.places[pe], Place::Inside, "vCPU {pe} is interrupted");
                self.seen.kicks += 1;
                self.leave(pe);
                self.enter(pe, false);
            }
        }
    }

    pub fn leave(&mut self, pe: usize) {
        assert_eq!(self.places[pe], Place::Inside);
        self.seen.ended_outside += self.sims[pe].hcr >> 27 & 31;
        self.vgic.exit(pe as u8, &mut self.sims[pe]);
        self.places[pe] = Place::Out;
    }

    /// `all`: on a CPU where another vCPU was.
    pub fn enter(&mut self, pe: usize, all: bool) {
        assert_ne!(self.places[pe], Place::Inside);
        self.places[pe] = Place::Inside;
        if all {
            let sim = &mut self.sims[pe];
            // An interrupt that nobody has made pending.
            sim.lrs.fill(1 << 62 | 5);
            sim.hcr = 1 | 0x55 << 1 | 3 << 27;
        }
        let mut effects = Effects::default();
        self.vgic.enter(pe as u8, &mut self.sims[pe], pe as u32, all, &mut effects);
        let (hcr, lrs) = (self.sims[pe].hcr, &self.sims[pe].lrs);
        let on = |bits: u64| u64::from(hcr & bits != 0);
        self.seen.active_outside += on(1 << 2);
        self.seen.overflow += on(1 << 3);
        self.seen.overflow_of_both += on(1 << 5);
        self.seen.disabled_group += on(1 << 4 | 1 << 6);
        self.seen.pending_and_active += u64::from(lrs.iter().any(|lr| lr >> 62 == 3));
        self.take(effects);
    }

    /// Ends a step: maintenance interrupts are taken, and all is compared.
    pub fn settle(&mut self) {
        for round in 0.. {
            assert!(round < 100, "maintenance interrupts without end");
            let due =
                |pe: &usize| self.places[*pe] == Place::Inside && self.sims[*pe].has_maintenance();
            let Some(pe) = (0..self.cpus()).find(due) else { break };
            self.seen.maintenance += 1;
            self.leave(pe);
            self.enter(pe, false);
        }
        while let Some(spi) = self.vgic.take_done() {
            assert!(self.said_done, "nobody was told that something is done");
            self.seen.done += 1;
            self.done.push(spi.intid().number());
        }
        self.said_done = false;
        self.check();
    }

    fn check(&mut self) {
        let mut expected = std::mem::take(&mut self.spec.done);
        expected.sort_unstable();
        self.done.sort_unstable();
        assert_eq!(std::mem::take(&mut self.done), expected, "SPIs that are done");
        for pe in 0..self.cpus() {
            let of = || format!("{:?} by {:x?}", self.spec.candidates(pe), self.sims[pe]);
            match (self.places[pe], self.sims[pe].signalled()) {
                (Place::Inside, Some((intid, group))) => {
                    assert!(self.spec.may_signal(pe, intid), "{pe} is offered {intid} of {}", of());
                    assert_eq!(group, self.spec.look(pe, intid as usize).group);
                }
                (Place::Inside, None) => {
                    assert!(!self.spec.signals(pe), "{pe} is offered nothing of {}", of());
                }
                (Place::Asleep, _) => {
                    assert!(!self.spec.signals(pe), "{pe} sleeps over {}", of());
                }
                (Place::Out, _) => {}
            }
            assert_eq!(self.sims[pe].running_priority(), self.spec.running_priority(pe));
        }
    }

    /// A vCPU is in its guest.
    pub fn run(&mut self, pe: usize) {
        if self.places[pe] != Place::Inside {
            self.enter(pe, false);
        }
    }

    /// A vCPU reads or writes a register in memory.
    pub fn access(
        &mut self,
        pe: usize,
        frame: Frame,
        offset: u32,
        size: u32,
        write: Option<u64>,
    ) -> u64 {
        self.run(pe);
        if let Some(value) = self.vgic.access_quickly(frame, offset, size, write) {
            self.seen.quick += 1;
            return value;
        }
        self.leave(pe);
        let mut effects = Effects::default();
        let access = self.vgic.access(pe as u8, frame, offset, size, write, &mut effects);
        let mut value = self.complete(pe, access, effects);
        if matches!(access, Access::Wait(_)) && write.is_none() {
            value = self.vgic.read_after_wait(pe as u8, frame, offset, size);
        }
        self.enter(pe, false);
        value
    }

    /// vCPUs that are waited for leave their guest, because they are interrupted.
    fn complete(&mut self, pe: usize, access: Access, effects: Effects) -> u64 {
        match access {
            Access::Done(value) => {
                self.take(effects);
                value
            }
            Access::Wait(waits) => {
                self.seen.waits += 1;
                assert_eq!(self.vgic.poll(pe as u8, waits), waits);
                assert_eq!(
                    effects.inside & waits,
                    waits,
                    "all that are waited for are interrupted"
                );
                self.take(effects);
                assert_eq!(self.vgic.poll(pe as u8, waits), 0);
                0
            }
        }
    }

    fn frame(&self, pe: usize, word: usize) -> (Frame, u32) {
        if word == 0 { (Frame::Redistributor(pe as u8), 0x1_0000) } else { (Frame::Distributor, 0) }
    }

    /// Writes a register of bits, from one vCPU; private ones of another.
    pub fn write_bits(
        &mut self,
        by: usize,
        of: usize,
        field: Field,
        word: usize,
        bits: u32,
        to: bool,
    ) {
        let set = match field {
            Field::Group => 0x80,
            Field::Enable => 0x100,
            Field::Pending => 0x200,
            Field::Active => 0x300,
        };
        let clear = if to || field == Field::Group { 0 } else { 0x80 };
        let (frame, base) = self.frame(of, word);
        self.access(by, frame, base + set + clear + word as u32 * 4, 4, Some(bits.into()));
        self.spec.write(of, field, word, bits, to);
    }

    pub fn read_bits(&mut self, by: usize, of: usize, field: Field, word: usize, clear: bool) {
        let offset = match field {
            Field::Group => 0x80,
            Field::Enable => 0x100,
            Field::Pending => 0x200,
            Field::Active => 0x300,
        } + if clear && field != Field::Group { 0x80 } else { 0 };
        let (frame, base) = self.frame(of, word);
        let value = self.access(by, frame, base + offset + word as u32 * 4, 4, None);
        let expected = self.spec.read(of, field, word);
        assert_eq!(value, u64::from(expected), "{field:?} of word {word} of vCPU {of}");
    }

    pub fn write_priority(&mut self, by: usize, of: usize, intid: u32, priority: u8) {
        let (frame, base) = self.frame(of, intid as usize / 32);
        self.access(by, frame, base + 0x400 + intid, 1, Some(priority.into()));
        if let Some(interrupt) = self.spec.interrupt(of, intid as usize) {
            interrupt.priority = priority & 0xf8;
        }
    }

    pub fn write_config(&mut self, by: usize, intid: u32, edge: bool) {
        if !(32..1020).contains(&intid) {
            return;
        }
        let (offset, bit) = (0xc00 + intid / 16 * 4, 2 << (intid % 16 * 2));
        let before = self.access(by, Frame::Distributor, offset, 4, None);
        let after = if edge { before | bit } else { before & !bit };
        self.access(by, Frame::Distributor, offset, 4, Some(after));
        self.spec.interrupt(by, intid as usize).unwrap().edge = edge;
    }

    pub fn write_route(&mut self, by: usize, intid: u32, route: u64) {
        if !(32..1020).contains(&intid) {
            return;
        }
        let route = route & (IRM | 0xff_ffff);
        self.access(by, Frame::Distributor, 0x6000 + intid * 8, 8, Some(route));
        self.spec.interrupt(by, intid as usize).unwrap().route = route;
        assert_eq!(self.access(by, Frame::Distributor, 0x6000 + intid * 8, 8, None), route);
    }

    pub fn write_ctlr(&mut self, by: usize, groups: [bool; 2]) {
        let value = u64::from(groups[0]) | u64::from(groups[1]) << 1;
        self.access(by, Frame::Distributor, 0, 4, Some(value));
        self.spec.groups = groups;
        assert_eq!(self.access(by, Frame::Distributor, 0, 4, None), value | 0x50);
    }

    pub fn write_waker(&mut self, by: usize, of: usize, sleeps: bool) {
        let value = if sleeps { 2 } else { 0 };
        self.access(by, Frame::Redistributor(of as u8), 0x14, 4, Some(value));
        self.spec.pes[of].sleeps = sleeps;
        let read = self.access(by, Frame::Redistributor(of as u8), 0x14, 4, None);
        assert_eq!(read, value | value << 1);
    }

    pub fn write_denials(&mut self, by: usize, of: usize, denies: [bool; 2]) {
        let value = u64::from(denies[0]) << 24 | u64::from(denies[1]) << 25;
        self.access(by, Frame::Redistributor(of as u8), 0, 4, Some(value));
        self.spec.pes[of].denies = denies;
        assert_eq!(self.access(by, Frame::Redistributor(of as u8), 0, 4, None), value);
    }

    pub fn sgi(&mut self, by: usize, register: SgiRegister, sgi: u32, targets: Option<u16>) {
        self.run(by);
        let value = u64::from(sgi) << 24 | targets.map_or(1 << 40, u64::from);
        let mut effects = Effects::default();
        // It does not leave: a sender may be its own target.
        self.vgic.send(by as u8, register, value, &mut effects);
        for pe in 0..self.cpus() {
            let meant = targets.map_or(pe != by, |targets| pe < 16 && targets & 1 << pe != 0);
            let interrupt = self.spec.interrupt(pe, sgi as usize).unwrap();
            if meant && (interrupt.group == 0 || register == SgiRegister::Group1) {
                interrupt.latch = true;
            }
        }
        self.take(effects);
    }

    pub fn input(&mut self, number: u32, input: Input) {
        let Some(spi) = Spi::new(number) else { return };
        let mut effects = Effects::default();
        self.vgic.input(spi, input, &mut effects);
        let interrupt = &mut self.spec.spis[number as usize];
        if input != Input::Edge {
            interrupt.once = input == Input::HighUntilDone;
        }
        match input {
            Input::High | Input::HighUntilDone => interrupt.set_line(true),
            Input::Low => interrupt.set_line(false),
            Input::Edge => interrupt.latch = true,
        }
        self.take(effects);
    }

    pub fn ppi(&mut self, pe: usize, ppi: u32, high: bool) {
        let mut effects = Effects::default();
        self.vgic.set_private(pe as u8, Intid::new(ppi).unwrap(), high, &mut effects);
        self.spec.interrupt(pe, ppi as usize).unwrap().set_line(high);
        self.take(effects);
    }

    /// Reads ICC_IAR<group>_EL1.
    pub fn acknowledge(&mut self, pe: usize, group: usize) -> u32 {
        self.run(pe);
        let signalled = self.sims[pe].signalled();
        let intid = self.sims[pe].acknowledge(group);
        if intid != SPURIOUS {
            assert_eq!(signalled, Some((intid, group)));
            self.seen.acknowledged += 1;
            self.seen.preempted += u64::from(!self.stacks[pe].is_empty());
            self.spec.acknowledge(pe, intid as usize);
            self.stacks[pe].push((intid, group));
        }
        intid
    }

    /// Writes ICC_EOIR<n>_EL1 with what it acknowledged last.
    pub fn end(&mut self, pe: usize) -> bool {
        self.run(pe);
        let Some((intid, group)) = self.stacks[pe].pop() else { return false };
        self.sims[pe].end(group, intid);
        self.spec.end(pe, intid as usize);
        if self.spec.pes[pe].split {
            self.split[pe].push(intid);
        }
        true
    }

    /// Writes ICC_DIR_EL1 in EOImode 1.
    pub fn deactivate(&mut self, pe: usize, intid: u32) {
        self.run(pe);
        if !self.sims[pe].deactivate(intid) {
            self.seen.trapped += 1;
            self.leave(pe);
            let mut effects = Effects::default();
            let access = self.vgic.deactivate(pe as u8, intid, &mut effects);
            self.complete(pe, access, effects);
            self.enter(pe, false);
        }
        self.spec.deactivate(pe, intid as usize);
    }

    /// Whether an interrupt is acknowledged and not ended at a vCPU in EOImode 0: nobody else
    /// deactivates it, or what its EOI deactivates is not defined.
    pub fn is_held(&self, of: Option<usize>, intid: u32) -> bool {
        (0..self.cpus()).any(|pe| {
            of.is_none_or(|of| of == pe)
                && !self.spec.pes[pe].split
                && self.stacks[pe].iter().any(|&(other, _)| other == intid)
        })
    }

    /// Sets up the CPU interface.
    pub fn set_interface(&mut self, pe: usize, f: impl Fn(&mut spec::Pe)) {
        self.run(pe);
        let of = &mut self.spec.pes[pe];
        f(of);
        let flag = |set: bool, bit: u64| if set { bit } else { 0 };
        let split_before = self.sims[pe].vmcr & sim::VEOIM != 0;
        self.sims[pe].vmcr = flag(of.groups[0], sim::VENG0)
            | flag(of.groups[1], sim::VENG1)
            | flag(of.common_bpr, sim::VCBPR)
            | flag(of.split, sim::VEOIM)
            | u64::from(of.bpr[1]) << 18
            | u64::from(of.bpr[0]) << 21
            | u64::from(of.mask) << 24;
        if split_before != of.split || of.groups != [true; 2] {
            // EL2 sees EOImode when the guest is left next, and so it does groups that are for
            // interrupts for any vCPU.
            self.leave(pe);
            self.enter(pe, false);
        }
    }

    /// Executes WFI.
    pub fn wait(&mut self, pe: usize) {
        self.run(pe);
        self.leave(pe);
        if self.vgic.sleep(pe as u8, &self.sims[pe]) {
            self.places[pe] = Place::Asleep;
            self.seen.slept += 1;
        } else {
            self.enter(pe, false);
        }
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! A GICv3 as IHI 0069 tells it, for the tests to compare with: interrupts are records,
//! CPU interfaces are the architecture's own, every question is answered by looking at
//! everything. It knows nothing of list registers, homes or queues.

/// An interrupt of the distributor, or of one redistributor.
#[derive(Clone, Debug, Default)]
pub struct Interrupt {
    pub enabled: bool,
    pub group: usize,
    pub edge: bool,
    pub priority: u8,
    /// The level of its input.
    pub line: bool,
    /// The input goes low with the deactivation, and the host is told.
    pub once: bool,
    /// Pending by an edge, a message or a write.
    pub latch: bool,
    pub active: bool,
    pub route: u64,
}

impl Interrupt {
    pub fn pending(&self) -> bool {
        self.latch || !self.edge && self.line
    }

    pub fn set_line(&mut self, to: bool) {
        if self.edge && to && !self.line {
            self.latch = true;
        }
        self.line = to;
    }
}

/// A PE: its redistributor and its CPU interface.
#[derive(Clone, Debug)]
pub struct Pe {
    pub private: Vec<Interrupt>,
    pub groups: [bool; 2],
    pub mask: u8,
    pub bpr: [u32; 2],
    pub common_bpr: bool,
    pub split: bool,
    /// Group priorities of what was acknowledged, and not dropped.
    pub running: Vec<u8>,
    pub sleeps: bool,
    pub denies: [bool; 2],
}

pub struct Gic {
    pub groups: [bool; 2],
    /// By INTID; the first 32 are not used.
    pub spis: Vec<Interrupt>,
    pub pes: Vec<Pe>,
    /// What the host is to be told of.
    pub done: Vec<u32>,
}

/// An interrupt that a PE may choose.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub intid: u32,
    pub priority: u8,
    /// It may go to another PE as well.
    pub elsewhere: bool,
    /// If it is chosen, it is signalled.
    pub signalled: bool,
}

/// A register's field, by interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    Group,
    Enable,
    Pending,
    Active,
}

pub const IRM: u64 = 1 << 31;

impl Gic {
    pub fn new(pes: usize, intids: usize) -> Gic {
        let sgi = Interrupt { edge: true, ..Default::default() };
        let mut private = vec![sgi; 16];
        private.extend(vec![Interrupt::default(); 16]);
        let pe = Pe {
            private,
            groups: [false; 2],
            mask: 0,
            bpr: [2, 3],
            common_bpr: false,
            split: false,
            running: Vec::new(),
            sleeps: false,
            denies: [false; 2],
        };
        Gic {
            groups: [false; 2],
            spis: vec![Interrupt::default(); intids.min(1020)],
            pes: vec![pe; pes],
            done: Vec::new(),
        }
    }

    /// The interrupt of a number, as a PE sees it.
    pub fn interrupt(&mut self, pe: usize, intid: usize) -> Option<&mut Interrupt> {
        if intid < 32 { self.pes[pe].private.get_mut(intid) } else { self.spis.get_mut(intid) }
    }

    pub fn look(&self, pe: usize, intid: usize) -> &Interrupt {
        if intid < 32 { &self.pes[pe].private[intid] } else { &self.spis[intid] }
    }

    /// Whether an interrupt may go to a PE; and whether it may go to others as well.
    fn goes_to(&self, pe: usize, intid: usize) -> (bool, bool) {
        let interrupt = self.look(pe, intid);
        if intid < 32 {
            return (true, false);
        }
        if interrupt.route & IRM != 0 {
            let to = &self.pes[pe];
            let takes = !to.sleeps && !to.denies[interrupt.group] && to.groups[interrupt.group];
            return (takes, true);
        }
        let affinity = interrupt.route & 0xff_ffff;
        (affinity == (pe as u64 >> 4 << 8 | pe as u64 & 15), false)
    }

    fn group_priority(&self, pe: usize, interrupt: &Interrupt) -> u8 {
        let pe = &self.pes[pe];
        let low_bits = match interrupt.group {
            1 if !pe.common_bpr => pe.bpr[1],
            _ => pe.bpr[0] + 1,
        };
        (u32::from(interrupt.priority) >> low_bits << low_bits) as u8
    }

    pub fn running_priority(&self, pe: usize) -> u8 {
        self.pes[pe].running.iter().copied().min().unwrap_or(0xff)
    }

    /// Interrupts that a PE has to choose from.
    pub fn candidates(&self, pe: usize) -> Vec<Candidate> {
        let to = &self.pes[pe];
        let all = 0..self.spis.len();
        all.filter_map(|intid| {
            let interrupt = self.look(pe, intid);
            let (here, elsewhere) = self.goes_to(pe, intid);
            let forwarded = interrupt.enabled
                && interrupt.pending()
                && !interrupt.active
                && self.groups[interrupt.group]
                && !to.sleeps
                && here
                && to.groups[interrupt.group];
            forwarded.then_some(Candidate {
                intid: intid as u32,
                priority: interrupt.priority,
                elsewhere,
                signalled: interrupt.priority < to.mask
                    && self.group_priority(pe, interrupt) < self.running_priority(pe),
            })
        })
        .collect()
    }

    /// Whether the CPU interface of a PE signals an interrupt for certain. It chooses by
    /// priority alone, then looks whether that one preempts; of several of one priority, it may
    /// choose any.
    pub fn signals(&self, pe: usize) -> bool {
        let all = self.candidates(pe);
        let certain = all.iter().filter(|candidate| !candidate.elsewhere);
        let Some(first) = certain.map(|candidate| candidate.priority).min() else { return false };
        all.iter().filter(|candidate| candidate.priority <= first).all(|first| first.signalled)
    }

    /// Whether it may signal this one.
    pub fn may_signal(&self, pe: usize, intid: u32) -> bool {
        let all = self.candidates(pe);
        let Some(it) = all.iter().find(|candidate| candidate.intid == intid) else { return false };
        it.signalled && all.iter().all(|other| other.elsewhere || it.priority <= other.priority)
    }

    /// A PE acknowledges an interrupt that it signals.
    pub fn acknowledge(&mut self, pe: usize, intid: usize) {
        let interrupt = self.look(pe, intid).clone();
        let priority = self.group_priority(pe, &interrupt);
        self.pes[pe].running.push(priority);
        let interrupt = self.interrupt(pe, intid).unwrap();
        interrupt.latch = false;
        interrupt.active = true;
    }

    /// A PE ends the interrupt that it acknowledged last and has not ended.
    pub fn end(&mut self, pe: usize, intid: usize) {
        self.pes[pe].running.pop();
        if !self.pes[pe].split {
            self.deactivate(pe, intid);
        }
    }

    pub fn deactivate(&mut self, pe: usize, intid: usize) {
        let Some(interrupt) = self.interrupt(pe, intid) else { return };
        let was_active = std::mem::take(&mut interrupt.active);
        if was_active && interrupt.once && interrupt.line && !interrupt.edge {
            interrupt.once = false;
            interrupt.line = false;
            if !self.done.contains(&(intid as u32)) {
                self.done.push(intid as u32);
            }
        }
    }

    /// What a register of a bit for each interrupt reads as.
    pub fn read(&mut self, pe: usize, field: Field, word: usize) -> u32 {
        let mut value = 0;
        for bit in 0..32 {
            let Some(interrupt) = self.interrupt(pe, word * 32 + bit) else { continue };
            let set = match field {
                Field::Group => interrupt.group != 0,
                Field::Enable => interrupt.enabled,
                Field::Pending => interrupt.pending(),
                Field::Active => interrupt.active,
            };
            value |= u32::from(set) << bit;
        }
        value
    }

    /// Writes to one that sets (or, of the groups, is what it is), or to one that clears.
    pub fn write(&mut self, pe: usize, field: Field, word: usize, bits: u32, to: bool) {
        for bit in 0..32 {
            let (intid, written) = (word * 32 + bit, bits & 1 << bit != 0);
            let Some(interrupt) = self.interrupt(pe, intid) else { continue };
            if field == Field::Group {
                interrupt.group = written.into();
            } else if written {
                match field {
                    Field::Enable => interrupt.enabled = to,
                    Field::Pending => interrupt.latch = to,
                    Field::Active if to => interrupt.active = true,
                    _ => self.deactivate(pe, intid),
                }
            }
        }
    }
}

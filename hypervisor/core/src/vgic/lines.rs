// SPDX-License-Identifier: MIT OR Apache-2.0

//! The state that a distributor, or a redistributor, keeps for each of its interrupts.

use super::bits::{Bits, Intid};

/// `N` interrupts, in `W` words.
#[derive(Clone, Debug)]
pub(super) struct Lines<const W: usize, const N: usize> {
    pub enabled: Bits<W>,
    /// Those of group 1.
    pub group: Bits<W>,
    /// Those that are edge-triggered; the others are level-sensitive.
    pub edge: Bits<W>,
    /// The levels of their inputs.
    pub input: Bits<W>,
    /// Those that are pending by an event (an edge, or a write to ISPENDR), whatever the input is,
    /// until they are acknowledged or cleared. Once such an interrupt is in a vCPU's queue, the
    /// event is noted there instead (`CpuState::held`).
    pub latch: Bits<W>,
    levels: [u8; N],
}

/// The state of one interrupt that decides where it belongs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    pub enabled: bool,
    pub group: u8,
    pub edge: bool,
    pub input: bool,
    pub latch: bool,
    /// The upper five bits of its priority.
    pub level: u8,
}

impl Line {
    /// Pending, by an event or by its level. What a list register says may differ.
    pub const fn is_pending(&self) -> bool {
        self.latch || self.input && !self.edge
    }
}

/// A change to an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Enable(bool),
    Group(bool),
    Edge(bool),
    /// The whole priority.
    Priority(u8),
    /// A write to ISPENDR, or an event.
    Pend,
    Unpend,
    Activate,
    Deactivate,
    Input(bool),
    /// The vCPU or vCPUs that it is for: `GICD_IROUTER`.
    Route(u32),
}

impl Change {
    /// Whether it changes the configuration of an interrupt, and not its state.
    #[inline(always)]
    pub const fn is_set_up(self) -> bool {
        use Change::*;
        matches!(self, Enable(_) | Group(_) | Edge(_) | Priority(_) | Route(_))
    }
}

impl<const W: usize, const N: usize> Lines<W, N> {
    pub const fn new() -> Lines<W, N> {
        Lines {
            enabled: Bits::EMPTY,
            group: Bits::EMPTY,
            edge: Bits::EMPTY,
            input: Bits::EMPTY,
            latch: Bits::EMPTY,
            levels: [0; N],
        }
    }

    #[inline(always)]
    pub fn level(&self, intid: Intid) -> u8 {
        self.levels[intid.number() as usize % N]
    }

    #[inline(always)]
    pub fn line(&self, intid: Intid) -> Line {
        Line {
            enabled: self.enabled.get(intid),
            group: u8::from(self.group.get(intid)),
            edge: self.edge.get(intid),
            input: self.input.get(intid),
            latch: self.latch.get(intid),
            level: self.level(intid),
        }
    }

    /// Applies a change to the state here. That of the queue and of list registers is the caller's.
    pub fn apply(&mut self, intid: Intid, change: Change) {
        match change {
            Change::Enable(to) => self.enabled.set(intid, to),
            Change::Group(to) => self.group.set(intid, to),
            Change::Edge(to) => self.edge.set(intid, to),
            Change::Priority(to) => self.levels[intid.number() as usize % N] = to >> 3,
            Change::Pend => self.latch.set(intid, true),
            Change::Unpend => self.latch.set(intid, false),
            Change::Input(to) => {
                if to && !self.input.get(intid) && self.edge.get(intid) {
                    self.latch.set(intid, true);
                }
                self.input.set(intid, to);
            }
            Change::Activate | Change::Deactivate | Change::Route(_) => {}
        }
    }

    /// Whether a change has no effect, neither on these lines nor on the queue and list registers.
    pub fn is_moot(&self, intid: Intid, change: Change) -> bool {
        match change {
            Change::Enable(to) => self.enabled.get(intid) == to,
            Change::Group(to) => self.group.get(intid) == to,
            Change::Edge(to) => self.edge.get(intid) == to,
            Change::Priority(to) => self.level(intid) == to >> 3,
            Change::Input(to) => self.input.get(intid) == to,
            _ => false,
        }
    }
}

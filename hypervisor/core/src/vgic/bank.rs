// SPDX-License-Identifier: MIT OR Apache-2.0

//! A page of the distributor: half of the shared interrupts.

use super::bits::{Bits, Intid};
use super::lines::Lines;
use super::lr::Groups;
use crate::sync::{AtomicU32, TicketMutex};

/// Shared interrupts, in a page that the host has donated: bank 0 those below 512, bank 1
/// the others.
pub struct Bank {
    /// Words whose SPIs for any vCPU are to be routed again: a bit each.
    pub(super) rest: AtomicU32,
    pub(super) state: TicketMutex<BankState>,
}

/// Banks of a distributor.
pub const BANKS: usize = 2;

pub(super) const WORDS: usize = 16;
const INTIDS: usize = WORDS * 32;

/// What the lock of a [`Bank`] covers. Locked before that of a vCPU; bank 0 before bank 1.
///
/// An SPI has a *home*, a vCPU, from when it is pending for that vCPU until it is neither pending
/// there nor active. Meanwhile the vCPU's page says whether it is pending and active; without a
/// home, the bank does.
#[derive(Debug)]
pub(super) struct BankState {
    pub lines: Lines<WORDS, INTIDS>,
    /// SPIs that are active and have no home.
    active: Bits<WORDS>,
    /// SPIs that have a home: its index is in `homes`.
    homed: Bits<WORDS>,
    /// SPIs whose inputs go low when the guest deactivates them ([`super::Input::HighUntilDone`]).
    once: Bits<WORDS>,
    /// Those of them that were deactivated and not yet reported to the host.
    done: Bits<WORDS>,
    done_count: u32,
    /// `GICD_IROUTER<n>`, its low half.
    routes: [u32; INTIDS],
    homes: [u8; INTIDS],
    /// `GICD_CTLR.EnableGrp0` and `EnableGrp1`: bank 0's.
    pub enabled_groups: Groups,
}

/// `GICD_IROUTER<n>.Interrupt_Routing_Mode`: for any vCPU.
pub(super) const ROUTE_ANY: u32 = 1 << 31;
/// That, and Aff2, Aff1 and Aff0. Aff3 is RES0, as `GICD_TYPER.A3V` is 0.
pub(super) const ROUTE_BITS: u32 = ROUTE_ANY | 0xff_ffff;

const _: () = assert!(size_of::<Bank>() <= escrow_abi::PAGE_SIZE as usize);

impl Bank {
    /// One of a new distributor.
    pub fn new() -> Bank {
        Bank {
            rest: AtomicU32::new(0),
            state: TicketMutex::new(BankState {
                lines: Lines::new(),
                active: Bits::EMPTY,
                homed: Bits::EMPTY,
                once: Bits::EMPTY,
                done: Bits::EMPTY,
                done_count: 0,
                routes: [0; INTIDS],
                homes: [0; INTIDS],
                enabled_groups: Groups(0),
            }),
        }
    }
}

impl Default for Bank {
    fn default() -> Bank {
        Bank::new()
    }
}

impl BankState {
    /// The bank of an SPI.
    pub const fn of(intid: Intid) -> usize {
        (intid.number() as usize / INTIDS) % BANKS
    }

    /// A bit for the bank of an SPI; none for others.
    pub const fn bit_of(intid: Intid) -> u32 {
        if intid.is_private() { 0 } else { 1 << BankState::of(intid) }
    }

    pub fn home(&self, intid: Intid) -> Option<u8> {
        self.homed.get(intid).then(|| self.homes[intid.number() as usize % INTIDS])
    }

    /// Whether an SPI has no home, no event and a low input: a change of its configuration moves
    /// nothing.
    #[inline(always)]
    pub fn is_quiet(&self, intid: Intid) -> bool {
        !self.homed.get(intid) && !self.lines.latch.get(intid) && !self.lines.input.get(intid)
    }

    /// Interrupts of a word that are not quiet.
    #[inline(always)]
    pub fn busy(&self, word: usize) -> u32 {
        self.homed.word(word) | self.lines.latch.word(word) | self.lines.input.word(word)
    }

    /// Interrupts of a word that have a home.
    pub fn homed(&self, word: usize) -> u32 {
        self.homed.word(word)
    }

    /// Sets an SPI's home. `active`: it is active and has none.
    pub fn set_home(&mut self, intid: Intid, home: Option<u8>, active: bool) {
        self.homed.set(intid, home.is_some());
        self.homes[intid.number() as usize % INTIDS] = home.unwrap_or(0);
        self.active.set(intid, active);
    }

    /// Interrupts of a word that are active without a home.
    pub fn active(&self, word: usize) -> u32 {
        self.active.word(word)
    }

    pub fn is_active(&self, intid: Intid) -> bool {
        self.active.get(intid)
    }

    pub fn set_active(&mut self, intid: Intid, to: bool) {
        self.active.set(intid, to);
    }

    pub fn route(&self, intid: Intid) -> u32 {
        self.routes[intid.number() as usize % INTIDS]
    }

    pub fn set_route(&mut self, intid: Intid, to: u32) {
        self.routes[intid.number() as usize % INTIDS] = to & ROUTE_BITS;
    }

    /// Whether an SPI may go to a vCPU by its route. `takes`: the groups of which that vCPU takes
    /// interrupts for any vCPU.
    pub fn is_for(&self, intid: Intid, vcpu: u8, takes: Groups) -> bool {
        let route = self.route(intid);
        if route & ROUTE_ANY != 0 {
            return takes.contains(self.lines.group.get(intid).into());
        }
        super::vcpu_of_affinity(route) == Some(vcpu)
    }

    /// Sets whether an SPI's input goes low when the guest deactivates the interrupt.
    pub fn set_once(&mut self, intid: Intid, to: bool) {
        self.once.set(intid, to);
    }

    /// An SPI was deactivated. Returns what its input is from now on.
    pub fn finish(&mut self, intid: Intid) -> bool {
        if self.once.get(intid) && self.lines.input.get(intid) && !self.lines.edge.get(intid) {
            self.once.set(intid, false);
            self.lines.input.set(intid, false);
            if !self.done.replace(intid, true) {
                self.done_count += 1;
            }
        }
        self.lines.input.get(intid)
    }

    /// Whether there are deactivated SPIs to report to the host.
    pub fn has_done(&self) -> bool {
        self.done_count != 0
    }

    /// Takes one deactivated SPI to report to the host; `None` if there is none.
    pub fn take_done(&mut self, first_word: usize) -> Option<Intid> {
        if self.done_count == 0 {
            return None;
        }
        // The sets of both banks number their SPIs from 0.
        let found = self.done.iter().next()?;
        let intid = Intid::new(first_word as u32 * 32 + found.number())?;
        self.done.set(intid, false);
        self.done_count -= 1;
        Some(intid)
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! The memory-mapped registers of a guest's GIC: GICD, and for each vCPU GICR (RD_base and
//! SGI_base). IHI 0069, "The GIC Programmers' Model".
//!
//! A guest sees one security state (`GICD_CTLR.DS` is 1) and affinity routing that is always
//! enabled (`ARE` is 1).
//!
//! | GICD | at | access | what a guest gets |
//! | --- | --- | --- | --- |
//! | CTLR | 0x0000 | 32 | EnableGrp0 and EnableGrp1 are read and written; DS and ARE read as 1; RWP reads as 0: a write is complete when its instruction is |
//! | TYPER | 0x0004 | 32 | ITLinesNumber, IDbits 9; no LPIs, MBIs, ESPIs; A3V 0, RSS 0, No1N 0 |
//! | IIDR | 0x0008 | 32 | product 0x45 |
//! | IGROUPR, ISENABLER, ICENABLER, ISPENDR, ICPENDR, ISACTIVER, ICACTIVER | 0x0080 to 0x03fc | 32 | n from 1; word 0 is RAZ/WI, as ARE says |
//! | IPRIORITYR | 0x0400 to 0x07fb | 8, 32 | n from 8; bits 2:0 are RAZ/WI |
//! | ICFGR | 0x0c00 to 0x0cfc | 32 | n from 2; low bits of the pairs are RAZ/WI |
//! | IROUTER | 0x6100 to 0x7fd8 | 64, 32 | Aff2 to Aff0, Interrupt_Routing_Mode; Aff3 is RAZ/WI |
//! | PIDR, CIDR | 0xffd0 to 0xfffc | 32 | GICv3 |
//! | STATUSR, TYPER2, SETSPI, CLRSPI, ITARGETSR, SGIR, CPENDSGIR, SPENDSGIR, IGRPMODR, NSACR, and what is reserved | | | RAZ/WI: not implemented, or so with ARE or DS set |
//!
//! | GICR, RD_base | at | access | what a guest gets |
//! | --- | --- | --- | --- |
//! | CTLR | 0x0000 | 32 | DPG0 and DPG1NS; EnableLPIs and RWP read as 0 |
//! | IIDR | 0x0004 | 32 | as GICD's |
//! | TYPER | 0x0008 | 64, 32 | the affinity, the number of the vCPU, Last, DPGS; no LPIs |
//! | WAKER | 0x0014 | 32 | ProcessorSleep is read and written, ChildrenAsleep follows; 0 at first, as firmware leaves it |
//! | PIDR, CIDR | 0xffd0 to 0xfffc | 32 | GICv3 |
//! | PROPBASER, PENDBASER, SETLPIR, CLRLPIR, INVLPIR, INVALLR, SYNCR, STATUSR, and what is reserved | | | RAZ/WI: there are no LPIs |
//!
//! | GICR, SGI_base | at | access | what a guest gets |
//! | --- | --- | --- | --- |
//! | IGROUPR0, ISENABLER0, ICENABLER0, ISPENDR0, ICPENDR0, ISACTIVER0, ICACTIVER0 | 0x0080 to 0x0380 | 32 | as GICD's, of this vCPU |
//! | IPRIORITYR0 to 7 | 0x0400 to 0x041f | 8, 32 | likewise |
//! | ICFGR0, ICFGR1 | 0x0c00, 0x0c04 | 32 | read-only: SGIs are edge-triggered, PPIs level-sensitive |
//! | IGRPMODR0, NSACR, and what is reserved | | | RAZ/WI |
//!
//! An access of another width, or that is not a multiple of it, is RAZ/WI (which
//! "GIC memory-mapped register access" allows). Bits of INTIDs that there are not are RAZ/WI.

use super::bank::{BankState, ROUTE_BITS};
use super::bits::{Intid, ones};
use super::cpu::eligible;
use super::lines::Change;
use super::lr::Groups;
use super::{Effects, Pages, Vgic};
use crate::addr::Ipa;
use crate::sync::Ordering;
use crate::vcpu::Vcpu;

/// A frame of registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// GICD.
    Distributor,
    /// GICR of a vCPU.
    Redistributor(u8),
}

/// The result of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It is complete; the value if it was a read.
    Done(u64),
    /// These vCPUs (a bit each) have to leave their guest first: once [`Vgic::poll`] says that
    /// they have, a read gets its value by [`Vgic::read_after_wait`], and a write is complete.
    Wait(u32),
}

impl Access {
    pub(super) fn of(value: u64, effects: &mut Effects) -> Access {
        match core::mem::take(&mut effects.waits) {
            0 => Access::Done(value),
            waits => Access::Wait(waits),
        }
    }
}

/// The guest addresses of the frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// GICD, 64 KiB.
    pub distributor: Ipa,
    /// GICR of vCPU 0; those of the others follow, 128 KiB each.
    pub redistributors: Ipa,
}

/// Bytes of GICD.
pub const DISTRIBUTOR_SIZE: u64 = 0x1_0000;
/// Bytes of one GICR.
pub const REDISTRIBUTOR_SIZE: u64 = 0x2_0000;
const SGI_BASE: u32 = 0x1_0000;

impl Layout {
    /// The frame that an address is in, and the offset in it, of a guest with so many vCPUs.
    pub fn find(&self, at: Ipa, vcpus: u8) -> Option<(Frame, u32)> {
        let offset = at.0.wrapping_sub(self.distributor.0);
        if offset < DISTRIBUTOR_SIZE {
            return Some((Frame::Distributor, offset as u32));
        }
        let offset = at.0.wrapping_sub(self.redistributors.0);
        let index = offset / REDISTRIBUTOR_SIZE;
        let frame = Frame::Redistributor(index as u8);
        (index < u64::from(vcpus)).then_some((frame, (offset % REDISTRIBUTOR_SIZE) as u32))
    }
}

/// Product 0x45; Implementer 0, as Escrow has no JEDEC code.
const IIDR: u32 = 0x45 << 24;
/// PIDR4 to 7, PIDR0 to 3, CIDR0 to 3, of a distributor. ArchRev in PIDR2 is 3.
const IDS: [u8; 12] = [0x44, 0, 0, 0, 0x92, 0xb4, 0x3b, 0, 0x0d, 0xf0, 0x05, 0xb1];
/// The position of PIDR0 in there, and what a redistributor has in it.
const PIDR0: u32 = 4;
const REDISTRIBUTOR_PIDR0: u8 = 0x93;

const CTLR_ARE: u32 = 1 << 4;
const CTLR_DS: u32 = 1 << 6;

const WAKER_PROCESSOR_SLEEP: u32 = 1 << 1;
const WAKER_CHILDREN_ASLEEP: u32 = 1 << 2;

const DPG0: u32 = 1 << 24;
const DPG1NS: u32 = 1 << 25;

/// A decoded offset: a register, or a reserved address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    /// Reads as this; writes are ignored.
    Fixed(u32),
    Ctlr,
    TyperLow,
    TyperHigh,
    Waker,
    /// A bit for each interrupt of a word of 32.
    Bits(Field, usize),
    /// A byte for each of four interrupts, or of one.
    Priority {
        first: u32,
        count: u32,
    },
    /// Two bits for each of 16 interrupts.
    Config {
        first: u32,
    },
    Router(u32),
}

const RAZ: Register = Register::Fixed(0);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Group,
    SetEnable,
    ClearEnable,
    SetPending,
    ClearPending,
    SetActive,
    ClearActive,
}

impl Register {
    fn of(frame: Frame, offset: u32, size: u32) -> Register {
        if !offset.is_multiple_of(size) {
            return RAZ;
        }
        let distributor = frame == Frame::Distributor;
        let (base, offset) = match frame {
            Frame::Distributor => (None, offset),
            Frame::Redistributor(_) => (Some(offset >= SGI_BASE), offset % SGI_BASE),
        };
        let lines = base != Some(false);
        match (offset, size) {
            (0x0, 4) if base != Some(true) => Register::Ctlr,
            (0x4, 4) if distributor => Register::TyperLow,
            (0x8, 4) if distributor => Register::Fixed(IIDR),
            (0x4, 4) if base == Some(false) => Register::Fixed(IIDR),
            (0x8, 4) if base == Some(false) => Register::TyperLow,
            (0xc, 4) if base == Some(false) => Register::TyperHigh,
            (0x14, 4) if base == Some(false) => Register::Waker,
            (0x80..0x400, 4) if lines => {
                let field = match offset >> 7 {
                    1 => Field::Group,
                    2 => Field::SetEnable,
                    3 => Field::ClearEnable,
                    4 => Field::SetPending,
                    5 => Field::ClearPending,
                    6 => Field::SetActive,
                    _ => Field::ClearActive,
                };
                Register::Bits(field, (offset as usize % 0x80) / 4)
            }
            (0x400..0x7fc, 1 | 4) if lines => {
                Register::Priority { first: offset - 0x400, count: size }
            }
            (0xc00..0xd00, 4) if lines => Register::Config { first: (offset - 0xc00) * 4 },
            (0x6100..0x7fe0, 4) if distributor && offset % 8 == 0 => {
                Register::Router((offset - 0x6000) / 8)
            }
            (0xffd0.., 4) if base != Some(true) => {
                let n = (offset - 0xffd0) / 4;
                let id = IDS[n as usize % IDS.len()];
                let own = n == PIDR0 && !distributor;
                Register::Fixed(if own { REDISTRIBUTOR_PIDR0 } else { id }.into())
            }
            _ => RAZ,
        }
    }
}

impl<P: Pages> Vgic<P> {
    /// The fast path of [`Self::access`], for accesses that drivers make often: enabling and disabling SPIs
    /// that are not pending, and reads of GICD_CTLR for RWP. Such an access is complete, and no vCPU has to be
    /// notified. `None` if it is another access; then nothing was changed.
    #[inline(always)]
    pub fn access_quickly(
        &self,
        frame: Frame,
        offset: u32,
        size: u32,
        write: Option<u64>,
    ) -> Option<u64> {
        if frame != Frame::Distributor || size != 4 || !offset.is_multiple_of(4) {
            return None;
        }
        let sets = match offset >> 7 {
            2 => true,
            3 => false,
            _ if offset == 0 && write.is_none() => {
                let groups = self.pages().bank(0)?.state.lock().enabled_groups;
                return Some((CTLR_DS | CTLR_ARE | u32::from(groups.0)).into());
            }
            _ => return None,
        };
        let word = offset as usize % 0x80 / 4;
        let of = self.spis_of(word);
        if of == 0 {
            return None;
        }
        let mut bank = self.pages().bank(word / 16)?.state.lock();
        let enabled = bank.lines.enabled.word(word);
        let Some(value) = write else { return Some((enabled & of).into()) };
        let changed = value as u32 & of & if sets { !enabled } else { enabled };
        if changed & bank.busy(word) != 0 {
            return None;
        }
        bank.lines.enabled.toggle(word, changed);
        Some(0)
    }

    /// A vCPU, which is out of its guest, reads from a frame or writes to it.
    pub fn access(
        &self,
        me: u8,
        frame: Frame,
        offset: u32,
        size: u32,
        write: Option<u64>,
        effects: &mut Effects,
    ) -> Access {
        let value = match write {
            None => self.read(me, frame, offset, size, effects),
            Some(value) => {
                self.write(me, frame, offset, size, value, effects);
                0
            }
        };
        Access::of(value, effects)
    }

    /// The value of a read that had to wait, after the last of those vCPUs has left.
    pub fn read_after_wait(&self, me: u8, frame: Frame, offset: u32, size: u32) -> u64 {
        self.read(me, frame, offset, size, &mut Effects { after_wait: true, ..Default::default() })
    }

    fn read(&self, me: u8, frame: Frame, offset: u32, size: u32, effects: &mut Effects) -> u64 {
        let mut half = |offset, size| {
            let register = Register::of(frame, offset, size);
            u64::from(match frame {
                Frame::Distributor => self.read_distributor(me, register, effects),
                Frame::Redistributor(vcpu) => self.read_redistributor(me, vcpu, register, effects),
            })
        };
        match size {
            8 if is_wide(frame, offset) => half(offset, 4) | half(offset + 4, 4) << 32,
            1 | 4 => half(offset, size),
            _ => 0,
        }
    }

    fn write(
        &self,
        me: u8,
        frame: Frame,
        offset: u32,
        size: u32,
        value: u64,
        effects: &mut Effects,
    ) {
        // The upper halves of wide registers have nothing to write to.
        let size = match size {
            8 if is_wide(frame, offset) => 4,
            1 | 4 => size,
            _ => return,
        };
        let register = Register::of(frame, offset, size);
        match frame {
            Frame::Distributor => self.write_distributor(me, register, value as u32, effects),
            Frame::Redistributor(vcpu) => {
                self.write_redistributor(me, vcpu, register, value as u32, effects);
            }
        }
    }

    /// The SPIs of a word that the guest has: a bit each.
    fn spis_of(&self, word: usize) -> u32 {
        match word {
            0 => 0,
            31 if self.pages().intids() >= 1024 => 0x0fff_ffff,
            _ if word < self.pages().intids() as usize / 32 => u32::MAX,
            _ => 0,
        }
    }

    /// Those of the INTIDs `first` to `first + count - 1` that are SPIs of the guest, in order, each
    /// with its distance from `first`.
    fn spis(&self, first: u32, count: u32) -> impl Iterator<Item = (u32, Intid)> {
        let all = (0..count).zip((first..).map_while(Intid::new));
        all.filter(|(_, spi)| self.spis_of(spi.word()) & spi.bit() != 0)
    }

    fn read_distributor(&self, me: u8, register: Register, effects: &mut Effects) -> u32 {
        match register {
            Register::Fixed(value) => value,
            Register::Ctlr => {
                let bank = self.pages().bank(0);
                let groups = bank.map_or(Groups(0), |bank| bank.state.lock().enabled_groups);
                CTLR_DS | CTLR_ARE | u32::from(groups.0)
            }
            // IDbits is one less than the 10 bits of an INTID.
            Register::TyperLow => 9 << 19 | ((self.pages().intids() / 32).clamp(1, 32) - 1),
            Register::TyperHigh | Register::Waker => 0,
            Register::Bits(field, word) => {
                let of = self.spis_of(word);
                let bank = self.pages().bank(word / 16).filter(|_| of != 0);
                bank.map_or(0, |bank| {
                    let mut bank = bank.state.lock();
                    of & self.read_bits(me, field, word, &mut bank, effects)
                })
            }
            Register::Priority { first, count } => {
                self.gather(first, count, 8, |bank, intid| u32::from(bank.lines.level(intid)) << 3)
            }
            Register::Config { first } => {
                self.gather(first, 16, 2, |bank, intid| u32::from(bank.lines.edge.get(intid)) << 1)
            }
            Register::Router(n) => self.gather(n, 1, 32, |bank, intid| bank.route(intid)),
        }
    }

    /// Reads a register with a field of `width` bits for each of `count` SPIs.
    fn gather(
        &self,
        first: u32,
        count: u32,
        width: u32,
        of: impl Fn(&BankState, Intid) -> u32,
    ) -> u32 {
        let Some(bank) = self.pages().bank(first as usize / 512 % 2) else { return 0 };
        let bank = bank.state.lock();
        self.spis(first, count).map(|(n, intid)| of(&bank, intid) << (n * width)).sum()
    }

    fn read_bits(
        &self,
        me: u8,
        field: Field,
        word: usize,
        bank: &mut BankState,
        effects: &mut Effects,
    ) -> u32 {
        let (pending, active) = match field {
            Field::Group => return bank.lines.group.word(word),
            Field::SetEnable | Field::ClearEnable => return bank.lines.enabled.word(word),
            Field::SetPending | Field::ClearPending => (true, false),
            Field::SetActive | Field::ClearActive => (false, true),
        };
        let mut value = if active {
            bank.active(word)
        } else {
            let lines = &bank.lines;
            lines.latch.word(word) | lines.input.word(word) & !lines.edge.word(word)
        };
        for bit in ones(bank.homed(word)) {
            let Some(intid) = Intid::new(word as u32 * 32 + u32::from(bit)) else { continue };
            let home = bank.home(intid);
            let Some((home, cpu)) = home.and_then(|home| Some((home, self.pages().cpu(home)?)))
            else {
                continue;
            };
            let mut state = cpu.state.lock();
            let of = state.state_of(intid);
            if pending && of.0 || active && of.1 {
                value |= intid.bit();
            }
            if state.running && state.resident(intid).is_some() && !effects.after_wait {
                state.waiters |= 1 << me;
                effects.waits |= 1 << home;
                self.notify(home, effects);
            }
        }
        value
    }

    fn write_distributor(&self, me: u8, register: Register, value: u32, effects: &mut Effects) {
        match register {
            Register::Ctlr => self.write_ctlr(me, Groups(value as u8 & 3), effects),
            Register::Bits(field, word) => {
                let of = self.spis_of(word);
                let Some(bank) = self.pages().bank(word / 16).filter(|_| of != 0) else { return };
                let mut bank = bank.state.lock();
                let (bits, change) = changes(field, value, bank.lines.group.word(word));
                for bit in ones(bits & of) {
                    let number = word as u32 * 32 + u32::from(bit);
                    let Some(intid) = Intid::new(number) else { continue };
                    let change = change.unwrap_or(Change::Group(value & 1 << bit != 0));
                    self.change(&mut bank, intid, change, Some(me), effects);
                }
            }
            Register::Priority { first, count } => {
                self.scatter(me, first, count, effects, |n| Change::Priority(priority(value, n)));
            }
            Register::Config { first } => {
                self.scatter(me, first, 16, effects, |n| Change::Edge(value >> (2 * n) & 2 != 0));
            }
            Register::Router(n) => {
                self.scatter(me, n, 1, effects, |_| Change::Route(value & ROUTE_BITS));
            }
            Register::Fixed(_) | Register::TyperLow | Register::TyperHigh | Register::Waker => {}
        }
    }

    /// Writes a register with a field for each of `count` SPIs.
    fn scatter(
        &self,
        me: u8,
        first: u32,
        count: u32,
        effects: &mut Effects,
        change: impl Fn(u32) -> Change,
    ) {
        let Some(bank) = self.pages().bank(first as usize / 512 % 2) else { return };
        let mut bank = bank.state.lock();
        for (n, intid) in self.spis(first, count) {
            self.change(&mut bank, intid, change(n), Some(me), effects);
        }
    }

    fn write_ctlr(&self, me: u8, groups: Groups, effects: &mut Effects) {
        let Some(bank) = self.pages().bank(0) else { return };
        let mut bank = bank.state.lock();
        let before = core::mem::replace(&mut bank.enabled_groups, groups);
        if before == groups {
            return;
        }
        for (index, cpu) in self.cpus() {
            let mut state = cpu.state.lock();
            state.enabled_groups = groups;
            if state.running && before.without(groups) != Groups(0) && index != me {
                state.waiters |= 1 << me;
                effects.waits |= 1 << index;
            }
            self.notify(index, effects);
        }
    }

    fn read_redistributor(
        &self,
        me: u8,
        vcpu: u8,
        register: Register,
        effects: &mut Effects,
    ) -> u32 {
        let Some(cpu) = self.pages().cpu(vcpu) else { return 0 };
        match register {
            Register::Fixed(value) => value,
            Register::Ctlr => {
                let flags = cpu.flags.load(Ordering::Relaxed);
                let bit = |flag, bit| if flags & flag != 0 { bit } else { 0 };
                bit(eligible::DPG0, DPG0) | bit(eligible::DPG1, DPG1NS)
            }
            Register::TyperLow => {
                let last = self.cpus().map(|(index, _)| index).max() == Some(vcpu);
                // Processor_Number, DPGS, Last.
                u32::from(vcpu) << 8 | 1 << 5 | u32::from(last) << 4
            }
            Register::TyperHigh => Vcpu::affinity_of(vcpu) as u32,
            Register::Waker => {
                let sleeps = cpu.state.lock().sleeps;
                if sleeps { WAKER_PROCESSOR_SLEEP | WAKER_CHILDREN_ASLEEP } else { 0 }
            }
            Register::Bits(field, 0) => {
                let mut state = cpu.state.lock();
                let (pending, active, resident) = state.private_state();
                let value = match field {
                    Field::Group => return state.lines.group.word(0),
                    Field::SetEnable | Field::ClearEnable => return state.lines.enabled.word(0),
                    Field::SetPending | Field::ClearPending => pending,
                    Field::SetActive | Field::ClearActive => active,
                };
                if state.running && resident && !effects.after_wait {
                    state.waiters |= 1 << me;
                    effects.waits |= 1 << vcpu;
                    self.notify(vcpu, effects);
                }
                value
            }
            Register::Priority { first, count } => {
                let state = cpu.state.lock();
                let level = |(n, intid)| u32::from(state.lines.level(intid)) << (8 * n + 3);
                own(first, count).map(level).sum()
            }
            // SGIs are edge-triggered, and PPIs here are not.
            Register::Config { first: 0 } => 0xaaaa_aaaa,
            Register::Bits(..) | Register::Config { .. } | Register::Router(_) => 0,
        }
    }

    fn write_redistributor(
        &self,
        me: u8,
        vcpu: u8,
        register: Register,
        value: u32,
        effects: &mut Effects,
    ) {
        let Some(cpu) = self.pages().cpu(vcpu) else { return };
        match register {
            Register::Ctlr => {
                let flag = |bit, flag| if value & bit != 0 { flag } else { 0 };
                let flags = flag(DPG0, eligible::DPG0) | flag(DPG1NS, eligible::DPG1);
                let mut state = cpu.state.lock();
                if state.running && flags & !cpu.flags.load(Ordering::Relaxed) != 0 {
                    state.waiters |= 1 << me;
                    effects.waits |= 1 << vcpu;
                }
                drop(state);
                self.notify(vcpu, effects);
                self.set_flags(cpu, eligible::DPG0 | eligible::DPG1, flags, Some(me), effects);
            }
            Register::Waker => {
                let sleeps = value & WAKER_PROCESSOR_SLEEP != 0;
                let mut state = cpu.state.lock();
                let before = core::mem::replace(&mut state.sleeps, sleeps);
                if before == sleeps {
                    return;
                }
                if state.running && sleeps {
                    state.waiters |= 1 << me;
                    effects.waits |= 1 << vcpu;
                }
                self.notify(vcpu, effects);
                drop(state);
                let flags = if sleeps { eligible::SLEEPS } else { 0 };
                self.set_flags(cpu, eligible::SLEEPS, flags, Some(me), effects);
            }
            Register::Bits(field, 0) => {
                let groups = cpu.state.lock().lines.group.word(0);
                let (bits, change) = changes(field, value, groups);
                for bit in ones(bits) {
                    let Some(intid) = Intid::new(bit.into()) else { continue };
                    let change = change.unwrap_or(Change::Group(value & 1 << bit != 0));
                    self.change_private(vcpu, intid, change, me, effects);
                }
            }
            Register::Priority { first, count } => {
                for (n, intid) in own(first, count) {
                    let change = Change::Priority(priority(value, n));
                    self.change_private(vcpu, intid, change, me, effects);
                }
            }
            _ => {}
        }
    }
}

/// Whether 64 bits may be accessed at once: GICD_IROUTER, GICR_TYPER.
fn is_wide(frame: Frame, offset: u32) -> bool {
    match frame {
        Frame::Distributor => (0x6100..0x7fe0).contains(&offset) && offset.is_multiple_of(8),
        Frame::Redistributor(_) => offset == 8,
    }
}

/// The interrupts that a write to a register of bits changes, and the change; `None` for IGROUPR,
/// where each bit has a change of its own.
fn changes(field: Field, value: u32, groups: u32) -> (u32, Option<Change>) {
    match field {
        Field::Group => (value ^ groups, None),
        Field::SetEnable => (value, Some(Change::Enable(true))),
        Field::ClearEnable => (value, Some(Change::Enable(false))),
        Field::SetPending => (value, Some(Change::Pend)),
        Field::ClearPending => (value, Some(Change::Unpend)),
        Field::SetActive => (value, Some(Change::Activate)),
        Field::ClearActive => (value, Some(Change::Deactivate)),
    }
}

/// A byte of a register of priorities.
fn priority(value: u32, n: u32) -> u8 {
    (value >> (8 * n)) as u8
}

/// Those of the INTIDs `first` to `first + count - 1` that are private, each with its distance from
/// `first`.
fn own(first: u32, count: u32) -> impl Iterator<Item = (u32, Intid)> {
    let all = (0..count).zip((first..).map_while(Intid::new));
    all.filter(|(_, intid)| intid.is_private())
}

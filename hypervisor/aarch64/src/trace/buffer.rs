// SPDX-License-Identifier: MIT OR Apache-2.0

//! Where events are kept until the machine ends, and how they become text.
//!
//! An event's place in the buffer is its number in the order of all CPUs'
//! events: it is drawn from one counter, and what coherence says of that
//! counter is what the trace says of the order.

use core::fmt::{self, Write};
use core::ptr;
use core::slice;
use core::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use escrow_abi::PAGE_SIZE;
use escrow_core::machine::Note;
use escrow_core::stage2::{Descriptor, DescriptorCell, level_shift};

use super::Event;
use crate::percpu::cpu_index;
use crate::sysreg::VTTBR_EL2;

/// The number of the CPU that boots, until it has its own.
const BOOT_CPU: u64 = 4095;
/// Descriptors in a row that make a line of their own worth it.
const SHORTEST_ROW: usize = 3;
/// CPUs whose calls are known to be under way.
const MAX_CPUS: usize = 512;
/// A call is under way and nothing of it was recorded yet. Its number is below.
const SILENT: u64 = 1 << 63;

/// Room for an event. All zeros is one that has not come yet.
#[derive(Debug)]
pub struct Cell {
    /// The sort of event, plus one, and from bit 8 on the CPU.
    kind: AtomicU64,
    words: [AtomicU64; 3],
}

static CELLS: AtomicPtr<Cell> = AtomicPtr::new(ptr::null_mut());
static ROOM: AtomicUsize = AtomicUsize::new(0);
static NEXT: AtomicUsize = AtomicUsize::new(0);
/// The call that each CPU serves: most do nothing to tables, and are left out
/// of the trace.
static CALLS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// Makes zeroed cells the trace's. Events before that are not in it.
pub fn install(cells: &'static [Cell]) {
    CELLS.store(ptr::from_ref(cells).cast::<Cell>().cast_mut(), Ordering::Relaxed);
    ROOM.store(cells.len(), Ordering::Release);
}

fn cells() -> &'static [Cell] {
    let room = ROOM.load(Ordering::Acquire);
    if room == 0 {
        return &[];
    }
    // SAFETY: stored together by `install`, of a slice that lives for ever; the
    // cells are atomics.
    unsafe { slice::from_raw_parts(CELLS.load(Ordering::Relaxed), room) }
}

/// The sorts of events, as cells number them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Write,
    Zero,
    DsbIshst,
    DsbIsh,
    DsbSy,
    Isb,
    Vttbr,
    Tcr,
    Sctlr,
    Ipas2e1is,
    Vmalle1is,
    Vmalls12e1is,
    Vae2is,
    RepeatTlbi,
    SpeculativeAt,
    Root,
    Drop,
    Table,
    Raw,
    State,
    Begin,
    End,
}

impl Kind {
    const ALL: [Kind; 22] = [
        Kind::Write,
        Kind::Zero,
        Kind::DsbIshst,
        Kind::DsbIsh,
        Kind::DsbSy,
        Kind::Isb,
        Kind::Vttbr,
        Kind::Tcr,
        Kind::Sctlr,
        Kind::Ipas2e1is,
        Kind::Vmalle1is,
        Kind::Vmalls12e1is,
        Kind::Vae2is,
        Kind::RepeatTlbi,
        Kind::SpeculativeAt,
        Kind::Root,
        Kind::Drop,
        Kind::Table,
        Kind::Raw,
        Kind::State,
        Kind::Begin,
        Kind::End,
    ];
}

/// Records what happens.
#[inline(never)]
pub(crate) fn event<'a>(event: impl FnOnce() -> Event<'a>) {
    if ROOM.load(Ordering::Relaxed) == 0 {
        return;
    }
    let event = event();
    let cpu = cpu_index().map_or(BOOT_CPU, u64::from);
    if let Some(call) = CALLS.get(cpu as usize) {
        match event {
            Event::Note(Note::Begin(function)) => {
                call.store(function | SILENT, Ordering::Relaxed);
                return;
            }
            _ => {
                let silent = call.swap(0, Ordering::Relaxed);
                if silent != 0 && matches!(event, Event::Note(Note::End(_))) {
                    return;
                }
                if silent != 0 {
                    record(cpu, Kind::Begin, [silent & !SILENT, 0, 0]);
                }
            }
        }
    }
    // TLB maintenance uses the VMID that is in the register.
    let vmid = VTTBR_EL2::read() >> 48;
    let (kind, words) = match event {
        Event::Write { at, old, new } => (Kind::Write, [at, old, new]),
        Event::Zero { at, size } => (Kind::Zero, [at, size, 0]),
        Event::DsbIshst => (Kind::DsbIshst, [0; 3]),
        Event::DsbIsh => (Kind::DsbIsh, [0; 3]),
        Event::DsbSy => (Kind::DsbSy, [0; 3]),
        Event::Isb => (Kind::Isb, [0; 3]),
        Event::Vttbr(value) => (Kind::Vttbr, [value, 0, 0]),
        Event::Tcr(value) => (Kind::Tcr, [value, 0, 0]),
        Event::Sctlr(value) => (Kind::Sctlr, [value, 0, 0]),
        Event::TlbiIpas2e1is { ipa, size } => (Kind::Ipas2e1is, [vmid, ipa, size]),
        Event::TlbiVmalle1is => (Kind::Vmalle1is, [vmid, 0, 0]),
        Event::TlbiVmalls12e1is => (Kind::Vmalls12e1is, [vmid, 0, 0]),
        Event::TlbiVae2is => (Kind::Vae2is, [0; 3]),
        Event::RepeatTlbi => (Kind::RepeatTlbi, [0; 3]),
        Event::SpeculativeAt => (Kind::SpeculativeAt, [0; 3]),
        Event::Note(note) => from_note(note),
    };
    record(cpu, kind, words);
}

fn record(cpu: u64, kind: Kind, words: [u64; 3]) {
    // Events of other CPUs that this one waited for have lower numbers, and
    // the instruction that this one is about is on its side of it.
    let Some(cell) = cells().get(NEXT.fetch_add(1, Ordering::SeqCst)) else { return };
    for (place, word) in cell.words.iter().zip(words) {
        place.store(word, Ordering::Relaxed);
    }
    cell.kind.store((kind as u64 + 1) | (cpu << 8), Ordering::Release);
}

fn from_note(note: Note<'_>) -> (Kind, [u64; 3]) {
    match note {
        Note::Root(vm, context) => (Kind::Root, [vm.vmid().into(), context.vttbr, context.vtcr]),
        Note::Drop(vm) => (Kind::Drop, [vm.vmid().into(), 0, 0]),
        Note::Tables { at, size, zeroed } => {
            (if zeroed { Kind::Table } else { Kind::Raw }, [at.0, size, 0])
        }
        Note::Record { at, size, record } => {
            // At most two VMIDs, each plus one, so that 0 means none.
            let reach =
                record.reached_by().fold(0, |reach, vm| (reach << 16) | (vm.vmid() as u64 + 1));
            (Kind::State, [at.0, size, reach])
        }
        Note::Begin(call) => (Kind::Begin, [call, 0, 0]),
        Note::End(answer) => (Kind::End, [answer, 0, 0]),
    }
}

/// Writes a descriptor, as [`Machine::write_descriptor`] does, and records it.
///
/// [`Machine::write_descriptor`]: escrow_core::machine::Machine::write_descriptor
pub(crate) fn write_descriptor(slot: &DescriptorCell, to: Descriptor) {
    let at = ptr::from_ref(slot).addr() as u64;
    // The caller holds the lock, so nobody else writes the entry.
    let (old, new) = (slot.load().bits(), to.bits());
    let write = || Event::Write { at, old, new };
    if to.is_valid() {
        event(write);
        slot.store(to);
    } else {
        slot.store(to);
        event(write);
    }
}

/// An event that was recorded.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Recorded {
    kind: Kind,
    cpu: u64,
    words: [u64; 3],
}

impl Recorded {
    /// `None` if a CPU is just about to write it.
    fn read(cell: &Cell) -> Option<Recorded> {
        let kind = cell.kind.load(Ordering::Acquire);
        let number = ((kind & 0xff) as usize).checked_sub(1)?;
        let words = cell.words.each_ref().map(|word| word.load(Ordering::Relaxed));
        Some(Recorded { kind: *Kind::ALL.get(number)?, cpu: kind >> 8, words })
    }

    /// The event `n` events behind this one in a row of descriptors side by side
    /// that a CPU writes.
    fn in_row(&self, n: u64, steps: Steps) -> Option<Recorded> {
        let [at, old, new] = self.words;
        let row = |first: u64, step| first.wrapping_add(n.wrapping_mul(step));
        let words = [row(at, 8), row(old, steps.old), row(new, steps.new)];
        let goes_on = self.kind == Kind::Write && at % PAGE_SIZE + 8 * n < PAGE_SIZE;
        goes_on.then_some(Recorded { words, ..*self })
    }
}

/// Writes the trace, and empties it: what happens from here on is lost.
///
/// # Errors
/// The writer's.
pub fn dump(out: &mut dyn Write) -> fmt::Result {
    let cells = cells();
    ROOM.store(0, Ordering::Relaxed);
    let next = NEXT.load(Ordering::SeqCst);
    writeln!(out, "trace begin 1")?;
    let mut rest = &cells[..next.min(cells.len())];
    let (mut seq, mut unwritten) = (0, 0);
    while let Some(event) = rest.first().map(Recorded::read) {
        let lines = match event {
            Some(event) => {
                let row = row(rest, &event);
                write_line(out, seq, &event, row)?;
                row.0
            }
            None => {
                unwritten += 1;
                1
            }
        };
        seq += lines;
        rest = &rest[lines..];
    }
    let lost = next - cells.len().min(next) + unwritten;
    writeln!(out, "trace end {} {lost}", seq - unwritten)
}

/// By how much what descriptors in a row held, and hold, grows from one to the
/// next.
#[derive(Clone, Copy)]
struct Steps {
    old: u64,
    new: u64,
}

/// How many events from the first on are descriptors in a row, if it is worth
/// it, and how they differ.
fn row(cells: &[Cell], first: &Recorded) -> (usize, Steps) {
    let [_, old, new] =
        cells.get(1).and_then(Recorded::read).map_or(first.words, |second| second.words);
    let steps =
        Steps { old: old.wrapping_sub(first.words[1]), new: new.wrapping_sub(first.words[2]) };
    let goes_on = |&(n, cell): &(u64, &Cell)| {
        first.in_row(n, steps).is_some_and(|expected| Recorded::read(cell) == Some(expected))
    };
    let count = 1 + (1..).zip(&cells[1..]).take_while(goes_on).count();
    (if count < SHORTEST_ROW { 1 } else { count }, steps)
}

fn write_line(
    out: &mut dyn Write,
    seq: usize,
    event: &Recorded,
    (count, steps): (usize, Steps),
) -> fmt::Result {
    let [a, b, c] = event.words;
    write!(out, "{} {seq} ", event.cpu)?;
    match event.kind {
        Kind::Write if count > 1 => {
            let Steps { old, new } = steps;
            writeln!(out, "fill {a:#x} {count} {b:#x} {old:#x} {c:#x} {new:#x}")
        }
        Kind::Write => writeln!(out, "release {a:#x} {b:#x} {c:#x}"),
        Kind::Zero => writeln!(out, "zero {a:#x} {b:#x}"),
        Kind::DsbIshst => writeln!(out, "dsb ishst"),
        Kind::DsbIsh => writeln!(out, "dsb ish"),
        Kind::DsbSy => writeln!(out, "dsb sy"),
        Kind::Isb => writeln!(out, "isb"),
        Kind::Vttbr => writeln!(out, "vttbr {a:#x}"),
        Kind::Tcr => writeln!(out, "tcr {a:#x}"),
        Kind::Sctlr => writeln!(out, "sctlr {a:#x}"),
        Kind::Ipas2e1is => writeln!(out, "tlbi ipas2e1is {a} {b:#x} {c:#x}"),
        Kind::Vmalle1is => writeln!(out, "tlbi vmalle1is {a}"),
        Kind::Vmalls12e1is => writeln!(out, "tlbi vmalls12e1is {a}"),
        Kind::Vae2is => writeln!(out, "tlbi vae2is"),
        Kind::RepeatTlbi => writeln!(out, "erratum repeat-tlbi"),
        Kind::SpeculativeAt => writeln!(out, "erratum speculative-at"),
        Kind::Root => {
            // T0SZ and SL0 of VTCR_EL2, for the 4 KiB granule; BADDR and VMID of VTTBR_EL2.
            let bits = 64 - (c & 0x3f) as u8;
            let level = 2 - (c >> 6 & 3) as u8;
            let tables = 1 << (u32::from(bits) - level_shift(level)).saturating_sub(9);
            let (vmid, table) = (b >> 48, b & 0x0000_ffff_ffff_fffe);
            writeln!(out, "root {a} {vmid} {table:#x} {level} {tables} {bits}")
        }
        Kind::Drop => writeln!(out, "drop {a}"),
        Kind::Table => writeln!(out, "table {a:#x} {b:#x}"),
        Kind::Raw => writeln!(out, "raw {a:#x} {b:#x}"),
        Kind::State if c == 0 => writeln!(out, "state {a:#x} {b:#x} -"),
        Kind::State if c >> 16 == 0 => writeln!(out, "state {a:#x} {b:#x} {}", c - 1),
        Kind::State => {
            writeln!(out, "state {a:#x} {b:#x} {} {}", (c >> 16) - 1, (c & 0xffff) - 1)
        }
        Kind::Begin => writeln!(out, "begin {a:#x}"),
        Kind::End => writeln!(out, "end {a:#x}"),
    }
}

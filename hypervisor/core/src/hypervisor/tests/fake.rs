// SPDX-License-Identifier: MIT OR Apache-2.0

//! A machine of fake memory, and the hypervisor on top of it as its host sees
//! it.

use std::array;
use std::collections::BTreeSet;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

use escrow_abi::errata::Hardening;
use escrow_abi::{Error, FrameState, MemEntry, Rights, call};

use zerocopy::FromZeros;

use super::trace::Trace;
use crate::addr::{BLOCK_SIZE, Ipa, PAGE_SIZE, PhysAddr, PhysRange};
use crate::errata::Errata;
use crate::hypervisor::{HostAbort, Hypervisor, Reply, Scratch, Setup, SetupError, Sizes};
use crate::ledger::{self, Frames, GuestId, Reserve};
use crate::log::LogRing;
use crate::machine::{Machine, MemoryError, Note, Table};
use crate::stage2::{Descriptor, Stage2Context, Stage2Features};
use crate::trap::{HostFault, Trap, TrapKind};
use crate::vcpu::syndrome::{Ec, IL};
use crate::vcpu::{GeneralRegisters, GuestExit, GuestIds, Next, Vcpu, VcpuCell};
use crate::vm::{Counts, Run, Slot};

const GIB: u64 = 1 << 30;
/// Fake memory ends here.
const END: u64 = 1 << 40;

/// A page of fake memory.
struct Page {
    words: Table,
    vcpu: OnceLock<Box<VcpuCell>>,
    /// Somebody may have written to it since it was zeroed.
    written: AtomicBool,
}

/// The 512 blocks of a GiB.
struct Gib([OnceLock<Box<[Page]>>; 512]);

/// What another CPU does.
type Meanwhile = Box<dyn FnOnce() + Send>;

/// Memory of which every block exists as soon as somebody looks at it.
pub struct Fake {
    memory: Box<[OnceLock<Box<Gib>>]>,
    /// `(vttbr, address, size)` of all invalidations.
    invalidated: Mutex<Vec<(u64, u64, u64)>>,
    /// Guests' accesses are cacheable whatever they say.
    pub forces_write_back: AtomicBool,
    /// What was cleaned to memory.
    pub cleaned: Mutex<Vec<u64>>,
    /// How often fetches were made to see what was written.
    pub fetches_synced: AtomicU64,
    /// Pages that do not answer.
    pub broken: Mutex<BTreeSet<u64>>,
    /// Pages that EL2 has mapped as a VM's metadata.
    pub metadata: Mutex<BTreeSet<u64>>,
    /// Accesses to devices: address, size, what was stored.
    pub device_accesses: Mutex<Vec<(u64, u64, Option<u64>)>>,
    /// What devices' registers hold.
    pub device_value: AtomicU64,
    /// What happens when an address is zeroed or cleaned, once.
    on_work: Mutex<Option<(u64, Meanwhile)>>,
    /// Bytes that were cleaned or zeroed since an interrupt was last looked for.
    touched: AtomicU64,
    /// The most that it ever was.
    pub touched_at_once: AtomicU64,
    /// When interrupts are pending.
    pub interrupts: Mutex<Interrupts>,
    /// What happens to tables, if somebody wants to know.
    trace: Option<Trace>,
    /// What its CPUs have, and how they are hardened.
    pub errata: AtomicU32,
    pub hardening: AtomicU64,
}

/// When EL2 finds that an interrupt is pending.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Interrupts {
    #[default]
    Never,
    Always,
    /// As a generator of random numbers has it.
    Random(u64),
}

impl Default for Fake {
    fn default() -> Fake {
        Fake {
            memory: (0..END / GIB).map(|_| OnceLock::new()).collect(),
            invalidated: Mutex::default(),
            forces_write_back: AtomicBool::new(false),
            cleaned: Mutex::default(),
            fetches_synced: AtomicU64::new(0),
            broken: Mutex::default(),
            metadata: Mutex::default(),
            device_accesses: Mutex::default(),
            device_value: AtomicU64::new(0),
            on_work: Mutex::default(),
            touched: AtomicU64::new(0),
            touched_at_once: AtomicU64::new(0),
            interrupts: Mutex::default(),
            trace: None,
            errata: AtomicU32::new(0),
            hardening: AtomicU64::new(Hardening::NotNeeded.bit()),
        }
    }
}

impl Machine for Fake {
    fn table(&self, page: PhysAddr) -> &Table {
        assert!(page.is_aligned(PAGE_SIZE), "{page:?}");
        let at = page.0;
        let page = self.page(at);
        page.written.store(true, Ordering::Relaxed);
        if let Some(trace) = &self.trace {
            trace.found(&page.words, at);
        }
        &page.words
    }

    fn write_descriptor(&self, slot: &AtomicU64, to: Descriptor) {
        let old = slot.swap(to.0, Ordering::AcqRel);
        if let Some(trace) = &self.trace {
            trace.write(ptr::from_ref(slot).addr(), old, to.0);
        }
    }

    fn place_vcpu(&self, page: PhysAddr, vcpu: Vcpu) {
        self.table(page)[0].store(0x7563_7076, Ordering::Relaxed);
        let mut vcpu = Some(vcpu);
        let new = || Box::new(VcpuCell::new(vcpu.take().expect("called once")));
        let cell = self.page(page.0).vcpu.get_or_init(new);
        // An earlier VM's vCPU was here.
        if let Some(vcpu) = vcpu {
            *cell.lock() = vcpu;
        }
    }

    fn vcpu(&self, page: PhysAddr) -> &VcpuCell {
        self.page(page.0).vcpu.get().expect("no vCPU was placed there")
    }

    fn read_entry(&self, at: PhysAddr) -> Result<[u64; 4], MemoryError> {
        self.answers(at.0, 32)?;
        let table = self.table(at.align_down(PAGE_SIZE));
        let first = (at.0 % PAGE_SIZE) as usize / 8;
        Ok(array::from_fn(|n| table[first + n].load(Ordering::Relaxed)))
    }

    fn read_entries(&self, at: PhysAddr, entries: &mut [[u64; 4]]) -> usize {
        let places = (at.0..).step_by(32);
        assert!(at.0 % PAGE_SIZE + 32 * entries.len() as u64 <= PAGE_SIZE, "{at:?}");
        let read = |(entry, at): (&mut [u64; 4], u64)| {
            self.read_entry(PhysAddr(at)).map(|words| *entry = words).is_ok()
        };
        entries.iter_mut().zip(places).map(read).take_while(|&read| read).count()
    }

    fn map_metadata(&self, page: PhysAddr) {
        assert!(self.metadata.lock().unwrap().insert(page.0), "{page:?} is mapped already");
    }

    fn unmap_metadata(&self, at: PhysAddr, size: u64) {
        for page in (at.0..at.0 + size).step_by(PAGE_SIZE as usize) {
            assert!(self.metadata.lock().unwrap().remove(&page), "{page:#x} is not mapped");
        }
    }

    fn each_mapped(&self, f: &mut dyn FnMut(PhysAddr, u64)) {
        let mapped = self.metadata.lock().unwrap().clone();
        mapped.into_iter().for_each(|page| f(PhysAddr(page), PAGE_SIZE));
    }

    fn zero(&self, at: PhysAddr, size: u64) -> Result<(), MemoryError> {
        self.touch(at, size);
        if let Some(trace) = &self.trace {
            trace.zero(at.0, size);
        }
        for at in (at.0..at.0 + size).step_by(PAGE_SIZE as usize) {
            let Some(page) = self.looked_at(at) else { continue };
            if page.written.swap(false, Ordering::Relaxed) {
                page.words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
            }
        }
        self.answers(at.0, size)
    }

    fn needs_clean(&self) -> bool {
        !self.forces_write_back.load(Ordering::Relaxed)
    }

    fn clean_to_poc(&self, at: PhysAddr, size: u64) -> Result<(), MemoryError> {
        self.touch(at, size);
        self.cleaned.lock().unwrap().push(at.0);
        self.answers(at.0, size)
    }

    fn sync_fetches(&self) {
        self.fetches_synced.fetch_add(1, Ordering::Relaxed);
    }

    fn errata(&self) -> Errata {
        Errata::from_bits(self.errata.load(Ordering::Relaxed))
    }

    fn hardening(&self) -> u64 {
        self.hardening.load(Ordering::Relaxed)
    }

    fn read_device(&self, at: PhysAddr, size: u64) -> u64 {
        self.device_accesses.lock().unwrap().push((at.0, size, None));
        self.device_value.load(Ordering::Relaxed) & (!0 >> (64 - 8 * size))
    }

    fn write_device(&self, at: PhysAddr, size: u64, value: u64) {
        self.device_accesses.lock().unwrap().push((at.0, size, Some(value)));
    }

    fn interrupt_pending(&self) -> bool {
        self.touched.store(0, Ordering::Relaxed);
        match &mut *self.interrupts.lock().unwrap() {
            Interrupts::Never => false,
            Interrupts::Always => true,
            Interrupts::Random(state) => {
                // xorshift64.
                *state ^= *state << 13;
                *state ^= *state >> 7;
                *state ^= *state << 17;
                *state & 1 != 0
            }
        }
    }

    fn publish(&self) {
        if let Some(trace) = &self.trace {
            trace.publish();
        }
    }

    fn invalidate(&self, context: &Stage2Context, ranges: impl Iterator<Item = (Ipa, u64)>) {
        let ranges: Vec<_> = ranges.map(|(base, size)| (base.0, size)).collect();
        if let Some(trace) = &self.trace {
            trace.invalidate(context, &ranges);
        }
        let ranges = ranges.into_iter().map(|(base, size)| (context.vttbr, base, size));
        self.invalidated.lock().unwrap().extend(ranges);
    }

    fn invalidate_all(&self, context: &Stage2Context) {
        if let Some(trace) = &self.trace {
            trace.invalidate_all(context);
        }
        self.invalidated.lock().unwrap().push((context.vttbr, 0, u64::MAX));
    }

    fn note<'a>(&self, note: impl FnOnce() -> Note<'a>) {
        if let Some(trace) = &self.trace {
            trace.note(note());
        }
    }
}

impl Fake {
    /// Memory of which is told what happens to tables in it.
    fn traced() -> Fake {
        Fake { trace: Some(Trace::default()), ..Fake::default() }
    }

    /// Whether all of a range can be worked on.
    fn answers(&self, at: u64, size: u64) -> Result<(), MemoryError> {
        let first = at & !(PAGE_SIZE - 1);
        match self.broken.lock().unwrap().range(first..at + size).next() {
            None => Ok(()),
            Some(_) => Err(MemoryError),
        }
    }

    /// What happened to tables.
    ///
    /// # Panics
    /// Nobody asked to be told.
    pub fn trace(&self) -> &Trace {
        self.trace.as_ref().expect("a traced machine")
    }

    fn page(&self, at: u64) -> &Page {
        let gib = self.memory[(at / GIB) as usize]
            .get_or_init(|| Box::new(Gib([const { OnceLock::new() }; 512])));
        let block = gib.0[(at % GIB / BLOCK_SIZE) as usize].get_or_init(|| {
            let page = || Page {
                words: [const { AtomicU64::new(0) }; 512],
                vcpu: OnceLock::new(),
                written: AtomicBool::new(false),
            };
            (0..BLOCK_SIZE / PAGE_SIZE).map(|_| page()).collect()
        });
        &block[(at % BLOCK_SIZE / PAGE_SIZE) as usize]
    }

    /// A page of a block that somebody has looked at; any other is zero.
    fn looked_at(&self, at: u64) -> Option<&Page> {
        let gib = self.memory[(at / GIB) as usize].get()?;
        let block = gib.0[(at % GIB / BLOCK_SIZE) as usize].get()?;
        block.get((at % BLOCK_SIZE / PAGE_SIZE) as usize)
    }

    /// Has another CPU do something at the moment when an address is zeroed or
    /// cleaned.
    pub fn at_work_on(&self, at: u64, meanwhile: impl FnOnce() + Send + 'static) {
        *self.on_work.lock().unwrap() = Some((at, Box::new(meanwhile)));
    }

    /// Notes work on the contents of memory.
    fn touch(&self, at: PhysAddr, size: u64) {
        let meanwhile = self.on_work.lock().unwrap().take_if(|(place, _)| *place == at.0);
        if let Some((_, meanwhile)) = meanwhile {
            meanwhile();
        }
        let touched = self.touched.fetch_add(size, Ordering::Relaxed) + size;
        self.touched_at_once.fetch_max(touched, Ordering::Relaxed);
    }

    /// A call begins: interrupts were on until now.
    fn begin_call(&self) {
        self.touched.store(0, Ordering::Relaxed);
    }

    /// Forgets what was invalidated and cleaned so far.
    pub fn forget(&self) {
        self.invalidated.lock().unwrap().clear();
        self.cleaned.lock().unwrap().clear();
    }

    /// How often translations of an address were invalidated in an address
    /// space, by address or all at once.
    pub fn invalidations(&self, vttbr: u64, at: Ipa) -> usize {
        let invalidated = self.invalidated.lock().unwrap();
        let about = |i: &&(u64, u64, u64)| i.0 == vttbr && at.0.wrapping_sub(i.1) < i.2;
        invalidated.iter().filter(about).count()
    }

    /// Fills a page with something that is not zero.
    pub fn scribble(&self, at: u64) {
        self.table(PhysAddr(at)).iter().for_each(|word| word.store(0x5ec2e7, Ordering::Relaxed));
    }

    /// Whether a page is all zeros.
    pub fn is_zero(&self, at: u64) -> bool {
        let zero = |page: &Page| page.words.iter().all(|word| word.load(Ordering::Relaxed) == 0);
        self.looked_at(at).is_none_or(zero)
    }
}

/// Blocks whose records are more than what tests should write to: zeros that are not
/// looked at take no memory.
const MANY: usize = 1 << 14;

/// Memory to set up Escrow in.
pub struct Memory {
    /// Fake memory for tables.
    tables: PhysRange,
    /// Zeroed pages that there still are.
    zeroed: usize,
    /// Blocks whose records lie side by side, and pages for tables.
    piece: usize,
}

impl Memory {
    pub fn new(tables: PhysRange, zeroed: usize) -> Memory {
        Memory { tables, zeroed, piece: usize::MAX }
    }

    /// The same in pieces of at most so many blocks' records or pages.
    pub fn in_pieces(self, piece: usize) -> Memory {
        Memory { piece, ..self }
    }

    fn take(&mut self, pages: usize, align: u64) -> Option<PhysAddr> {
        let at = self.tables.base.0.next_multiple_of(align);
        let end = at + pages as u64 * PAGE_SIZE;
        let left = self.tables.end().checked_sub(end)?;
        self.tables = PhysRange::new(end, left);
        Some(PhysAddr(at))
    }
}

impl Reserve for Memory {
    fn directory(&mut self, gibs: usize) -> Option<&'static mut [Option<&'static ledger::Gib>]> {
        Some(vec![None; gibs].leak())
    }

    fn gib(&mut self) -> Option<&'static mut ledger::Gib> {
        Some(Box::leak(Box::default()))
    }

    fn frames(&mut self, blocks: usize) -> Option<&'static [Frames]> {
        let blocks = blocks.min(self.piece);
        if blocks > MANY {
            return Frames::new_vec_zeroed(blocks).ok().map(|frames| &*frames.leak());
        }
        let frames = || [const { AtomicU64::new(!0) }; 512];
        Some(Vec::leak((0..blocks).map(|_| frames()).collect()))
    }

    fn tables(&mut self, pages: usize) -> Option<(PhysAddr, usize)> {
        let pages = pages.min(self.piece);
        let at = self.take(pages, PAGE_SIZE)?;
        // A page between two pieces.
        self.take(1, PAGE_SIZE)?;
        Some((at, pages))
    }

    fn zeroed(&mut self, count: usize) -> Option<PhysAddr> {
        self.zeroed = self.zeroed.checked_sub(count)?;
        self.take(count, count.next_power_of_two() as u64 * PAGE_SIZE)
    }
}

/// A few blocks, then a whole GiB.
pub const RAM: PhysRange = PhysRange::new(0x7f00_0000, 0x4160_0000);
/// The same few blocks, and a few more.
pub const LITTLE_RAM: PhysRange = PhysRange::new(0x7f00_0000, 0x0180_0000);
/// Escrow's own: the two blocks after the first.
pub const ESCROW: PhysRange = PhysRange::new(0x7f20_0000, 2 * BLOCK_SIZE);
/// Firmware's.
pub const PINNED: PhysRange = PhysRange::new(0x7f80_1000, 0x2000);
/// Devices that the host reaches through EL2 alone: firmware's configuration, and two
/// pages of which it sees nothing.
pub const TRAPS: [Trap; 2] = [
    Trap { registers: PhysRange::new(0x0902_0000, 0x18), kind: TrapKind::FwCfg },
    Trap { registers: PhysRange::new(0x0a00_0e00, 0x400), kind: TrapKind::Hidden },
];
/// Firmware's as well, and nobody may look.
pub const WITHHELD: PhysRange = PhysRange::new(0x7f80_4000, 0x1000);
/// Where the host's lists are.
pub const LIST: u64 = 0x7fa0_0000;
/// Where the host takes the pages from that it donates.
pub const METADATA: u64 = 0x7fb0_0000;
/// Host memory for the tests, in a GiB that is all the host's.
pub const FREE: u64 = 0x8000_0000;

/// Guests that there may be at a time.
pub const GUESTS: usize = 63;

const FEATURES: Stage2Features =
    Stage2Features { pa_bits: 40, force_write_back: false, vmid16: false };

pub const HVC: GuestExit = GuestExit::Instruction(Ec::HVC64.bits() | IL);

/// Free slots.
pub fn slots(guests: usize) -> &'static [Slot] {
    Vec::leak((0..guests).map(|_| Slot::new(Box::leak(Box::<Counts>::default()))).collect())
}

/// The host's side of the tests.
pub struct Host {
    pub escrow: Hypervisor<Fake>,
    scratch: Scratch,
    metadata: u64,
    ids: GuestIds,
    /// How much the last call had done when it was refused: `x3`.
    pub done: u64,
    /// How often calls were made again for an interrupt.
    pub restarts: u64,
}

/// An error with its index and detail.
pub type Refused = (Error, u64, u64);

/// What a guest's call comes to.
#[derive(Debug, PartialEq, Eq)]
pub enum Called {
    /// `x1` to `x3`, or why not.
    Returned(Result<[u64; 3], Refused>),
    /// The host has to do something first: what `VCPU_RUN` answers in `x1` to
    /// `x4`.
    Left([u64; 4]),
}

impl Host {
    /// On a machine with all of [`RAM`].
    pub fn new() -> Host {
        Host::on(RAM)
    }

    pub fn on(ram: PhysRange) -> Host {
        Host::with(Fake::default(), ram, GUESTS, FEATURES).unwrap()
    }

    /// On a machine that tells what happens to tables.
    pub fn traced(ram: PhysRange) -> Host {
        Host::with(Fake::traced(), ram, GUESTS, FEATURES).unwrap()
    }

    /// On a machine with room for so many guests.
    pub fn for_guests(guests: usize, vmid16: bool) -> Result<Host, SetupError> {
        Host::with(Fake::default(), RAM, guests, Stage2Features { vmid16, ..FEATURES })
    }

    fn with(
        machine: Fake,
        ram: PhysRange,
        guests: usize,
        features: Stage2Features,
    ) -> Result<Host, SetupError> {
        let ram = [ram];
        let sizes = Sizes::of(&ram, guests).unwrap();
        // Escrow's tables are in its own memory.
        let mut reserve = Memory::new(ESCROW, sizes.zeroed);
        let setup = Setup {
            ram: &ram,
            escrow: &[ESCROW],
            pinned: &[PINNED, WITHHELD],
            withheld: &[WITHHELD],
            traps: &TRAPS,
            log: Box::leak(Box::new(LogRing::new())),
            reserve: &mut reserve,
            slots: slots(sizes.guests),
            features,
        };
        let escrow = Hypervisor::new(machine, setup)?;
        let ids = GuestIds::new(|_, _| 0, 39);
        Ok(Host { escrow, scratch: Scratch::new(), metadata: METADATA, ids, done: 0, restarts: 0 })
    }

    /// What becomes of a load that stage 2 does not let through, by an instruction that
    /// the syndrome does not describe.
    pub fn touches(&mut self, at: u64) -> HostAbort {
        let esr = Ec::DATA_ABORT_LOWER.bits() | IL | 0x7;
        let fault = HostFault { at: Ipa(at), esr, pstate: 0x5, sctlr: 0 };
        self.escrow.host_abort(&fault, &mut GeneralRegisters::default())
    }

    /// A call of the host.
    pub fn call(&mut self, function: u32, args: &[u64]) -> Result<[u64; 4], Refused> {
        let mut x = [0; 8];
        x[0] = function as u64;
        x[1..=args.len()].copy_from_slice(args);
        while !self.makes_call(&mut x) {}
        self.done = if x[0] == 0 { 0 } else { x[3] };
        match x {
            [0, x1, x2, x3, x4, ..] => Ok([x1, x2, x3, x4]),
            [x0, x1, x2, ..] => Err((Error::from_register(x0).unwrap(), x1, x2)),
        }
    }

    /// Makes a call of the host, or makes it again, as the machine half does it. Whether
    /// it is answered.
    pub fn makes_call(&mut self, x: &mut [u64; 8]) -> bool {
        self.escrow.machine.begin_call();
        let answered = match x[0] as u32 {
            call::MEM_LEND => self.escrow.host_lends_list_of_one(x),
            call::MEM_LEND_ONE => self.escrow.host_lends_one(x),
            call::VCPU_RUN => {
                assert!(self.escrow.host_runs(x).is_none(), "a run");
                true
            }
            _ => false,
        };
        if answered {
            return true;
        }
        let before = *x;
        match self.escrow.host_call(&mut self.scratch, x) {
            Reply::Answer => {
                assert!(x[7] == 0 || x[7] == before[7], "no progress is left over");
                true
            }
            Reply::Again => {
                assert_eq!(x[..7], before[..7], "nothing but the progress has changed");
                assert_ne!(x[7], before[7], "no progress");
                self.restarts += 1;
                false
            }
        }
    }

    /// A call of a guest, made by a vCPU that is run for it.
    pub fn guest_call(
        &mut self,
        vcpu: u64,
        function: u32,
        args: &[u64],
    ) -> Result<[u64; 3], Refused> {
        match self.begin_guest_call(vcpu, function, args) {
            Called::Returned(result) => result,
            Called::Left(answer) => panic!("the guest left: {answer:x?}"),
        }
    }

    /// The same for a call that may have to wait for the host.
    pub fn begin_guest_call(&mut self, vcpu: u64, function: u32, args: &[u64]) -> Called {
        self.guest_exits(vcpu, |run| {
            run.regs.x[..8].fill(0);
            run.regs.x[0] = function as u64;
            run.regs.x[1..=args.len()].copy_from_slice(args);
        })
    }

    /// The vCPU runs on after its call left for the host.
    pub fn resume_guest_call(&mut self, vcpu: u64) -> Called {
        self.guest_exits(vcpu, |_| {})
    }

    /// Runs a vCPU up to the HVC behind where it is, and past it.
    fn guest_exits(&mut self, vcpu: u64, prepare: impl FnOnce(&mut Run<'_>)) -> Called {
        let mut run = run_of(&self.escrow, vcpu);
        prepare(&mut run);
        let pc = run.regs.pc;
        loop {
            self.escrow.machine.begin_call();
            run.regs.pc = pc.wrapping_add(4);
            let before = run.regs.x;
            match self.escrow.guest_exit(&mut self.scratch, &mut run, HVC, &self.ids) {
                Next::Enter if run.regs.pc == pc => {
                    assert_eq!(run.regs.x[..7], before[..7], "only the progress has changed");
                    assert_ne!(run.regs.x[7], before[7], "no progress");
                    self.restarts += 1;
                }
                Next::Enter => {
                    assert_eq!(run.regs.pc, pc.wrapping_add(4), "past its call");
                    let x = run.regs.x;
                    assert!(x[7] == 0 || x[7] == before[7], "no progress is left over");
                    self.done = if x[0] == 0 { 0 } else { x[3] };
                    return Called::Returned(match x {
                        [0, x1, x2, x3, ..] => Ok([x1, x2, x3]),
                        [x0, x1, x2, ..] => Err((Error::from_register(x0).unwrap(), x1, x2)),
                    });
                }
                Next::Leave(answer) => {
                    assert_eq!(run.regs.pc, pc, "it makes its call again");
                    return Called::Left(answer);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// What follows when a vCPU that is run for it leaves its code.
    pub fn guest_exit(&mut self, vcpu: u64, exit: GuestExit) -> Next {
        let mut run = run_of(&self.escrow, vcpu);
        self.escrow.guest_exit(&mut self.scratch, &mut run, exit, &self.ids)
    }

    /// Writes a list into the host's memory; returns its arguments.
    pub fn list(&mut self, entries: &[MemEntry]) -> [u64; 2] {
        self.write_list(entries, |page| LIST + page * PAGE_SIZE);
        [LIST, entries.len() as u64]
    }

    /// Writes a list into pages of somebody's memory.
    pub fn write_list(&self, entries: &[MemEntry], page: impl Fn(u64) -> u64) {
        const IN_PAGE: usize = PAGE_SIZE as usize / 32;
        for (n, entries) in entries.chunks(IN_PAGE).enumerate() {
            let table = self.escrow.machine.table(PhysAddr(page(n as u64)));
            for (words, entry) in table.chunks(4).zip(entries) {
                for (word, value) in words.iter().zip(entry.words()) {
                    word.store(value, Ordering::Relaxed);
                }
            }
        }
    }

    pub fn give(&mut self, function: u32, vm: u64, entries: &[MemEntry]) -> Result<(), Refused> {
        let [list, count] = self.list(entries);
        self.call(function, &[vm, list, count]).map(drop)
    }

    pub fn lend(&mut self, vm: u64, entries: &[MemEntry]) -> Result<(), Refused> {
        self.give(call::MEM_LEND, vm, entries)
    }

    /// With the entry in registers.
    pub fn lend_one(&mut self, vm: u64, entry: &MemEntry) -> Result<(), Refused> {
        let [frame, guest, references, users] = entry.words();
        self.call(call::MEM_LEND_ONE, &[vm, frame, guest, references, users]).map(drop)
    }

    pub fn share(&mut self, vm: u64, entries: &[MemEntry]) -> Result<(), Refused> {
        self.give(call::MEM_SHARE, vm, entries)
    }

    pub fn take(&mut self, function: u32, frames: &[(u64, u32)]) -> Result<(), Refused> {
        let entries: Vec<_> =
            frames.iter().map(|&(at, order)| MemEntry::new(at, order, 0, Rights::NONE)).collect();
        let [list, count] = self.list(&entries);
        self.call(function, &[list, count]).map(drop)
    }

    pub fn reclaim(&mut self, frames: &[(u64, u32)]) -> Result<(), Refused> {
        self.take(call::MEM_RECLAIM, frames)
    }

    /// Pages for the host to donate; each is used once.
    pub fn fresh_metadata(&mut self, pages: u64) -> Vec<MemEntry> {
        let from = self.metadata;
        self.metadata += pages * PAGE_SIZE;
        (0..pages)
            .map(|n| {
                let at = from + n * PAGE_SIZE;
                self.escrow.machine.scribble(at);
                MemEntry::new(at, 0, 0, Rights::NONE)
            })
            .collect()
    }

    /// A VM of `pages` donated pages; returns its handle and the pages.
    pub fn create(&mut self, pages: u64) -> (u64, Vec<(u64, u32)>) {
        let entries = self.fresh_metadata(pages);
        let [list, count] = self.list(&entries);
        let [vm, ..] = self.call(call::VM_CREATE, &[list, count]).unwrap();
        (vm, entries.iter().map(|e| (e.frame, 0)).collect())
    }

    /// Runs a vCPU of a started VM, as the CPU would.
    pub fn run<R>(&mut self, vcpu: u64, f: impl FnOnce(&Hypervisor<Fake>, Run<'_>) -> R) -> R {
        f(&self.escrow, run_of(&self.escrow, vcpu))
    }

    pub fn reaches(&self, at: u64) -> bool {
        self.escrow.host_map().reaches(&self.escrow.machine, PhysAddr(at))
    }

    /// What a guest address of a VM leads to.
    pub fn guest_frame(&self, vm: u64, at: u64) -> Option<u64> {
        let slot = escrow_abi::Handle::from_register(vm).unwrap().slot;
        let vm = self.escrow.slots.get(GuestId::new(slot).unwrap()).unwrap().lock();
        let leaf = vm.map.as_ref()?.lookup(&self.escrow.machine, Ipa(at));
        let offset = if leaf.level == 2 { at % BLOCK_SIZE } else { 0 };
        leaf.entry.is_valid().then_some(leaf.entry.address().0 + offset)
    }

    /// All that the ledger counts, and which pages of each block the host
    /// reaches: one answer for a block that is one record, 512 for others.
    pub fn snapshot(&self) -> (Vec<u64>, Vec<Vec<bool>>) {
        let ledger = self.escrow.ledger();
        let counts = FrameState::ALL.iter().map(|&s| self.escrow.pages(s)).collect();
        let ram = ledger.ram().ranges();
        let blocks = ram.flat_map(|r| (r.base.0..r.end()).step_by(BLOCK_SIZE as usize));
        let reached = blocks.map(|base| {
            let split = ledger.is_split(ledger.locate(PhysAddr(base)).unwrap());
            let pages = if split { 512 } else { 1 };
            (0..pages).map(|n| self.reaches(base + n * PAGE_SIZE)).collect()
        });
        (counts, reached.collect())
    }

    /// All of the host's tables, entry by entry, as the CPU finds them.
    pub fn host_tables(&self) -> Vec<u64> {
        let mut entries = Vec::new();
        self.read_tables(self.escrow.host_context(), |_, _, entry| entries.push(entry));
        entries
    }

    /// Shows all entries of a VM's tables but those that lead to tables: their
    /// addresses, levels and bits, in ascending order. The walk is the one that
    /// the CPU makes (DDI 0487, D8.2), from the registers on.
    pub fn read_tables(&self, context: &Stage2Context, mut f: impl FnMut(u64, u32, u64)) {
        let ipa_bits = 64 - (context.vtcr & 0x3f) as u32;
        let start_level = 2 - (context.vtcr >> 6 & 3) as u32;
        let in_root = ipa_bits - (39 - 9 * start_level);
        let root = context.vttbr & 0xffff_ffff_f000;
        for n in 0..(1u64 << in_root).div_ceil(512) {
            let table = PhysAddr(root + n * PAGE_SIZE);
            self.read_table(table, start_level, n << (48 - 9 * start_level), &mut f);
        }
    }

    /// The entries for the pages of 2 MiB of a VM's addresses.
    pub fn read_block(&self, context: &Stage2Context, base: u64, mut f: impl FnMut(u64, u64)) {
        let start_level = 2 - (context.vtcr >> 6 & 3) as u32;
        let root = context.vttbr & 0xffff_ffff_f000;
        let index = base >> (39 - 9 * start_level);
        let mut table = root + index / 512 * PAGE_SIZE;
        let mut entry = 0;
        let mut level = start_level;
        while level <= 2 {
            let index = (base >> (39 - 9 * level)) as usize % 512;
            entry = self.escrow.machine.table(PhysAddr(table))[index].load(Ordering::Relaxed);
            if entry & 3 != 3 {
                break;
            }
            table = entry & 0xffff_ffff_f000;
            level += 1;
        }
        if level == 3 {
            return self.read_table(PhysAddr(table), 3, base, &mut |at, _, entry| f(at, entry));
        }
        // A larger entry stands for it.
        let offset = base & ((1 << (39 - 9 * level)) - 1);
        for n in 0..512 {
            f(base + n * PAGE_SIZE, entry + offset + n * PAGE_SIZE);
        }
    }

    fn read_table(
        &self,
        table: PhysAddr,
        level: u32,
        base: u64,
        f: &mut impl FnMut(u64, u32, u64),
    ) {
        for (n, slot) in (0u64..).zip(self.escrow.machine.table(table)) {
            let entry = slot.load(Ordering::Relaxed);
            let at = base + (n << (39 - 9 * level));
            if level < 3 && entry & 3 == 3 {
                self.read_table(PhysAddr(entry & 0xffff_ffff_f000), level + 1, at, f);
            } else {
                f(at, level, entry);
            }
        }
    }
}

/// A run of a vCPU.
fn run_of(escrow: &Hypervisor<Fake>, vcpu: u64) -> Run<'_> {
    let mut x = [call::VCPU_RUN as u64, vcpu, 0, 0, 0, 0, 0, 0];
    escrow.host_runs(&mut x).unwrap_or_else(|| panic!("no run: {x:x?}"))
}

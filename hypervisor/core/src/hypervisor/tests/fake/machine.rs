// SPDX-License-Identifier: MIT OR Apache-2.0

//! Fake memory, and TLBs and caches that note what they are told.

use std::array;
use std::collections::BTreeSet;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

use escrow_abi::errata::Hardening;

use super::super::trace::Trace;
use crate::addr::{BLOCK_SIZE, Ipa, PAGE_SIZE, PhysAddr};
use crate::errata::Errata;
use crate::machine::{Machine, MemoryError, Note, Table};
use crate::stage2::{
    BankPage, Descriptor, DescriptorCell, FreePage, Stage2Context, TablePage, TimePage, VcpuPage,
};
use crate::vcpu::{Vcpu, VcpuCell, VcpuContents};
use crate::vgic;

const GIB: u64 = 1 << 30;
/// Fake memory ends here.
const END: u64 = 1 << 40;

/// A page of fake memory.
struct Page {
    words: Table,
    placed: Mutex<Option<Placed>>,
    /// Somebody may have written to it since it was zeroed.
    written: AtomicBool,
    /// What it is to EL2: 0, or one of the following.
    metadata: AtomicU8,
}

/// What was placed in a page last. It stays, for whoever asks when it should not.
#[derive(Clone, Copy)]
enum Placed {
    Vcpu(&'static VcpuContents),
    Bank(&'static vgic::Bank),
}

const IS_METADATA: u8 = 1;
const WAS_METADATA: u8 = 2;

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
    /// Where zeroing fails as a bug of EL2's does; `u64::MAX` for nowhere.
    pub fails_at: AtomicU64,
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
    /// How often somebody asked for a table.
    pub tables_found: AtomicU64,
    /// When interrupts are pending.
    pub interrupts: Mutex<Interrupts>,
    /// CPUs that were interrupted.
    pub interrupted: Mutex<Vec<u32>>,
    /// Whether vCPUs were locked when somebody looked at their interrupts, if it is wanted.
    pub locked: Mutex<Option<Vec<bool>>>,
    /// What happens to tables, if somebody wants to know.
    trace: Option<Trace>,
    /// What its CPUs have, and how they are hardened.
    pub errata: AtomicU32,
    pub hardening: AtomicU64,
    /// Words of random numbers that are left, if there is a source: with [`u32::MAX`] they are
    /// all ones, otherwise no two halves of them are alike.
    entropy: Mutex<Option<u32>>,
    /// Words that were drawn.
    drawn: AtomicU64,
    /// The counter.
    time: AtomicU64,
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
            tables_found: AtomicU64::new(0),
            interrupts: Mutex::default(),
            interrupted: Mutex::default(),
            locked: Mutex::default(),
            trace: None,
            fails_at: AtomicU64::new(u64::MAX),
            errata: AtomicU32::new(0),
            hardening: AtomicU64::new(Hardening::NotNeeded.bit()),
            entropy: Mutex::default(),
            drawn: AtomicU64::new(0),
            time: AtomicU64::new(0),
        }
    }
}

impl Fake {
    /// Sets its counter.
    pub fn set_time(&self, now: u64) {
        self.time.store(now, Ordering::Relaxed);
    }

    /// Gives it a source with so many words, or takes it away.
    pub fn has_entropy(&self, words: Option<u32>) {
        *self.entropy.lock().unwrap() = words;
    }

    fn placed(&self, page: PhysAddr) -> Placed {
        let page = self.page(page.0);
        assert_eq!(page.metadata.load(Ordering::Relaxed), IS_METADATA);
        page.placed.lock().unwrap().expect("something was placed there")
    }

    fn vcpu_contents(&self, page: VcpuPage) -> &'static VcpuContents {
        match self.placed(page.address()) {
            Placed::Vcpu(contents) => contents,
            Placed::Bank(_) => panic!("{page:?} is a bank's"),
        }
    }
}

impl Machine for Fake {
    fn table(&self, page: TablePage) -> &Table {
        let at = page.address().0;
        assert!(at.is_multiple_of(PAGE_SIZE), "{page:?}");
        let page = self.page(at);
        let metadata = page.metadata.load(Ordering::Relaxed);
        assert_ne!(metadata, WAS_METADATA, "{at:#x} is no table any more");
        page.written.store(true, Ordering::Relaxed);
        self.tables_found.fetch_add(1, Ordering::Relaxed);
        if let Some(trace) = &self.trace {
            trace.found(&page.words, at);
        }
        &page.words
    }

    fn write_descriptor(&self, slot: &DescriptorCell, to: Descriptor) {
        let old = slot.word().swap(to.bits(), Ordering::AcqRel);
        if let Some(trace) = &self.trace {
            trace.write(ptr::from_ref(slot).addr(), old, to.bits());
        }
    }

    fn place_vcpu(&self, page: &FreePage, vcpu: Vcpu) {
        let at = page.address();
        self.word(at).store(0x7563_7076, Ordering::Relaxed);
        let contents: &VcpuContents = Box::leak(Box::new(VcpuContents::new(vcpu)));
        *self.page(at.0).placed.lock().unwrap() = Some(Placed::Vcpu(contents));
    }

    fn vcpu(&self, page: VcpuPage) -> &VcpuCell {
        &self.vcpu_contents(page).cell
    }

    fn vcpu_interrupts(&self, page: VcpuPage) -> &vgic::Cpu {
        let contents = self.vcpu_contents(page);
        if let Some(locked) = &mut *self.locked.lock().unwrap() {
            locked.push(contents.cell.is_locked());
        }
        &contents.interrupts
    }

    fn place_bank(&self, page: &FreePage, bank: vgic::Bank) {
        let at = page.address();
        self.word(at).store(0x6b6e_6162, Ordering::Relaxed);
        *self.page(at.0).placed.lock().unwrap() = Some(Placed::Bank(Box::leak(Box::new(bank))));
    }

    fn bank(&self, page: BankPage) -> &vgic::Bank {
        match self.placed(page.address()) {
            Placed::Bank(bank) => bank,
            Placed::Vcpu(_) => panic!("{page:?} is a vCPU's"),
        }
    }

    fn interrupt_cpu(&self, affinity: u32) {
        self.interrupted.lock().unwrap().push(affinity);
    }

    fn read_entry(&self, at: PhysAddr) -> Result<[u64; 4], MemoryError> {
        self.answers(at.0, 32)?;
        Ok(array::from_fn(|n| self.word(at.add(8 * n as u64)).load(Ordering::Relaxed)))
    }

    fn write_entry(&self, at: PhysAddr, words: [u64; 4]) -> Result<(), MemoryError> {
        self.answers(at.0, 32)?;
        for (n, word) in words.into_iter().enumerate() {
            self.word(at.add(8 * n as u64)).store(word, Ordering::Relaxed);
        }
        Ok(())
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
        self.page(page.0).metadata.store(IS_METADATA, Ordering::Relaxed);
    }

    fn unmap_metadata(&self, at: PhysAddr, size: u64) {
        for page in (at.0..at.0 + size).step_by(PAGE_SIZE as usize) {
            assert!(self.metadata.lock().unwrap().remove(&page), "{page:#x} is not mapped");
            self.page(page).metadata.store(WAS_METADATA, Ordering::Relaxed);
        }
    }

    fn each_mapped(&self, f: &mut dyn FnMut(PhysAddr, u64)) {
        let mapped = self.metadata.lock().unwrap().clone();
        mapped.into_iter().for_each(|page| f(PhysAddr(page), PAGE_SIZE));
    }

    fn zero(&self, at: PhysAddr, size: u64) -> Result<(), MemoryError> {
        assert_ne!(at.0, self.fails_at.load(Ordering::Relaxed), "the CPU fails");
        self.touch(at, size);
        if let Some(trace) = &self.trace {
            trace.zero(at.0, size);
        }
        for at in (at.0..at.0 + size).step_by(PAGE_SIZE as usize) {
            let Some(page) = self.looked_at(at) else { continue };
            if page.written.swap(false, Ordering::Relaxed) {
                page.words.iter().for_each(|word| word.word().store(0, Ordering::Relaxed));
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

    fn store_time(&self, page: TimePage, offset: u64, value: u64) {
        let at = page.address();
        assert_eq!(self.page(at.0).metadata.load(Ordering::Relaxed), IS_METADATA);
        self.word(at.add(offset)).store(value, Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        self.time.load(Ordering::Relaxed)
    }

    fn ticks_per_second(&self) -> u64 {
        62_500_000
    }

    fn has_random(&self) -> bool {
        self.entropy.lock().unwrap().is_some()
    }

    fn random(&self, words: &mut [u64]) -> bool {
        let mut entropy = self.entropy.lock().unwrap();
        let left = entropy.as_mut().expect("a source of random numbers");
        for word in words {
            let Some(fewer) = left.checked_sub(1) else { return false };
            if *left == u32::MAX {
                *word = u64::MAX;
                continue;
            }
            *left = fewer;
            let drawn = self.drawn.fetch_add(2, Ordering::Relaxed);
            *word = ((drawn + 1) << 32) | (drawn + 2);
        }
        true
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
    pub(super) fn traced() -> Fake {
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
                words: [const { DescriptorCell::new(0) }; 512],
                placed: Mutex::default(),
                written: AtomicBool::new(false),
                metadata: AtomicU8::new(0),
            };
            (0..BLOCK_SIZE / PAGE_SIZE).map(|_| page()).collect()
        });
        &block[(at % BLOCK_SIZE / PAGE_SIZE) as usize]
    }

    /// A word of memory, whatever it is.
    pub fn word(&self, at: PhysAddr) -> &AtomicU64 {
        let page = self.page(at.0);
        page.written.store(true, Ordering::Relaxed);
        page.words[(at.0 % PAGE_SIZE) as usize / 8].word()
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
    pub(super) fn begin_call(&self) {
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
        for at in (at..at + PAGE_SIZE).step_by(8) {
            self.word(PhysAddr(at)).store(0x5ec2e7, Ordering::Relaxed);
        }
    }

    /// Whether a page is all zeros.
    pub fn is_zero(&self, at: u64) -> bool {
        let zero = |page: &Page| page.words.iter().all(|word| word.load().bits() == 0);
        self.looked_at(at).is_none_or(zero)
    }
}

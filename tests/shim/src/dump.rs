// SPDX-License-Identifier: MIT OR Apache-2.0

//! A crash dump while guests have pages: `shim-tests --scene`, before the crash, makes the
//! guests and fills memory of all kinds; `shim-tests --vmcore`, in the dump kernel, looks
//! for it in `/proc/vmcore`.
//!
//! A page that was filled says what it is and which one, in each of its words but the
//! first, which guests write to. What a guest had must not be in the dump, all the rest
//! must be, each page once and as it was.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use escrow_vmcore::uapi::{self, fdinfo};
use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use escrow_shim_tests::guest::{Guest, Order, RAM};
use escrow_shim_tests::gunyah::{Device, PAGE, RWX};
use escrow_shim_tests::runner::same;
use escrow_shim_tests::say;

/// Words of a page.
const WORDS: usize = PAGE as usize / 8;
/// Bytes of the dump that are read, or mapped, at a time.
const CHUNK: u64 = 1 << 20;

/// Where memory was that was filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Lent, in blocks.
    Blocks,
    /// Lent, in all pages of what were blocks. So there is memory that has nothing but pages
    /// without a reference: of which Linux thinks that it is about to be free.
    Split,
    /// Lent, every other page of a memory.
    Pages,
    /// The pages between these, which the host has.
    Between,
    /// Shared with a guest.
    Shared,
    /// A program's own.
    Own,
}

impl Kind {
    const ALL: [Kind; 6] =
        [Kind::Blocks, Kind::Split, Kind::Pages, Kind::Between, Kind::Shared, Kind::Own];

    /// How many pages there are of it.
    const fn pages(self) -> u64 {
        match self {
            Kind::Blocks => 64 << 8,
            Kind::Split => 320 << 8,
            Kind::Pages | Kind::Between => 300,
            Kind::Shared => 200,
            Kind::Own => 32 << 8,
        }
    }

    const fn is_the_guest_s(self) -> bool {
        matches!(self, Kind::Blocks | Kind::Split | Kind::Pages)
    }

    /// A word that nothing else in memory has twice in a page.
    const fn mark(self) -> u64 {
        0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(2 * self as u64 + 0x1235)
    }

    /// A word of a page, but the first.
    const fn word(self, page: u64, index: usize) -> u64 {
        match index {
            1 => self.mark(),
            2 => page,
            _ => self.mark().wrapping_mul(index as u64) ^ page,
        }
    }

    /// Fills a page, where it is: a copy elsewhere would be in the dump as well.
    ///
    /// # Safety
    /// There is a page at the address, and nobody else uses it.
    unsafe fn fill(self, at: *mut u8, page: u64) {
        for index in 1..WORDS {
            // SAFETY: in the page, which the caller vouches for, and aligned as it is.
            unsafe { at.cast::<u64>().add(index).write_volatile(self.word(page, index)) };
        }
    }
}

/// Makes the guests, says `scene: N pages are lent`, and stays.
pub fn scene() -> Result<()> {
    let device = Device::open()?;
    let flags = uapi::MEM_ALLOW_HUGEPAGE;
    // The first block has the guest's program, and belongs to no kind.
    let blocks = Guest::with_memory(&device, Kind::Blocks.pages() + 512, flags)?;
    for page in 0..Kind::Blocks.pages() {
        // SAFETY: a page of the guest's memory, which the guest does not run in yet.
        unsafe { Kind::Blocks.fill(blocks.mapping.at((page + 512) * PAGE), page) };
    }
    blocks.vm.start().context("VM_START")?;
    blocks.ask(Order::Visit(RAM, Kind::Blocks.pages() + 512))?;

    let split = device.huge_memory(Kind::Split.pages())?;
    let split_mapping = split.map(0, Kind::Split.pages())?;
    for page in 0..Kind::Split.pages() {
        // SAFETY: a page of a memory that no guest has.
        unsafe { Kind::Split.fill(split_mapping.at(page * PAGE), page) };
    }
    // No block fits there.
    let split_at = RAM + (3 << 30) + PAGE;
    blocks.vm.bind(split_at, RWX, &split, 0, Kind::Split.pages())?;
    blocks.ask(Order::Visit(split_at, Kind::Split.pages()))?;

    let memory = device.memory(2 * Kind::Pages.pages())?;
    let mapping = memory.map(0, 2 * Kind::Pages.pages())?;
    for page in 0..Kind::Pages.pages() {
        // SAFETY: pages of a memory that no guest has.
        unsafe {
            Kind::Pages.fill(mapping.at(2 * page * PAGE), page);
            Kind::Between.fill(mapping.at((2 * page + 1) * PAGE), page);
        }
    }
    let lent_at = RAM + (1 << 30);
    blocks.vm.bind(lent_at, RWX, &memory, 0, 2 * Kind::Pages.pages())?;
    for page in 0..Kind::Pages.pages() {
        blocks.ask(Order::Visit(lent_at + 2 * page * PAGE, 1))?;
    }

    let shared = device.memory(Kind::Shared.pages())?;
    let shared_mapping = shared.map(0, Kind::Shared.pages())?;
    for page in 0..Kind::Shared.pages() {
        // SAFETY: a page of a memory that no guest has.
        unsafe { Kind::Shared.fill(shared_mapping.at(page * PAGE), page) };
    }
    let shared_at = RAM + (2 << 30);
    let share = RWX | uapi::MAP_FORCE_SHARE;
    blocks.vm.bind(shared_at, share, &shared, 0, Kind::Shared.pages())?;
    blocks.ask(Order::Visit(shared_at, Kind::Shared.pages()))?;

    let size = NonZeroUsize::new((Kind::Own.pages() * PAGE) as usize).context("no memory")?;
    let rights = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping.
    let own = unsafe { mmap_anonymous(None, size, rights, MapFlags::MAP_PRIVATE) }?;
    for page in 0..Kind::Own.pages() {
        let at = own.as_ptr().cast::<u8>().wrapping_add((page * PAGE) as usize);
        // SAFETY: a page of the mapping, which is this function's alone.
        unsafe { Kind::Own.fill(at, page) };
    }

    same(blocks.memory.count(fdinfo::LENT)?, Kind::Blocks.pages() + 512)?;
    same(split.count(fdinfo::LENT)?, Kind::Split.pages())?;
    same(memory.count(fdinfo::LENT)?, Kind::Pages.pages())?;
    same(shared.count(fdinfo::SHARED)?, Kind::Shared.pages())?;
    say!("scene: {} pages are lent", LENT + 512);
    // The guest runs as the host crashes.
    blocks.order(Order::Loop)?;
    loop {
        match blocks.vcpu.run() {
            Err(Errno::EINTR) => {}
            end => {
                say!("scene: the guest's run has ended: {end:?}");
                thread::sleep(Duration::from_secs(600));
            }
        }
    }
}

/// Pages that were filled and that guests have then.
const LENT: u64 = Kind::Blocks.pages() + Kind::Split.pages() + Kind::Pages.pages();

/// What was found of each kind.
#[derive(Default)]
struct Found {
    pages: [BTreeSet<u64>; Kind::ALL.len()],
    twice: [u64; Kind::ALL.len()],
    damaged: u64,
    /// Pages of the dump, and those of them that are all zeros.
    all: u64,
    zeros: u64,
}

impl Found {
    fn look_at(&mut self, page: &[u8]) {
        self.all += 1;
        let word = |index: usize| {
            let bytes = page.get(8 * index..).and_then(|rest| rest.first_chunk());
            bytes.map_or(0, |bytes| u64::from_ne_bytes(*bytes))
        };
        let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.mark() == word(1)) else {
            self.zeros += u64::from(page.iter().all(|&byte| byte == 0));
            return;
        };
        // This program has marks in its own words, but not a page of them.
        if word(3) != kind.word(word(2), 3) {
            return;
        }
        let number = word(2);
        let is_whole = (1..WORDS).all(|index| word(index) == kind.word(number, index));
        self.damaged += u64::from(!is_whole);
        self.twice[kind as usize] += u64::from(!self.pages[kind as usize].insert(number));
    }

    /// Whether it is what must be, told as lines.
    fn judge(&self, how: &str) -> Result<()> {
        say!("{how}: {} pages, {} of them zeros", self.all, self.zeros);
        for kind in Kind::ALL {
            let expected = if kind.is_the_guest_s() { 0 } else { kind.pages() };
            let (once, twice) = (self.pages[kind as usize].len() as u64, self.twice[kind as usize]);
            say!("{how}: {kind:?}: {once} pages of {}, {twice} again", kind.pages());
            ensure!(once == expected, "{how}: {kind:?}: {once} pages instead of {expected}");
            ensure!(twice == 0, "{how}: {kind:?}: {twice} pages more than once");
        }
        ensure!(self.damaged == 0, "{how}: {} pages are damaged", self.damaged);
        ensure!(self.zeros >= LENT, "{how}: {} pages of zeros, {LENT} are lent", self.zeros);
        Ok(())
    }
}

/// Where the dump has memory: `PT_LOAD` of an ELF64 file (System V ABI, "Program
/// header").
fn segments(dump: &File) -> Result<Vec<Range<u64>>> {
    const HEADER: usize = 56;
    let mut head = [0; 64];
    dump.read_exact_at(&mut head, 0)?;
    ensure!(head.starts_with(b"\x7fELF\x02"), "no ELF64 file");
    let number = |bytes: &[u8], at: usize| -> Result<u64> {
        let bytes = bytes.get(at..).and_then(|rest| rest.first_chunk()).context("a short file")?;
        Ok(u64::from_le_bytes(*bytes))
    };
    let table = number(&head, 32)?;
    let count = u16::from_le_bytes([head[56], head[57]]);
    // Physical addresses, and where they are in the file.
    let mut all: Vec<(Range<u64>, u64)> = Vec::new();
    for n in 0..u64::from(count) {
        let mut header = [0; HEADER];
        dump.read_exact_at(&mut header, table + n * HEADER as u64)?;
        let [kind, offset, base, size] = [0, 8, 24, 32].map(|at| number(&header, at));
        let (kind, offset, base, size) = (kind?, offset?, base?, size?);
        if kind as u32 == 1 {
            all.push((base..base + size, offset));
        }
    }
    // The kernel's own image is in a segment of its own, and in that of its memory.
    let is_inside = |inner: &Range<u64>, outer: &Range<u64>| {
        outer.start <= inner.start && inner.end <= outer.end && inner != outer
    };
    let segments =
        all.iter().filter(|(range, _)| !all.iter().any(|(other, _)| is_inside(range, other)));
    let found: Vec<_> =
        segments.map(|(range, offset)| *offset..offset + (range.end - range.start)).collect();
    ensure!(!found.is_empty(), "no memory in the dump");
    Ok(found)
}

fn read(dump: &File) -> Result<Found> {
    let mut found = Found::default();
    let mut chunk = vec![0; CHUNK as usize];
    for range in segments(dump)? {
        for at in range.clone().step_by(CHUNK as usize) {
            let chunk = &mut chunk[..(range.end - at).min(CHUNK) as usize];
            dump.read_exact_at(chunk, at).with_context(|| format!("reading at {at:#x}"))?;
            chunk.chunks(PAGE as usize).for_each(|page| found.look_at(page));
        }
    }
    Ok(found)
}

fn map(dump: &File) -> Result<Found> {
    let mut found = Found::default();
    for range in segments(dump)? {
        for at in range.clone().step_by(CHUNK as usize) {
            let size = (range.end - at).min(CHUNK) as usize;
            let length = NonZeroUsize::new(size).context("an empty segment")?;
            let at = i64::try_from(at)?;
            // SAFETY: a new mapping, of what nobody writes to.
            let start = unsafe {
                mmap(None, length, ProtFlags::PROT_READ, MapFlags::MAP_PRIVATE, dump, at)
            };
            let start = start.with_context(|| format!("mapping at {at:#x}"))?;
            // SAFETY: that mapping.
            let chunk = unsafe { std::slice::from_raw_parts(start.as_ptr().cast::<u8>(), size) };
            chunk.chunks(PAGE as usize).for_each(|page| found.look_at(page));
            // SAFETY: nobody has a reference into it any more.
            unsafe { munmap(start, size) }?;
        }
    }
    Ok(found)
}

/// Looks for everything in the dump, and that this kernel makes no VM.
pub fn vmcore() -> Result<()> {
    let device = Device::open()?;
    for (what, result) in [("a VM", device.vm().err()), ("a memory", device.memory(1).err())] {
        ensure!(result == Some(Errno::ENODEV), "{what} in the dump kernel: {result:?}");
    }
    let vms = fs::read_to_string("/sys/class/misc/gunyah/escrow/vms")?;
    if vms.trim() == "0" {
        bail!("the guests of the kernel before are gone");
    }
    let dump = File::open("/proc/vmcore").context("/proc/vmcore")?;
    read(&dump)?.judge("read")?;
    map(&dump)?.judge("mapped")?;
    say!("the dump is whole");
    Ok(())
}

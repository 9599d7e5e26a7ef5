// SPDX-License-Identifier: MIT OR Apache-2.0

//! Several CPUs that lend at once, each to a VM of its own.
//!
//! The counter cannot tell what such calls take: it counts the instructions of
//! all CPUs together. `cargo xtask bench` runs this payload under a trace of
//! the instructions of each CPU, in which it finds a row's samples by the
//! symbol of the function that takes them. Where one CPU lends alone, counter
//! and trace must agree.
//!
//! QEMU runs one CPU after the other when it counts instructions. The bench
//! has it change over every few instructions, in the middle of calls.

#![no_std]
#![no_main]

use core::arch::global_asm;
use core::hint::black_box;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use aarch64_cpu::registers::{CNTFRQ_EL0, Readable as _};
use escrow_abi::{
    BLOCK_SIZE, FrameState, MemEntry, ORDER_BLOCK, ORDER_PAGE, PAGE_SIZE, Rights, call,
};
use escrow_payloads::host::{Lists, frame, frame_state, poke, refused};
use escrow_payloads::samples::Samples;
use escrow_payloads::{
    Host, Outcome, Test, check, check_eq, cpus, hvc, payload, println, probe, tests,
};

payload!("bench_cpus", TESTS);

global_asm!(include_str!("../bench/sample.S"));
global_asm!(include_str!("cpus.S"));

const TESTS: &[Test] =
    tests![frequency, single_pages, lists, lists_of_one_block, pages_of_one_block, upkeep];

/// Takes a sample: makes the call whose X0 to X7 are given, and leaves there
/// what they are afterwards. Ticks meanwhile, of all CPUs.
type Sample = unsafe extern "C" fn(*mut [u64; 8]) -> u64;

/// A row: its name, how it is sampled, how many CPUs lend.
type Row = (&'static str, Sample, usize);

macro_rules! rows {
    ($($rows:ident = $($symbol:ident by $cpus:literal),+;)+) => {
        unsafe extern "C" {
            fn sample_nothing(registers: *mut [u64; 8]) -> u64;
            $($(fn $symbol(registers: *mut [u64; 8]) -> u64;)+)+
        }
        $(const $rows: &[Row] = &[$((stringify!($symbol), $symbol, $cpus)),+];)+
    };
}

rows! {
    SINGLE_PAGES =
        sample_lend_4k_cpus_1 by 1, sample_lend_4k_cpus_2 by 2,
        sample_lend_4k_cpus_4 by 4, sample_lend_4k_cpus_8 by 8;
    LISTS =
        sample_lend_64x4k_per_page_cpus_1 by 1, sample_lend_64x4k_per_page_cpus_2 by 2,
        sample_lend_64x4k_per_page_cpus_4 by 4, sample_lend_64x4k_per_page_cpus_8 by 8;
    SAME_BLOCK =
        sample_lend_4k_same_block_cpus_1 by 1, sample_lend_4k_same_block_cpus_2 by 2,
        sample_lend_4k_same_block_cpus_4 by 4, sample_lend_4k_same_block_cpus_8 by 8;
    NEAR_LISTS =
        sample_lend_4k_near_lists_cpus_1 by 1, sample_lend_4k_near_lists_cpus_2 by 2,
        sample_lend_4k_near_lists_cpus_4 by 4, sample_lend_4k_near_lists_cpus_8 by 8;
    PAGE_UPKEEP = sample_lend_4k by 1;
    LIST_UPKEEP = sample_lend_512x4k by 1;
    BLOCK_UPKEEP = sample_lend_2m by 1;
}

const CPUS: u64 = cpus::MAX_CPUS as u64;
/// Where guests get memory, in tables of its own.
const GUEST: u64 = 0x1_0000_0000;
/// Pages of a VM's metadata.
const METADATA: u64 = 16;
/// Calls of each CPU. A trace of a few is long enough.
const SINGLE_CALLS: u64 = 24;
const LIST_CALLS: u64 = 3;
/// What is lent beforehand: it divides the block and brings tables.
const AHEAD: u64 = 1;

/// Tells what a tick is.
fn frequency(_host: &mut Host) -> Outcome {
    println!("bench: frequency {}", CNTFRQ_EL0.get());
    Ok(())
}

/// One page a call; each CPU has a block of its own.
fn single_pages(host: &mut Host) -> Outcome {
    let blocks = host.arena.blocks(CPUS);
    let own = |cpu, n| page(blocks + cpu * BLOCK_SIZE, n);
    Lenders::new(host).measure::<1>(SINGLE_PAGES, SINGLE_CALLS, own)
}

/// 64 pages a call; each CPU has a block of its own.
fn lists(host: &mut Host) -> Outcome {
    let blocks = host.arena.blocks(CPUS);
    let own = |cpu, n| page(blocks + cpu * BLOCK_SIZE, n);
    Lenders::new(host).measure::<64>(LISTS, LIST_CALLS, own)
}

/// One page a call; each CPU has a block of its own, but all lists are in one.
fn lists_of_one_block(host: &mut Host) -> Outcome {
    let blocks = host.arena.blocks(CPUS);
    let own = |cpu, n| page(blocks + cpu * BLOCK_SIZE, n);
    Lenders::with_near_lists(host).measure::<1>(NEAR_LISTS, SINGLE_CALLS, own)
}

/// One page a call, all of one block: what it looks like when calls do wait for
/// each other.
fn pages_of_one_block(host: &mut Host) -> Outcome {
    let block = host.arena.blocks(1);
    let own = |cpu, n| page(block, n * CPUS + cpu);
    Lenders::new(host).measure::<1>(SAME_BLOCK, SINGLE_CALLS, own)
}

/// Calls whose barriers and invalidations are counted in the trace.
fn upkeep(host: &mut Host) -> Outcome {
    let lenders = Lenders::new(host);
    let blocks = host.arena.blocks(8);
    let own = |_, n| page(blocks, n);
    lenders.measure::<1>(PAGE_UPKEEP, 8, own)?;
    // Each call divides a block; what is lent ahead is one of another.
    let own = |_, n| page(blocks + BLOCK_SIZE, n + 512 - AHEAD);
    lenders.measure::<512>(LIST_UPKEEP, 2, own)?;
    let own = |_, n| Piece { at: blocks + n * BLOCK_SIZE, order: ORDER_BLOCK };
    lenders.measure::<1>(BLOCK_UPKEEP, 3, own)
}

/// Memory that one entry of a list is about.
#[derive(Clone, Copy)]
struct Piece {
    at: u64,
    order: u32,
}

const fn page(block: u64, n: u64) -> Piece {
    Piece { at: block + n * PAGE_SIZE, order: ORDER_PAGE }
}

impl Piece {
    fn size(self) -> u64 {
        PAGE_SIZE << self.order
    }

    fn alone(self) -> MemEntry {
        MemEntry::new(self.at, self.order, 0, Rights::NONE)
    }
}

/// What each CPU needs to lend, in a block of its own: memory for lists and for
/// a VM's metadata.
struct Lenders([(Lists, u64); CPUS as usize]);

impl Lenders {
    fn new(host: &mut Host) -> Lenders {
        Lenders(core::array::from_fn(|_| {
            let block = host.arena.blocks(1);
            (Lists::at(block), block + BLOCK_SIZE / 2)
        }))
    }

    /// The same with all lists next to each other.
    fn with_near_lists(host: &mut Host) -> Lenders {
        let mut lenders = Self::new(host);
        lenders.0.iter_mut().for_each(|(lists, _)| *lists = Lists::new(&mut host.arena));
        lenders
    }

    /// Takes the samples of rows that the machine has enough CPUs for.
    fn measure<const N: usize>(
        &self,
        rows: &[Row],
        calls: u64,
        own: impl Fn(u64, u64) -> Piece + Sync,
    ) -> Outcome {
        let fits = |row: &&Row| row.2 <= cpus::count();
        rows.iter().filter(fits).try_for_each(|row| self.lend_at_once::<N>(row, calls, &own))
    }

    /// Has CPUs lend at once, in `calls` calls of `N` pieces each. CPU C's piece
    /// number M is `own(C, M)`.
    fn lend_at_once<const N: usize>(
        &self,
        &(name, sample, count): &Row,
        calls: u64,
        own: &(impl Fn(u64, u64) -> Piece + Sync),
    ) -> Outcome {
        let pieces = AHEAD + calls * N as u64;
        let ready = AtomicUsize::new(0);
        let vms = [const { AtomicU64::new(0) }; CPUS as usize];
        cpus::try_on_all(|cpu| {
            if cpu >= count {
                return Ok(());
            }
            let (lists, metadata) = self.0[cpu];
            let own = |n| own(cpu as u64, n);
            let vm = lists.vm_of(metadata, METADATA)?;
            vms[cpu].store(vm, Ordering::Relaxed);
            let entry = |n| {
                let (piece, guest) = (own(n), GUEST + n * own(n).size());
                MemEntry::new(piece.at, piece.order, guest, Rights::READ_WRITE)
            };
            lists.lend(vm, &[entry(0)]).map_err(refused("MEM_LEND"))?;
            for piece in (AHEAD..pieces).map(own) {
                for at in (piece.at..piece.at + piece.size()).step_by(PAGE_SIZE as usize) {
                    poke(at, !at);
                }
            }
            let mut samples = Samples::per(name, N as u64);
            // SAFETY: reads the counter twice.
            let overhead = unsafe { sample_nothing(&mut [0; 8]) };
            begin_together(&ready, count)?;
            for n in 0..calls {
                let first = AHEAD + n * N as u64;
                let entries: [_; N] = core::array::from_fn(|n| entry(first + n as u64));
                let [list, length] = lists.put(&entries);
                let mut registers = match *entries.as_slice() {
                    [entry] if !name.contains("near_lists") => {
                        let [frame, guest, references, users] = entry.words();
                        [call::MEM_LEND_ONE as u64, vm, frame, guest, references, users, 0, 0]
                    }
                    _ => [call::MEM_LEND as u64, vm, list, length, 0, 0, 0, 0],
                };
                stagger(cpu, n);
                // SAFETY: the memory is this CPU's, and nobody uses it.
                let ticks = unsafe { sample(&mut registers) };
                check_eq!(registers[0], 0, "the answer");
                samples.add(ticks - overhead);
            }
            if count == 1 {
                println!("{samples}");
            }
            for piece in (AHEAD..pieces).map(own) {
                check_eq!(frame_state(piece.at)?, FrameState::Lent);
            }
            check!(probe::read(own(pieces - 1).at).is_err(), "the host reads what it lent");
            Ok(())
        })?;
        // One after the other: what waits here is nobody's subject, and
        // lengthens the trace.
        for (cpu, (vm, (lists, metadata))) in vms.iter().zip(self.0).enumerate().take(count) {
            let vm = vm.load(Ordering::Relaxed);
            hvc::call(call::VM_DESTROY, &[vm]).map_err(refused("VM_DESTROY"))?;
            for n in 0..pieces {
                let piece = own(cpu as u64, n).alone();
                lists.reclaim(&[piece]).map_err(refused("MEM_RECLAIM"))?;
            }
            let tables: [_; METADATA as usize] =
                core::array::from_fn(|n| frame(metadata + n as u64 * PAGE_SIZE));
            lists.reclaim(&tables).map_err(refused("MEM_RECLAIM"))?;
        }
        Ok(())
    }
}

/// Spends a time that differs from call to call and from CPU to CPU. If each round took as
/// long as the one before, QEMU's slices could end between two calls every time, and no
/// call would meet another.
fn stagger(cpu: usize, n: u64) {
    for turn in 0..(n * 5 + cpu as u64 * 3) % 13 {
        black_box(turn);
    }
}

/// Waits for so many CPUs, without sleep: who slept would come late.
fn begin_together(ready: &AtomicUsize, count: usize) -> Outcome {
    ready.fetch_add(1, Ordering::AcqRel);
    let deadline = cpus::deadline(20);
    while ready.load(Ordering::Acquire) < count {
        check!(!cpus::is_past(deadline), "the others do not come");
        core::hint::spin_loop();
    }
    Ok(())
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! Calls at random, from one CPU and from all at once: whatever they are,
//! Escrow stands, and everything can be brought home afterwards.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU64, Ordering};

use arrayvec::ArrayVec;
use escrow_abi::{MemEntry, PAGE_SIZE, call};
use escrow_payloads::expect::{escrow_memory, not_ram};
use escrow_payloads::host::{Lists, note_vm};
use escrow_payloads::random::Random;
use escrow_payloads::shape::{Argument, CALLS, Shape};
use escrow_payloads::{Host, Outcome, Test, check, cpus, hvc, interrupts, payload, tests};

payload!("noise", TESTS);

const TESTS: &[Test] = tests![random_calls_from_one_cpu, random_calls_from_all_cpus];

/// Calls of one CPU that is alone.
const ALONE: u64 = 40_000;
/// Calls of all CPUs together. An emulated CPU that waits for a lock may keep
/// the one that holds it from running: this is slow where there are more of
/// them than real ones.
const TOGETHER: u64 = 4_000;
/// Pages that the lists are about.
const PAGES: u64 = 64;

/// What all CPUs make their calls about.
struct Subject {
    /// The pages and the block that may be lent, and addresses that may not.
    pages: u64,
    block: u64,
    bad: ArrayVec<u64, 16>,
    /// Handles that were valid once; the newest VM's and vCPU's most of all.
    handles: [AtomicU64; 16],
    next: AtomicU64,
    /// The newest doorbell's.
    doorbell: AtomicU64,
    done: AtomicU64,
    refused: AtomicU64,
}

impl Subject {
    fn new(host: &mut Host) -> Outcome<Subject> {
        Ok(Subject {
            pages: host.arena.pages(PAGES),
            block: host.arena.blocks(1),
            bad: not_ram(host)
                .into_iter()
                .chain(escrow_memory(host)?.iter().map(|range| range.start))
                .take(16)
                .collect(),
            handles: Default::default(),
            next: AtomicU64::new(0),
            doorbell: AtomicU64::new(0),
            done: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        })
    }
}

/// One CPU's part.
struct Noise<'a> {
    subject: &'a Subject,
    random: Random,
    list: u64,
}

impl Noise<'_> {
    fn handle(&mut self) -> u64 {
        if self.random.below(16) == 0 {
            return self.random.pick(&[0, 1 << 24 | 1 << 20 | 1 << 8, u64::MAX]);
        }
        // Mostly of the latest: they live.
        let newest = self.subject.next.load(Ordering::Relaxed);
        let back =
            if self.random.below(4) == 0 { self.random.below(16) } else { self.random.below(3) };
        let slot = newest.wrapping_sub(1 + back) as usize % self.subject.handles.len();
        self.subject.handles[slot].load(Ordering::Relaxed)
    }

    fn frame(&mut self) -> u64 {
        match self.random.below(20) {
            0 => self.random.pick(&self.subject.bad),
            1 => self.subject.block | 9,
            2 => self.subject.block,
            _ => self.subject.pages + self.random.below(PAGES) * PAGE_SIZE,
        }
    }

    fn entry(&mut self, function: u32) -> MemEntry {
        let mut guest = 0;
        if matches!(function, call::MEM_LEND | call::MEM_SHARE | call::MEM_DONATE) {
            guest = (self.random.below(96) * PAGE_SIZE) | self.random.pick(&[7, 7, 7, 3, 1, 0]);
            if self.random.below(8) == 0 {
                guest = self.random.below(4) << 21 | 7;
            }
        }
        let mut entry = MemEntry { frame: self.frame(), guest, ..MemEntry::default() };
        if self.random.below(24) == 0 {
            let n = self.random.draw() as u32;
            entry = entry.with_report(n & 3, n >> 2 & 3, n >> 4 & 1);
            entry.reserved = (self.random.below(4) == 0) as u32;
        }
        entry
    }

    /// A list in memory; the address and the count.
    fn list(&mut self, function: u32) -> [u64; 2] {
        let longest = self.random.pick(&[1, 4, 12, 200]);
        let count = 1 + self.random.below(longest);
        for n in 0..count {
            let entry = self.entry(function);
            // SAFETY: the list has room for 512.
            unsafe { (self.list as *mut MemEntry).add(n as usize).write_volatile(entry) };
        }
        match self.random.below(40) {
            0 => [self.random.pick(&[0, !0xfff, self.subject.pages, self.list + 8]), count],
            1 => [self.list, self.random.pick(&[0, 513, u64::MAX])],
            _ => [self.list, count],
        }
    }

    fn arguments(&mut self, shape: &Shape) -> [u64; 8] {
        let mut arguments = [0; 8];
        arguments[0] = shape.function as u64;
        let small = [0, 1, 2, 3, 0x1000, 0x2000, 1 << 21, u64::MAX];
        for argument in &mut arguments[1..=shape.arguments.len()] {
            *argument = self.random.pick(&small);
        }
        if matches!(shape.first(), Argument::Vm | Argument::Vcpu) {
            arguments[1] = self.handle();
        } else if shape.first() == Argument::Doorbell {
            let newest = self.subject.doorbell.load(Ordering::Relaxed);
            arguments[1] = if self.random.below(8) == 0 { self.handle() } else { newest };
        } else if shape.function == call::FRAME_INFO {
            arguments[1] = self.frame();
        }
        if shape.function == call::CAP_GRANT {
            arguments[2] = self.handle();
        }
        if shape.function == call::MEM_LEND_ONE {
            arguments[2..6].copy_from_slice(&self.entry(call::MEM_LEND).words());
        }
        if let Some(list) = shape.list() {
            let [at, count] = self.list(shape.function);
            arguments[list..list + 2].copy_from_slice(&[at, count]);
        }
        if self.random.below(200) == 0 {
            arguments[1 + self.random.below(7) as usize] = self.random.draw();
        }
        arguments
    }

    fn call(&mut self) {
        let shape = self.random.pick(CALLS);
        if shape.function == call::MEM_POISON {
            // What is poisoned never comes home.
            return;
        }
        let arguments = self.arguments(&shape);
        // A guest runs what happens to be in its memory; not for ever.
        interrupts::start_timer(50);
        match hvc::call_registers(&arguments) {
            Ok([handle, ..]) => {
                self.subject.done.fetch_add(1, Ordering::Relaxed);
                if shape.function == call::VM_CREATE {
                    note_vm(handle);
                }
                if shape.function == call::BELL_CREATE {
                    self.subject.doorbell.store(handle, Ordering::Relaxed);
                }
                if matches!(shape.function, call::VM_CREATE | call::VCPU_CREATE) {
                    let at = self.subject.next.fetch_add(1, Ordering::Relaxed);
                    let slot = at as usize % self.subject.handles.len();
                    self.subject.handles[slot].store(handle, Ordering::Relaxed);
                }
            }
            Err(_) => {
                self.subject.refused.fetch_add(1, Ordering::Relaxed);
            }
        }
        interrupts::stop_timer();
    }
}

fn finish(host: &mut Host, subject: &Subject, calls: u64) -> Outcome {
    let [done, refused] = [&subject.done, &subject.refused].map(|n| n.load(Ordering::Relaxed));
    // Both must happen often, or this tests nothing.
    check!(done > calls / 20 && refused > calls / 20, "{done} done, {refused} refused");
    host.destroy_all()?;
    host.bring_home()
}

/// `seed=` on the command line, for other histories.
fn seed(host: &Host) -> u64 {
    host.board.number("seed").unwrap_or(1)
}

fn random_calls_from_one_cpu(host: &mut Host) -> Outcome {
    let subject = Subject::new(host)?;
    let random = Random::new(seed(host));
    let mut noise = Noise { subject: &subject, random, list: host.lists.address() };
    for _ in 0..ALONE {
        noise.call();
    }
    finish(host, &subject, ALONE)
}

fn random_calls_from_all_cpus(host: &mut Host) -> Outcome {
    cpus::need(2)?;
    let subject = Subject::new(host)?;
    let lists: [Lists; cpus::MAX_CPUS] = core::array::from_fn(|_| Lists::new(&mut host.arena));
    let seed = seed(host);
    cpus::on_all(|cpu| {
        let random = Random::new((seed << 8) | (cpu as u64 + 1));
        let mut noise = Noise { subject: &subject, random, list: lists[cpu].address() };
        for _ in 0..TOGETHER / cpus::count() as u64 {
            noise.call();
        }
    });
    finish(host, &subject, TOGETHER)
}

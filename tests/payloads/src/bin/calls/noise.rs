// SPDX-License-Identifier: MIT OR Apache-2.0

//! Calls at random: whatever they are, Escrow stands, and everything can be
//! brought home afterwards.

use arrayvec::ArrayVec;
use escrow_abi::{MemEntry, PAGE_SIZE, call};
use escrow_payloads::expect::escrow_memory;
use escrow_payloads::random::Random;
use escrow_payloads::{Host, Outcome, Test, check_eq, hvc, interrupts, tests};

use crate::CALLS;
use crate::arguments::not_ram;

pub const TESTS: &[Test] = tests![random_calls];

const ROUNDS: u64 = 30_000;
/// Pages that the lists are about.
const PAGES: u64 = 64;

struct Noise {
    random: Random,
    /// The pages that may be lent, and addresses that may not.
    pages: u64,
    block: u64,
    bad: ArrayVec<u64, 16>,
    /// Handles that were valid once.
    handles: ArrayVec<u64, 32>,
    list: u64,
}

impl Noise {
    fn handle(&mut self) -> u64 {
        if self.handles.is_empty() || self.random.below(16) == 0 {
            return self.random.pick(&[0, 1 << 24 | 1 << 20 | 1 << 8, u64::MAX]);
        }
        // Mostly the latest: it lives.
        let count = self.handles.len() as u64;
        let n = if self.random.below(4) == 0 { self.random.below(count) } else { count - 1 };
        self.handles[n as usize]
    }

    fn frame(&mut self) -> u64 {
        match self.random.below(20) {
            0 => {
                let bad = self.bad.clone();
                self.random.pick(&bad)
            }
            1 => self.block | 9,
            2 => self.block,
            _ => self.pages + self.random.below(PAGES) * PAGE_SIZE,
        }
    }

    fn entry(&mut self, function: u32) -> MemEntry {
        let maps = matches!(function, call::MEM_LEND | call::MEM_SHARE);
        let mut guest = 0;
        if maps {
            guest = self.random.below(96) * PAGE_SIZE | self.random.pick(&[7, 7, 7, 3, 1, 0]);
            if self.random.below(8) == 0 {
                guest = self.random.below(4) << 21 | 7;
            }
        }
        let mut entry = MemEntry { frame: self.frame(), guest, ..MemEntry::default() };
        if self.random.below(24) == 0 {
            let n = self.random.next();
            entry = entry.with_report(n as u32 & 3, n as u32 >> 2 & 3, n as u32 >> 4 & 1);
            entry.reserved = (self.random.below(4) == 0) as u32;
        }
        entry
    }

    /// A list in memory; the address and the count.
    fn list(&mut self, function: u32) -> [u64; 2] {
        let count = 1 + self.random.below(self.random.clone().pick(&[1, 4, 12, 200]));
        for n in 0..count {
            let entry = self.entry(function);
            // SAFETY: there is room for 512.
            unsafe { (self.list as *mut MemEntry).add(n as usize).write_volatile(entry) };
        }
        match self.random.below(40) {
            0 => [self.random.pick(&[0, !0xfff, self.pages, self.list + 8]), count],
            1 => [self.list, self.random.pick(&[0, 513, u64::MAX])],
            _ => [self.list, count],
        }
    }

    fn arguments(&mut self, shape: &crate::Shape) -> [u64; 8] {
        let mut arguments = [0; 8];
        arguments[0] = shape.function as u64;
        let small = [0, 1, 2, 3, 0x1000, 0x2000, 1 << 21, u64::MAX];
        for argument in &mut arguments[1..=shape.arguments] {
            *argument = self.random.pick(&small);
        }
        if shape.first != crate::First::Other {
            arguments[1] = self.handle();
        } else if shape.function == call::FRAME_INFO {
            arguments[1] = self.frame();
        }
        if let Some(list) = shape.list {
            let [at, count] = self.list(shape.function);
            arguments[list..list + 2].copy_from_slice(&[at, count]);
        }
        if self.random.below(200) == 0 {
            arguments[self.random.below(8) as usize] = self.random.next();
        }
        arguments
    }
}

fn random_calls(host: &mut Host) -> Outcome {
    let mut noise = Noise {
        random: Random::new(2),
        pages: host.arena.pages(PAGES),
        block: host.arena.blocks(1),
        bad: not_ram(host).into_iter().chain(escrow_memory(host)?.iter().map(|r| r.start)).collect(),
        handles: ArrayVec::new(),
        list: host.lists.address(),
    };
    let (mut done, mut refused) = (0u64, 0u64);
    for _ in 0..ROUNDS {
        let shape = noise.random.pick(CALLS);
        let arguments = noise.arguments(&shape);
        // A guest may run what happens to be in its memory; not for ever.
        interrupts::start_timer(50);
        match hvc::call_registers(&arguments) {
            Ok([handle, ..]) => {
                done += 1;
                if matches!(arguments[0] as u32, call::VM_CREATE | call::VCPU_CREATE) {
                    if noise.handles.is_full() {
                        noise.handles.remove(0);
                    }
                    noise.handles.push(handle);
                    if arguments[0] as u32 == call::VM_CREATE {
                        escrow_payloads::host::note_vm(handle);
                    }
                }
            }
            Err(_) => refused += 1,
        }
    }
    interrupts::stop_timer();
    // Both must happen often, or this tests nothing.
    check_eq!((done > ROUNDS / 20, refused > ROUNDS / 20), (true, true), "{done}, {refused}");
    host.destroy_all()?;
    host.bring_home()
}

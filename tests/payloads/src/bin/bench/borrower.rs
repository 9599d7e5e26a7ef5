// SPDX-License-Identifier: MIT OR Apache-2.0

//! A guest that gets memory, and counted calls that are checked to have done
//! what they are counted for.

use escrow_abi::{FrameState, MemEntry, ORDER_BLOCK, PAGE_SIZE, Rights, call};
use escrow_payloads::guest::Agent;
use escrow_payloads::host::{frame, frame_state, peek, poke, refused};
use escrow_payloads::samples::Samples;
use escrow_payloads::{Host, Outcome, check, check_eq, hvc, probe};

use crate::sample;

/// Pages that one call adds to a VM's metadata.
const TOP_UP: usize = 64;

/// A guest with the agent in it.
pub struct Borrower(Agent);

/// What an entry of a list is about: its first frame and how many.
fn span(entry: &MemEntry) -> (u64, u64) {
    let order = entry.frame & (PAGE_SIZE - 1);
    (entry.frame & !(PAGE_SIZE - 1), if order == ORDER_BLOCK as u64 { 512 } else { 1 })
}

/// What a page holds before it leaves.
fn contents(at: u64) -> u64 {
    at ^ 0x5a5a_0000_0000_0000
}

/// Entries that matter most: the first, one in between, the last.
fn some(entries: &[MemEntry]) -> impl Iterator<Item = &MemEntry> {
    let last = entries.len() - 1;
    [0, last / 2, last].into_iter().filter_map(|n| entries.get(n))
}

impl Borrower {
    /// A guest whose VM has `tables` pages for tables besides its own.
    pub fn start(host: &mut Host, tables: u64) -> Outcome<Borrower> {
        let agent = Agent::start(host)?;
        for _ in 0..tables.div_ceil(TOP_UP as u64) {
            let pages = host.arena.pages(TOP_UP as u64);
            let list: [_; TOP_UP] = core::array::from_fn(|n| frame(pages + n as u64 * PAGE_SIZE));
            host.lists.top_up(agent.vm, &list).map_err(refused("VM_TOP_UP"))?;
        }
        Ok(Borrower(agent))
    }

    /// Counts a call that gives pages to the guest: `MEM_LEND`, `MEM_LEND_ONE` or `MEM_SHARE`.
    /// The pages have been written to; afterwards each is in the state that
    /// the call is to leave, the guest finds in them what was written, and the
    /// host finds it or a fault.
    pub fn give(
        &self,
        host: &Host,
        samples: &mut Samples,
        function: u32,
        entries: &[MemEntry],
    ) -> Outcome {
        for (at, frames) in entries.iter().map(span) {
            for at in (0..frames).map(|n| at + n * PAGE_SIZE) {
                poke(at, contents(at));
            }
        }
        let vm = self.0.vm;
        let mut registers = match (function, entries) {
            (call::MEM_LEND_ONE, [entry]) => {
                let [frame, guest, references, users] = entry.words();
                [function as u64, vm, frame, guest, references, users, 0, 0]
            }
            _ => {
                let [list, count] = host.lists.put(entries);
                [function as u64, vm, list, count, 0, 0, 0, 0]
            }
        };
        samples.add(sample::hvc(&mut registers));
        check_eq!(registers[0], 0, "the answer");
        let (state, host_reads) = match function {
            call::MEM_LEND | call::MEM_LEND_ONE => (FrameState::Lent, false),
            _ => (FrameState::Shared, true),
        };
        for entry in entries {
            check_eq!(frame_state(span(entry).0)?, state);
        }
        for entry in some(entries) {
            let (at, frames) = span(entry);
            let last = (frames - 1) * PAGE_SIZE;
            let guest = entry.guest & !(PAGE_SIZE - 1);
            for offset in [0, last] {
                let at = at + offset;
                check_eq!(self.0.load(guest + offset)?, contents(at), "the guest's view");
                let expected = host_reads.then_some(contents(at));
                check_eq!(probe::read(at).ok(), expected, "the host's view of {at:#x}");
            }
        }
        Ok(())
    }

    /// Ends the VM; what it has is still out.
    pub fn destroy(&self) -> Outcome {
        hvc::call(call::VM_DESTROY, &[self.0.vm]).map_err(refused("VM_DESTROY"))?;
        Ok(())
    }

    /// Has the guest give up memory with what is in it.
    pub fn unlock(&self, guest: u64, size: u64) -> Outcome {
        let unlock = [call::MODIFY_PAGES as u64, 0, guest, size, call::MODIFY_UNLOCK];
        check_eq!(self.0.hvc(&unlock)?, 0, "unlocked");
        Ok(())
    }

    /// Ends the VM and brings all of it home.
    pub fn end(&self, host: &mut Host) -> Outcome {
        host.end(self.0.vm)
    }
}

/// What pages hold that came home.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// Zeros.
    Nothing,
    /// What was in them.
    Contents,
}

/// Counts a call that brings pages home: `MEM_RECLAIM` or `MEM_UNSHARE`. They
/// are the host's alone afterwards, and hold what they should.
pub fn take(
    host: &Host,
    samples: &mut Samples,
    function: u32,
    entries: &[MemEntry],
    left: Left,
) -> Outcome {
    let [list, count] = host.lists.put(entries);
    let mut registers = [function as u64, list, count, 0, 0, 0, 0, 0];
    samples.add(sample::hvc(&mut registers));
    check_eq!(registers[0], 0, "the answer");
    for (at, frames) in entries.iter().map(span) {
        check_eq!(frame_state(at)?, FrameState::Owned);
        for at in (0..frames).map(|n| at + n * PAGE_SIZE) {
            let expected = if left == Left::Nothing { 0 } else { contents(at) };
            check!(peek(at) == expected, "{at:#x} holds {:#x}", peek(at));
        }
    }
    Ok(())
}

/// An entry that names a frame and where the guest is to have it.
pub fn entry(at: u64, order: u32, guest: u64) -> MemEntry {
    MemEntry::new(at, order, guest, Rights::READ_WRITE)
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! The longest stretch with interrupts off: how long a pending interrupt waits for EL2.
//!
//! Each of these calls is the dearest of its kind that the bounds allow. An interrupt comes
//! soon after the call has begun, and again after each portion of it; what is counted is
//! the longest time to the interrupt's vector, or to where the call has ended.

use arrayvec::ArrayVec;
use escrow_abi::{
    BLOCK_SIZE, FrameState, Handle, LIST_MAX, MemEntry, ORDER_BLOCK, ORDER_PAGE, PAGE_SIZE, Rights,
    call, run,
};
use escrow_payloads::guest::{Agent, routine};
use escrow_payloads::host::{Lists, block, frame, frame_state, note_vm, refused};
use escrow_payloads::samples::Samples;
use escrow_payloads::{Host, Outcome, Test, check, check_eq, hvc, interrupts, println, tests};

use crate::borrower::entry;
use crate::sample;

pub const TESTS: &[Test] = tests![longest_stretch];

/// Blocks that one portion may split.
const BLOCKS: u64 = 64;
/// Pages of each in a list.
const PER_BLOCK: u64 = LIST_MAX as u64 / BLOCKS;
/// Where guests get memory.
const GUEST: u64 = 0x1_0000_0000;
/// Where the guest of [`unlocks`] has a block's pages: one page off, so that they have
/// entries of their own.
const ASKEW: u64 = GUEST + PAGE_SIZE;
/// What is read and written of a block that is split or made whole: its records, and the
/// host's table.
const SPLIT: u64 = 2 * PAGE_SIZE;
const LIST: u64 = (LIST_MAX * size_of::<MemEntry>()) as u64;

type List = ArrayVec<MemEntry, LIST_MAX>;

/// What was found so far.
#[derive(Default)]
struct Longest {
    name: &'static str,
    ticks: u64,
    bytes: u64,
}

impl Longest {
    /// A call, the ticks of its longest stretch, and the bytes that it touches in it.
    fn note(&mut self, name: &'static str, ticks: u64, bytes: u64) {
        let mut samples = Samples::new(name);
        samples.add(ticks);
        println!("{samples}");
        if ticks > self.ticks {
            *self = Longest { name, ticks, bytes };
        }
    }

    /// Makes a call of the host's.
    fn host(&mut self, name: &'static str, x: &[u64], bytes: u64) -> Outcome<u64> {
        let mut registers = [0; 8];
        registers[..x.len()].copy_from_slice(x);
        let ((), ticks) = interrupts::longest_wait(|| {
            sample::hvc(&mut registers);
        });
        check_eq!(registers[0], 0, "the answer");
        self.note(name, ticks, bytes);
        Ok(registers[1])
    }

    /// Has a guest make a call: a run ends with the interrupt.
    fn guest(&mut self, name: &'static str, agent: &Agent, x: &[u64], bytes: u64) -> Outcome {
        let mut ticks = 0;
        agent.command(routine::hvc(), x);
        loop {
            let mut registers = [call::VCPU_RUN.into(), agent.vcpu, 0, 0, 0, 0, 0, 0];
            interrupts::start_timer(1);
            ticks = ticks.max(sample::hvc(&mut registers));
            interrupts::stop_timer();
            check_eq!(registers[0], 0, "the run");
            // A guest that is ready writes to a device.
            if registers[1] != run::READY {
                break;
            }
        }
        check_eq!(agent.results().x[0], 0, "the answer");
        self.note(name, ticks, bytes);
        Ok(())
    }
}

/// Pages of all blocks, in turn: hardly two of one block come one after the other.
fn in_turn(at: u64) -> impl Iterator<Item = u64> {
    let place = move |n| at + n % BLOCKS * BLOCK_SIZE + n / BLOCKS * PAGE_SIZE;
    (0..LIST_MAX as u64).map(place)
}

/// The same pages block by block.
fn in_order(at: u64) -> impl Iterator<Item = u64> {
    let place = move |n| at + n / PER_BLOCK * BLOCK_SIZE + n % PER_BLOCK * PAGE_SIZE;
    (0..LIST_MAX as u64).map(place)
}

fn to_guest(pages: impl Iterator<Item = u64>) -> List {
    (0..).zip(pages).map(|(n, at)| entry(at, ORDER_PAGE, GUEST + n * PAGE_SIZE)).collect()
}

fn longest_stretch(host: &mut Host) -> Outcome {
    let mut longest = Longest::default();
    // More than the arena has.
    let at = host.arena.range().start - BLOCKS * BLOCK_SIZE;
    check!(host.board.is_free(&(at..at + BLOCKS * BLOCK_SIZE)), "no room for {BLOCKS} blocks");
    check_eq!(frame_state(at)?, FrameState::Owned);
    longest.lists(host, at)?;
    longest.metadata(host, at)?;
    longest.blocks(host, at)?;
    longest.guests(host, at)?;
    // What is poisoned is lost, so it comes last.
    let poisoned: List = in_order(at).map(frame).collect();
    let [list, count] = host.lists.put(&poisoned);
    longest.host("off_poison", &[call::MEM_POISON.into(), list, count], BLOCKS * SPLIT + LIST)?;
    host.poisoned += LIST_MAX as u64;
    let Longest { name, ticks, bytes } = longest;
    let mut samples = Samples::new("longest_stretch");
    samples.add(ticks);
    println!("{samples}");
    println!("bench: longest_stretch_bytes bytes {bytes} of {name}");
    Ok(())
}

impl Longest {
    /// Lists whose pages lie in as many blocks as a portion takes.
    fn lists(&mut self, host: &mut Host, at: u64) -> Outcome {
        let agent = Agent::start(host)?;
        let moved = BLOCKS * SPLIT + LIST;
        let [list, count] = host.lists.put(&to_guest(in_turn(at)));
        self.host("off_lend", &[call::MEM_LEND.into(), agent.vm, list, count], moved)?;
        hvc::call(call::VM_DESTROY, &[agent.vm]).map_err(refused("VM_DESTROY"))?;
        let home: List = in_order(at).map(frame).collect();
        let [list, count] = host.lists.put(&home);
        let zeroed = moved + BLOCK_SIZE;
        self.host("off_reclaim", &[call::MEM_RECLAIM.into(), list, count], zeroed)?;
        // From a guest that lives: its map changes, too.
        let agent = Agent::start(host)?;
        let [list, count] = host.lists.put(&to_guest(in_turn(at)));
        self.host("off_share", &[call::MEM_SHARE.into(), agent.vm, list, count], moved)?;
        let [list, count] = host.lists.put(&home);
        self.host("off_unshare", &[call::MEM_UNSHARE.into(), list, count], moved)?;
        host.end(agent.vm)
    }

    /// Pages for tables.
    fn metadata(&mut self, host: &mut Host, at: u64) -> Outcome {
        let bytes = BLOCK_SIZE + BLOCKS * SPLIT + LIST;
        let agent = Agent::start(host)?;
        let pages: List = in_order(at).map(frame).collect();
        let [list, count] = host.lists.put(&pages);
        let vm = self.host("off_create", &[call::VM_CREATE.into(), list, count], bytes)?;
        note_vm(vm);
        hvc::call(call::VM_DESTROY, &[vm]).map_err(refused("VM_DESTROY"))?;
        self.host("off_reclaim_tables", &[call::MEM_RECLAIM.into(), list, count], bytes)?;
        self.host("off_top_up", &[call::VM_TOP_UP.into(), agent.vm, list, count], bytes)?;
        host.end(agent.vm)?;
        host.lists.reclaim(&pages).map_err(refused("MEM_RECLAIM"))?;
        Ok(())
    }

    /// Contents of whole blocks, and 512 entries that are checked first.
    fn blocks(&mut self, host: &mut Host, at: u64) -> Outcome {
        let agent = Agent::start(host)?;
        let block_of = |n| at + n * BLOCK_SIZE;
        let lent: List =
            (0..BLOCKS).map(|n| entry(block_of(n), ORDER_BLOCK, GUEST + n * BLOCK_SIZE)).collect();
        let [list, count] = host.lists.put(&lent);
        let bytes = BLOCKS * size_of::<MemEntry>() as u64;
        self.host("off_lend_blocks", &[call::MEM_LEND.into(), agent.vm, list, count], bytes)?;
        hvc::call(call::VM_DESTROY, &[agent.vm]).map_err(refused("VM_DESTROY"))?;
        let home: List = (0..BLOCKS).map(|n| block(block_of(n))).collect();
        let [list, count] = host.lists.put(&home);
        let reclaim = [call::MEM_RECLAIM.into(), list, count];
        self.host("off_reclaim_blocks", &reclaim, BLOCK_SIZE + bytes)?;
        host.bring_home()
    }

    /// Calls of guests.
    fn guests(&mut self, host: &mut Host, at: u64) -> Outcome {
        let agent = Agent::start(host)?;
        let pages: List = (0..LIST_MAX as u64)
            .map(|n| entry(at + n * PAGE_SIZE, ORDER_PAGE, ASKEW + n * PAGE_SIZE))
            .collect();
        host.lists.lend(agent.vm, &pages).map_err(refused("MEM_LEND"))?;
        let modify = |flags| [call::MODIFY_PAGES.into(), 0, ASKEW, BLOCK_SIZE, flags];
        let zeroed = call::MODIFY_UNLOCK | call::MODIFY_SANITIZE;
        self.guest("off_guest_unlock", &agent, &modify(call::MODIFY_UNLOCK), LIST_MAX as u64 * 8)?;
        self.guest("off_guest_sanitize", &agent, &modify(zeroed), BLOCK_SIZE)?;
        // What it owns goes home.
        let own = at + BLOCK_SIZE;
        let donated: List = (0..PER_BLOCK)
            .map(|n| {
                let offset = n * BLOCK_SIZE;
                entry(own + offset, ORDER_BLOCK, GUEST + 2 * BLOCK_SIZE + offset)
            })
            .collect();
        let [list, count] = host.lists.put(&donated);
        hvc::call(call::MEM_DONATE, &[agent.vm, list, count]).map_err(refused("MEM_DONATE"))?;
        let home: List = donated
            .iter()
            .map(|donated| {
                MemEntry::new(donated.guest & !(PAGE_SIZE - 1), ORDER_BLOCK, 0, Rights::NONE)
            })
            .collect();
        // The guest has its list in a page that it shares with the host.
        let page = host.page();
        let lists = GUEST + 32 * BLOCK_SIZE;
        let shared = entry(page, ORDER_PAGE, lists);
        host.lists.share(agent.vm, &[shared]).map_err(refused("MEM_SHARE"))?;
        let [_, count] = Lists::at(page).put(&home);
        let donate = [call::MEM_DONATE.into(), Handle::HOST, lists, count];
        self.guest("off_guest_donate", &agent, &donate, BLOCK_SIZE + LIST)?;
        host.end(agent.vm)?;
        host.lists.bring_home(at..at + 2 * BLOCK_SIZE)
    }
}

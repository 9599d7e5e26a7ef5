// SPDX-License-Identifier: MIT OR Apache-2.0

//! Calls that take long let interrupts in, and go on after them.

use arrayvec::ArrayVec;
use escrow_abi::{BLOCK_SIZE, FrameState, MemEntry, PAGE_SIZE, call};
use escrow_payloads::guest::{Agent, Exit, FREE_BLOCK, routine, run_once};
use escrow_payloads::host::{block, block_at, frame, frame_state, is_zero, refused};
use escrow_payloads::{Host, Outcome, Test, check, check_eq, fail, hvc, interrupts, tests};

pub const TESTS: &[Test] = tests![
    a_long_call_of_the_host_lets_an_interrupt_in,
    a_long_call_of_a_guest_lets_an_interrupt_in,
];

const BLOCKS: u64 = 16;
const METADATA: u64 = 8;

type List = ArrayVec<MemEntry, { BLOCKS as usize }>;

fn lent(at: u64) -> List {
    let entry = |n| block_at(at + n * BLOCK_SIZE, FREE_BLOCK + n * BLOCK_SIZE);
    (0..BLOCKS).map(entry).collect()
}

fn bare(at: u64) -> List {
    (0..BLOCKS).map(|n| block(at + n * BLOCK_SIZE)).collect()
}

/// An interrupt is taken by the host on the HVC of a call of its own, which then is done.
fn a_long_call_of_the_host_lets_an_interrupt_in(host: &mut Host) -> Outcome {
    let metadata = host.arena.pages(METADATA);
    let at = host.arena.blocks(BLOCKS);
    // How fast the machine is, nobody knows.
    for round in 0..64 {
        let vm = host.lists.vm_of(metadata, METADATA)?;
        host.lists.lend(vm, &lent(at)).map_err(refused("MEM_LEND"))?;
        hvc::call(call::VM_DESTROY, &[vm]).map_err(refused("VM_DESTROY"))?;
        let entries = bare(at);
        interrupts::start_timer(20 << (round % 8));
        let (answer, interrupted) = interrupts::taking(|| host.lists.reclaim(&entries));
        interrupts::stop_timer();
        answer.map_err(refused("MEM_RECLAIM"))?;
        for n in 0..BLOCKS {
            check_eq!(frame_state(at + n * BLOCK_SIZE)?, FrameState::Owned);
        }
        check!(is_zero(at, BLOCKS * BLOCK_SIZE));
        let home: ArrayVec<_, { METADATA as usize }> =
            (0..METADATA).map(|n| frame(metadata + n * PAGE_SIZE)).collect();
        host.lists.reclaim(&home).map_err(refused("the metadata"))?;
        let Some([function, progress]) = interrupted else { continue };
        if function == call::MEM_RECLAIM.into() && progress != 0 {
            check!(progress < BLOCKS, "{progress:#x} of {BLOCKS} entries");
            return Ok(());
        }
    }
    fail!("no interrupt came in the middle")
}

/// A host's interrupt ends the run of a guest in the middle of the guest's call, which goes
/// on with the next run.
fn a_long_call_of_a_guest_lets_an_interrupt_in(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    let at = host.arena.blocks(BLOCKS);
    let flags = call::MODIFY_UNLOCK | call::MODIFY_SANITIZE;
    let size = BLOCKS * BLOCK_SIZE;
    let mut in_the_middle = 0;
    for round in 0..16 {
        host.lists.lend(agent.vm, &lent(at)).map_err(refused("MEM_LEND"))?;
        agent.command(routine::hvc(), &[call::MODIFY_PAGES.into(), 0, FREE_BLOCK, size, flags]);
        let last = loop {
            interrupts::start_timer(20 << (round % 8));
            let exit = run_once(agent.vcpu, [0; 3]).map_err(refused("VCPU_RUN"))?;
            interrupts::stop_timer();
            let mut unlocked = 0;
            for n in 0..BLOCKS {
                let state = frame_state(at + n * BLOCK_SIZE)?;
                unlocked += u64::from(state == FrameState::UnlockedZeroed);
            }
            if exit != Exit::Ready {
                check_eq!(unlocked, BLOCKS);
                break exit;
            }
            in_the_middle += u64::from(unlocked > 0 && unlocked < BLOCKS);
        };
        check_eq!(last, Exit::doorbell(agent.mailbox_at), "the agent comes back");
        let results = agent.results();
        check_eq!((results.x[0], results.x[7]), (0, 0));
        host.lists.reclaim(&bare(at)).map_err(refused("MEM_RECLAIM"))?;
        if in_the_middle > 0 {
            return host.end(agent.vm);
        }
    }
    fail!("no interrupt came in the middle")
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! Guests' TLB entries, when their host takes memory back while they run.

use core::sync::atomic::{AtomicUsize, Ordering};

use arrayvec::ArrayVec;
use escrow_abi::{BLOCK_SIZE, Error, MemEntry, PAGE_SIZE, call, run};
use escrow_payloads::expect::refusal;
use escrow_payloads::guest::{Agent, Exit, FREE, FREE_BLOCK, MAILBOX, routine, run_once};
use escrow_payloads::host::{block, block_at, frame, page_at, peek, refused};
use escrow_payloads::{
    Host, Outcome, Test, check, check_eq, cpus, fail, hvc, interrupts, probe, tests,
};

pub const TESTS: &[Test] = tests![
    unshared_pages_leave_running_guests,
    unshared_blocks_leave_running_guests,
    a_page_unshared_out_of_a_block_leaves_running_guests,
    unlocked_pages_leave_running_guests,
    unlocked_blocks_leave_running_guests,
    a_locked_page_stays_with_a_running_guest,
    a_dead_guest_s_page_is_left_alone,
];

/// Where a vCPU tells that it goes on, in its mailbox.
const TELLS: u64 = 0x800;
/// Bytes between the words that the vCPUs count in.
const STRIDE: u64 = 16;

/// A VM with a vCPU for each CPU but the first.
struct Crowd {
    vcpus: ArrayVec<Agent, { cpus::MAX_CPUS }>,
}

impl Crowd {
    fn start(host: &mut Host) -> Outcome<Crowd> {
        let first = Agent::create(host)?;
        let mut vcpus: ArrayVec<Agent, { cpus::MAX_CPUS }> = [first].into_iter().collect();
        for n in 1..cpus::count() as u64 - 1 {
            let page = host.page();
            vcpus.push(first.add_vcpu(&host.lists, n, page, MAILBOX + n * PAGE_SIZE)?);
        }
        hvc::call(call::VM_START, &[first.vm]).map_err(refused("VM_START"))?;
        check_eq!(first.run([0; 3])?, Exit::DOORBELL);
        for (n, vcpu) in (0..).zip(&vcpus).skip(1) {
            first.wake(vcpu, n)?;
        }
        Ok(Crowd { vcpus })
    }

    fn vm(&self) -> u64 {
        self.vcpus[0].vm
    }

    fn declare(&self, at: u64, size: u64) -> Outcome {
        let arguments = [self.vm(), call::CONFIGURE_MEMORY_ADD, at, size];
        hvc::call(call::VM_CONFIGURE, &arguments).map_err(refused("VM_CONFIGURE"))?;
        Ok(())
    }

    /// All vCPUs count in the page at `at` of theirs, which is `frame`, until CPU 0
    /// has done `take`. None of their stores is seen after that; all miss the page then.
    /// `others` is whether they go on beside it: the host sees them do so.
    fn count_until(&self, at: u64, frame: u64, take: impl Fn() -> Outcome + Sync) -> Outcome {
        for (n, vcpu) in (0..).zip(&self.vcpus) {
            let tells = vcpu.mailbox_at + TELLS;
            escrow_payloads::host::poke(vcpu.mailbox + TELLS, 0);
            vcpu.command(routine::poll(), &[0, at + n * STRIDE, tells]);
        }
        let work = || {
            for vcpu in &self.vcpus {
                let counts = || peek(vcpu.mailbox + TELLS) > 100;
                cpus::wait_until(counts, "a vCPU does not run")?;
            }
            take()?;
            let count = |n: usize| probe::read(frame + n as u64 * STRIDE + 8);
            let seen: ArrayVec<_, { cpus::MAX_CPUS }> = (0..self.vcpus.len()).map(count).collect();
            for _ in 0..1000 {
                for (n, seen) in seen.iter().enumerate() {
                    check_eq!(count(n), *seen, "vCPU {n} stores after the call has returned");
                }
            }
            Ok(())
        };
        cpus::try_on_all(|n| {
            if n == 0 {
                return work();
            }
            let vcpu = &self.vcpus[n - 1];
            match vcpu.run([0; 3])? {
                Exit::PageFault(missed, _, _) => check_eq!(missed, at & !(PAGE_SIZE - 1)),
                exit => fail!("vCPU {}: {exit:x?}", n - 1),
            }
            vcpu.finish([0, run::ACTION_FAULT, 0])?;
            Ok(())
        })
    }
}

fn rounds(host: &Host) -> u64 {
    host.board.number("rounds").unwrap_or(if cpus::count() > 2 { 3 } else { 10 })
}

fn unshared_pages_leave_running_guests(host: &mut Host) -> Outcome {
    cpus::need(2)?;
    let crowd = Crowd::start(host)?;
    let page = host.page();
    crowd.declare(FREE, PAGE_SIZE)?;
    let lists = host.lists;
    for _ in 0..rounds(host) {
        lists.share(crowd.vm(), &[page_at(page, FREE)]).map_err(refused("MEM_SHARE"))?;
        crowd.count_until(FREE, page, || {
            lists.unshare(&[frame(page)]).map_err(refused("MEM_UNSHARE"))?;
            Ok(())
        })?;
    }
    host.end(crowd.vm())
}

fn unshared_blocks_leave_running_guests(host: &mut Host) -> Outcome {
    cpus::need(2)?;
    let crowd = Crowd::start(host)?;
    let at = host.arena.blocks(1);
    crowd.declare(FREE_BLOCK, BLOCK_SIZE)?;
    let lists = host.lists;
    for n in 0..rounds(host) {
        lists.share(crowd.vm(), &[block_at(at, FREE_BLOCK)]).map_err(refused("MEM_SHARE"))?;
        let page = n * 51 % 512 * PAGE_SIZE;
        crowd.count_until(FREE_BLOCK + page, at + page, || {
            lists.unshare(&[block(at)]).map_err(refused("MEM_UNSHARE"))?;
            Ok(())
        })?;
    }
    host.end(crowd.vm())
}

fn a_page_unshared_out_of_a_block_leaves_running_guests(host: &mut Host) -> Outcome {
    cpus::need(2)?;
    let crowd = Crowd::start(host)?;
    let at = host.arena.blocks(1);
    crowd.declare(FREE_BLOCK, BLOCK_SIZE)?;
    let lists = host.lists;
    lists.share(crowd.vm(), &[block_at(at, FREE_BLOCK)]).map_err(refused("MEM_SHARE"))?;
    // The first time it is one entry of the guest's, and of its TLBs.
    for n in 0..rounds(host) {
        let page = (n * 51 + 3) % 512 * PAGE_SIZE;
        crowd.count_until(FREE_BLOCK + page, at + page, || {
            lists.unshare(&[frame(at + page)]).map_err(refused("MEM_UNSHARE"))?;
            Ok(())
        })?;
        // What is left of the block is the guest's still.
        let left = page ^ PAGE_SIZE;
        crowd.vcpus[0].store(FREE_BLOCK + left + 0x100, n)?;
        check_eq!(peek(at + left + 0x100), n);
    }
    host.end(crowd.vm())
}

fn unlock(vcpu: &Agent, at: u64, size: u64) -> Outcome {
    let arguments = [call::MODIFY_PAGES as u64, 0, at, size, call::MODIFY_UNLOCK];
    check_eq!(vcpu.hvc(&arguments)?, 0);
    Ok(())
}

fn unlocked_pages_leave_running_guests(host: &mut Host) -> Outcome {
    cpus::need(2)?;
    let crowd = Crowd::start(host)?;
    let page = host.page();
    crowd.declare(FREE, PAGE_SIZE)?;
    let lists = host.lists;
    for _ in 0..rounds(host) {
        lists.lend(crowd.vm(), &[page_at(page, FREE)]).map_err(refused("MEM_LEND"))?;
        unlock(&crowd.vcpus[0], FREE, PAGE_SIZE)?;
        crowd.count_until(FREE, page, || {
            lists.reclaim(&[frame(page)]).map_err(refused("MEM_RECLAIM"))?;
            Ok(())
        })?;
    }
    host.end(crowd.vm())
}

fn unlocked_blocks_leave_running_guests(host: &mut Host) -> Outcome {
    cpus::need(2)?;
    let crowd = Crowd::start(host)?;
    let at = host.arena.blocks(1);
    crowd.declare(FREE_BLOCK, BLOCK_SIZE)?;
    let lists = host.lists;
    for n in 0..rounds(host) {
        lists.lend(crowd.vm(), &[block_at(at, FREE_BLOCK)]).map_err(refused("MEM_LEND"))?;
        unlock(&crowd.vcpus[0], FREE_BLOCK, BLOCK_SIZE)?;
        let page = n * 51 % 512 * PAGE_SIZE;
        let list: [MemEntry; 1] = if n % 2 == 0 { [block(at)] } else { [frame(at + page)] };
        crowd.count_until(FREE_BLOCK + page, at + page, || {
            lists.reclaim(&list).map_err(refused("MEM_RECLAIM"))?;
            Ok(())
        })?;
        if n % 2 == 1 {
            // The rest of it.
            let rest = (0..512).map(|n| at + n * PAGE_SIZE).filter(|&other| other != at + page);
            let rest: ArrayVec<MemEntry, 512> = rest.map(frame).collect();
            lists.reclaim(&rest).map_err(refused("MEM_RECLAIM"))?;
        }
    }
    host.end(crowd.vm())
}

fn a_locked_page_stays_with_a_running_guest(host: &mut Host) -> Outcome {
    cpus::need(2)?;
    // The host tries to have it all the time; the guest counts on in it.
    let crowd = Crowd::start(host)?;
    let page = host.page();
    crowd.declare(FREE, 2 * PAGE_SIZE)?;
    let lists = host.lists;
    let extra = host.page();
    lists
        .lend(crowd.vm(), &[page_at(page, FREE), page_at(extra, FREE + PAGE_SIZE)])
        .map_err(refused("MEM_LEND"))?;
    unlock(&crowd.vcpus[0], FREE + PAGE_SIZE, PAGE_SIZE)?;
    crowd.count_until(FREE + PAGE_SIZE, extra, || {
        for _ in 0..200 {
            check_eq!(lists.reclaim(&[frame(page)]), Err(refusal(Error::Locked)));
            // With the unlocked one beside it: neither.
            let both = [frame(extra), frame(page)];
            let locked = escrow_payloads::expect::refusal_of(Error::Locked, 1, 0);
            check_eq!(lists.reclaim(&both), Err(locked));
            check!(probe::read(page).is_err() && probe::read(extra).is_err());
        }
        lists.reclaim(&[frame(extra)]).map_err(refused("MEM_RECLAIM"))?;
        Ok(())
    })?;
    crowd.vcpus[0].store(FREE, 7)?;
    check_eq!(crowd.vcpus[0].load(FREE)?, 7);
    host.end(crowd.vm())
}

fn a_dead_guest_s_page_is_left_alone(host: &mut Host) -> Outcome {
    cpus::need(2)?;
    for _ in 0..rounds(host) {
        a_guest_dies(host)?;
    }
    Ok(())
}

fn a_guest_dies(host: &mut Host) -> Outcome {
    let crowd = Crowd::start(host)?;
    let page = host.page();
    let lists = host.lists;
    lists.lend(crowd.vm(), &[page_at(page, FREE)]).map_err(refused("MEM_LEND"))?;
    for (n, vcpu) in (0..).zip(&crowd.vcpus) {
        let tells = vcpu.mailbox_at + TELLS;
        vcpu.command(routine::poll(), &[0, FREE + n * STRIDE, tells]);
    }
    let ended = AtomicUsize::new(0);
    cpus::try_on_all(|n| {
        if n != 0 {
            // It runs until there is nothing to run any more.
            let outcome = loop {
                interrupts::start_timer(500);
                let exit = run_once(crowd.vcpus[n - 1].vcpu, [0; 3]);
                interrupts::stop_timer();
                match exit {
                    Ok(Exit::Ready) => {}
                    Err(seen) if seen == refusal(Error::HandleRevoked) => break Ok(()),
                    other => break Err(other),
                }
            };
            ended.fetch_add(1, Ordering::SeqCst);
            return match outcome {
                Ok(()) => Ok(()),
                Err(exit) => fail!("vCPU {}: {exit:x?}", n - 1),
            };
        }
        for vcpu in &crowd.vcpus {
            let counts = || peek(vcpu.mailbox + TELLS) > 100;
            cpus::wait_until(counts, "a vCPU does not run")?;
        }
        let end = cpus::deadline(20);
        while let Err(seen) = hvc::call(call::VM_DESTROY, &[crowd.vm()]) {
            check_eq!(seen, refusal(Error::Busy));
            check!(!cpus::is_past(end), "the runs do not end");
            cpus::relax();
        }
        lists.reclaim(&[frame(page)]).map_err(refused("MEM_RECLAIM"))?;
        // Until no CPU runs any of it, and a while longer.
        let end = cpus::deadline(20);
        let mut more = 1000;
        while more > 0 {
            for k in 0..crowd.vcpus.len() as u64 {
                check_eq!(peek(page + k * STRIDE + 8), 0, "vCPU {k} stores after its death");
            }
            if ended.load(Ordering::SeqCst) == crowd.vcpus.len() {
                more -= 1;
            }
            check!(!cpus::is_past(end), "runs go on");
        }
        Ok(())
    })?;
    host.bring_home()
}

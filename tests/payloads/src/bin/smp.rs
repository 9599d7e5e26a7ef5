// SPDX-License-Identifier: MIT OR Apache-2.0

//! Several CPUs at once: one wins, the others are refused, nobody waits for
//! ever, and a CPU that minds its own memory notices nothing.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use arrayvec::ArrayVec;
use escrow_abi::{BLOCK_SIZE, Error, MemEntry, ORDER_BLOCK, PAGE_SIZE, Rights, call};
use escrow_payloads::expect::refusal;
use escrow_payloads::guest::{Agent, Exit, FREE, MAILBOX, routine, run_once};
use escrow_payloads::host::{Lists, frame, is_zero, page_at, refused};
use escrow_payloads::{
    Host, Outcome, Test, check, check_eq, cpus, fail, hvc, interrupts, payload, probe, tests,
};

payload!("smp", TESTS);

const TESTS: &[Test] = tests![
    one_of_all_gets_the_page,
    one_of_all_gets_the_block,
    lives_side_by_side,
    neighbours_of_lent_pages_notice_nothing,
    one_cpu_runs_a_vcpu,
    a_vm_ends_when_its_last_run_has,
    taken_pages_leave_a_running_guest,
];

type AllLists = [Lists; cpus::MAX_CPUS];

fn all_lists(host: &mut Host) -> AllLists {
    core::array::from_fn(|_| Lists::new(&mut host.arena))
}

/// All CPUs try to have one folio, each for a VM of its own.
fn one_of_all(host: &mut Host, share: impl Fn(u64) -> MemEntry + Sync, bare: MemEntry) -> Outcome {
    cpus::need(2)?;
    let lists = all_lists(host);
    let metadata = host.arena.pages(8 * cpus::MAX_CPUS as u64);
    let holders = AtomicUsize::new(0);
    let (won, lost) = (AtomicU64::new(0), AtomicU64::new(0));
    cpus::try_on_all(|n| {
        let lists = &lists[n];
        let vm = lists.vm_of(metadata + 8 * n as u64 * PAGE_SIZE, 8)?;
        for round in 0..300 {
            match lists.share(vm, &[share(0x20_0000)]) {
                Ok(_) => {
                    let others = holders.fetch_add(1, Ordering::SeqCst);
                    check_eq!(others, 0, "two have it, round {round}");
                    won.fetch_add(1, Ordering::Relaxed);
                    holders.fetch_sub(1, Ordering::SeqCst);
                    lists.unshare(&[bare]).map_err(refused("MEM_UNSHARE"))?;
                }
                Err(hvc::Refusal { error: Error::WrongState, .. }) => {
                    lost.fetch_add(1, Ordering::Relaxed);
                }
                Err(refusal) => fail!("{refusal:?}"),
            }
        }
        hvc::call(call::VM_DESTROY, &[vm]).map_err(refused("VM_DESTROY"))?;
        Ok(())
    })?;
    check!(won.load(Ordering::Relaxed) > 0);
    host.bring_home()
}

fn one_of_all_gets_the_page(host: &mut Host) -> Outcome {
    let page = host.page();
    one_of_all(host, |guest| page_at(page, guest), frame(page))
}

fn one_of_all_gets_the_block(host: &mut Host) -> Outcome {
    let at = host.arena.blocks(1);
    let entry = |guest| MemEntry::new(at, ORDER_BLOCK, guest, Rights::ALL);
    one_of_all(host, entry, MemEntry::new(at, ORDER_BLOCK, 0, Rights::NONE))
}

fn lives_side_by_side(host: &mut Host) -> Outcome {
    cpus::need(2)?;
    // All in the same few blocks, so that their locks and tables are shared.
    let lists = all_lists(host);
    let stride = Agent::PAGES + 4;
    let pages = host.arena.pages(stride * cpus::MAX_CPUS as u64);
    cpus::try_on_all(|n| {
        let lists = &lists[n];
        let own = pages + stride * n as u64 * PAGE_SIZE;
        let extra = own + Agent::PAGES * PAGE_SIZE;
        for round in 0..25 {
            let agent = Agent::start_with(lists, own)?;
            let entries: [MemEntry; 4] = core::array::from_fn(|k| {
                page_at(extra + k as u64 * PAGE_SIZE, FREE + k as u64 * PAGE_SIZE)
            });
            lists.lend(agent.vm, &entries).map_err(refused("MEM_LEND"))?;
            agent.store(FREE, n as u64 * 1000 + round)?;
            check_eq!(agent.load(FREE)?, n as u64 * 1000 + round);
            let unlock = [call::MODIFY_PAGES as u64, 0, FREE + 0x1000, 0x1000, call::MODIFY_UNLOCK];
            check_eq!(agent.hvc(&unlock)?, 0);
            lists.reclaim(&[frame(extra + PAGE_SIZE)]).map_err(refused("MEM_RECLAIM"))?;
            hvc::call(call::VM_DESTROY, &[agent.vm]).map_err(refused("VM_DESTROY"))?;
            let home: ArrayVec<MemEntry, 64> = (0..stride)
                .filter(|&k| k != Agent::PAGES + 1)
                .map(|k| frame(own + k * PAGE_SIZE))
                .collect();
            lists.reclaim(&home).map_err(refused("MEM_RECLAIM"))?;
            check!(is_zero(extra, PAGE_SIZE), "CPU {n}, round {round}");
        }
        Ok(())
    })
}

fn neighbours_of_lent_pages_notice_nothing(host: &mut Host) -> Outcome {
    cpus::need(2)?;
    // CPU 0 lends and takes back pages and the whole of a block, so that it is
    // split and joined all the time; the others use the block beside it and,
    // while it is in pieces, pages of it that stay at home.
    let blocks = host.arena.blocks(2);
    let [lent, kept] = [blocks + 7 * PAGE_SIZE, blocks + 300 * PAGE_SIZE];
    let vm = host.vm(8)?;
    let lists = host.lists;
    let stop = AtomicBool::new(false);
    let used = AtomicU64::new(0);
    cpus::try_on_all(|n| {
        if n != 0 {
            let mut count = 0;
            let own = kept + n as u64 * PAGE_SIZE;
            let next = blocks + BLOCK_SIZE + n as u64 * PAGE_SIZE;
            while !stop.load(Ordering::Relaxed) {
                for at in [own, next] {
                    count += 1;
                    check_eq!(probe::write(at, count), Ok(()));
                    check_eq!(probe::read(at), Ok(count));
                    used.fetch_add(1, Ordering::Relaxed);
                }
            }
            return Ok(());
        }
        let churn = || -> Outcome {
            // Until the others had their turn as well: they may have no time of their own.
            for round in 0..1_000_000 {
                if round >= 1000 && used.load(Ordering::Relaxed) > 1000 {
                    break;
                }
                lists.share(vm, &[page_at(lent, 0x1000)]).map_err(refused("MEM_SHARE"))?;
                lists.unshare(&[frame(lent)]).map_err(refused("MEM_UNSHARE"))?;
            }
            Ok(())
        };
        let result = churn();
        stop.store(true, Ordering::Relaxed);
        result
    })?;
    check!(used.load(Ordering::Relaxed) > 1000, "{used:?} accesses");
    host.end(vm)
}

fn one_cpu_runs_a_vcpu(host: &mut Host) -> Outcome {
    cpus::need(2)?;
    let agent = Agent::start(host)?;
    agent.command(routine::spin(), &[0]);
    let running = AtomicBool::new(false);
    let tried = AtomicBool::new(false);
    cpus::try_on_all(|n| {
        match n {
            0 => {
                running.store(true, Ordering::SeqCst);
                let end = cpus::deadline(20);
                while !tried.load(Ordering::SeqCst) {
                    interrupts::start_timer(20_000);
                    let exit = run_once(agent.vcpu, [0; 3]);
                    interrupts::stop_timer();
                    match exit {
                        Ok(Exit::Ready) | Err(hvc::Refusal { error: Error::Busy, .. }) => {}
                        other => fail!("{other:x?}"),
                    }
                    check!(!cpus::is_past(end), "the other CPU does not get its turn");
                }
            }
            1 => {
                cpus::wait_until(|| running.load(Ordering::SeqCst), "")?;
                // Sooner or later it tries while the other is inside.
                let end = cpus::deadline(20);
                let busy = loop {
                    interrupts::start_timer(1);
                    let exit = run_once(agent.vcpu, [0; 3]);
                    interrupts::stop_timer();
                    match exit {
                        Err(seen) if seen == refusal(Error::Busy) => break Ok(()),
                        Ok(Exit::Ready) if !cpus::is_past(end) => {}
                        other => break Err(other),
                    }
                };
                tried.store(true, Ordering::SeqCst);
                if let Err(other) = busy {
                    fail!("{other:x?}");
                }
            }
            _ => {}
        }
        Ok(())
    })?;
    host.end(agent.vm)
}

fn a_vm_ends_when_its_last_run_has(host: &mut Host) -> Outcome {
    cpus::need(2)?;
    let agent = Agent::start(host)?;
    agent.command(routine::spin(), &[0]);
    let inside = AtomicBool::new(false);
    let (busy, ended) = (AtomicU64::new(0), AtomicBool::new(false));
    cpus::try_on_all(|n| {
        match n {
            0 => {
                cpus::wait_until(|| inside.load(Ordering::SeqCst), "")?;
                let end = cpus::deadline(20);
                loop {
                    match hvc::call(call::VM_DESTROY, &[agent.vm]) {
                        Ok(_) => break,
                        Err(seen) if seen == refusal(Error::Busy) => {
                            busy.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(other) => fail!("{other:?}"),
                    }
                    check!(!cpus::is_past(end), "the run does not end");
                }
                ended.store(true, Ordering::SeqCst);
            }
            1 => {
                interrupts::start_timer(50_000);
                inside.store(true, Ordering::SeqCst);
                let exit = run_once(agent.vcpu, [0; 3]);
                let early = !interrupts::is_pending();
                interrupts::stop_timer();
                // It may have been destroyed before it got in.
                let before = exit == Err(refusal(Error::HandleRevoked));
                check!(before || exit == Ok(Exit::Ready) && !early, "{exit:x?}, {early}");
                // None can begin any more.
                cpus::wait_until(|| ended.load(Ordering::SeqCst), "")?;
                check_eq!(run_once(agent.vcpu, [0; 3]), Err(refusal(Error::HandleRevoked)));
            }
            _ => {}
        }
        Ok(())
    })?;
    host.bring_home()
}

fn taken_pages_leave_a_running_guest(host: &mut Host) -> Outcome {
    cpus::need(2)?;
    // The guest on CPU 1 has a page in its TLB and runs on; CPU 0 takes the
    // page back. From then on the guest must not reach it.
    let agent = Agent::start(host)?;
    let page = host.page();
    let arguments = [agent.vm, call::CONFIGURE_MEMORY_ADD, FREE, PAGE_SIZE];
    hvc::call(call::VM_CONFIGURE, &arguments).map_err(refused("VM_CONFIGURE"))?;
    let lists = host.lists;
    for round in 0..20 {
        lists.share(agent.vm, &[page_at(page, FREE)]).map_err(refused("MEM_SHARE"))?;
        agent.command(routine::poll(), &[0, FREE, MAILBOX + 0x800]);
        let inside = AtomicBool::new(false);
        cpus::try_on_all(|n| {
            match n {
                0 => {
                    cpus::wait_until(|| inside.load(Ordering::SeqCst), "")?;
                    // It has got its first page in when it counts there.
                    let counts = || escrow_payloads::host::peek(page + 8) > 100;
                    cpus::wait_until(counts, "the guest does not run")?;
                    lists.unshare(&[frame(page)]).map_err(refused("MEM_UNSHARE"))?;
                    escrow_payloads::host::poke(page + 8, 0);
                    // Not one more store of the guest's.
                    for _ in 0..1000 {
                        check_eq!(escrow_payloads::host::peek(page + 8), 0, "round {round}");
                    }
                }
                1 => {
                    inside.store(true, Ordering::SeqCst);
                    let exit = agent.run([0; 3])?;
                    check_eq!(exit, Exit::PageFault(FREE, PAGE_SIZE, 0), "round {round}");
                }
                _ => {}
            }
            Ok(())
        })?;
        agent.finish([0, escrow_abi::run::ACTION_FAULT, 0])?;
    }
    host.end(agent.vm)
}

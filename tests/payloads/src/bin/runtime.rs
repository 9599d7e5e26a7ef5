// SPDX-License-Identifier: MIT OR Apache-2.0

//! The runtime itself, with or without Escrow: what the other payloads take
//! for granted.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicUsize, Ordering};

use aarch64_cpu::registers::{CurrentEL, Readable as _};
use escrow_payloads::host::{peek, poke};
use escrow_payloads::{
    Host, Outcome, Test, check, check_eq, cpus, interrupts, mmu, payload, probe, tests,
};

payload!("runtime", TESTS);

const TESTS: &[Test] = tests![
    starts_at_el1,
    memory_is_what_the_tree_says,
    probes_return_values,
    probes_return_faults,
    all_cpus_work_at_once,
    timers_fire_on_all_cpus,
];

fn starts_at_el1(_: &mut Host) -> Outcome {
    check_eq!(CurrentEL.read(CurrentEL::EL), 1);
    Ok(())
}

fn memory_is_what_the_tree_says(host: &mut Host) -> Outcome {
    for range in &host.board.memory {
        for at in [range.start, range.end - 8] {
            check!(probe::read(at).is_ok(), "{at:#x}");
        }
    }
    Ok(())
}

fn probes_return_values(host: &mut Host) -> Outcome {
    let page = host.page();
    poke(page, 0x1234_5678_9abc_def0);
    check_eq!(probe::read(page), Ok(0x1234_5678_9abc_def0));
    check_eq!(probe::write(page + 8, 7), Ok(()));
    check_eq!(peek(page + 8), 7);
    for access in probe::ACCESSES {
        check!(access.run(page, 1).is_ok(), "{}", access.name);
    }
    poke(page, 0xd65f_03c0); // ret
    mmu::clean(page, 16);
    check_eq!(probe::fetch(page), Ok(()));
    Ok(())
}

fn probes_return_faults(host: &mut Host) -> Outcome {
    // A table of zeros maps nothing.
    let page = host.page();
    for n in 0..512 {
        poke(page + n * 8, 0);
    }
    mmu::set_table(300, page);
    let at = 300 * mmu::GIB + 0x1230;
    for access in probe::ACCESSES {
        let Err(fault) = access.run(at, 0) else { escrow_payloads::fail!("{} works", access.name) };
        check_eq!((fault.class(), fault.status()), (0x25, 0x06), "{}", access.name);
        check_eq!(fault.is_write(), access.is_write, "{}", access.name);
        check_eq!(fault.far & !0x3f, at & !0x3f, "{}", access.name);
    }
    check_eq!(probe::fetch(at).map_err(|fault| (fault.class(), fault.far)), Err((0x21, at)));
    mmu::clear_table(300);
    Ok(())
}

fn all_cpus_work_at_once(host: &mut Host) -> Outcome {
    check_eq!(cpus::count(), host.board.cpus.len().min(cpus::MAX_CPUS));
    let seen = AtomicUsize::new(0);
    cpus::on_all(|n| {
        seen.fetch_or(1 << n, Ordering::SeqCst);
        // All must be here at the same time.
        while seen.load(Ordering::SeqCst) != (1 << cpus::count()) - 1 {
            core::hint::spin_loop();
        }
    });
    check_eq!(seen.load(Ordering::SeqCst), (1 << cpus::count()) - 1);
    Ok(())
}

fn timers_fire_on_all_cpus(_: &mut Host) -> Outcome {
    let fired = AtomicUsize::new(0);
    cpus::on_all(|n| {
        let early = interrupts::is_pending();
        interrupts::start_timer(100);
        let came = cpus::wait_until(interrupts::is_pending, "").is_ok();
        interrupts::stop_timer();
        let gone = cpus::wait_until(|| !interrupts::is_pending(), "").is_ok();
        fired.fetch_or(((!early && came && gone) as usize) << n, Ordering::SeqCst);
    });
    check_eq!(fired.load(Ordering::SeqCst), (1 << cpus::count()) - 1);
    Ok(())
}

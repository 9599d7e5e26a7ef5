// SPDX-License-Identifier: MIT OR Apache-2.0

//! The host's calls to the firmware: PSCI through Escrow, the rest through a
//! filter.

#![no_std]
#![no_main]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use aarch64_cpu::registers::{CurrentEL, MPIDR_EL1, Readable as _};
use escrow_abi::{call, psci};
use escrow_payloads::expect::escrow_memory;
use escrow_payloads::{
    Host, Outcome, Test, check, check_eq, cpus, hvc, interrupts, payload, probe, smc, tests,
};

payload!("firmware", TESTS);

const TESTS: &[Test] = tests![
    psci_is_there,
    every_cpu_is_under_escrow,
    cpus_that_are_on_or_are_not,
    cpus_go_and_come_back,
    a_light_sleep_returns,
    other_calls_are_refused,
    registers_survive_a_call,
    calls_with_an_immediate,
];

fn psci_is_there(_: &mut Host) -> Outcome {
    let version = smc::firmware(psci::VERSION, &[]);
    check!((0x1_0000..=0x1_0001).contains(&version), "PSCI {version:#x}");
    for function in [
        psci::CPU_ON_64,
        psci::CPU_OFF,
        psci::CPU_SUSPEND_64,
        psci::AFFINITY_INFO_64,
        psci::SYSTEM_OFF,
        psci::SYSTEM_RESET,
    ] {
        let feature = smc::firmware(psci::FEATURES, &[function as u64]) as i64;
        check!(feature >= 0, "{function:#x}: {feature}");
    }
    for function in [0x8400_00ff, 0xC400_0063, 0xFFFF_FFFF] {
        check_eq!(smc::firmware(psci::FEATURES, &[function]), psci::NOT_SUPPORTED);
    }
    Ok(())
}

fn every_cpu_is_under_escrow(host: &mut Host) -> Outcome {
    check_eq!(cpus::count(), host.board.cpus.len().min(cpus::MAX_CPUS));
    let escrow = escrow_memory(host)?;
    let good = AtomicU64::new(0);
    let board = &host.board;
    cpus::on_all(|n| {
        let at_el1 = CurrentEL.read(CurrentEL::EL) == 1;
        let itself = MPIDR_EL1.get() & 0xff_00ff_ffff == board.cpus[n];
        let identified =
            hvc::call_registers(&[call::LEDGER_INFO as u64, call::INFO_CPUS, 0, 0, 0, 0, 0, 0]);
        let answered = identified == Ok([cpus::count() as u64, 0, 0, 0]);
        let kept_out = escrow.iter().all(|range| probe::read(range.start).is_err());
        if at_el1 && itself && answered && kept_out {
            good.fetch_or(1 << n, Ordering::Relaxed);
        }
    });
    check_eq!(good.load(Ordering::Relaxed), (1 << cpus::count()) - 1);
    Ok(())
}

fn cpus_that_are_on_or_are_not(host: &mut Host) -> Outcome {
    for &cpu in &host.board.cpus {
        check_eq!(smc::firmware(psci::AFFINITY_INFO_64, &[cpu, 0]), 0, "{cpu:#x}");
        let on = smc::firmware(psci::CPU_ON_64, &[cpu, cpus::entry(), 0]);
        check_eq!(on, psci::ALREADY_ON, "{cpu:#x}");
    }
    for nobody in [0xff, 0xff_0000_0000, u64::MAX, 1 << 24] {
        let on = smc::firmware(psci::CPU_ON_64, &[nobody, cpus::entry(), 0]);
        check_eq!(on, psci::INVALID_PARAMETERS, "{nobody:#x}");
        let info = smc::firmware(psci::AFFINITY_INFO_64, &[nobody, 0]);
        check_eq!(info, psci::INVALID_PARAMETERS, "{nobody:#x}");
    }
    Ok(())
}

fn cpus_go_and_come_back(host: &mut Host) -> Outcome {
    cpus::need(2)?;
    let all = cpus::count();
    let last = host.board.cpus[all - 1];
    let running = || hvc::call(call::LEDGER_INFO, &[call::INFO_CPUS, 0]).map_or(0, |x| x[0]);
    for round in 0..10 {
        cpus::switch_off_last();
        cpus::wait_until(
            || smc::firmware(psci::AFFINITY_INFO_64, &[last, 0]) == 1,
            "the CPU does not go off",
        )?;
        check_eq!(running(), all as u64 - 1, "round {round}");
        cpus::switch_on(last, all - 1)?;
        check_eq!((cpus::count(), running()), (all, all as u64), "round {round}");
        // It does its part, under Escrow as before.
        let here = AtomicU64::new(0);
        cpus::on_all(|n| {
            here.fetch_or(1 << n, Ordering::Relaxed);
        });
        check_eq!(here.load(Ordering::Relaxed), (1 << all) - 1);
    }
    Ok(())
}

fn a_light_sleep_returns(_: &mut Host) -> Outcome {
    // Power state 0: standby. The timer's interrupt ends it, masked or not.
    interrupts::start_timer(1000);
    let answer = smc::firmware(psci::CPU_SUSPEND_64, &[0, cpus::entry(), 0]);
    check_eq!(answer, psci::SUCCESS);
    Ok(())
}

fn other_calls_are_refused(_: &mut Host) -> Outcome {
    for function in [
        // Silicon provider, OEM, standard secure services that name memory,
        // trusted applications and OS, yielding calls, numbers of no service.
        0x8200_0000_u64,
        0xC200_0000,
        0xC200_FF01,
        0x8300_0001,
        0xC300_FFFF,
        0x8400_0063,
        0xC400_0070,
        0xC400_0020,
        0x8400_0021,
        0xB000_0000,
        0x3200_0000,
        0x0000_0000,
        0x0200_0000,
        0xFFFF_FFFF,
        // Escrow's own are called by HVC.
        call::VM_CREATE as u64,
        call::HYP_IDENTIFY as u64,
    ] {
        let mut registers = [0x1111; 18];
        registers[0] = function;
        smc::raw(&mut registers);
        check_eq!(registers[0], u64::MAX, "{function:#x}");
        check!(registers[4..].iter().all(|&x| x == 0x1111), "{function:#x}: {registers:x?}");
    }
    Ok(())
}

fn registers_survive_a_call(_: &mut Host) -> Outcome {
    let mut registers = core::array::from_fn(|n| 0x0101_0101 * n as u64);
    registers[0] = psci::VERSION as u64;
    smc::raw(&mut registers);
    for (n, register) in registers.iter().enumerate().skip(4) {
        check_eq!(*register, 0x0101_0101 * n as u64, "X{n}");
    }
    Ok(())
}

fn calls_with_an_immediate(_: &mut Host) -> Outcome {
    for _ in 0..2 {
        let (smc, hvc): (u64, u64);
        // SAFETY: calls that are none change X0 to X3 at the most.
        unsafe {
            asm!("smc #1", inout("x0") psci::VERSION as u64 => smc, out("x1") _, out("x2") _, out("x3") _);
            asm!("hvc #1", inout("x0") call::HYP_IDENTIFY as u64 => hvc, out("x1") _, out("x2") _, out("x3") _, out("x4") _);
        }
        // Nobody's; or the immediate is not looked at, as much firmware does.
        check!(smc == u64::MAX || smc >> 16 == 1, "{smc:#x}");
        check!(hvc == u64::MAX || hvc == call::IDENTIFY_INFO, "{hvc:#x}");
    }
    Ok(())
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! Instructions of a guest that EL2 answers: calls, system registers, waits.

use aarch64_cpu::registers::{MIDR_EL1, Readable as _};
use arrayvec::ArrayVec;
use escrow_abi::errata::{Hardening, OPEN};
use escrow_abi::{call, psci, trng};
use escrow_payloads::guest::{Agent, Exit, Routine, routine};
use escrow_payloads::{Host, Outcome, Test, check, check_eq, fail, hvc, tests};

pub const TESTS: &[Test] = tests![
    calls_by_hvc_and_smc,
    workarounds_are_told_as_they_are,
    firmware_answers,
    random_numbers,
    unknown_registers_are_undefined,
    hidden_features_do_not_show,
    its_own_exceptions_are_its_own,
    waits_end_the_run,
    switched_off_is_down,
    reset_is_asked_for,
    a_cpu_that_is_off,
];

fn both() -> [Routine; 2] {
    [routine::hvc(), routine::smc()]
}

/// A guest is told of a workaround what entries to EL2 do, for its call is one.
fn workarounds_are_told_as_they_are(host: &mut Host) -> Outcome {
    const WORKAROUND_1: u64 = 0x8000_8000;
    const WORKAROUND_2: u64 = 0x8000_7fff;
    const WORKAROUND_3: u64 = 0x8000_3fff;
    let info = hvc::call(call::LEDGER_INFO, &[call::INFO_HARDENING, 0]);
    let hardening = info.map_or(0, |[word, ..]| word);
    check!(hardening != 0);
    let any = |these: &[Hardening]| these.iter().any(|one| hardening & one.bit() != 0);
    let answer = |needed| match (hardening & OPEN != 0, needed) {
        (true, _) => u64::MAX,
        (_, true) => 0,
        (_, false) => 1,
    };
    let expected = [
        (WORKAROUND_1, answer(any(&[Hardening::Firmware]))),
        (WORKAROUND_2, u64::MAX),
        (
            WORKAROUND_3,
            answer(any(&[Hardening::Firmware, Hardening::Loop, Hardening::ClearHistory])),
        ),
    ];
    let agent = Agent::start(host)?;
    for conduit in both() {
        for (function, told) in expected {
            let asked = agent.call(conduit, &[call::SMCCC_ARCH_FEATURES as u64, function])?;
            check_eq!(asked.x[0], told, "{function:#x}, {hardening:#x}");
            // What is there can be called.
            let called = agent.call(conduit, &[function])?;
            check_eq!(called.x[0], if told == u64::MAX { u64::MAX } else { 0 }, "{function:#x}");
            check_eq!(called.exception, None);
        }
    }
    host.end(agent.vm)
}

fn calls_by_hvc_and_smc(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    for conduit in both() {
        let x = agent.call(conduit, &[call::SMCCC_VERSION as u64])?.x;
        check_eq!(x[0], 0x10002);
        let x = agent.call(conduit, &[call::HYP_IDENTIFY as u64, 1, 2, 3])?.x;
        check_eq!(x[..4], [call::IDENTIFY_INFO, 0, 0, 0]);
        let x = agent.call(conduit, &[call::VENDOR_HYP_UID as u64])?.x;
        check_eq!(x[..4], call::UID.map(u64::from));
        // The host's calls are not the guest's.
        for function in [
            call::VM_CREATE,
            call::VM_DESTROY,
            call::VCPU_RUN,
            call::VM_TOP_UP,
            call::MEM_POISON,
            call::MEM_LEND_ONE,
            call::CAP_GRANT,
            call::CAP_REVOKE,
            call::LEDGER_INFO,
            call::FRAME_INFO,
            call::LOG_READ,
            0xC600_FFFF,
            0xC300_0000,
            0,
        ] {
            let results = agent.call(conduit, &[function as u64, 1, 2, 3, 4, 5, 6, 7])?;
            check_eq!((results.x[0], results.exception), (u64::MAX, None), "{function:#x}");
            check_eq!(results.x[4..], [4, 5, 6, 7], "{function:#x}");
        }
    }
    // Immediates other than 0 are nobody's.
    let results = agent.call(routine::hvc1(), &[call::SMCCC_VERSION as u64])?;
    check!(results.x[0] == u64::MAX || results.exception.is_some(), "{results:x?}");
    host.end(agent.vm)
}

fn firmware_answers(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    for conduit in both() {
        let ask = |arguments: &[u64]| agent.call(conduit, arguments).map(|results| results.x[0]);
        check_eq!(ask(&[psci::VERSION as u64])?, 0x1_0001);
        let features = psci::FEATURES as u64;
        for function in [psci::SYSTEM_OFF, psci::SYSTEM_RESET, psci::CPU_OFF, psci::CPU_ON_64] {
            check_eq!(ask(&[features, function as u64])?, psci::SUCCESS, "{function:#x}");
        }
        check_eq!(ask(&[features, psci::SYSTEM_SUSPEND_64 as u64])?, psci::NOT_SUPPORTED);
        check_eq!(ask(&[features, 0x8400_00ff])?, psci::NOT_SUPPORTED);
        check_eq!(ask(&[psci::MIGRATE_INFO_TYPE as u64])?, 2);
        // Its one vCPU is on; there is no other.
        check_eq!(ask(&[psci::AFFINITY_INFO_64 as u64, 0, 0])?, 0);
        check_eq!(ask(&[psci::AFFINITY_INFO_64 as u64, 1, 0])?, psci::INVALID_PARAMETERS);
        // Its cluster is, the next one is not.
        check_eq!(ask(&[psci::AFFINITY_INFO_64 as u64, 5, 1])?, 0);
        check_eq!(ask(&[psci::AFFINITY_INFO_32 as u64, 0x100, 1])?, psci::INVALID_PARAMETERS);
        check_eq!(ask(&[psci::AFFINITY_INFO_64 as u64, 0, 4])?, psci::INVALID_PARAMETERS);
        check_eq!(ask(&[psci::CPU_ON_64 as u64, 0, 0, 0])?, psci::ALREADY_ON);
        check_eq!(ask(&[psci::CPU_ON_64 as u64, 0, 2, 0])?, psci::INVALID_ADDRESS);
        check_eq!(ask(&[psci::CPU_ON_64 as u64, 0, 1 << 48, 0])?, psci::INVALID_ADDRESS);
        check_eq!(ask(&[psci::CPU_SUSPEND_64 as u64, 1 << 31, 0, 0])?, psci::INVALID_PARAMETERS);
        check_eq!(ask(&[psci::SYSTEM_RESET2_64 as u64, 1 << 31, 0])?, psci::INVALID_PARAMETERS);
        // MEM_PROTECT.
        check_eq!(ask(&[0x8400_0013, 1])?, psci::NOT_SUPPORTED);
        check_eq!(ask(&[psci::CPU_ON_64 as u64, 1, 0, 0])?, psci::INVALID_PARAMETERS);
        check_eq!(ask(&[psci::CPU_ON_64 as u64, u64::MAX, 0, 0])?, psci::INVALID_PARAMETERS);
        check_eq!(ask(&[psci::SYSTEM_SUSPEND_64 as u64, 0, 0])?, psci::NOT_SUPPORTED);
    }
    host.end(agent.vm)
}

/// Random numbers are the CPU's or the firmware's, or there are none to ask for.
fn random_numbers(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    let cpu_has_them = agent.call(routine::mrs_isar0(), &[])?.x[0] >> 60 != 0;
    for conduit in both() {
        let ask = |arguments: &[u64]| agent.call(conduit, arguments).map(|results| results.x);
        let version = ask(&[trng::VERSION as u64])?[0];
        if version == psci::NOT_SUPPORTED {
            check!(!cpu_has_them, "the CPU has random numbers");
            for function in [trng::FEATURES, trng::GET_UUID, trng::RND_32, trng::RND_64] {
                let x = ask(&[function as u64, 64, 2, 3])?;
                check_eq!(x[..4], [psci::NOT_SUPPORTED, 64, 2, 3], "{function:#x}");
            }
            continue;
        }
        check_eq!(version, 0x1_0000);
        check_eq!(ask(&[trng::FEATURES as u64, trng::RND_64 as u64])?[0], psci::SUCCESS);
        check_eq!(ask(&[trng::GET_UUID as u64])?[..4], trng::UUID.map(u64::from));
        for (function, bits) in [(trng::RND_64, 193), (trng::RND_64, 0), (trng::RND_32, 97)] {
            check_eq!(ask(&[function as u64, bits])?[0], psci::INVALID_PARAMETERS);
        }
        let mut seen: ArrayVec<u64, 24> = ArrayVec::new();
        for _ in 0..8 {
            let [x0, words @ .., _, _, _, _] = ask(&[trng::RND_64 as u64, 192])?;
            check_eq!(x0, psci::SUCCESS);
            for word in words {
                check!(word != 0 && !seen.contains(&word), "{word:#x}, {seen:x?}");
                seen.push(word);
            }
        }
        let x = ask(&[trng::RND_32 as u64, 33, 7, 7])?;
        check!(x[0] == 0 && x[1] == 0 && x[2] < 2 && x[3] >> 32 == 0, "{x:x?}");
    }
    host.end(agent.vm)
}

fn unknown_registers_are_undefined(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    for routine in [
        routine::mrs_el2(),
        routine::mrs_implementation_defined(),
        routine::mrs_unallocated(),
        routine::msr_unallocated(),
        routine::mrs_pmcr(),
        routine::mrs_zcr(),
        routine::mrs_pmscr(),
    ] {
        let results = agent.call(routine, &[0x5a5a])?;
        let Some(exception) = results.exception else {
            escrow_payloads::fail!("{routine:?} reads {:#x}", results.x[0])
        };
        // Unknown reason, IL; at the instruction itself.
        check_eq!(exception.esr, 1 << 25, "{routine:?}");
        check_eq!(results.x[0], 0x5a5a, "{routine:?}");
        check_eq!(exception.spsr & 0xf, 5, "{routine:?}");
    }
    // The log tells of the first alone.
    let log = tail_of_log()?;
    let lines = log.split(|&byte| byte == b'\n');
    let told = lines.filter(|line| contains(line, b"which it does not have"));
    check!(told.clone().any(|line| contains(line, b"S3_0_C15_C2_0")), "the first is not logged");
    check!(!told.clone().any(|line| contains(line, b"S3_3_C13_C7_7")), "the next is logged");
    // An OS lock that is open is all that a guest finds of the debug registers.
    let results = agent.call(routine::mrs_oslsr(), &[])?;
    check_eq!((results.x[0] & 2, results.exception), (0, None));
    host.end(agent.vm)
}

/// The end of the log.
fn tail_of_log() -> Outcome<ArrayVec<u8, { 2 * TAIL }>> {
    let read = |from| match hvc::call(call::LOG_READ, &[from]) {
        Ok([next, words @ ..]) => Ok((next, words)),
        Err(refusal) => fail!("no log: {refusal:?}"),
    };
    // A position beyond the end is answered with the end.
    let (end, _) = read(u64::MAX)?;
    let mut at = end.saturating_sub(TAIL as u64);
    let mut text = ArrayVec::new();
    while at < end {
        let (next, words) = read(at)?;
        let bytes = words.into_iter().flat_map(u64::to_le_bytes).take_while(|&byte| byte != 0);
        text.extend(bytes.take((next - at) as usize));
        at = next;
    }
    Ok(text)
}

/// Bytes of it.
const TAIL: usize = 600;

fn contains(line: &[u8], text: &[u8]) -> bool {
    line.windows(text.len()).any(|window| window == text)
}

fn hidden_features_do_not_show(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    let results = agent.call(routine::id(), &[])?;
    check!(results.exception.is_none(), "{results:x?}");
    let [midr, mpidr, pfr0, pfr1, dfr0, mmfr0, _, zfr0] = results.x;
    check_eq!(midr, MIDR_EL1.get());
    check_eq!(mpidr, 1 << 31, "CPU 0 of several");
    let field = |register: u64, at: u32| register >> at & 0xf;
    check_eq!(field(pfr0, 8), 0, "EL2");
    check_eq!(field(pfr0, 12), 0, "EL3");
    check_eq!(field(pfr0, 32), 0, "SVE");
    check_eq!(field(pfr0, 44), 0, "AMU");
    check_eq!(field(pfr0, 0), 1, "EL0 in AArch64 only");
    check_eq!(field(pfr1, 8), 0, "MTE");
    check_eq!(field(pfr1, 24), 0, "SME");
    check_eq!(field(dfr0, 8), 0, "PMU");
    check_eq!(field(dfr0, 32), 0, "SPE");
    check_eq!(field(dfr0, 4), 0, "trace");
    check_eq!(zfr0, 0, "SVE features");
    // Floating point is there.
    check!(field(pfr0, 16) != 0xf && field(pfr0, 20) != 0xf, "{pfr0:#x}");
    // Not more physical address bits than it has guest address bits.
    check!(field(mmfr0, 0) <= 2, "{mmfr0:#x}");
    host.end(agent.vm)
}

fn its_own_exceptions_are_its_own(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    let results = agent.call(routine::svc(), &[])?;
    check_eq!(results.exception.map(|e| e.esr), Some(0x15 << 26 | 1 << 25 | 5));
    let results = agent.call(routine::brk(), &[])?;
    check_eq!(results.exception.map(|e| e.esr), Some(0x3c << 26 | 1 << 25 | 1));
    host.end(agent.vm)
}

fn waits_end_the_run(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    check_eq!(agent.begin(routine::wfi(), &[])?, Exit::Wakeup(u64::MAX));
    // Past the instruction.
    agent.finish([0; 3])?;
    agent.call(routine::wfe(), &[])?;
    host.end(agent.vm)
}

fn switched_off_is_down(host: &mut Host) -> Outcome {
    for conduit in both() {
        let agent = Agent::start(host)?;
        let exit = agent.begin(conduit, &[psci::SYSTEM_OFF as u64])?;
        check_eq!(exit, Exit::SystemDown(0));
        // And stays so.
        check_eq!(agent.run([0; 3])?, Exit::SystemDown(0));
        host.end(agent.vm)?;
    }
    Ok(())
}

fn reset_is_asked_for(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    let exit = agent.begin(routine::hvc(), &[psci::SYSTEM_RESET as u64])?;
    check_eq!(exit, Exit::SystemDown(1));
    check_eq!(agent.run([0; 3])?, Exit::SystemDown(1));
    host.end(agent.vm)
}

fn a_cpu_that_is_off(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    let exit = agent.begin(routine::hvc(), &[psci::CPU_OFF as u64])?;
    check_eq!(exit, Exit::PoweredOff);
    check_eq!(agent.run([0; 3])?, Exit::PoweredOff);
    host.end(agent.vm)
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! Who answers, and what is no call.

use arrayvec::ArrayVec;
use escrow_abi::{FrameState, call, psci};
use escrow_payloads::host::Counts;
use escrow_payloads::{Host, Outcome, Test, check, check_eq, fail, hvc, tests};

use escrow_payloads::shape::CALLS;

pub const TESTS: &[Test] = tests![
    it_identifies_itself,
    the_convention_is_1_2,
    the_upper_half_of_the_number_is_ignored,
    unknown_calls_do_not_exist,
    every_page_of_ram_is_counted,
    the_log_has_the_boot_in_it,
    the_log_answers_any_position,
];

fn raw(function: u64, argument: u64) -> [u64; 18] {
    let mut registers = core::array::from_fn(|n| if n < 8 { 0 } else { n as u64 * 3 });
    registers[0] = function;
    registers[1] = argument;
    hvc::raw(&mut registers);
    registers
}

fn it_identifies_itself(_: &mut Host) -> Outcome {
    let answer = raw(call::HYP_IDENTIFY as u64, 0);
    check_eq!(answer[..4], [call::IDENTIFY_INFO, 0, 0, 0]);
    let answer = raw(call::VENDOR_HYP_UID as u64, 0);
    check_eq!(answer[..4], call::UID.map(u64::from));
    for (n, register) in answer.iter().enumerate().skip(5) {
        check_eq!(*register, if n < 8 { 0 } else { n as u64 * 3 }, "X{n}");
    }
    Ok(())
}

fn the_convention_is_1_2(_: &mut Host) -> Outcome {
    check_eq!(raw(call::SMCCC_VERSION as u64, 0)[0], 0x10002);
    let has = |function: u32| raw(call::SMCCC_ARCH_FEATURES as u64, function as u64)[0] as i64;
    check_eq!(has(call::SMCCC_ARCH_FEATURES), 0);
    check_eq!(has(0x8000_ffff), -1);
    Ok(())
}

fn the_upper_half_of_the_number_is_ignored(_: &mut Host) -> Outcome {
    let answer = raw(0xdead_beef << 32 | call::HYP_IDENTIFY as u64, 0);
    check_eq!(answer[0], call::IDENTIFY_INFO);
    Ok(())
}

fn unknown_calls_do_not_exist(_: &mut Host) -> Outcome {
    let known = |function: u32| {
        function == call::HYP_IDENTIFY || CALLS.iter().any(|shape| shape.function == function)
    };
    let before = Counts::read();
    // The vendor's range; the same with the 32-bit convention, as a yielding call.
    for base in [0xC600_8000, 0x8600_8000, 0x4600_8000, 0x0600_8000] {
        for function in (base..base + 0x200).chain([base + 0x7fff]) {
            if !known(function) {
                check_eq!(raw(function as u64, 0)[..5], [u64::MAX, 0, 0, 0, 0], "{function:#x}");
            }
        }
    }
    // The guest's own call, other owners, the firmware's: none is here.
    let others = [call::MODIFY_PAGES, 0, 0xC000_0000, 0xC200_0000, 0xC500_0020, u32::MAX];
    for function in others.into_iter().chain([psci::VERSION, 0xC600_0000]) {
        check_eq!(raw(function as u64, 0)[0], u64::MAX, "{function:#x}");
    }
    check_eq!(Counts::read(), before);
    Ok(())
}

/// A part of the log: the position behind it, and the text.
fn log(from: u64) -> Outcome<(u64, ArrayVec<u8, { call::LOG_CHUNK }>)> {
    let Ok([next, words @ ..]) = hvc::call(call::LOG_READ, &[from]) else {
        fail!("no log from {from}")
    };
    let bytes = words.iter().flat_map(|word| word.to_le_bytes());
    let text: ArrayVec<u8, { call::LOG_CHUNK }> =
        bytes.clone().take_while(|&byte| byte != 0).collect();
    check!(bytes.skip(text.len()).all(|byte| byte == 0), "text behind a zero");
    Ok((next, text))
}

fn the_log_has_the_boot_in_it(_: &mut Host) -> Outcome {
    let mut all: ArrayVec<u8, 4096> = ArrayVec::new();
    let mut position = 0;
    loop {
        let (next, text) = log(position)?;
        if text.is_empty() {
            break;
        }
        check_eq!(next, position + text.len() as u64, "nothing is lost yet");
        check!(all.try_extend_from_slice(&text).is_ok(), "so long a log?");
        position = next;
    }
    check!(all.starts_with(b"escrow: Escrow "), "the first line");
    check!(all.ends_with(b"\n"), "whole lines");
    let has = |text: &[u8]| all.windows(text.len()).any(|window| window == text);
    check!(has(b"\nescrow: host: kernel at 0x"), "the last line of the boot");
    Ok(())
}

fn the_log_answers_any_position(_: &mut Host) -> Outcome {
    let mut end = 0;
    while let (next, text) = log(end)?
        && !text.is_empty()
    {
        end = next;
    }
    for from in [end, end + 1, end + (1 << 32), 1 << 63, u64::MAX - 7, u64::MAX] {
        check_eq!(log(from)?, (end, ArrayVec::new()), "from {from:#x}");
    }
    let (next, text) = log(end - 1)?;
    check_eq!((next, text.as_slice()), (end, &b"\n"[..]));
    Ok(())
}

fn every_page_of_ram_is_counted(host: &mut Host) -> Outcome {
    let counts = Counts::read();
    let host_pages: u64 = host.board.memory.iter().map(|r| (r.end - r.start) / 4096).sum();
    let seen = counts.of(FrameState::Owned) + counts.of(FrameState::Pinned);
    check_eq!(seen, host_pages, "the host's pages, as the device tree has them");
    check!(counts.of(FrameState::Hypervisor) > 0);
    check_eq!(counts.vms, 0);
    let [cpus, ..] = hvc::call(call::LEDGER_INFO, &[call::INFO_CPUS, 0]).unwrap_or_default();
    check_eq!(cpus as usize, escrow_payloads::cpus::count());
    Ok(())
}

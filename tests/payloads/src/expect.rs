// SPDX-License-Identifier: MIT OR Apache-2.0

//! What most tests expect: refusals that change nothing, and faults.

use core::ops::Range;

use arrayvec::ArrayVec;
use escrow_abi::{BLOCK_SIZE, Error, FrameState, PAGE_SIZE, call};

use crate::host::{Counts, Host};
use crate::hvc::{Answer, Refusal, call, call_registers};
use crate::probe::{self, Fault};
use crate::{Outcome, check, check_eq, fail};

/// A refusal that is about no entry.
pub const fn refusal(error: Error) -> Refusal {
    Refusal { error, index: 0, detail: 0 }
}

/// A refusal about an entry of a list.
pub const fn refusal_of(error: Error, index: u64, detail: u64) -> Refusal {
    Refusal { error, index, detail }
}

/// Makes a call, with an attempt that is to be refused, and checks that the
/// ledger's counters stay what they are.
///
/// # Errors
/// It is not refused, or not for this reason, or something changed.
pub fn refuses(function: u32, arguments: &[u64], expected: Refusal) -> Outcome {
    refuses_with(expected, arguments, || call(function, arguments))
}

/// [`refuses`] with X0 to X7.
///
/// # Errors
/// As for [`refuses`].
pub fn refuses_registers(registers: &[u64; 8], expected: Refusal) -> Outcome {
    refuses_with(expected, registers, || call_registers(registers))
}

/// [`refuses`], however the call is made. `what` is shown in a failure.
///
/// # Errors
/// As for [`refuses`].
pub fn refuses_with(expected: Refusal, what: &[u64], attempt: impl FnOnce() -> Answer) -> Outcome {
    let before = Counts::read();
    let answer = attempt();
    check_eq!(answer, Err(expected), "{what:x?}");
    check_eq!(Counts::read(), before, "{what:x?} changes the ledger");
    Ok(())
}

/// Exception classes of aborts that EL1 takes from itself.
const DATA_ABORT: u64 = 0x25;
const INSTRUCTION_ABORT: u64 = 0x21;
/// Fault status codes.
const ALIGNMENT: u64 = 0x21;
const EXTERNAL: u64 = 0x10;

/// Checks that a fault is what Escrow tells of memory that is not the host's:
/// see `docs/tests.md`.
///
/// # Errors
/// It is something else.
pub fn is_taken_away(fault: Fault, at: u64, is_write: bool) -> Outcome {
    check_eq!((fault.class(), fault.status()), (DATA_ABORT, ALIGNMENT), "{at:#x}: {fault:x?}");
    check_eq!(fault.far, at, "{fault:x?}");
    check_eq!(fault.is_write(), is_write, "{at:#x}: {fault:x?}");
    // ISV and what it covers are EL2's business; IL is set for data aborts
    // without it (DDI 0487, ESR_ELx, ISS of a data abort).
    check_eq!(fault.esr >> 24 & 0b11, 0b10, "ISV, IL: {fault:x?}");
    Ok(())
}

/// Checks that the host cannot load, store or fetch at an address.
///
/// # Errors
/// It can.
pub fn is_out_of_reach(at: u64) -> Outcome {
    match probe::read(at) {
        Err(fault) => is_taken_away(fault, at, false)?,
        Ok(value) => fail!("{at:#x} can be read: {value:#x}"),
    }
    match probe::write(at, 0xbad) {
        Err(fault) => is_taken_away(fault, at, true)?,
        Ok(()) => fail!("{at:#x} can be written"),
    }
    let Err(fault) = probe::fetch(at) else { fail!("{at:#x} can be executed") };
    let seen = (fault.class(), fault.status(), fault.far);
    check_eq!(seen, (INSTRUCTION_ABORT, EXTERNAL, at), "{fault:x?}");
    Ok(())
}

/// Checks that the host can load and store in a page, and leaves it as it was.
///
/// # Errors
/// It cannot.
pub fn is_in_reach(at: u64) -> Outcome {
    let old = match probe::read(at) {
        Ok(old) => old,
        Err(fault) => fail!("{at:#x} cannot be read: {fault:x?}"),
    };
    check_eq!(probe::write(at, !old), Ok(()), "{at:#x}");
    check_eq!(probe::read(at), Ok(!old), "{at:#x}");
    check_eq!(probe::write(at, old), Ok(()), "{at:#x}");
    Ok(())
}

/// Escrow's own memory: what is RAM, lies between the host's memory or beside
/// it, and has an owner that is not the host.
///
/// # Errors
/// It is not as much as Escrow says it has, or the image is not in it.
pub fn escrow_memory(host: &Host) -> Outcome<ArrayVec<Range<u64>, 16>> {
    let mut found: ArrayVec<Range<u64>, 16> = ArrayVec::new();
    let first = host.board.memory.first().map_or(0, |r| r.start) & !((1 << 30) - 1);
    let last = host.board.memory.last().map_or(0, |r| r.end).next_multiple_of(1 << 30);
    for at in (first..last).step_by(BLOCK_SIZE as usize) {
        match call(call::FRAME_INFO, &[at]) {
            Err(Refusal { error: Error::NotOwner, .. }) => match found.last_mut() {
                Some(range) if range.end == at => range.end += BLOCK_SIZE,
                _ => found.push(at..at + BLOCK_SIZE),
            },
            Err(Refusal { error: Error::InvalidAddress, .. }) => {
                check!(!host.board.memory.iter().any(|r| r.contains(&at)), "{at:#x} is no RAM");
            }
            answer => check!(answer.is_ok(), "FRAME_INFO of {at:#x}: {answer:?}"),
        }
    }
    let pages: u64 = found.iter().map(|r| (r.end - r.start) / PAGE_SIZE).sum();
    check_eq!(pages, Counts::read().of(FrameState::Hypervisor), "pages of Escrow");
    if let Some(image) = host.board.number("escrow") {
        check!(found.iter().any(|r| r.contains(&image)), "the image at {image:#x} is not Escrow's");
    }
    check!(!found.is_empty());
    Ok(found)
}

/// Addresses that are no RAM: devices, just beside RAM, beyond everything.
pub fn not_ram(host: &Host) -> [u64; 7] {
    let first = host.board.memory.first().map_or(0, |r| r.start);
    // The end of RAM may be Escrow's; what is beyond the last GiB is nobody's.
    let last = host.board.memory.last().map_or(0, |r| r.end).next_multiple_of(1 << 30);
    let device = host.board.distributor.unwrap_or(0);
    [0, device, first - 4096, last, 1 << 47, 1 << 52, !0xfff]
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! Calls that a guest makes and EL2 answers without the host: as the guest sees
//! them, which counts them itself.

use escrow_abi::{FrameState, MemEntry, ORDER_PAGE, PAGE_SIZE, Rights, call};
use escrow_payloads::guest::{Exit, run_once};
use escrow_payloads::host::{frame_state, peek, poke, refused};
use escrow_payloads::samples::Samples;
use escrow_payloads::{Host, Outcome, Test, check_eq, fail, println, tests};

use crate::exits::{DEVICE, Guest};

pub const TESTS: &[Test] = tests![hypercalls, shares];

/// Where the guest has the memory that it opens.
const GUEST: u64 = 0x1_0000_0000;
/// What `SMCCC_VERSION` answers: 1.2.
const VERSION: u64 = 0x1_0002;
const SAMPLES: u64 = 250;

unsafe extern "C" {
    static guest_calls: u8;
    static guest_calls_nothing: u8;
}

/// A guest that makes calls: the function, its arguments, what the first grows by.
fn caller(host: &mut Host, guest: *const u8, [x0, x1, x2, step]: [u64; 4]) -> Outcome<Guest> {
    Guest::start_with(host, guest, &[(20, x0), (21, x1), (22, x2), (23, step)])
}

/// The ticks and the answer of the guest's next call.
fn next(guest: &Guest) -> Outcome<(u64, u64)> {
    let mut told = [0; 2];
    for (value, at) in told.iter_mut().zip([DEVICE, DEVICE + 8]) {
        match run_once(guest.vcpu, [0; 3]).map_err(refused("VCPU_RUN"))? {
            Exit::MmioWrite(address, 8, what) if address == at => *value = what,
            exit => fail!("the guest ends with {exit:x?}"),
        }
    }
    Ok(told.into())
}

/// What the guest counts around nothing.
fn overhead(host: &mut Host) -> Outcome<u64> {
    let guest = caller(host, &raw const guest_calls_nothing, [0; 4])?;
    let (ticks, _) = next(&guest)?;
    host.end(guest.vm)?;
    Ok(ticks)
}

/// The shortest call of a guest's.
fn hypercalls(host: &mut Host) -> Outcome {
    let overhead = overhead(host)?;
    let function = call::SMCCC_VERSION.into();
    let guest = caller(host, &raw const guest_calls, [function, 0, 0, 0])?;
    let mut samples = Samples::new("hvc_guest");
    for _ in 0..SAMPLES {
        let (ticks, answer) = next(&guest)?;
        check_eq!(answer, VERSION, "the answer");
        samples.add(ticks - overhead);
    }
    println!("{samples}");
    host.end(guest.vm)
}

/// A guest opens lent pages to the host, one a call.
fn shares(host: &mut Host) -> Outcome {
    let overhead = overhead(host)?;
    let block = host.arena.blocks(1);
    let page = |n| block + n * PAGE_SIZE;
    let function = call::MEM_SHARE_BACK.into();
    let guest = caller(host, &raw const guest_calls, [function, GUEST, PAGE_SIZE, PAGE_SIZE])?;
    for n in 0..=SAMPLES {
        poke(page(n), !page(n));
        let entry = MemEntry::new(page(n), ORDER_PAGE, GUEST + n * PAGE_SIZE, Rights::READ_WRITE);
        host.lists.lend(guest.vm, &[entry]).map_err(refused("MEM_LEND"))?;
    }
    let mut samples = Samples::new("share_back_4k");
    for n in 0..SAMPLES {
        let (ticks, answer) = next(&guest)?;
        check_eq!(answer, 0, "the answer");
        check_eq!(frame_state(page(n))?, FrameState::SharedBack);
        check_eq!(peek(page(n)), !page(n), "what the host finds");
        samples.add(ticks - overhead);
    }
    println!("{samples}");
    host.end(guest.vm)
}

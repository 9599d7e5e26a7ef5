// SPDX-License-Identifier: MIT OR Apache-2.0

//! Counts what Xen's calls take: a dom0 that makes them and nothing else.
//!
//! It prints the lines of the payload `bench`, and is measured as that one
//! is: what is counted is the `HVC` and all of Xen until the instruction after
//! it. The MMU stays off; Xen reads the arguments of its calls by way of the
//! caller's translation regime, whatever that is.

#![no_std]
#![no_main]

mod memory;
mod xen;

use core::arch::asm;

use escrow_payloads::samples::Samples;

use xen::say;

/// What went wrong, and the answer that said so.
type Outcome = Result<(), (&'static str, u64)>;

/// Where the runtime's assembly goes, with the device tree's address and the
/// virtual counter as it was at the first instruction.
#[unsafe(no_mangle)]
extern "C" fn payload_start(tree: usize, entered: u64) -> ! {
    let (frequency, offset): (u64, u64);
    // SAFETY: reads counters. Xen starts the domain's virtual counter anew;
    // how far it is behind the physical one is known to a few instructions.
    unsafe {
        asm!(
            "mrs {frequency}, cntfrq_el0",
            "isb",
            "mrs {virtual}, cntvct_el0",
            "mrs {offset}, cntpct_el0",
            "sub {offset}, {offset}, {virtual}",
            frequency = out(reg) frequency,
            virtual = out(reg) _,
            offset = out(reg) offset,
        );
    }
    say!("bench: frequency {frequency}");
    say!("bench: entered {}", entered + offset);
    let (passed, failed) = match hypercall().and_then(|()| memory::measure(tree)) {
        Ok(()) => (1, 0),
        Err((what, answer)) => {
            say!("test bench::xen ... FAILED: {what} answers {answer:#x}");
            (0, 1)
        }
    };
    say!("payload bench: {passed} passed, {failed} failed, 0 skipped");
    xen::shutdown()
}

/// The shortest hypercall: Xen's version, a number that it knows by heart.
fn hypercall() -> Outcome {
    let mut samples = Samples::new("hvc_el2");
    for _ in 0..1000 {
        let mut call = [xen::XEN_VERSION, 0, 0, 0, 0];
        samples.add(xen::sample(&mut call));
        if call[0] >> 16 < 4 {
            return Err(("XENVER_version", call[0]));
        }
    }
    say!("{samples}");
    Ok(())
}

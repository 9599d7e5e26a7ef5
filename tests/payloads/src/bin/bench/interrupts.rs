// SPDX-License-Identifier: MIT OR Apache-2.0

//! What EL2 does for guests with a GIC without the host: accesses to the GIC's frames, a register that
//! is trapped, the virtual timer's interrupt. And an SGI to a vCPU that runs, for which the
//! receiver's host is in the way.

use core::sync::atomic::{AtomicU64, Ordering};

use aarch64_cpu::registers::{CNTFRQ_EL0, Readable as _};
use escrow_payloads::cpus;
use escrow_payloads::gic_guest::GICD;
use escrow_payloads::guest::{Exit, run_once};
use escrow_payloads::host::refused;
use escrow_payloads::samples::Samples;
use escrow_payloads::{Host, Outcome, Test, check_eq, fail, interrupts, println, tests};

use crate::exits::{DEVICE, Guest};

pub const TESTS: &[Test] = tests![frames, id_registers, timers, sgi_running];

const SAMPLES: u64 = 250;
/// INTID of the virtual timer.
const TIMER: u64 = 27;
/// `GICD_ISENABLER1`, and what differs in the address of `GICD_ICENABLER1`.
const ISENABLER: u64 = GICD + 0x104;
const TO_ICENABLER: u64 = 0x80;
/// An SPI's bit in these.
const SPI: u64 = 1 << 5;
/// The SGI that is sent, and the value of `ICC_SGI1R_EL1` that sends it to vCPU 1.
const SGI: u64 = 3;
const SGI_TO_SECOND: u64 = SGI << 24 | 1 << 1;

unsafe extern "C" {
    static guest_gic_nothing: u8;
    static guest_gic_load: u8;
    static guest_gic_store: u8;
    static guest_gic_id: u8;
    static guest_gic_timer: u8;
    static guest_gic_sender: u8;
    fn sample_timer() -> Timer;
}

/// What the host's own timer's interrupt takes, and what was acknowledged.
#[repr(C)]
struct Timer {
    ticks: u64,
    intid: u64,
}

/// A store of a guest's, and where: the runs before it end because of interrupts.
fn store(vcpu: u64) -> Outcome<(u64, u64)> {
    loop {
        match run_once(vcpu, [0; 3]).map_err(refused("VCPU_RUN"))? {
            Exit::MmioWrite(at, 8, value) => return Ok((at, value)),
            Exit::Ready => {
                interrupts::drain();
            }
            exit => fail!("the guest ends with {exit:x?}"),
        }
    }
}

/// What a guest tells by two stores.
fn told(vcpu: u64) -> Outcome<(u64, u64)> {
    let mut told = [0; 2];
    for (value, expected) in told.iter_mut().zip([DEVICE, DEVICE + 8]) {
        let (at, stored) = store(vcpu)?;
        check_eq!(at, expected);
        *value = stored;
    }
    Ok(told.into())
}

/// What a guest counts around nothing.
fn overhead(host: &mut Host) -> Outcome<u64> {
    let guest = Guest::start_with_gic(host, &raw const guest_gic_nothing, &[(22, ISENABLER)])?;
    let (ticks, _) = told(guest.vcpu)?;
    host.end(guest.vm)?;
    Ok(ticks)
}

/// Samples of a guest that does something again and again, and tells `expected(n)` the n-th time.
fn count(
    host: &mut Host,
    name: &'static str,
    guest: *const u8,
    registers: &[(u64, u64)],
    expected: impl Fn(u64) -> u64,
) -> Outcome {
    let overhead = overhead(host)?;
    let guest = Guest::start_with_gic(host, guest, registers)?;
    let mut samples = Samples::new(name);
    for n in 0..SAMPLES {
        let (ticks, what) = told(guest.vcpu)?;
        check_eq!(what, expected(n), "what the guest finds");
        samples.add(ticks - overhead);
    }
    println!("{samples}");
    host.end(guest.vm)
}

/// Loads from GICD_ISENABLER1, and stores to GICD_ICENABLER1 and GICD_ISENABLER1 in turn, which disable and
/// enable an SPI.
fn frames(host: &mut Host) -> Outcome {
    let registers = [(20, SPI), (21, ISENABLER), (22, ISENABLER)];
    count(host, "vgic_mmio_read", &raw const guest_gic_load, &registers, |_| SPI)?;
    let registers =
        [(20, SPI), (21, ISENABLER ^ TO_ICENABLER), (22, ISENABLER), (26, TO_ICENABLER)];
    let enabled = |n| if n % 2 == 0 { 0 } else { SPI };
    count(host, "vgic_mmio_write", &raw const guest_gic_store, &registers, enabled)
}

/// Reads of ID_AA64PFR0_EL1, which say that there is a GIC. What else they say, is the same each time.
fn id_registers(host: &mut Host) -> Outcome {
    let guest = Guest::start_with_gic(host, &raw const guest_gic_id, &[(22, ISENABLER)])?;
    let (_, value) = told(guest.vcpu)?;
    host.end(guest.vm)?;
    check_eq!(value >> 24 & 0xf, 1, "GIC, in {value:#x}");
    count(host, "id_reg_trap", &raw const guest_gic_id, &[(22, ISENABLER)], |_| value)
}

/// A guest's timer that fires, from the write that makes it fire to behind the handler, less the same
/// in the host's place, where EL2 has no part in it.
fn timers(host: &mut Host) -> Outcome {
    let guest = Guest::start_with_gic(host, &raw const guest_gic_timer, &[])?;
    let mut samples = Samples::new("timer_irq");
    // The first run has made sure that the interrupt is enabled on this CPU.
    let (_, intid) = told(guest.vcpu)?;
    check_eq!(intid, TIMER);
    // SAFETY: the interrupt is acknowledged and ended, the vectors and masks are what they were.
    let own = unsafe { sample_timer() };
    check_eq!(own.intid, TIMER, "the host's own");
    for _ in 0..SAMPLES {
        let (ticks, intid) = told(guest.vcpu)?;
        check_eq!(intid, TIMER, "the guest's");
        samples.add(ticks - own.ticks);
    }
    println!("{samples}");
    host.end(guest.vm)
}

/// An SGI to a vCPU that is in its guest on another CPU, from the sender's instruction to the receiver's
/// handler. QEMU runs one CPU at a time, so that the counter counts the instructions of both. On a machine with
/// one CPU, nothing is measured.
fn sgi_running(host: &mut Host) -> Outcome {
    if cpus::count() < 2 {
        return Ok(());
    }
    println!("bench: frequency {}", CNTFRQ_EL0.get());
    let (guest, second) =
        Guest::start_two_with_gic(host, &raw const guest_gic_sender, &[(20, SGI_TO_SECOND)])?;
    // The vCPU is switched on, and the sender is about to send.
    check_eq!(run_once(guest.vcpu, [0; 3]).map_err(refused("VCPU_RUN"))?, Exit::SwitchedOn(1));
    check_eq!(store(guest.vcpu)?, (DEVICE + 16, 0));
    // How often the receiver was about to wait, how often it was done, and when its last SGI came.
    let [waits, done, came] = [const { AtomicU64::new(0) }; 3];
    let has = |count: &AtomicU64, n| count.load(Ordering::SeqCst) > n;
    let took = [const { AtomicU64::new(0) }; SAMPLES as usize];
    cpus::try_on_all(|cpu| {
        match cpu {
            0 => {
                for (n, took) in (0..).zip(&took) {
                    cpus::wait_until(|| has(&waits, n), "the receiver does not wait")?;
                    // The receiver's CPU goes on until the guest's own hint.
                    cpus::relax();
                    cpus::relax();
                    let (sent, _) = told(guest.vcpu)?;
                    cpus::wait_until(|| has(&done, n), "the SGI does not come")?;
                    took.store(came.load(Ordering::SeqCst) - sent, Ordering::SeqCst);
                    check_eq!(store(guest.vcpu)?, (DEVICE + 16, 0));
                }
            }
            1 => {
                for _ in 0..SAMPLES {
                    check_eq!(store(second)?, (DEVICE + 16, 0));
                    waits.fetch_add(1, Ordering::SeqCst);
                    // It was inside: its run is ended for it.
                    check_eq!(run_once(second, [0; 3]).map_err(refused("VCPU_RUN"))?, Exit::Ready);
                    interrupts::drain();
                    let (at, intid) = told(second)?;
                    check_eq!(intid, SGI);
                    came.store(at, Ordering::SeqCst);
                    done.fetch_add(1, Ordering::SeqCst);
                }
            }
            _ => {}
        }
        Ok(())
    })?;
    let mut samples = Samples::new("sgi_running");
    took.iter().for_each(|took| samples.add(took.load(Ordering::SeqCst)));
    println!("{samples}");
    host.end(guest.vm)
}

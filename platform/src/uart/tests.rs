// SPDX-License-Identifier: MIT OR Apache-2.0

//! Ports on memory that stands for their registers.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::*;

/// 4 KiB of registers. A byte's register is the low byte of the word that it is in.
#[repr(C, align(4096))]
struct Registers([AtomicU32; 1024]);

impl Registers {
    fn new() -> Self {
        Registers([const { AtomicU32::new(0) }; 1024])
    }

    fn at(&self, offset: usize) -> &AtomicU32 {
        &self.0[offset / 4]
    }

    fn port(&self, kind: UartKind) -> Uart {
        // SAFETY: plain memory of that size, which lives as long as the test.
        unsafe { Uart::new(kind, (&raw const *self).expose_provenance()) }
    }
}

fn dw_apb() -> UartKind {
    UartKind::Ns16550(Spacing::new(2, 4).unwrap())
}

/// A kind with the offsets of its data and status registers, and the status of a
/// port that is idle, and of one that is full.
fn kinds() -> [(UartKind, usize, usize, u32, u32); 3] {
    let bytes = UartKind::Ns16550(Spacing::new(2, 1).unwrap());
    [
        (UartKind::Pl011, 0x00, 0x18, 0, 1 << 5 | 1 << 3),
        (dw_apb(), 0x00, 0x14, 1 << 5 | 1 << 6, 0),
        (bytes, 0x00, 0x14, 1 << 5 | 1 << 6, 0),
    ]
}

#[test]
fn bytes_go_to_the_data_register() {
    for (kind, data, status, idle, _) in kinds() {
        let registers = Registers::new();
        registers.at(status).store(idle, Ordering::Relaxed);
        let port = registers.port(kind);
        port.enable();
        port.send(b'E');
        assert_eq!(registers.at(data).load(Ordering::Relaxed), u32::from(b'E'), "{kind:?}");
        port.flush();
    }
}

#[test]
fn a_byte_waits_for_room() {
    for (kind, data, status, idle, full) in kinds() {
        let registers = Registers::new();
        registers.at(status).store(full, Ordering::Relaxed);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                assert_eq!(registers.at(data).load(Ordering::Relaxed), 0, "{kind:?}");
                registers.at(status).store(idle, Ordering::Relaxed);
            });
            registers.port(kind).send(b'E');
        });
        assert_eq!(registers.at(data).load(Ordering::Relaxed), u32::from(b'E'), "{kind:?}");
    }
}

#[test]
fn a_port_that_is_stuck_is_waited_for_once() {
    for (kind, data, status, idle, full) in kinds() {
        let registers = Registers::new();
        registers.at(status).store(full, Ordering::Relaxed);
        let port = registers.port(kind);
        let begin = Instant::now();
        // A wait for each of these would take minutes.
        for _ in 0..100_000 {
            port.send(b'x');
        }
        port.flush();
        assert!(begin.elapsed() < Duration::from_secs(30), "{kind:?}: {:?}", begin.elapsed());
        assert_eq!(registers.at(data).load(Ordering::Relaxed), 0, "{kind:?}");
        // And goes on when it does.
        registers.at(status).store(idle, Ordering::Relaxed);
        port.send(b'E');
        assert_eq!(registers.at(data).load(Ordering::Relaxed), u32::from(b'E'), "{kind:?}");
    }
}

#[test]
fn registers_stay_in_their_page_and_aligned() {
    for shift in 0..40 {
        for width in 0..10 {
            let fits = (width == 1 && shift <= 8) || (width == 4 && (2..=8).contains(&shift));
            assert_eq!(Spacing::new(shift, width).is_some(), fits, "{shift}, {width}");
        }
    }
}

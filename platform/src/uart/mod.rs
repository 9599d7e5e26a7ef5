// SPDX-License-Identifier: MIT OR Apache-2.0

//! Serial ports, as far as it takes to say something.
//!
//! They are written to by polling, at the speed and in the format that firmware
//! has set. A port may be out of order, or a host may have stopped its clock or its
//! line: no wait for one is without bound.

mod ns16550;
mod pl011;

use core::sync::atomic::{AtomicBool, Ordering};

pub use ns16550::{Ns16550, Spacing};
pub use pl011::Pl011;

use crate::fdt::Node;

/// How often a port is asked whether it has room before it is given up: at a
/// hundred nanoseconds each, three bytes' time at 300 baud.
const PATIENCE: u32 = 1_000_000;

/// What kind of port it is, and how its registers lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UartKind {
    /// An Arm PL011.
    Pl011,
    /// A 16550 or what is like one.
    Ns16550(Spacing),
}

impl UartKind {
    /// The kind of a device tree's node; `None` if there is no driver for it.
    pub fn of(node: &Node<'_, '_>) -> Option<UartKind> {
        if node.is_compatible(b"arm,pl011") {
            return Some(UartKind::Pl011);
        }
        let like_16550: [&[u8]; 3] = [b"ns16550a", b"ns16550", b"snps,dw-apb-uart"];
        if like_16550.iter().any(|name| node.is_compatible(name)) {
            // No 16550 with another width is known.
            let spacing = Spacing::new(
                node.word(b"reg-shift").unwrap_or(0),
                node.word(b"reg-io-width").unwrap_or(1),
            )?;
            return Some(UartKind::Ns16550(spacing));
        }
        None
    }

    /// Its name for people.
    pub fn name(&self) -> &'static str {
        match self {
            UartKind::Pl011 => "PL011",
            UartKind::Ns16550(_) => "16550",
        }
    }
}

/// A serial port.
pub struct Uart {
    port: Port,
    /// It had no room for so long that nothing waits for it any more.
    stuck: AtomicBool,
}

enum Port {
    Pl011(Pl011),
    Ns16550(Ns16550),
}

impl Uart {
    /// Takes the port at an address.
    ///
    /// # Safety
    ///
    /// The 4 KiB at `base` must be mapped as device memory for as long as the
    /// value lives, and answer to reads and writes as registers of this kind.
    pub unsafe fn new(kind: UartKind, base: usize) -> Uart {
        Uart::from(match kind {
            // SAFETY: as the caller says.
            UartKind::Pl011 => Port::Pl011(unsafe { Pl011::new(base) }),
            // SAFETY: as the caller says.
            UartKind::Ns16550(spacing) => Port::Ns16550(unsafe { Ns16550::new(base, spacing) }),
        })
    }

    /// Switches the transmitter on, if firmware has not.
    pub fn enable(&self) {
        match &self.port {
            Port::Pl011(port) => port.enable(),
            // It has no switch.
            Port::Ns16550(_) => {}
        }
    }

    /// Sends a byte, as soon as there is room in the FIFO. If there is none for a
    /// long time, the byte is lost, and later ones are not waited for.
    pub fn send(&self, byte: u8) {
        let sent = || match &self.port {
            Port::Pl011(port) => port.try_send(byte),
            Port::Ns16550(port) => port.try_send(byte),
        };
        self.wait(sent);
    }

    /// Waits until all that was sent is on the wire, but not without end.
    pub fn flush(&self) {
        self.wait(|| match &self.port {
            Port::Pl011(port) => port.is_idle(),
            Port::Ns16550(port) => port.is_idle(),
        });
    }

    fn wait(&self, mut is_done: impl FnMut() -> bool) {
        let patience = if self.stuck.load(Ordering::Relaxed) { 1 } else { PATIENCE };
        for _ in 0..patience {
            if is_done() {
                // What was held up goes on.
                self.stuck.store(false, Ordering::Relaxed);
                return;
            }
            core::hint::spin_loop();
        }
        self.stuck.store(true, Ordering::Relaxed);
    }
}

impl From<Port> for Uart {
    fn from(port: Port) -> Uart {
        Uart { port, stuck: AtomicBool::new(false) }
    }
}

impl From<Pl011> for Uart {
    fn from(port: Pl011) -> Uart {
        Port::Pl011(port).into()
    }
}

#[cfg(test)]
mod tests;

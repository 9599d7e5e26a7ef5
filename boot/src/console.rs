// SPDX-License-Identifier: MIT OR Apache-2.0

//! The console: a back end for `log`, and the last words before a halt.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU64, Ordering};

use aarch64_cpu::registers::{MPIDR_EL1, Readable};
use escrow_platform::uart::Pl011;
use log::{Level, LevelFilter, Log, Metadata, Record};
use spin::mutex::TicketMutex;

/// The UART, once it is known.
static UART: TicketMutex<Option<Pl011>> = TicketMutex::new(None);
/// The `MPIDR_EL1` of the CPU that holds the lock, which is never 0; 0 if none
/// does.
static OWNER: AtomicU64 = AtomicU64::new(0);

/// Where PL011s are on well-known machines: QEMU `virt` and SBSA.
///
/// Asked only by a machine that cannot say what is wrong with it otherwise,
/// because there is no device tree to ask, and which will halt in any case.
/// Whether there is a PL011, its identification registers say.
pub const LAST_RESORT: [u64; 2] = [0x0900_0000, 0x6000_0000];

/// Writes text, with the line ends that terminals want.
pub struct Writer<'u>(pub &'u Pl011);

impl Write for Writer<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                self.0.send(b'\r');
            }
            self.0.send(byte);
        }
        Ok(())
    }
}

struct Logger;

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let label = match record.level() {
            Level::Error => "error: ",
            Level::Warn => "warning: ",
            Level::Info => "",
            Level::Debug => "debug: ",
            Level::Trace => "trace: ",
        };
        write(format_args!("escrow: {label}{}\n", record.args()));
    }

    fn flush(&self) {}
}

/// Makes a UART the console, and `log` write to it.
pub fn install(uart: Pl011, level: LevelFilter) {
    uart.enable();
    *UART.lock() = Some(uart);
    // Fails only if it was done before.
    let _ = log::set_logger(&Logger);
    log::set_max_level(level);
}

/// Writes to the console, if there is one.
fn write(text: fmt::Arguments<'_>) {
    let this_cpu = MPIDR_EL1.get();
    if OWNER.load(Ordering::Relaxed) == this_cpu {
        // A fault while this CPU was writing: it will not go on doing that.
        // SAFETY: the lock is this CPU's own, further down its stack.
        let uart = unsafe { &*UART.as_mut_ptr() };
        emit(uart.as_ref(), text);
        return;
    }
    let uart = UART.lock();
    OWNER.store(this_cpu, Ordering::Relaxed);
    emit(uart.as_ref(), text);
    OWNER.store(0, Ordering::Relaxed);
}

/// Writes the trace of table writes.
#[cfg(feature = "trace")]
pub fn dump_trace() {
    let uart = UART.lock();
    if let Some(uart) = uart.as_ref() {
        // The writer never fails.
        let _ = escrow_aarch64::trace::dump(&mut Writer(uart));
        uart.flush();
    }
}

fn emit(uart: Option<&Pl011>, text: fmt::Arguments<'_>) {
    if let Some(uart) = uart {
        // The writer never fails.
        let _ = Writer(uart).write_fmt(text);
    }
}

/// Says in one line why Escrow cannot run, and stops this CPU for good.
pub fn halt_with(reason: fmt::Arguments<'_>) -> ! {
    write(format_args!("escrow: fatal: {reason}; halted\n"));
    halt()
}

/// As [`halt_with`], for a CPU whose MMU is off: locks do not work there, and no
/// other CPU runs.
pub fn fatal_unlocked(uart: Option<Pl011>, reason: fmt::Arguments<'_>) -> ! {
    if let Some(uart) = uart {
        uart.enable();
        emit(Some(&uart), format_args!("escrow: fatal: {reason}; halted\n"));
        uart.flush();
    }
    loop {
        aarch64_cpu::asm::wfi();
    }
}

/// Stops this CPU for good.
pub fn halt() -> ! {
    if let Some(uart) = UART.try_lock()
        && let Some(uart) = uart.as_ref()
    {
        uart.flush();
    }
    loop {
        aarch64_cpu::asm::wfi();
    }
}

/// Stops with one line.
macro_rules! fatal {
    ($($text:tt)*) => { $crate::console::halt_with(format_args!($($text)*)) };
}
pub(crate) use fatal;

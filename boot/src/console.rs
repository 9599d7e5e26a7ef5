// SPDX-License-Identifier: MIT OR Apache-2.0

//! The console: a back end for `log`, and the last words before a halt.
//!
//! Until the host runs, lines go to the log in memory ([`LOG`]) and to the UART.
//! From then on the UART is the host's, which may hold it up as it likes: lines go
//! to memory alone, unless the option `log=uart` asks for both. The UART comes into
//! use again when the machine ends ([`LAST_WORDS`]). These lines are for the developers of
//! Escrow and may contain anything, so no host can read them.

use core::fmt::{self, Write};
use core::hint::spin_loop;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use aarch64_cpu::registers::{MPIDR_EL1, Readable};
use escrow_aarch64::LAST_WORDS;
use escrow_core::log::{Line, LogRing};
use escrow_platform::options::Options;
use escrow_platform::uart::Uart;
use log::{Level, LevelFilter, Log, Metadata, Record};
use spin::mutex::TicketMutex;

/// What the host reads of what Escrow has said.
pub static LOG: LogRing = LogRing::new();

/// The UART, once it is known. The lock keeps lines apart; nothing but [`install`]
/// changes what is in it.
static UART: TicketMutex<Option<Uart>> = TicketMutex::new(None);
/// The `MPIDR_EL1` of the CPU that writes to the UART, which is never 0; 0 if none
/// does.
static WRITER: AtomicU64 = AtomicU64::new(0);
/// Writing to it ended in a fault.
static BROKEN: AtomicBool = AtomicBool::new(false);
/// Lines go to the UART as well.
static TO_UART: AtomicBool = AtomicBool::new(true);
/// They do so when the host runs, too.
static STAYS: AtomicBool = AtomicBool::new(false);

/// How often the lock is tried before last words are written without it.
const PATIENCE: u32 = 10_000_000;

/// Where PL011s are on well-known machines: QEMU `virt` and SBSA.
///
/// Asked only by a machine that cannot say what is wrong with it otherwise,
/// because there is no device tree to ask, and which will halt in any case.
/// Whether there is a PL011, its identification registers say.
pub const LAST_RESORT: [u64; 2] = [0x0900_0000, 0x6000_0000];

/// Writes text, with the line ends that terminals want.
pub struct Writer<'u>(pub &'u Uart);

impl Write for Writer<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.bytes(text.as_bytes());
        Ok(())
    }
}

impl Writer<'_> {
    fn bytes(&self, text: &[u8]) {
        for &byte in text {
            if byte == b'\n' {
                self.0.send(b'\r');
            }
            self.0.send(byte);
        }
    }
}

/// The last words are formatted completely before they are written: a fault in the
/// formatting then leaves nothing half-written.
struct Text {
    bytes: [u8; 512],
    length: usize,
}

impl Text {
    /// As much of the text as there is room for.
    fn new(text: fmt::Arguments<'_>) -> Text {
        let mut all = Text { bytes: [0; 512], length: 0 };
        // Fails where there is no more room.
        let _ = all.write_fmt(text);
        all
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            *self.bytes.get_mut(self.length).ok_or(fmt::Error)? = byte;
            self.length += 1;
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
        if record.target() == LAST_WORDS {
            last_words(format_args!("escrow: {label}{}\n", record.args()));
            return;
        }
        let line = Line::new(format_args!("escrow: {label}{}", record.args()));
        LOG.push(&line);
        if TO_UART.load(Ordering::Relaxed) {
            let uart = UART.lock();
            emit(uart.as_ref(), line.bytes());
        }
    }

    fn flush(&self) {}
}

/// Makes a UART the console, and `log` write to it.
pub fn install(uart: Uart) {
    uart.enable();
    *UART.lock() = Some(uart);
}

/// Begins to log, with a console or without.
pub fn start_log(options: &Options) {
    STAYS.store(options.log_to_uart, Ordering::Relaxed);
    set_logger(options.log_level);
}

/// Begins to log what is an error.
pub fn start_log_of_errors() {
    set_logger(LevelFilter::Error);
}

fn set_logger(level: LevelFilter) {
    // Fails only if it was done before.
    let _ = log::set_logger(&Logger);
    log::set_max_level(level);
}

/// From here on the UART is the host's.
pub fn leave_to_host() {
    TO_UART.store(STAYS.load(Ordering::Relaxed), Ordering::Relaxed);
}

/// Writes to the UART and nowhere else, whoever holds it: the machine ends.
fn last_words(text: fmt::Arguments<'_>) {
    let text = Text::new(text);
    let bytes = text.bytes.get(..text.length).unwrap_or_default();
    if WRITER.load(Ordering::Relaxed) == MPIDR_EL1.get() {
        // The write itself has faulted: the port's clock may be off. The fault cannot be
        // reported anywhere.
        BROKEN.store(true, Ordering::Relaxed);
        return;
    }
    for _ in 0..PATIENCE {
        if let Some(uart) = UART.try_lock() {
            emit(uart.as_ref(), bytes);
            return;
        }
        spin_loop();
    }
    // SAFETY: the port is there for ever, and whoever holds the lock reads it as
    // well: `install` alone writes, while one CPU runs and is not here.
    let uart = unsafe { &*UART.as_mut_ptr() };
    emit(uart.as_ref(), bytes);
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

fn emit(uart: Option<&Uart>, text: &[u8]) {
    if let Some(uart) = uart
        && !BROKEN.load(Ordering::Relaxed)
    {
        WRITER.store(MPIDR_EL1.get(), Ordering::Relaxed);
        Writer(uart).bytes(text);
        uart.flush();
        WRITER.store(0, Ordering::Relaxed);
    }
}

/// Says in one line why Escrow cannot run, and stops this CPU for good.
pub fn halt_with(reason: fmt::Arguments<'_>) -> ! {
    last_words(format_args!("escrow: fatal: {reason}; halted\n"));
    halt()
}

/// As [`halt_with`], for a CPU whose MMU is off: locks do not work there, and no
/// other CPU runs.
pub fn fatal_unlocked(uart: Option<Uart>, reason: fmt::Arguments<'_>) -> ! {
    if let Some(uart) = uart {
        uart.enable();
        // The writer never fails.
        let _ = Writer(&uart).write_fmt(format_args!("escrow: fatal: {reason}; halted\n"));
        uart.flush();
    }
    loop {
        aarch64_cpu::asm::wfi();
    }
}

/// Stops this CPU for good.
pub fn halt() -> ! {
    loop {
        aarch64_cpu::asm::wfi();
    }
}

/// Stops with one line.
macro_rules! fatal {
    ($($text:tt)*) => { $crate::console::halt_with(format_args!($($text)*)) };
}
pub(crate) use fatal;

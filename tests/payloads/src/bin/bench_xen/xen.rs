// SPDX-License-Identifier: MIT OR Apache-2.0

//! Xen's hypercalls, counted and not. Numbers and layouts are those of its
//! public headers (`xen/include/public`).

use core::arch::global_asm;
use core::fmt;

/// `HYPERVISOR_memory_op`
pub const MEMORY_OP: u64 = 12;
/// `HYPERVISOR_xen_version`
pub const XEN_VERSION: u64 = 17;
/// `HYPERVISOR_grant_table_op`
pub const GRANT_TABLE_OP: u64 = 20;

const CONSOLE_IO: u64 = 18;
const CONSOLEIO_WRITE: u64 = 0;
const SCHED_OP: u64 = 29;
const SCHEDOP_SHUTDOWN: u64 = 2;

global_asm!(include_str!("xen.S"));

unsafe extern "C" {
    fn xen_sample_nothing(call: *mut [u64; 5]) -> u64;
    fn xen_sample_call(call: *mut [u64; 5]) -> u64;
}

/// Makes a call; ticks that it takes.
pub fn sample(call: &mut [u64; 5]) -> u64 {
    // SAFETY: reads the counter twice.
    let overhead = unsafe { xen_sample_nothing(&mut [0; 5]) };
    // SAFETY: the calls of this program change nothing of its memory but the
    // arguments that they are about, and pages that are nobody's.
    unsafe { xen_sample_call(call) - overhead }
}

/// Makes a call with an argument in memory, and says what it took.
pub fn sample_with<T>(number: u64, command: u64, argument: &mut T, count: u64) -> (u64, u64) {
    let mut call = [number, command, (&raw mut *argument) as u64, count, 0];
    let ticks = match number {
        MEMORY_OP => {
            // The argument is the second there, and there is no third.
            call[3] = 0;
            sample(&mut call)
        }
        _ => sample(&mut call),
    };
    (call[0], ticks)
}

/// A line on its way to Xen's console, which takes one in one call.
pub struct Line {
    text: [u8; 160],
    length: usize,
}

impl Line {
    /// Sends a line.
    pub fn send(arguments: fmt::Arguments<'_>) {
        let mut line = Line { text: [0; 160], length: 0 };
        // What does not fit is cut off.
        let _ = fmt::Write::write_fmt(&mut line, arguments);
        let text = (&raw const line.text) as u64;
        sample(&mut [CONSOLE_IO, CONSOLEIO_WRITE, line.length as u64, text, 0]);
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.text.get_mut(self.length..self.length + text.len()).ok_or(fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.length += text.len();
        Ok(())
    }
}

/// Prints a line.
macro_rules! say {
    ($($argument:tt)*) => {
        $crate::xen::Line::send(format_args!("{}\n", format_args!($($argument)*)))
    };
}
pub(crate) use say;

/// Ends dom0, and with it the machine.
pub fn shutdown() -> ! {
    let mut reason = 0_u32;
    sample_with(SCHED_OP, SCHEDOP_SHUTDOWN, &mut reason, 0);
    loop {
        aarch64_cpu::asm::wfe();
    }
}

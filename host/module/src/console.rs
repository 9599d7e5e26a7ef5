// SPDX-License-Identifier: MIT OR Apache-2.0

//! Consoles.

use alloc::boxed::Box;
use core::slice;

use escrow_vmcore::console::{Console, Events};

use crate::new;

/// `ESCROW_CONSOLE_*`: what follows from a change.
pub const LINE: u32 = 1;
/// The level is high; with [`LINE`].
pub const HIGH: u32 = 2;
/// Wake who reads.
pub const READABLE: u32 = 4;
/// Wake who reads, soon.
pub const READABLE_SOON: u32 = 8;
/// Wake who writes.
pub const WRITABLE: u32 = 16;

fn bits(events: Events) -> u32 {
    let flag = |set, flag| if set { flag } else { 0 };
    flag(events.line.is_some(), LINE)
        | flag(events.line == Some(true), HIGH)
        | flag(events.readable, READABLE)
        | flag(events.readable_soon, READABLE_SOON)
        | flag(events.writable, WRITABLE)
}

/// A console after reset; null without memory.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_console_new() -> Option<Box<Console>> {
    Console::new().ok().and_then(new)
}

/// The end of what `escrow_rs_console_new` made.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_console_free(console: Option<Box<Console>>) {
    drop(console);
}

/// The guest reads. → events
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_console_guest_reads(
    console: &mut Console,
    offset: u32,
    size: u32,
    value: &mut u64,
) -> u32 {
    let (read, events) = console.guest_reads(offset, size);
    *value = read;
    bits(events)
}

/// The guest writes. → events
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_console_guest_writes(
    console: &mut Console,
    offset: u32,
    value: u64,
) -> u32 {
    bits(console.guest_writes(offset, value))
}

/// The program writes `size` characters, of which `sent` have room. → events
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_console_send(
    console: &mut Console,
    text: &u8,
    size: usize,
    sent: &mut usize,
) -> u32 {
    // SAFETY: by the contract of this crate there are so many bytes, and nobody else has them.
    let text = unsafe { slice::from_raw_parts(text, size) };
    let (count, events) = console.send(text);
    *sent = count;
    bits(events)
}

/// The program sends a break, if there is room. → events
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_console_send_break(console: &mut Console, sent: &mut bool) -> u32 {
    let (done, events) = console.send_break();
    *sent = done;
    bits(events)
}

/// The program reads. → how many characters, which stay
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_console_peek(
    console: &mut Console,
    text: &mut u8,
    size: usize,
    position: &mut u64,
) -> usize {
    // SAFETY: as above.
    let text = unsafe { slice::from_raw_parts_mut(text, size) };
    let part = console.peek(text);
    *position = part.position;
    part.count
}

/// The program has all characters before a position.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_console_take(console: &mut Console, position: u64) {
    console.take(position);
}

/// Whether the program can read and write: `ESCROW_CONSOLE_READABLE` and `ESCROW_CONSOLE_WRITABLE`.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_console_state(console: &Console) -> u32 {
    let (readable, writable) = (console.is_readable(), console.is_writable());
    bits(Events { readable, writable, ..Events::default() })
}

/// Characters that wait for the program, that were lost, and that wait for the guest.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_console_counts(console: &Console, out: &mut [u64; 3]) {
    let counts = console.counts();
    *out = [counts.waiting, counts.lost, counts.unread];
}

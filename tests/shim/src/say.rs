// SPDX-License-Identifier: MIT OR Apache-2.0

//! Printing. A program whose reader has gone away goes on, to its end and to the
//! status that tells how it went; `println!` would end it, in the middle of what
//! it holds and with a message that nobody reads.

use std::fmt;
use std::io::{self, Write as _};

/// Prints a line.
#[macro_export]
macro_rules! say {
    ($($argument:tt)*) => { $crate::say::print(format_args!("{}\n", format_args!($($argument)*))) };
}

/// Prints a part of a line, at once.
#[macro_export]
macro_rules! say_part {
    ($($argument:tt)*) => { $crate::say::print(format_args!($($argument)*)) };
}

/// What the macros call.
pub fn print(text: fmt::Arguments<'_>) {
    let mut out = io::stdout().lock();
    let _ = out.write_fmt(text).and_then(|()| out.flush());
}

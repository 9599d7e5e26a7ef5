// SPDX-License-Identifier: MIT OR Apache-2.0

//! Holds a trace of stage-2 table writes, TLB maintenance and barriers against
//! the Arm architecture's rules.
//!
//! Emulators forgive what hardware does not: a missing break-before-make or a
//! TLBI that comes too early has no consequence under QEMU. Test builds of EL2
//! write down what they do, and this says whether a CPU that keeps as little
//! order as the architecture allows could have gone wrong. `docs/trace.md`
//! defines the format and the rules.

#![forbid(unsafe_code)]

pub mod descriptor;
pub mod event;

mod checker;
mod finding;
mod parse;
mod stale;
mod tables;

pub use checker::{Checker, Counts, Report, check};
pub use event::{Event, Record};
pub use finding::{Finding, Missing, Rule};
pub use parse::{LineError, ParseError, VERSION, parse};

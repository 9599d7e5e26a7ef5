// SPDX-License-Identifier: MIT OR Apache-2.0

//! A host that lies: it reports that nobody uses a page, lends it, and goes on
//! using it in every way that a kernel and its programs have. Each of them must
//! end in a fault that Linux recovers from, or that ends the task that made the
//! access and nothing else.
//!
//! Each test is a process of its own. When it ends, all pages are home again
//! and Escrow's counts are what they were.

#![deny(clippy::print_stdout, clippy::print_stderr)]

mod access;
mod borrower;
mod device;
#[path = "../../../host/vmm/src/host/kcore.rs"]
mod kcore;
mod log;
mod region;
mod tests;

use std::process::ExitCode;

use escrow_shim_tests::runner;

fn main() -> ExitCode {
    runner::run(tests::ALL)
}

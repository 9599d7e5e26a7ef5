// SPDX-License-Identifier: MIT OR Apache-2.0

//! Tests of the shim from user space: what programs may do with `/dev/gunyah`,
//! and what becomes of pages when several do several things at once.
//!
//! Each test is a process of its own. Whatever it leaves open ends with it,
//! and Escrow's counts must then be what they were before.
//!
//! ```text
//! test lent::pages_come_home ... ok
//! 1 passed, 0 failed
//! ```

mod tests;

use std::process::ExitCode;

use escrow_shim_tests::{access, guest, gunyah, runner};

fn main() -> ExitCode {
    runner::run(tests::ALL)
}

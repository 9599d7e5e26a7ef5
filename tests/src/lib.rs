// SPDX-License-Identifier: MIT OR Apache-2.0

//! The harness of the QEMU test suite: boots a machine, reads its console with
//! a time limit, and keeps the console's output if a test fails.
//!
//! The tests themselves are the programs in `tests/tests`, one for each level
//! of `cargo xtask test`, which builds what they boot and tells them by the
//! environment where it is ([`xtask::artefacts`]).

pub mod linux;
pub mod payload;
pub mod serial;
pub mod tree;

use std::sync::OnceLock;

use xtask::artefacts::Artefacts;

/// The artefacts that can be booted.
///
/// # Panics
/// The program was not started by `cargo xtask test`.
pub fn artefacts() -> &'static Artefacts {
    static ARTEFACTS: OnceLock<Artefacts> = OnceLock::new();
    ARTEFACTS.get_or_init(|| Artefacts::from_env().unwrap_or_else(|error| panic!("{error:#}")))
}

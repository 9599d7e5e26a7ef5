// SPDX-License-Identifier: MIT OR Apache-2.0

//! What becomes of the shim when something fails: an allocation, a new file, a
//! lock that a signal ends, a call to Escrow. Runs on a host with the module
//! of a build for tests (`host/module/arch/inject.c`).
//!
//! Each scene is walked through: its first point fails, then its second, and
//! so on, once for each kind of failure. A program that is told of it must
//! find that nothing has changed, and succeed when it tries again. After each
//! run Escrow's counts and the module's blocks of memory are as before.
//!
//! `FAULT_ERRORS=all` has Escrow answer every error that it knows instead of
//! three. `FAULT_SITES` is how many places there are that may fail: each must
//! have failed in the end.

#![deny(clippy::print_stdout, clippy::print_stderr)]

mod miscount;
mod plan;
mod published;
mod refusals;
mod scenes;
mod walk;

use std::env;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use escrow_shim_tests::facts::KernelMemory;
use escrow_shim_tests::gunyah::has_huge_pages;
use escrow_shim_tests::runner::{self, Lacking, Test};
use escrow_shim_tests::say;

/// Memory (KiB) that the kernel may keep to itself in the end: what it caches
/// for each CPU, and files of its own.
const BOUND: i64 = 4096;

/// Files of places that no scene comes by: memory that breaks is lost for good,
/// so what follows cannot be done again and again.
const LEFT_OUT: &[&str] = &["poison.c"];

/// All places that may fail have failed: so many are there.
fn all_sites() -> Result<()> {
    // Else no large folio is split.
    ensure!(has_huge_pages()?, Lacking("huge pages".to_owned()));
    let sites = plan::sites()?;
    let is_left_out = |name: &str| LEFT_OUT.iter().any(|file| name.starts_with(file));
    let never = sites.iter().filter(|site| site.failed == 0).map(|site| site.name.as_str());
    let never: Vec<_> = never.filter(|name| !is_left_out(name)).collect();
    ensure!(never.is_empty(), "never failed: {}", never.join(", "));
    if let Ok(number) = env::var("FAULT_SITES") {
        let seen: Vec<_> = sites.iter().map(|site| site.name.as_str()).collect();
        let number: usize = number.parse()?;
        ensure!(number <= seen.len() + LEFT_OUT.len(), "of {number} only: {}", seen.join(", "));
    }
    Ok(())
}

/// The walks, the refusals, and at last whether anything was left out.
fn tests() -> Vec<Test> {
    // First, as the module complains of EL2's refusals once.
    let mut tests = miscount::ALL.to_vec();
    tests.extend(scenes::ALL);
    tests.extend(refusals::ALL);
    tests.extend(published::ALL);
    tests.push(("sites::each_has_failed", all_sites));
    tests
}

/// Runs all tests; whether the kernel has its memory back.
fn run() -> Result<ExitCode> {
    let before = KernelMemory::read()?;
    let ending = runner::run(&tests());
    let after = KernelMemory::read()?;
    say!("memory: {before:?} before, {after:?} after");
    after.check_since(&before, BOUND)?;
    Ok(ending)
}

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        say!("FAILED: {error:#}");
        ExitCode::FAILURE
    })
}

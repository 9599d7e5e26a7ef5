// SPDX-License-Identifier: MIT OR Apache-2.0

//! Many lives of VMs, and many processes at once: see `tests/shim/src/soak`.
//!
//! `SOAK_CYCLES=10000 SOAK_SECONDS=180 cargo xtask test system -- soak` is the
//! long one.

use std::env;
use std::fs;
use std::time::Duration;

use escrow_tests::artefacts;
use escrow_tests::linux::{Kernel, Linux};

/// How long a cycle may take, on a machine that does other things as well.
const CYCLE: Duration = Duration::from_millis(300);
/// The rest.
const LIMIT: Duration = Duration::from_secs(200);
/// Checks of the slab allocator's: freed objects are overwritten, and looked at again.
pub const FREED: &str = "slub_debug=FP";

/// The variables that the program reads.
const SETTINGS: [&str; 7] = [
    "SOAK_CYCLES",
    "SOAK_MINUTES",
    "SOAK_AT_ONCE",
    "SOAK_PAGES",
    "SOAK_SECONDS",
    "SOAK_PROCESSES",
    "SOAK_SEED",
];

/// What lines have that people want to see.
const TOLD: [&str; 4] = ["memory: KernelMemory", " cycles in ", " lives", "closers: "];

fn soak_on(kernel: Kernel, cpu: &str, smp: u32) {
    let program = fs::read(&artefacts().shim_soak).expect("the soak");
    let mut settings = String::new();
    let mut limit = LIMIT;
    for name in SETTINGS {
        let Ok(value) = env::var(name) else { continue };
        let number: u32 = value.parse().expect("a number");
        match name {
            "SOAK_CYCLES" => limit += CYCLE * number,
            "SOAK_SECONDS" => limit += Duration::from_secs(number.into()),
            _ => {}
        }
        settings += &format!("{name}={value} ");
    }
    let script = format!("{settings} exec /bin/shim-soak");
    let files = [("bin/shim-soak", program.as_slice())];
    let name = format!("soak-{kernel:?}-{cpu}-{smp}");
    let linux = Linux::with_files(&name, cpu, smp, 1024, &script, &files).of(kernel);
    // Freed memory is overwritten (poisoned), so a use after free fails soon.
    let mut linux = linux.with_word(FREED);
    linux.limit = limit;
    // A long one is watched by `--nocapture`.
    let lines = linux.passes_telling(|line| {
        if TOLD.iter().any(|part| line.contains(part)) {
            println!("{line}");
        }
    });
    assert!(lines.iter().any(|line| line == "soaked"), "it was not");
}

#[test]
fn on_two_cpus() {
    soak_on(Kernel::Older, "max", 2);
}

#[test]
fn on_the_newer_kernel() {
    soak_on(Kernel::Newer, "max", 2);
}

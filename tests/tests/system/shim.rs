// SPDX-License-Identifier: MIT OR Apache-2.0

//! The tests of the shim, which run on the host: see `tests/shim`.
//!
//! `SHIM_TESTS=huge:: cargo xtask test system -- shim::holders_on_two` runs those
//! alone that have that in their names; likewise for those of failures.

use std::fs;
use std::path::Path;
use std::time::Duration;

use escrow_tests::artefacts;
use escrow_tests::linux::{Kernel, Linux, may_lack, verdict};

/// Those who hold pages have boots of their own.
const HOLDERS: &str = "holders::";
/// The least number of tests: one that is no longer registered would not fail otherwise.
const HOLDERS_AT_LEAST: usize = 67;
const OTHERS_AT_LEAST: usize = 135;

/// Modules of Debian's that tests load, and what those need, where it is not
/// part of the kernel.
const MODULES: [&str; 9] = [
    "drivers/gpu/drm/drm",
    "drivers/gpu/drm/drm_kms_helper",
    "drivers/gpu/drm/drm_shmem_helper",
    "drivers/gpu/drm/vgem/vgem",
    "drivers/block/nbd",
    "drivers/block/zram/zram",
    "lib/lz4/lz4_compress",
    "lib/lz4/lz4hc_compress",
    "mm/hwpoison-inject",
];

/// The kernel's modules, as they are packed, and where they go.
fn modules(kernel: Kernel) -> Vec<(String, Vec<u8>)> {
    let folder = match kernel {
        Kernel::Older => &artefacts().host_modules,
        Kernel::Newer => &artefacts().newer_modules,
    };
    let folder = folder.canonicalize().expect("the kernel's modules");
    let release = folder.file_name().expect("a release").to_string_lossy().into_owned();
    let packed = MODULES.iter().filter_map(|module| {
        let name = Path::new(module).file_name()?.to_str()?;
        let file = fs::read(folder.join(format!("kernel/{module}.ko.xz"))).ok()?;
        Some((format!("lib/modules/{release}/{name}.ko.xz"), file))
    });
    let mut all: Vec<_> = packed.collect();
    let own = artefacts().modules.join(&release).join("holder.ko");
    let own = fs::read(own).expect("the tests' module");
    all.push((format!("lib/modules/{release}/holder.ko"), own));
    all
}

/// What is in the names of the tests that are to run, if not all are.
pub fn some() -> Option<String> {
    std::env::var("SHIM_TESTS").ok()
}

fn shim_tests_on(kernel: Kernel, cpu: &str, smp: u32, holders: bool) {
    let (which, filter, at_least) = if holders {
        ("holders", HOLDERS.to_owned(), HOLDERS_AT_LEAST)
    } else {
        ("shim", format!("-{HOLDERS}"), OTHERS_AT_LEAST)
    };
    let (filter, at_least) = some().map_or((filter, at_least), |some| (some, 1));
    let limit = Duration::from_secs(if holders { 480 } else { 240 });
    run_on(kernel, cpu, smp, which, &filter, at_least, limit);
}

fn run_on(
    kernel: Kernel,
    cpu: &str,
    smp: u32,
    which: &str,
    filter: &str,
    at_least: usize,
    limit: Duration,
) {
    let program = fs::read(&artefacts().shim_tests).expect("the tests of the shim");
    let mut files = modules(kernel);
    files.push(("bin/shim-tests".to_owned(), program));
    let files: Vec<_> = files.iter().map(|(path, file)| (path.as_str(), file.as_slice())).collect();
    let name = format!("{which}-{kernel:?}-{cpu}-{smp}");
    let may_lack = may_lack(kernel);
    // Longer runs, for those who ask.
    let settings = ["SHIM_HOLES", "SHIM_RACE_PAGES"].map(|name| {
        std::env::var(name).map_or(String::new(), |number| format!("{name}={number} "))
    });
    let settings = settings.concat();
    let script = format!("{settings}{may_lack} exec /bin/shim-tests {filter}");
    let mut linux = Linux::with_files(&name, cpu, smp, 1024, &script, &files).of(kernel);
    linux.limit = limit;
    let lines = linux.passes();
    let (passed, left_out) = verdict(&lines).expect("a sum of tests without a failure");
    left_out.iter().for_each(|line| println!("{line}"));
    lines
        .iter()
        .filter(|line| line.contains(", in quarters: "))
        .for_each(|line| println!("{line}"));
    let seen = passed + left_out.len();
    assert!(seen >= at_least, "{passed} tests passed, {} were left out", left_out.len());
}

#[test]
fn on_two_cpus() {
    shim_tests_on(Kernel::Older, "max", 2, false);
}

#[test]
fn on_an_old_cpu() {
    shim_tests_on(Kernel::Older, "cortex-a53", 4, false);
}

#[test]
fn on_the_newer_kernel() {
    shim_tests_on(Kernel::Newer, "max", 2, false);
}

/// Eight vCPUs that race for the same pages, each on a CPU of its own.
#[test]
fn a_race_on_eight_cpus() {
    let asked = std::env::var_os("SHIM_RACE_PAGES").is_some();
    let limit = Duration::from_secs(if asked { 3600 } else { 240 });
    run_on(Kernel::Older, "max", 8, "race", "v17::vcpus_race", 1, limit);
}

#[test]
fn holders_on_two_cpus() {
    shim_tests_on(Kernel::Older, "max", 2, true);
}

#[test]
fn holders_on_an_old_cpu() {
    shim_tests_on(Kernel::Older, "cortex-a53", 4, true);
}

#[test]
fn holders_on_the_newer_kernel() {
    shim_tests_on(Kernel::Newer, "max", 2, true);
}

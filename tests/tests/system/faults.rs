// SPDX-License-Identifier: MIT OR Apache-2.0

//! The shim when something fails: see `tests/shim/src/faults`.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::shim::some;
use super::soak::FREED;
use escrow_tests::artefacts;
use escrow_tests::linux::{Kernel, Linux, may_lack, verdict};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};

/// The least number of tests: one that is no longer registered would not fail otherwise.
const AT_LEAST: usize = 47;
/// In the module of a build for tests: a record for each place that may fail.
const SITES: &str = "escrow_faults";
/// Bytes of a record, `struct escrow_inject_site`.
const SITE: u64 = 48;

fn modules(folder: &Path) -> impl Iterator<Item = (String, Vec<u8>)> {
    let folders = fs::read_dir(folder).expect("the modules").flatten();
    folders.map(|folder| {
        let release = folder.file_name().to_string_lossy().into_owned();
        (release, fs::read(folder.path().join("escrow.ko")).expect("a module"))
    })
}

/// Places in a module that may fail.
fn sites(module: &[u8]) -> u64 {
    let module = object::File::parse(module).expect("a module");
    module.section_by_name(SITES).map_or(0, |section| section.size() / SITE)
}

fn faults_on(kernel: Kernel, cpu: &str, smp: u32) {
    let program = fs::read(&artefacts().shim_faults).expect("the tests of failures");
    let mut files = vec![("bin/shim-faults".to_owned(), program)];
    let mut number = None;
    for (release, module) in modules(&artefacts().fault_modules) {
        // A place that only one of the kernels compiles fails on that kernel.
        number = number.max(Some(sites(&module)));
        let holder = artefacts().modules.join(&release).join("holder.ko");
        let holder = fs::read(holder).expect("the tests' module");
        files.push((format!("lib/modules/{release}/holder.ko"), holder));
        files.push((format!("lib/modules/{release}/escrow.ko"), module));
    }
    let number = number.expect("a module for tests");
    let errors = std::env::var("FAULT_ERRORS").unwrap_or_default();
    let files: Vec<_> = files.iter().map(|(path, file)| (path.as_str(), file.as_slice())).collect();
    let (filter, at_least) = some().map_or((String::new(), AT_LEAST), |some| (some, 1));
    let settings = format!("{} FAULT_ERRORS={errors} FAULT_SITES={number}", may_lack(kernel));
    let script = format!("{settings} exec /bin/shim-faults {filter}");
    let name = format!("faults-{kernel:?}-{cpu}-{smp}");
    let linux = Linux::with_files(&name, cpu, smp, 1024, &script, &files).of(kernel);
    let mut linux = linux.with_word(FREED);
    linux.limit = Duration::from_secs(if errors == "all" { 3600 } else { 300 });
    let lines = linux.passes();
    let (passed, left_out) = verdict(&lines).expect("a sum of tests without a failure");
    let seen = passed + left_out.len();
    assert!(seen >= at_least, "{passed} tests passed, {} were left out", left_out.len());
    lines.iter().filter(|line| line.starts_with("memory: ")).for_each(|line| println!("{line}"));
}

#[test]
fn on_two_cpus() {
    faults_on(Kernel::Older, "max", 2);
}

#[test]
fn on_the_newer_kernel() {
    faults_on(Kernel::Newer, "max", 2);
}

/// Fault injection is compiled only into the test build of the module.
#[test]
fn are_in_no_other_module() {
    let mut seen = 0;
    for (release, module) in modules(&artefacts().modules) {
        let parsed = object::File::parse(&*module).expect("a module");
        assert_eq!(sites(&module), 0, "{release}");
        let fault = parsed.symbols().find(|s| s.name().is_ok_and(|n| n.contains("escrow_inject")));
        assert!(fault.is_none(), "{release}: {fault:?}");
        seen += 1;
    }
    assert!(seen > 0, "there are no modules");
}

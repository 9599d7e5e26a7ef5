// SPDX-License-Identifier: MIT OR Apache-2.0

//! A host whose module lends pages that its kernel still uses survives: see `tests/liar`.

use std::fs;
use std::time::Duration;

use escrow_tests::artefacts;
use escrow_tests::linux::{Kernel, Linux, may_lack, verdict};

/// The least number of tests: one that is no longer registered would not fail otherwise.
const AT_LEAST: usize = 27;

fn liar_on(kernel: Kernel, cpu: &str, smp: u32) {
    let read = |path| fs::read(path).expect("the tests of a host that lies");
    // The modules for all kernels; the host takes its own.
    let program = read(artefacts().liar.clone());
    let mut files = vec![("bin/liar".to_owned(), program)];
    for folder in fs::read_dir(&artefacts().modules).expect("the modules").flatten() {
        let release = folder.file_name().to_string_lossy().into_owned();
        files.push((format!("lib/modules/{release}/liar.ko"), read(folder.path().join("liar.ko"))));
    }
    let files: Vec<_> = files.iter().map(|(path, file)| (path.as_str(), file.as_slice())).collect();
    let may_lack = may_lack(kernel);
    let script = format!("insmod /lib/modules/$(uname -r)/liar.ko && {may_lack} exec /bin/liar");
    let name = format!("liar-{kernel:?}-{cpu}-{smp}");
    let mut linux = Linux::with_files(&name, cpu, smp, 1024, &script, &files).of(kernel);
    linux.limit = Duration::from_secs(240);
    // EL2's warnings are printed at once.
    linux.machine.append = "log=uart".into();
    let lines = linux.passes();
    let (passed, left_out) = verdict(&lines).expect("a sum of tests without a failure");
    let left_out = left_out.len();
    assert!(passed + left_out >= AT_LEAST, "{passed} tests passed, {left_out} were left out");
    // EL2 has logged no warning or error.
    let complaints = ["escrow: warning: ", "escrow: error: "];
    let is_complaint = |line: &&String| complaints.iter().any(|text| line.contains(text));
    assert_eq!(lines.iter().find(is_complaint), None);
}

#[test]
fn on_two_cpus() {
    liar_on(Kernel::Older, "max", 2);
}

#[test]
fn on_an_old_cpu() {
    liar_on(Kernel::Older, "cortex-a53", 1);
}

#[test]
fn on_the_newer_kernel() {
    liar_on(Kernel::Newer, "max", 2);
}

#[test]
fn on_the_newer_kernel_and_an_old_cpu() {
    liar_on(Kernel::Newer, "cortex-a53", 4);
}

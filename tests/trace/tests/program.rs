// SPDX-License-Identifier: MIT OR Apache-2.0

//! The program: what it says and how it exits.

use std::io::Write as _;
use std::process::{Command, Stdio};

/// Runs the program over a text; returns its exit code and all that it said.
fn run(text: &str) -> (Option<i32>, String) {
    let mut program = Command::new(env!("CARGO_BIN_EXE_escrow-trace"))
        .args(["--verbose", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    program.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = program.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap() + str::from_utf8(&output.stderr).unwrap();
    (output.status.code(), said)
}

/// A page of VM 0 is mapped, then replaced in one step.
const BROKEN: &str = "
trace begin 1
0 1 table 0x100000 0x3000
0 2 release 0x100000 0 0x101003
0 3 release 0x101000 0 0x102003
0 4 release 0x102000 0 0x800007ff
0 5 dsb ishst
0 6 root 0 7 0x100000 1 1 39
0 7 release 0x102000 0x800007ff 0x800017ff
0 8 dsb ishst
trace end 8 0
";

#[test]
fn a_sound_trace_is_a_success() {
    let sound = BROKEN.replace("0x800007ff 0x800017ff", "0x800007ff 0x800007ff");
    let (code, said) = run(&sound);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.starts_with("-: 0 findings in 8 events: 4 descriptors written"), "{said}");
}

#[test]
fn a_broken_trace_is_a_failure_that_is_explained() {
    let (code, said) = run(BROKEN);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("line 9: break-before-make: the valid descriptor at 0x102000"), "{said}");
    assert!(said.contains("another output address (0x800007ff to 0x800017ff)"), "{said}");
}

#[test]
fn changed_permissions_are_listed() {
    // Writing is allowed, which takes nothing from anybody.
    let granted = BROKEN.replace("0x800007ff", "0x8000077f").replace("0x800017ff", "0x800007ff");
    let (code, said) = run(&granted);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("line 9: permissions change"), "{said}");
}

#[test]
fn what_is_no_trace_cannot_be_read() {
    let (code, said) = run("nothing");
    assert_eq!((code, said.as_str()), (Some(2), "-: no trace: there is no line `trace begin 1`\n"));
}

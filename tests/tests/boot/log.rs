// SPDX-License-Identifier: MIT OR Apache-2.0

//! Escrow's log: it goes to the serial port until the host runs; from then on the
//! host reads it.

use escrow_tests::linux::Linux;

/// What is logged after the host has begun.
const LATE: &str = "escrow: debug: CPU 1 enters the host at ";

/// The lines of the serial port before the script, and those of the script.
fn lines(name: &str, append: &str, script: &str) -> (Vec<String>, Vec<String>) {
    let mut linux = Linux::with_script(name, &format!("echo the script:\n{script}"));
    linux.machine.append = append.into();
    let mut before = linux.passes();
    let at = before.iter().position(|line| line == "the script:").expect("the script runs");
    let script = before.split_off(at);
    (before, script)
}

fn has(lines: &[String], text: &str) -> bool {
    lines.iter().any(|line| line.contains(text))
}

#[test]
fn the_host_reads_it() {
    let script = "escrow log && escrow log --json | tail -n 1";
    let (before, read) = lines("log-ring", "loglevel=debug", script);
    assert!(has(&before, "escrow: host: kernel at "), "the boot is on the serial port");
    assert!(!has(&before, "enters the host"), "nothing after it is");
    assert!(has(&read, "escrow: Escrow 0."), "the host reads what was before it ran");
    assert!(has(&read, "escrow: debug: RAM 0x40000000-"));
    assert!(has(&read, LATE), "and what came after");
    let object = |line: &&String| line.starts_with("{\"position\":");
    let json = read.iter().find(object).expect("a JSON object");
    assert!(json.contains(LATE), "the last line is the newest: {json}");
}

#[test]
fn the_serial_port_has_it_if_it_is_asked_for() {
    let (before, read) = lines("log-uart", "loglevel=debug log=uart", "escrow log");
    assert!(has(&before, LATE), "on the serial port");
    assert!(has(&read, LATE), "and in the log");
}

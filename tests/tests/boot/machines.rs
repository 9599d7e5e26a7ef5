// SPDX-License-Identifier: MIT OR Apache-2.0

//! CPU types × numbers of CPUs × amounts of memory.

use std::path::PathBuf;
use std::time::Duration;

use escrow_tests::artefacts;
use escrow_tests::linux::Linux;
use escrow_tests::payload::Run;
use escrow_tests::serial::Serial;
use escrow_tests::tree::{ESCROW, Tree};
use xtask::layout::{MIB, RAM_BASE};
use xtask::qemu::{Machine, Module};

const CPUS: [&str; 5] = ["cortex-a53", "cortex-a72", "cortex-a76", "neoverse-n1", "max"];
const SMP: [u32; 4] = [1, 2, 4, 8];
/// Where payloads are loaded.
const KERNEL: u64 = RAM_BASE + 64 * MIB;
const MEMORY_MIB: [u64; 4] = [512, 1024, 4096, 8192];

/// A payload on 20 machines out of the 80, so that each CPU type meets each
/// number of CPUs and each amount of memory, and these two each other.
fn payload_on(cpu: usize) {
    for (n, &smp) in SMP.iter().enumerate() {
        let memory_mib = MEMORY_MIB[(n + cpu) % MEMORY_MIB.len()];
        let run = Run { cpu: CPUS[cpu], smp, memory_mib, ..Run::of("firmware") };
        // One CPU has no other to switch off.
        assert!(run.passes() >= if smp == 1 { 7 } else { 8 });
    }
}

#[test]
fn cortex_a53() {
    payload_on(0);
}

#[test]
fn cortex_a72() {
    payload_on(1);
}

#[test]
fn cortex_a76() {
    payload_on(2);
}

#[test]
fn neoverse_n1() {
    payload_on(3);
}

#[test]
fn max() {
    payload_on(4);
}

/// What EL2 says of its CPU's errata, and of what it does against trained predictors. The
/// firmware, which is QEMU here, has no calls for that.
#[test]
fn errata_are_named() {
    const REPEATED: &str = "TLBI-completion (TLBI is repeated)";
    const SWITCH: &str = "speculative-AT (walks are held off)";
    const OPEN: &str = "branch targets: the firmware has no call";
    for (cpu, errata, hardening) in [
        ("cortex-a53", SWITCH, "not needed"),
        ("cortex-a57", SWITCH, OPEN),
        ("cortex-a72", SWITCH, OPEN),
        ("cortex-a76", REPEATED, "loop of branches"),
        ("neoverse-n1", REPEATED, "loop of branches"),
        ("max", "none", "not needed"),
    ] {
        let lines = Run { cpu, smp: 1, ..Run::of("firmware") }.says();
        let expected = format!("errata: {errata}; hardening of entries: {hardening}");
        let said = lines.iter().find(|line| line.contains("hardening of entries: "));
        assert!(said.is_some_and(|line| line.contains(&expected)), "{cpu}: {said:?}");
        let warned = lines.iter().any(|line| line.contains("open to speculation at EL2"));
        assert_eq!(warned, hardening == OPEN, "{cpu}");
    }
}

/// Debian as the host sees all CPUs, its memory but for Escrow's, and Escrow.
fn debian_on(cpu: &str, smp: u32, memory_mib: u64) {
    let script = "echo cpus=$(cat /sys/devices/system/cpu/online)
        echo memory=$(grep MemTotal /proc/meminfo)
        echo el=$(dmesg | grep -c 'CPU: All CPU(s) started at EL1')
        echo node=$(cat /proc/device-tree/hypervisor/compatible)
        escrow info";
    let name = format!("debian-{cpu}-{smp}-{memory_mib}M");
    let linux = Linux::sized(&name, cpu, smp, memory_mib, script);
    let lines = linux.passes();
    let value = |name: &str| {
        let found = lines.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        found.unwrap_or_else(|| panic!("{name}: nothing said of it"))
    };
    let repeated = lines.iter().any(|line| line.contains("TLBI is repeated"));
    assert_eq!(repeated, ["cortex-a76", "neoverse-n1"].contains(&cpu), "escrow info: {lines:#?}");
    let all = if smp == 1 { "0".to_owned() } else { format!("0-{}", smp - 1) };
    assert_eq!(value("cpus"), all);
    assert_eq!(value("el"), "1", "started at EL1");
    assert!(value("node").starts_with("escrow,hypervisor"));
    let kib: u64 = value("memory").split_whitespace().nth(1).unwrap_or("").parse().unwrap_or(0);
    let (least, most) = (memory_mib * 1024 * 80 / 100, memory_mib * 1024);
    assert!((least..most).contains(&kib), "{kib} KiB of {memory_mib} MiB");
}

#[test]
fn debian_on_max() {
    debian_on("max", 2, 1024);
}

#[test]
fn debian_on_cortex_a53() {
    debian_on("cortex-a53", 4, 512);
}

#[test]
fn debian_on_cortex_a76() {
    debian_on("cortex-a76", 1, 4096);
}

#[test]
fn debian_on_neoverse_n1() {
    debian_on("neoverse-n1", 4, 8192);
}

#[test]
fn debian_on_cortex_a72() {
    debian_on("cortex-a72", 8, 1024);
}

#[test]
fn as_an_elf_file() {
    // What gdb gets is what boots: the ELF file with its symbols.
    let artefacts = artefacts();
    let mut machine = Machine::new(&artefacts.qemu, &artefacts.elf);
    let payload = artefacts.payloads.join("runtime.img");
    machine.load_host(&payload, None, "").expect("the payload fits");
    let mut serial = Serial::boot("boot-elf", &machine, Duration::from_secs(60));
    serial.wait_for("payload runtime: 6 passed, 0 failed");
    serial.wait_for_end();
}

/// A machine with a payload in the host's place.
fn payload_machine(payload: &str, bootargs: &str) -> (Machine, PathBuf) {
    let file = artefacts().payloads.join(format!("{payload}.img"));
    let mut machine = Machine::new(&artefacts().qemu, &artefacts().image);
    let bootargs = bootargs.into();
    machine.modules = vec![Module::Kernel { address: KERNEL, file: file.clone(), bootargs }];
    (machine, file)
}

#[test]
fn there_are_as_many_guests_as_were_asked_for() {
    let (mut machine, _) = payload_machine("guests", "guests=2");
    machine.append = "guests=2".into();
    let mut serial = Serial::boot("guests-2", &machine, Duration::from_secs(60));
    serial.wait_for("payload guests: 1 passed, 0 failed");
    serial.wait_for_end();
}

#[test]
fn a_cpu_that_does_not_exist() {
    let (machine, file) = payload_machine("runtime", &format!("escrow={ESCROW:#x}"));
    let mut tree = Tree::of(&Machine { smp: 2, ..machine });
    // The `reg` of the second CPU, before its `enable-method`, which is "psci".
    tree.replace(b"\0\0\0\x01\0\0\0\x03\0\0\0\x05", b"\0\0\0\x63\0\0\0\x03\0\0\0\x05");
    let machine = tree.boot(true, &[(KERNEL, &file)]);
    let mut serial = Serial::boot("absent-cpu", &machine, Duration::from_secs(60));
    serial.wait_for("escrow: warning: CPU 1: the firmware does not start it (-2)");
    serial.wait_for("escrow: host: kernel at");
    // The host runs, and gets the firmware's answer.
    serial.wait_for("CPU_ON of CPU 1 (0x63) answers 0xfffffffffffffffe");
}

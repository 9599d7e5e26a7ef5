// SPDX-License-Identifier: MIT OR Apache-2.0

//! What Debian as the host does with its CPUs and the machine.

use escrow_tests::linux::Linux;

#[test]
fn cpus_go_and_come_by_sysfs() {
    let script = "set -e
        cd /sys/devices/system/cpu
        for round in 1 2 3; do
            for cpu in 1 2 3; do echo 0 > cpu$cpu/online; done
            [ $(cat online) = 0 ]
            for cpu in 1 2 3; do echo 1 > cpu$cpu/online; done
            [ $(cat online) = 0-3 ]
            for cpu in 0 1 2 3; do taskset -c $cpu true; done
        done
        echo rounds: $round";
    let lines = Linux::sized("debian-hotplug", "max", 4, 1024, script).passes();
    assert!(lines.iter().any(|line| line == "rounds: 3"));
}

#[test]
fn it_switches_the_machine_off() {
    let lines = Linux::with_script("debian-poweroff", "true").passes();
    assert!(lines.iter().any(|line| line.contains("reboot: Power down")));
}

#[test]
fn it_reboots_the_machine() {
    let mut linux = Linux::with_script("debian-reboot", "echo rebooting; reboot -f");
    linux.machine.reboot = true;
    let mut serial = linux.boot();
    // All of it again, twice: Escrow, the host, its script.
    for _ in 0..2 {
        serial.wait_for("escrow: Escrow ");
        serial.wait_for("rebooting");
        serial.wait_for("reboot: Restarting system");
    }
    serial.wait_for("escrow: host: kernel at");
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! Hosts on machines with more than RAM of boot and devices: memory that is added
//! while they run, memory of PCI devices, and QEMU's `fw_cfg`. See
//! `tests/shim/src/machine`.

use std::fs;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use escrow_tests::artefacts;
use escrow_tests::linux::{Kernel, Linux};

/// A module of Debian's as it is packed, where the scripts look for it.
fn module(kernel: Kernel, name: &str) -> (String, Vec<u8>) {
    let folder = match kernel {
        Kernel::Older => &artefacts().host_modules,
        Kernel::Newer => &artefacts().newer_modules,
    };
    let stem = Path::new(name).file_name().and_then(|stem| stem.to_str()).expect("a name");
    let file = fs::read(folder.join(format!("kernel/drivers/{name}.ko.xz")));
    (format!("lib/{stem}.ko.xz"), file.expect("a module of the kernel"))
}

fn machine(name: &str, kernel: Kernel, modules: &[&str], script: &str, extra: &[&str]) -> Linux {
    let mut files: Vec<_> = modules.iter().map(|name| module(kernel, name)).collect();
    let program = fs::read(&artefacts().shim_machine).expect("the tests of machines");
    files.push(("bin/shim-machine".to_owned(), program));
    let files: Vec<_> = files.iter().map(|(path, file)| (path.as_str(), file.as_slice())).collect();
    let name = format!("{name}-{kernel:?}");
    let mut linux = Linux::with_files(&name, "max", 2, 512, script, &files).of(kernel);
    linux.machine.extra.extend(extra.iter().map(Into::into));
    linux.limit = Duration::from_secs(600);
    linux
}

/// 512 MiB at boot, and 1 GiB that virtio-mem adds.
const ADDED: [&str; 6] = [
    "-m",
    "512M,slots=2,maxmem=4G",
    "-object",
    "memory-backend-ram,id=more,size=1G",
    "-device",
    "virtio-mem-pci,id=vm0,memdev=more,requested-size=1G,node=0",
];

/// The script's functions: MiB of memory, and waiting for them.
const FUNCTIONS: &str = "set -e
    total() { awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo; }
    wait_until() {
        for n in $(seq 60); do if [ $(total) $1 $2 ]; then return 0; fi; sleep 1; done
        echo \"$(total) MiB\"; return 1
    }
    add() {
        echo $1 > /sys/devices/system/memory/auto_online_blocks
        xzcat /lib/virtio_mem.ko.xz > /virtio_mem.ko
        insmod /virtio_mem.ko
        wait_until -ge 1300
        grep -q '(virtio_mem)' /proc/iomem
    }
    nothing_is_lent() { grep -qx 'lent 0' /sys/class/misc/gunyah/escrow/pages; }";

fn memory_is_added_to(kernel: Kernel) {
    // The kernel itself uses what was added, so it is the shim that has to look out.
    let script = format!(
        "{FUNCTIONS}
        add online_kernel
        shim-machine added
        escrow demo
        nothing_is_lent
        dmesg | grep -q 'was added after boot: Escrow.s ledger does not have it'"
    );
    let linux = machine("added", kernel, &["virtio/virtio_mem"], &script, &ADDED);
    let lines = linux.passes();
    assert!(lines.iter().any(|line| line == "5 passed, 0 failed"));
    assert!(lines.iter().any(|line| line == "demo: 9 passed, 0 failed"));
}

#[test]
fn memory_added_later_is_the_host_s() {
    memory_is_added_to(Kernel::Older);
}

#[test]
fn memory_added_later_is_the_newer_host_s() {
    memory_is_added_to(Kernel::Newer);
}

fn memory_comes_and_goes_on(kernel: Kernel) {
    // For what can move only, so that all of it can go again; guests before, meanwhile
    // and after.
    let script = format!(
        "{FUNCTIONS}
        before=$(total)
        add online_movable
        shim-machine added::guests
        nothing_is_lent
        echo take it away
        wait_until -le $before
        ! grep -q '(virtio_mem)' /proc/iomem
        nothing_is_lent
        escrow demo"
    );
    let folder = tempfile::tempdir().expect("a temporary folder");
    let socket = folder.path().join("monitor");
    let mut linux = machine("unplug", kernel, &["virtio/virtio_mem"], &script, &ADDED);
    let monitor = format!("unix:{},server=on,wait=off", socket.display());
    linux.machine.extra.extend(["-monitor".into(), monitor.into()]);
    let mut serial = linux.boot();
    serial.wait_for("take it away");
    let mut monitor = UnixStream::connect(&socket).expect("QEMU's monitor");
    monitor.write_all(b"qom-set vm0 requested-size 0\n").expect("QEMU's monitor");
    serial.wait_for("demo: 9 passed, 0 failed");
    serial.wait_for("init: /test.sh exited with status 0");
    serial.wait_for_end();
}

#[test]
fn added_memory_goes_again() {
    memory_comes_and_goes_on(Kernel::Older);
}

#[test]
fn added_memory_of_the_newer_host_goes_again() {
    memory_comes_and_goes_on(Kernel::Newer);
}

fn a_bar_combines_writes_on(kernel: Kernel) {
    let extra = [
        "-object",
        "memory-backend-ram,id=shared,size=4M,share=on",
        "-device",
        "ivshmem-plain,memdev=shared",
    ];
    let linux = machine("bar", kernel, &[], "shim-machine bars", &extra);
    assert!(linux.passes().iter().any(|line| line == "1 passed, 0 failed"));
}

#[test]
fn a_bar_combines_writes() {
    a_bar_combines_writes_on(Kernel::Older);
}

#[test]
fn a_bar_combines_writes_on_the_newer_kernel() {
    a_bar_combines_writes_on(Kernel::Newer);
}

/// 512 MiB, of which a guest wants all.
fn memory_runs_out_on(kernel: Kernel) {
    let linux = machine("oom", kernel, &[], "shim-machine oom && escrow demo", &[]);
    let lines = linux.passes();
    assert!(lines.iter().any(|line| line == "1 passed, 0 failed"));
    assert!(lines.iter().any(|line| line == "demo: 9 passed, 0 failed"));
}

#[test]
fn memory_runs_out() {
    memory_runs_out_on(Kernel::Older);
}

#[test]
fn memory_of_the_newer_host_runs_out() {
    memory_runs_out_on(Kernel::Newer);
}

fn fw_cfg_is_read_by(kernel: Kernel) {
    // The device has no DMA (bit 1 of its revision), and its items are all there.
    let script = "set -e
        xzcat /lib/qemu_fw_cfg.ko.xz > /qemu_fw_cfg.ko
        insmod /qemu_fw_cfg.ko
        cd /sys/firmware/qemu_fw_cfg
        echo \"revision $(cat rev)\"
        echo \"item $(cat by_name/opt/org.escrow.test/raw)\"
        echo \"key $(cat by_name/opt/org.escrow.test/size)\"
        [ -e by_name/bootorder ]
        large=by_name/opt/org.escrow.large
        seq 20000 | cmp - $large/raw && echo \"large $(cat $large/size)\"
        for at in 0x09020010 0x09020014; do
            rmmod qemu_fw_cfg 2>/dev/null || true
            status=0; sh -c \"exec devmem $at 32 0\" || status=$?
            echo \"dma $at $status\"
        done
        escrow demo";
    let large: String = (1..=20000).map(|n| format!("{n}\n")).collect();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("large");
    fs::write(&file, &large).expect("a temporary file");
    let file = format!("name=opt/org.escrow.large,file={}", file.display());
    let extra = ["-fw_cfg", "name=opt/org.escrow.test,string=hello", "-fw_cfg", &file];
    let linux = machine("fw-cfg", kernel, &["firmware/qemu_fw_cfg"], script, &extra);
    let lines = linux.passes();
    let has = |text: &str| assert!(lines.iter().any(|line| line == text), "{text}");
    has("revision 1");
    has("item hello");
    has("key 5");
    has(&format!("large {}", large.len()));
    // SIGBUS.
    has("dma 0x09020010 135");
    has("dma 0x09020014 135");
    has("demo: 9 passed, 0 failed");
}

#[test]
fn fw_cfg_is_read() {
    fw_cfg_is_read_by(Kernel::Older);
}

#[test]
fn fw_cfg_is_read_by_the_newer_kernel() {
    fw_cfg_is_read_by(Kernel::Newer);
}

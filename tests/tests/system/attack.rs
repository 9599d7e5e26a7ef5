// SPDX-License-Identifier: MIT OR Apache-2.0

//! A host that reaches for what is not its own, with all the means of its
//! kernel: it is told off, and lives.

use escrow_tests::linux::{Kernel, Linux};

fn escrow_s_memory_is_none_of(kernel: Kernel) {
    // What the kernel knows as RAM leaves Escrow's image out: QEMU puts it 2
    // MiB above the start of RAM.
    let script = "set -e
        cat /proc/iomem
        start=$(printf '%d' 0x40200000)
        end=$(printf '%d' 0x403fffff)
        grep 'System RAM' /proc/iomem | while read range rest; do
            from=$(printf '%d' 0x${range%-*})
            to=$(printf '%d' 0x${range#*-})
            if [ $from -le $end ] && [ $to -ge $start ]; then echo 'RAM over Escrow'; fi
        done
        echo looked";
    let name = format!("iomem-{kernel:?}");
    let lines = Linux::with_script(&name, script).of(kernel).passes();
    assert!(lines.iter().any(|line| line == "looked"));
    assert!(lines.iter().any(|line| line.contains(": System RAM")));
    assert!(!lines.iter().any(|line| line == "RAM over Escrow"));
}

#[test]
fn escrow_s_memory_is_no_memory_of_the_host() {
    escrow_s_memory_is_none_of(Kernel::Older);
}

#[test]
fn escrow_s_memory_is_no_memory_of_the_newer_host() {
    escrow_s_memory_is_none_of(Kernel::Newer);
}

fn reading_escrow_s_memory_on(kernel: Kernel) {
    // busybox's devmem maps /dev/mem; the kernel lets it have what it does not
    // know as RAM. Loads and stores end in SIGBUS (status 128 + 7), and the
    // host lives.
    let script = "for at in 0x40200000 0x40200800 0x403ff000; do
            for value in '' 0x1234; do
                sh -c \"exec devmem $at 32 $value\"
                echo \"devmem $at $value: $?\"
            done
        done
        echo alive
        escrow info";
    let name = format!("devmem-{kernel:?}");
    let lines = Linux::with_script(&name, script).of(kernel).passes();
    let tries: Vec<_> = lines.iter().filter(|line| line.starts_with("devmem 0x")).collect();
    assert_eq!(tries.len(), 6, "{tries:?}");
    for line in tries {
        assert!(line.ends_with(": 135"), "{line}");
    }
    assert!(lines.iter().any(|line| line == "alive"));
}

#[test]
fn reading_escrow_s_memory_kills_the_reader_only() {
    reading_escrow_s_memory_on(Kernel::Older);
}

#[test]
fn reading_escrow_s_memory_kills_the_newer_host_s_reader_only() {
    reading_escrow_s_memory_on(Kernel::Newer);
}

fn the_shim_comes_and_goes_on(kernel: Kernel) {
    let script = "set -e
        for round in 1 2 3; do
            rmmod escrow
            [ ! -e /dev/gunyah ]
            insmod /lib/modules/$(uname -r)/escrow.ko
            [ -e /dev/gunyah ]
        done
        escrow demo";
    let name = format!("rmmod-{kernel:?}");
    let lines = Linux::with_script(&name, script).of(kernel).passes();
    assert!(lines.iter().any(|line| line == "demo: 9 passed, 0 failed"));
}

#[test]
fn the_shim_comes_and_goes() {
    the_shim_comes_and_goes_on(Kernel::Older);
}

#[test]
fn the_shim_comes_and_goes_on_the_newer_kernel() {
    the_shim_comes_and_goes_on(Kernel::Newer);
}

#[test]
fn without_escrow_the_shim_says_so() {
    let mut linux = Linux::with_script("no-escrow", "true");
    // The same host, straight on the machine.
    let artefacts = escrow_tests::artefacts();
    linux.machine.el2 = false;
    linux.machine.kernel = artefacts.host_kernel.clone();
    linux.machine.initrd = linux.machine.modules.iter().find_map(|module| match module {
        xtask::qemu::Module::Ramdisk { file, .. } => Some(file.clone()),
        xtask::qemu::Module::Kernel { .. } => None,
    });
    linux.machine.modules.clear();
    linux.machine.append = "console=ttyAMA0 panic=-1 escrow.init=script".into();
    let lines = linux.passes();
    assert!(lines.iter().any(|line| line.contains("does not run under Escrow")));
}

#[test]
#[should_panic(expected = "the host complains: ")]
fn a_host_in_trouble_is_noticed() {
    // What all of these tests rely on.
    Linux::with_script("trouble", "echo 'BUG: not really' >/dev/kmsg").passes();
}

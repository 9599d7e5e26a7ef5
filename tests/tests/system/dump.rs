// SPDX-License-Identifier: MIT OR Apache-2.0

//! A host that crashes while guests have its memory, with Debian's `kexec-tools`;
//! and, before that, memory of it that is to go offline.

use std::fs;
use std::time::Duration;

use escrow_tests::artefacts;
use escrow_tests::linux::{Kernel, Linux, looks_for_mistakes};
use xtask::initramfs::Archive;

/// As in `power.rs`.
const CPU: &str = "cortex-a76";
/// Memory of the host, and of that what is reserved for the dump kernel.
const MEMORY_MIB: u64 = 1376;
const RESERVED_MIB: u64 = 416;
/// The least number of lent pages; none of them is all zeros for the guest.
const LENT: u64 = 90_000;

/// A program of Debian's and all libraries that come with it, each by the name that programs ask
/// for.
fn debian(program: &str) -> Vec<(String, Vec<u8>)> {
    let tools = &artefacts().crash_tools;
    let read = |path: &std::path::Path| fs::read(path).expect("a file of Debian's");
    let mut files = vec![(format!("bin/{program}"), read(&tools.join(program)))];
    for entry in fs::read_dir(tools.join("libraries")).expect("Debian's libraries").flatten() {
        let file = entry.file_name().to_string_lossy().into_owned();
        let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
        // `libz.so.1` is a link to `libz.so.1.3.1`; those of the C library are no links.
        let is_plain = file.split('.').count() == 3 && !file.starts_with("libnss");
        if file.contains(".so.") && (is_link || is_plain) {
            files.push((format!("lib/{file}"), read(&entry.path())));
        }
    }
    files
}

/// The dump kernel's initramfs: the host's own, a script, and what it runs.
fn dump_initrd(script: &str) -> Vec<u8> {
    let mut archive = Archive::new();
    let text = format!(
        "#!/bin/sh\ndmesg -n 1\n(\n{script}\n)\nstatus=$?\ndmesg | grep -E \
         'BUG:|WARNING:|Oops|Unable to handle|Internal error' | sed 's/^/trouble: /'\n\
         [ $status = 0 ] || exit $status\n{KEXEC}\n"
    );
    archive.file("test.sh", 0o755, text.as_bytes()).expect("a file in an archive");
    let shim_tests = fs::read(&artefacts().shim_tests).expect("the tests of the shim");
    archive.file("bin/shim-tests", 0o755, &shim_tests).expect("a file in an archive");
    archive.file("bin/vmcoreinfo-48", 0o755, VMCOREINFO_48).expect("a file in an archive");
    for (path, file) in debian("makedumpfile") {
        archive.file(&path, 0o755, &file).expect("a file in an archive");
    }
    let mut initrd = fs::read(&artefacts().initramfs).expect("the initramfs");
    initrd.resize(initrd.len().next_multiple_of(4), 0);
    initrd.extend(archive.finish().expect("an archive"));
    initrd
}

/// As the package for DKMS has it.
const VMCOREINFO_48: &[u8] = include_bytes!("../../../host/module/install/vmcoreinfo-48");

/// What the dump kernel does; the copy is what a kernel that `makedumpfile` does not know is
/// saved by.
const DUMP: &str = "echo the dump kernel
    escrow info | grep -E 'VMs|lent'
    shim-tests --vmcore || exit 1
    dd if=/proc/vmcore of=/dev/null bs=1M 2>/dev/null || exit 1
    dmesg | grep 'escrow: this kernel is here for a dump' || exit 1
    echo all is dumped";
/// And a program that leaves out what is not needed, and reads what it has written. The kernel's
/// last words are in there.
const MAKEDUMPFILE: &str = "
    vmcoreinfo-48 /proc/vmcore >/tmp/info || exit 1
    makedumpfile --message-level 31 -i /tmp/info -l -d 31 /proc/vmcore /tmp/dump >/tmp/said 2>&1 || {
        tail -n 20 /tmp/said
        exit 1
    }
    grep -E 'Pages filled with zero|Remaining pages' /tmp/said
    makedumpfile -i /tmp/info --dump-dmesg /tmp/dump /tmp/log >/tmp/said 2>&1 || exit 1
    grep 'Starting crashdump kernel' /tmp/log || exit 1
    rm /tmp/dump
    echo makedumpfile too";

/// Then another kernel is loaded for kexec, whose destination would be lent pages: only a
/// header, as it must not run.
const KEXEC: &str = r"head -c 4096 /dev/zero >/tmp/image
    printf '\000\020\000\000\000\000\000\000' | dd of=/tmp/image bs=1 seek=16 conv=notrunc 2>/dev/null
    shim-tests --kexec /tmp/image /test.sh || exit 1
    shim-tests --reboot-kexec
    echo still here";

/// Tries to take each memory block offline. It fails at once: all of it is RAM of boot, which arm64's
/// memory notifier refuses to take offline. Linux calls the notifiers only for blocks without
/// unmovable pages, of which there are some.
const OFFLINE: &str = "for block in /sys/devices/system/memory/memory[0-9]*; do
        [ $(cat $block/state) = online ] || continue
        status=0
        timeout 20 sh -c \"echo offline >$block/state\" 2>/dev/null || status=$?
        # 143 if it was still trying.
        [ $status = 1 ] || { echo \"$block: $status\"; exit 1; }
    done
    dmesg | grep 'offlining attempted' || exit 1";

fn a_crash_is_dumped_on(kernel: Kernel) {
    let image = match kernel {
        Kernel::Older => &artefacts().host_kernel,
        Kernel::Newer => &artefacts().newer_kernel,
    };
    let image = fs::read(image).expect("the kernel");
    let shim_tests = fs::read(&artefacts().shim_tests).expect("the tests of the shim");
    let initrd = dump_initrd(&match kernel {
        Kernel::Older => format!("{DUMP}\n{MAKEDUMPFILE}"),
        Kernel::Newer => DUMP.to_owned(),
    });
    let kexec = debian("kexec");
    let mut files: Vec<_> =
        kexec.iter().map(|(path, file)| (path.as_str(), file.as_slice())).collect();
    files.push(("next-image", &image));
    files.push(("next-initrd", &initrd));
    files.push(("bin/shim-tests", &shim_tests));
    // A dump kernel has one CPU.
    let script = format!(
        "kexec -c -p /next-image --initrd=/next-initrd --append='console=ttyAMA0 nr_cpus=1 \
             panic=-1 reset_devices nosoftlockup escrow.init=script' || exit 1
        [ $(cat /sys/kernel/kexec_crash_loaded) = 1 ] || exit 1
        rm /next-image /next-initrd
        mkfifo /tmp/scene
        shim-tests --scene >/tmp/scene &
        exec 3</tmp/scene
        read line <&3
        echo \"$line\"
        [ \"${{line%% *}}\" = scene: ] || exit 1
        {OFFLINE}
        echo c >/proc/sysrq-trigger"
    );
    let reserved = if looks_for_mistakes() { 2 * RESERVED_MIB } else { RESERVED_MIB };
    let name = format!("dump-{kernel:?}");
    let mut linux = Linux::with_files(&name, CPU, 2, MEMORY_MIB, &script, &files)
        .of(kernel)
        .with_word(&format!("crashkernel={reserved}M"));
    linux.limit = Duration::from_secs(400);
    let mut serial = linux.boot();
    serial.expect_crash("Kernel panic - not syncing: sysrq triggered crash");
    // Output just before the crash may still be in the UART, and be lost.
    serial.wait_for("the dump kernel");
    serial.wait_for("the dump is whole");
    serial.wait_for("all is dumped");
    if kernel == Kernel::Older {
        let zero = serial.wait_for("Pages filled with zero");
        let pages = zero.rsplit("0x").next().and_then(|it| u64::from_str_radix(it.trim(), 16).ok());
        if pages.is_none_or(|pages| pages < LENT) {
            serial.fail(&format!("lent pages are in the dump: {zero}"));
        }
        serial.wait_for("makedumpfile too");
    }
    serial.wait_for("loaded at");
    serial.wait_for("a reset in the place of kexec");
    serial.wait_for_end();
    if let Some(line) = serial.lines().iter().find(|line| line.contains("trouble: ")) {
        serial.fail(line);
    }
}

#[test]
fn a_crash_is_dumped() {
    a_crash_is_dumped_on(Kernel::Older);
}

#[test]
fn a_crash_of_the_newer_kernel_is_dumped() {
    a_crash_is_dumped_on(Kernel::Newer);
}

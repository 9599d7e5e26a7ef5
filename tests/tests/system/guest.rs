// SPDX-License-Identifier: MIT OR Apache-2.0

//! `escrow run`: Debian's kernels as guests of Debian as the host.

use std::fs;
use std::time::Duration;

use escrow_tests::artefacts;
use escrow_tests::linux::{Kernel, Linux};
use xtask::initramfs::Archive;

/// The guest's first process: prints the guest's state, and does what `do=` on its
/// kernel's command line asks for.
const INIT: &str = r#"#!/bin/sh
export PATH=/bin
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox --install -s /bin
exec </dev/ttyAMA0 >/dev/ttyAMA0 2>&1
stty -echo
start=$(cut -d. -f1 /proc/uptime)
sleep 2
slept=$(($(cut -d. -f1 /proc/uptime) - start))
ticks=$(awk -v cpus=$(nproc) '/arch_timer/ { n = 0; for (i = 2; i <= cpus + 1; i++) if ($i > 0) n++; print n; exit }' /proc/interrupts)
echo "guest: $(uname -r): $(nproc) CPUs, timers on $ticks, slept $slept s"
dmesg | grep 'using stolen time PV' | sed 's/^/guest says: /'
dmesg | grep -E 'BUG:|WARNING:|Oops|stall|Internal error' | sed 's/^/guest complains: /'
for word in $(cat /proc/cmdline); do
    case $word in
    do=echo)
        read line
        echo "guest heard: $line"
        ;;
    do=hotplug)
        echo 0 > /sys/devices/system/cpu/cpu1/online && echo "guest: $(nproc) CPUs are left"
        echo 1 > /sys/devices/system/cpu/cpu1/online && echo "guest: $(nproc) CPUs are back"
        ;;
    do=reboot) reboot -f ;;
    do=panic) echo c > /proc/sysrq-trigger ;;
    do=wait) read forever ;;
    do=stress | do=kernel-tests | do=connected) . /${word#do=} ;;
    do=button)
        insmod /lib/evdev.ko.xz
        insmod /lib/gpio_keys.ko.xz
        until [ -e /dev/input/event0 ]; do sleep 0.1; done
        echo "guest: listens to the button"
        echo "guest: pressed, $(head -c 24 /dev/input/event0 | tail -c 8 | hexdump -e '4/2 "%d "')"
        ;;
    esac
done
poweroff -f
"#;

/// What scripts begin with: `guest STATUS ARGUMENTS` runs one that must end with
/// that status, `up FILE N` waits until the guest whose output is there has come
/// up N times, and `home` sees that nothing is lent or shared.
pub const FUNCTIONS: &str = r#"
set -e
guest() {
    want=$1; shift
    status=0
    timeout ${PATIENCE:-120} escrow run --initrd /guest-initrd "$@" > /tmp/out 2>&1 || status=$?
    # A panic of the guest's is none of the host's, for which its words would be taken.
    sed 's/Kernel panic - not syncing/The guest panics/' /tmp/out
    if [ $status != $want ]; then echo "status $status, not $want: $*"; exit 1; fi
    if grep 'guest complains' /tmp/out; then exit 1; fi
}
up() {
    for try in $(seq $((5 * ${PATIENCE:-120}))); do
        [ "$(grep -c '^guest: ' $1)" -ge $2 ] && return
        sleep 0.2
    done
    cat $1
    echo "not up: $1"
    exit 1
}
home() {
    escrow stat | grep -E '^(lent|shared) +0 '
    [ "$(escrow stat | grep -cE '^(lent|shared) +0 ')" = 4 ]
    [ "$(escrow ls | wc -l)" = 1 ]
}
"#;

/// The initramfs of guests.
pub fn initrd() -> Vec<u8> {
    let mut archive = Archive::new();
    for folder in ["bin", "dev", "lib", "proc", "sys"] {
        archive.directory(folder).expect("an archive");
    }
    archive.character_device("dev/console", 5, 1).expect("an archive");
    let busybox = fs::read(&artefacts().busybox).expect("busybox");
    archive.file("bin/busybox", 0o755, &busybox).expect("an archive");
    archive.symlink("bin/sh", "busybox").expect("an archive");
    archive.file("init", 0o755, INIT.as_bytes()).expect("an archive");
    // What listens to the power button. Debian's cloud kernel has not got it.
    for (folder, module) in [("input", "evdev"), ("input/keyboard", "gpio_keys")] {
        let file = format!("kernel/drivers/{folder}/{module}.ko.xz");
        let module_file = artefacts().host_modules.join(file);
        let contents = fs::read(module_file).expect("a module of the kernel");
        archive.file(&format!("lib/{module}.ko.xz"), 0o644, &contents).expect("an archive");
    }
    archive.finish().expect("an archive")
}

/// A host with `smp` CPUs that runs `script` with `guest` as a kernel for guests.
fn host(name: &str, host: Kernel, guest: Kernel, smp: u32, script: &str) -> Vec<String> {
    let kernel = fs::read(guest.image()).expect("a kernel for guests");
    let files = [("vmlinuz", &kernel[..]), ("guest-initrd", &initrd())];
    let script = format!("{FUNCTIONS}{script}");
    let mut linux = Linux::with_files(name, "max", smp, 1536, &script, &files).of(host);
    linux.limit = Duration::from_secs(600);
    linux.passes()
}

/// The kernel on lent and on shared memory, with 1, 2 and 4 CPUs.
const BOOTS: &str = r#"
export K='--kernel /vmlinuz --memory 256M'
for cpus in 1 2 4; do
    guest 0 $K --cpus $cpus --cmdline quiet </dev/null
    grep "guest: .*: $cpus CPUs, timers on $cpus, slept [23] s" /tmp/out
    grep 'guest says: .*using stolen time PV' /tmp/out
done
guest 0 $K --cpus 2 --cmdline quiet --share </dev/null
grep 'guest: .*: 2 CPUs, timers on 2, slept [23] s' /tmp/out
guest 0 $K --cpus 2 --cmdline 'quiet do=hotplug' --hugepages=never </dev/null
grep 'guest: 1 CPUs are left' /tmp/out
grep 'guest: 2 CPUs are back' /tmp/out
home
"#;

#[test]
fn the_older_kernel_boots() {
    host("guest-older", Kernel::Older, Kernel::Older, 2, BOOTS);
}

#[test]
fn the_newer_kernel_boots() {
    host("guest-newer", Kernel::Newer, Kernel::Newer, 2, BOOTS);
}

#[test]
fn a_guest_s_life_is_told_by_statuses_and_commands() {
    let script = r#"
K='--kernel /vmlinuz --memory 256M'
# What is typed arrives, and the end of it is no end. A kernel drops what it
# finds in the UART when it opens it.
: > /tmp/out
(up /tmp/out 1 >/dev/null; echo 'a line') | guest 0 $K --cmdline 'quiet do=echo'
grep 'guest heard: a line' /tmp/out
guest 3 $K --cmdline 'quiet do=reboot' </dev/null
guest 4 $K --cmdline 'quiet do=panic' </dev/null
grep "the guest's kernel has panicked" /tmp/out
# Wrong files are named.
guest 1 --kernel /bin/busybox </dev/null
grep 'ELF' /tmp/out
guest 1 --kernel /nowhere </dev/null
grep 'nowhere' /tmp/out
guest 1 --kernel /vmlinuz --memory 32M </dev/null
grep 'at least \([0-9]*\) MiB (--memory \1M)' /tmp/out
guest 2 --kernel /vmlinuz --memory 16M </dev/null
grep 'a guest has 32M' /tmp/out
guest 1 --kernel /vmlinuz --memory 64G </dev/null
grep 'the host has' /tmp/out
home

# Two at once; a console from elsewhere; a kill, a signal.
escrow run $K --initrd /guest-initrd --name one --cmdline 'quiet do=wait' </dev/null >/tmp/one 2>&1 &
one=$!
escrow run $K --initrd /guest-initrd --name two --cmdline 'quiet do=reboot' --reboot </dev/null >/tmp/two 2>&1 &
two=$!
up /tmp/one 1
up /tmp/two 2
escrow ls
escrow ls | grep '^one '
escrow ls --json | grep '"boots": 1'
[ "$(escrow ls | awk '$1 == "two" { print $6 }')" -ge 2 ]
escrow stat one
escrow stat one --json | grep -E '"lent": [1-9]'
escrow stat | grep -E '^0x.* escrow \(one\)'
[ "$(escrow stat one --json --watch=0.2 | head -n 2 | grep -c '"exits":[1-9]')" = 2 ]
if escrow run $K --name one </dev/null 2>/tmp/taken; then exit 1; fi
grep 'one already' /tmp/taken
escrow kill two
status=0; wait $two || status=$?
[ $status = 6 ]
(echo hello; sleep 1) | escrow console one >/tmp/console
grep 'guest: ' /tmp/console
status=0; wait $one || status=$?
[ $status = 0 ]

# The power button; nobody listens to it.
escrow run $K --initrd /guest-initrd --name five --cmdline 'quiet do=button' </dev/null >/tmp/five 2>&1 &
five=$!
up /tmp/five 2
escrow stop five
status=0; wait $five || status=$?
[ $status = 0 ]
cat /tmp/five
grep 'guest: pressed, 1 116' /tmp/five

escrow run $K --initrd /guest-initrd --name three --cmdline 'quiet do=wait' </dev/null >/tmp/three 2>&1 &
three=$!
up /tmp/three 1
if escrow stop --timeout 1 three 2>/tmp/deaf; then exit 1; fi
grep 'within 1 s' /tmp/deaf
kill -TERM $three
status=0; wait $three || status=$?
[ $status = 143 ]
escrow run $K --initrd /guest-initrd --cmdline 'quiet do=wait' </dev/null >/tmp/four 2>&1 &
four=$!
up /tmp/four 1
kill -KILL $four
wait $four || true
home
"#;
    host("guest-life", Kernel::Older, Kernel::Older, 2, script);
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! The virtio devices of `escrow run`, with Linux's own drivers.

use std::fs;
use std::time::Duration;

use escrow_tests::artefacts;
use escrow_tests::linux::{Kernel, Linux};
use xtask::initramfs::Archive;

/// The drivers, in the order in which they are loaded.
const DRIVERS: [&str; 9] = [
    "net/core/failover",
    "drivers/net/net_failover",
    "drivers/net/virtio_net",
    "drivers/block/virtio_blk",
    "drivers/char/hw_random/virtio-rng",
    "net/vmw_vsock/vsock",
    "net/vmw_vsock/vmw_vsock_virtio_transport_common",
    "net/vmw_vsock/vmw_vsock_virtio_transport",
    "drivers/virtio/virtio_mmio",
];

/// The guest's first process.
const INIT: &str = r#"#!/bin/sh
export PATH=/bin
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox mount -t tmpfs tmpfs /tmp
/bin/busybox --install -s /bin
exec </dev/ttyAMA0 >/dev/ttyAMA0 2>&1
fail() {
    echo "guest failed: $*"
    dmesg | tail -30
    poweroff -f
}
sum() { sha256sum $1 | cut -c1-64; }
for driver in DRIVERS; do
    insmod /lib/${driver##*/}.ko.xz || fail "$driver"
done

# A guest that has been here before, and has done all this.
if grep -q again /proc/cmdline && dd if=/dev/vda bs=512 skip=49151 2>/dev/null | grep -q again; then
    echo "guest is back"
    poweroff -f
fi
dmesg | grep -o 'RME: Using RSI.*'

# The source of entropy.
grep -q virtio /sys/class/misc/hw_random/rng_current || fail "no entropy"
[ "$(dd if=/dev/hwrng bs=1k count=4 2>/dev/null | wc -c)" = 4096 ] || fail "too little entropy"

# The disks: written in pieces of several sizes by several writers, discarded,
# zeroed, and read after the driver was taken away and brought back.
[ "$(cat /sys/block/vda/serial) $(cat /sys/block/vdb/serial)" = "disk-0 disk-1" ] || fail "serials"
[ "$(cat /sys/block/vda/size) $(cat /sys/block/vdb/ro)" = "49152 1" ] || fail "size"
dd if=/dev/urandom of=/tmp/random bs=1M count=4 2>/dev/null
for writer in "4096 0" "65536 1" "1048576 2" "12288 3"; do
    set -- $writer
    (for turn in 1 2; do
        dd if=/tmp/random of=/tmp/part$2 bs=$1 2>/dev/null
        dd if=/tmp/part$2 of=/dev/vda bs=$1 seek=$(($2 * 4194304 / $1)) conv=notrunc,fsync 2>/dev/null
    done) &
done
wait
dd if=/tmp/random of=/dev/vda bs=512 count=1001 seek=33333 conv=notrunc 2>/dev/null
if grep -q again /proc/cmdline; then
    echo again | dd of=/dev/vda bs=512 seek=49151 conv=notrunc 2>/dev/null
fi
blkdiscard -o 20971520 -l 1048576 /dev/vda || fail "discard"
sync
if dd if=/tmp/random of=/dev/vdb bs=4k count=1 2>/dev/null; then fail "a disk that is only read"; fi
disk=$(basename $(readlink /sys/block/vda/device))
for turn in 1 2 3; do
    echo $disk > /sys/bus/virtio/drivers/virtio_blk/unbind || fail "unbind"
    echo $disk > /sys/bus/virtio/drivers/virtio_blk/bind || fail "bind"
done
for try in $(seq 50); do [ -e /dev/vda ] && break; sleep 0.1; done
echo 3 > /proc/sys/vm/drop_caches
dd if=/dev/vda of=/tmp/back bs=4096 count=1024 2>/dev/null
[ $(sum /tmp/back) = $(sum /tmp/random) ] || fail "what was written is not there"
echo "guest disks: $(sum /dev/vda) $(sum /dev/vdb)"

# The network.
ifconfig lo 127.0.0.1 up
ifconfig eth0 192.168.7.2 netmask 255.255.255.0 up || fail "no network"
ping -c 3 -W 5 192.168.7.1 >/dev/null || fail "no answer"
ping -c 2 -W 5 -s 9000 192.168.7.1 >/dev/null || fail "no answer to fragments"
cat /tmp/random /tmp/random | nc -w 5 192.168.7.1 5001 || fail "cannot send"
# The end of its input, if it had one, would be the other's end.
nc -w 5 192.168.7.1 5002 > /tmp/down || fail "cannot receive"
echo "guest net: $(sum /tmp/down)"
grep -E 'virtio[0-9]|eth0' /proc/interrupts
dmesg | grep -E 'BUG:|WARNING:|Oops|stall|Internal error|virtio.*(error|broken|fail)' | sed 's/^/guest complains: /'
grep -q again /proc/cmdline && reboot -f
poweroff -f
"#;

/// On the host.
const SCRIPT: &str = r#"
set -e
sum() { sha256sum $1 | cut -c1-64; }
insmod /tun.ko.xz
tunctl -t tap0
ifconfig tap0 192.168.7.1 netmask 255.255.255.0 up
dd if=/dev/urandom of=/tmp/read-only bs=1M count=3 2>/dev/null
before=$(sum /tmp/read-only)
dd if=/dev/urandom of=/tmp/for-guest bs=1M count=8 2>/dev/null
# A guest with that command line, and all the other options.
guest() {
    cmdline=$1
    shift
    dd if=/dev/urandom of=/tmp/disk bs=1M count=24 2>/dev/null
    tail -f /dev/null | nc -l -p 5001 > /tmp/from-guest &
    nc -l -p 5002 < /tmp/for-guest >/dev/null &
    {
        status=0
        escrow run --kernel /vmlinuz --initrd /guest-initrd --memory 256M --cpus 2 \
            --disk /tmp/disk --disk /tmp/read-only,ro --net tap=tap0 --vsock 5 \
            --cmdline "$cmdline" "$@" </dev/null 2>&1 || status=$?
        echo "status $status"
    } | tr -d '\r' | tee /tmp/out
    grep 'status 0' /tmp/out
    if grep -E 'guest (failed|complains)|stopped until' /tmp/out; then exit 1; fi
    grep "guest disks: $(sum /tmp/disk) $before" /tmp/out
    [ $(sum /tmp/read-only) = $before ]
    grep "guest net: $(sum /tmp/for-guest)" /tmp/out
    [ $(stat -c %s /tmp/from-guest) = 8388608 ]
    [ "$(head -c 4194304 /tmp/from-guest | sha256sum)" = "$(tail -c 4194304 /tmp/from-guest | sha256sum)" ]
    escrow stat | grep -E '^(lent|shared) +0 '
}
guest quiet --share
if grep 'Using RSI' /tmp/out; then exit 1; fi
# On memory of its own, of which it opens what devices use. It starts twice.
guest 'quiet again' --protected yes --reboot
grep 'RME: Using RSI version 1.0' /tmp/out
grep 'guest is back' /tmp/out
"#;

/// A kernel's module, as it is packed.
pub fn module(kernel: Kernel, path: &str) -> Vec<u8> {
    let folder = match kernel {
        Kernel::Older => &artefacts().host_modules,
        Kernel::Newer => &artefacts().newer_modules,
    };
    fs::read(folder.join(format!("kernel/{path}.ko.xz"))).expect("a module of the kernel's")
}

fn initrd(kernel: Kernel) -> Vec<u8> {
    let mut archive = Archive::new();
    for folder in ["bin", "dev", "lib", "proc", "sys", "tmp"] {
        archive.directory(folder).expect("an archive");
    }
    archive.character_device("dev/console", 5, 1).expect("an archive");
    let busybox = fs::read(&artefacts().busybox).expect("busybox");
    archive.file("bin/busybox", 0o755, &busybox).expect("an archive");
    archive.symlink("bin/sh", "busybox").expect("an archive");
    for driver in DRIVERS {
        let name = driver.rsplit('/').next().expect("a name");
        let module = module(kernel, driver);
        archive.file(&format!("lib/{name}.ko.xz"), 0o644, &module).expect("an archive");
    }
    let init = INIT.replace("DRIVERS", &DRIVERS.join(" "));
    archive.file("init", 0o755, init.as_bytes()).expect("an archive");
    archive.finish().expect("an archive")
}

#[test]
fn a_guest_uses_them_with_linux_s_drivers() {
    let (host, guest) = (Kernel::Older, Kernel::Newer);
    let kernel = fs::read(guest.image()).expect("a kernel for guests");
    let tun = module(host, "drivers/net/tun");
    let files = [("vmlinuz", &kernel[..]), ("guest-initrd", &initrd(guest)), ("tun.ko.xz", &tun)];
    let mut linux = Linux::with_files("devices", "max", 2, 1536, SCRIPT, &files).of(host);
    linux.limit = Duration::from_secs(600);
    linux.passes();
}

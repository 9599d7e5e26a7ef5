// SPDX-License-Identifier: MIT OR Apache-2.0

//! Guests under load, of many kinds, and for long.
//!
//! `cargo xtask test system --long` runs these and no others: they take half an hour, and
//! boot what set-up fetches for them alone. `LONG_SECONDS` is how long `stress` lasts,
//! `LONG_KILLS` how many programs are killed.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use escrow_tests::linux::{Kernel, Linux};
use xtask::artefacts::LONG_PARTS;
use xtask::initramfs::Archive;

use super::guest::{FUNCTIONS, initrd};

/// A file, or a folder, of what set-up has fetched for these tests.
fn part(path: &str) -> PathBuf {
    let folder = env::var_os(LONG_PARTS).expect("`cargo xtask test system --long`");
    Path::new(&folder).join(path)
}

/// A number that the environment may give.
fn setting(name: &str, default: u32) -> u32 {
    env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

/// Puts a folder with all that is below it into an archive, at `to`.
fn add_tree(archive: &mut Archive, from: &Path, to: &str) {
    archive.directory(to).expect("an archive");
    for entry in fs::read_dir(from).unwrap_or_else(|error| panic!("{}: {error}", from.display())) {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
        let to = format!("{to}/{name}");
        if path.is_dir() {
            add_tree(archive, &path, &to);
        } else {
            let mode = fs::metadata(&path).expect("a file").permissions().mode() & 0o777;
            let contents = fs::read(&path).expect("a file");
            archive.file(&to, mode, &contents).expect("an archive");
        }
    }
}

/// What is appended to [`initrd`]: more of a guest's files.
fn with_trees(trees: &[(PathBuf, &str)], files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = Archive::new();
    for (from, to) in trees {
        add_tree(&mut archive, from, to);
    }
    for (path, contents) in files {
        archive.file(path, 0o755, contents).expect("an archive");
    }
    let mut bytes = initrd();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend(archive.finish().expect("an archive"));
    bytes
}

/// The programs of Debian's, at the places where they look for their libraries.
fn programs() -> Vec<(PathBuf, &'static str)> {
    let root = part("guest-programs/root");
    vec![(root.join("bin"), "bin"), (root.join("lib"), "lib"), (root.join("usr"), "usr")]
}

/// A host that runs `script`, with `files`.
struct Host {
    name: &'static str,
    kernel: Kernel,
    smp: u32,
    memory_mib: u64,
    limit: Duration,
}

impl Host {
    fn new(name: &'static str) -> Host {
        let limit = Duration::from_secs(2400);
        Host { name, kernel: Kernel::Older, smp: 2, memory_mib: 2048, limit }
    }

    fn runs(&self, script: &str, files: &[(&str, &[u8])]) -> Vec<String> {
        let Host { name, kernel, smp, memory_mib, limit } = *self;
        let script = format!("PATIENCE=600\n{FUNCTIONS}{script}");
        let mut linux = Linux::with_files(name, "max", smp, memory_mib, &script, files).of(kernel);
        linux.limit = limit;
        linux.passes()
    }
}

fn image(kernel: Kernel) -> Vec<u8> {
    fs::read(kernel.image()).expect("a kernel")
}

/// Debian's kernels for clouds and for all machines, on lent and on shared memory.
fn every_kernel_on(name: &'static str, kernel: Kernel) {
    let full = fs::read(part("full-kernel/Image")).expect("a kernel");
    let files = [
        ("cloud", &image(Kernel::Newer)[..]),
        ("full", &full),
        ("older", &image(Kernel::Older)),
        ("guest-initrd", &initrd()),
    ];
    let script = r#"
for kernel in cloud full older; do
    for how in '' --share; do
        guest 0 --kernel /$kernel --memory 256M --cpus 2 --cmdline quiet $how </dev/null
        grep 'guest: .*: 2 CPUs, timers on 2, slept [23] s' /tmp/out
        grep 'guest says: .*using stolen time PV' /tmp/out
    done
done
home
"#;
    Host { kernel, ..Host::new(name) }.runs(script, &files);
}

#[test]
#[ignore = "long"]
fn every_kernel_boots_on_the_older() {
    every_kernel_on("long-kernels-older", Kernel::Older);
}

#[test]
#[ignore = "long"]
fn every_kernel_boots_on_the_newer() {
    every_kernel_on("long-kernels-newer", Kernel::Newer);
}

/// 8 and 16 vCPUs on this number of the host's CPUs.
fn many_vcpus_on(name: &'static str, smp: u32) {
    let files = [("vmlinuz", &image(Kernel::Newer)[..]), ("guest-initrd", &initrd())];
    let script = r#"
for cpus in 8 16; do
    guest 0 --kernel /vmlinuz --memory 512M --cpus $cpus --cmdline quiet </dev/null
    grep "guest: .*: $cpus CPUs, timers on $cpus, slept" /tmp/out
done
home
"#;
    Host { smp, ..Host::new(name) }.runs(script, &files);
}

#[test]
#[ignore = "long"]
fn many_vcpus_on_one_cpu() {
    many_vcpus_on("long-vcpus-1", 1);
}

#[test]
#[ignore = "long"]
fn many_vcpus_on_two_cpus() {
    many_vcpus_on("long-vcpus-2", 2);
}

#[test]
#[ignore = "long"]
fn many_vcpus_on_four_cpus() {
    many_vcpus_on("long-vcpus-4", 4);
}

#[test]
#[ignore = "long"]
fn four_guests_at_once() {
    let files = [("vmlinuz", &image(Kernel::Newer)[..]), ("guest-initrd", &initrd())];
    let script = r#"
all=
for guest in 1 2 3 4; do
    escrow run --kernel /vmlinuz --initrd /guest-initrd --memory 256M --cpus 2 --name g$guest \
        --cmdline 'quiet do=wait' </dev/null >/tmp/g$guest 2>&1 &
    all="$all $!"
done
for guest in 1 2 3 4; do up /tmp/g$guest 1; done
cat /tmp/g?
[ "$(grep -hc ': 2 CPUs, timers on 2, slept' /tmp/g? | tr '\n' ' ')" = '1 1 1 1 ' ]
if grep 'guest complains' /tmp/g?; then exit 1; fi
escrow ls
[ "$(escrow ls | wc -l)" = 5 ]
for guest in 1 2 3 4; do escrow kill g$guest; done
for pid in $all; do
    status=0; wait $pid || status=$?
    [ $status = 6 ]
done
home
"#;
    Host::new("long-four").runs(script, &files);
}

/// Messages of a guest's kernel that are failures after load, those of clocks and timers included.
const COMPLAINTS: &str = "BUG:|WARNING:|Oops|stall|Internal error|hung task|soft lockup|clocksource.*unstable|interrupt took too long";

/// `stress-ng`: load on memory, the CPU, timers, signals and threads, with the results
/// verified.
const STRESS: &str = "stress-ng --verify --metrics-brief --timeout SECONDSs --temp-path /tmp \
    --cpu 1 --vm 1 --vm-bytes 32M --matrix 1 --timer 1 --timer-freq 1000 --switch 1 --fork 1 \
    --futex 1 --sigq 1 --clock 1 --itimer 1 --itimer-freq 500 --crypt 1 --malloc 1 --malloc-bytes 16M";

#[test]
#[ignore = "long"]
fn guests_and_host_under_stress() {
    let seconds = setting("LONG_SECONDS", 180);
    let stress = STRESS.replace("SECONDS", &seconds.to_string());
    let run = format!(
        "mkdir -p /tmp; mount -t tmpfs tmpfs /tmp\n{stress} 2>&1\necho \"guest stressed: $?\"\n\
         dmesg | grep -E '{COMPLAINTS}' | sed 's/^/guest complains: /'\npoweroff -f\n"
    );
    let guest = with_trees(&programs(), &[("stress", run.as_bytes())]);
    let mut host_files = Archive::new();
    for (from, to) in programs() {
        add_tree(&mut host_files, &from, to);
    }
    let host_programs = host_files.finish().expect("an archive");
    let files = [
        ("vmlinuz", &image(Kernel::Newer)[..]),
        ("guest-initrd", &guest),
        ("programs.gz", &host_programs),
    ];
    let script = format!(
        r#"
cd / && zcat /programs.gz | cpio -idu 2>/dev/null && rm /programs.gz
K="--kernel /vmlinuz --initrd /guest-initrd --memory 384M --cpus 2"
escrow run $K --cmdline 'quiet do=stress' </dev/null >/tmp/one 2>&1 & one=$!
escrow run $K --cmdline 'quiet do=stress' --share </dev/null >/tmp/two 2>&1 & two=$!
up /tmp/one 1
up /tmp/two 1
{stress} >/tmp/host 2>&1
tail -n 30 /tmp/host
grep 'successful run completed' /tmp/host
wait $one
wait $two
cat /tmp/one /tmp/two
for guest in one two; do
    grep 'guest stressed: 0' /tmp/$guest
    if grep -E 'guest complains|stress-ng: fail' /tmp/$guest; then exit 1; fi
done
dmesg | grep -E '{COMPLAINTS}' && exit 1
home
"#
    );
    let limit = Duration::from_secs(900 + 4 * u64::from(seconds));
    Host { limit, ..Host::new("long-stress") }.runs(&script, &files);
}

#[test]
#[ignore = "long"]
fn the_installer_shows_its_first_screen() {
    let kernel = fs::read(part("installer/linux")).expect("the installer's kernel");
    let initrd = fs::read(part("installer/initrd.gz")).expect("the installer's initramfs");
    let files = [("linux", &kernel[..]), ("initrd.gz", &initrd)];
    let script = r#"
escrow run --kernel /linux --initrd /initrd.gz --memory 640M --cpus 2 --share --name installer \
    --cmdline 'console=ttyAMA0 TERM=linux' </dev/null >/tmp/out 2>&1 &
pid=$!
for try in $(seq 1200); do
    grep -q 'Select a language' /tmp/out && break
    sleep 0.5
done
tail -c 4000 /tmp/out | tr -cd '[:print:]\n' | fold -w 120
grep -q 'Select a language' /tmp/out
if grep -E 'BUG:|WARNING:|Oops|detected stall|Internal error|Kernel panic' /tmp/out; then exit 1; fi
escrow kill installer
status=0; wait $pid || status=$?
[ $status = 6 ]
home
"#;
    Host::new("long-installer").runs(script, &files);
}

/// The kernel's selftests that the guest runs. A test skips itself if the CPU lacks its feature.
const KERNEL_TESTS: &str = r#"
mkdir -p /tmp; mount -t tmpfs tmpfs /tmp
one() {
    status=0
    (cd ${1%/*} && timeout 120 ./${1##*/} $2 $3) >/tmp/test 2>&1 || status=$?
    echo "test $1: $status: $(grep -c '^ok' /tmp/test) ok, $(grep -ci 'skip' /tmp/test) skipped"
    # 4 is a test that is skipped as a whole. KERNEL-n uses sockets (AF_ALG) that this kernel
    # has as a module.
    if grep '^not ok' /tmp/test | grep -v KERNEL || [ $status != 0 -a $status != 4 ]; then
        head -n 60 /tmp/test
        echo "guest failed: $1"
    fi
}
(cd /tests/arm64/fp; timeout 5 ./fpsimd-test; echo "fpsimd-test: $?")
one /tests/arm64/fp/fp-stress -t 10
for test in fp-ptrace sve-ptrace za-ptrace zt-ptrace za-fork vec-syscfg sve-probe-vls; do
    one /tests/arm64/fp/$test
done
one /tests/arm64/fp/fp-stress -t 10
for test in /tests/arm64/signal/*; do
    [ -x $test ] && one $test
done
for test in abi chacha clock_getres getcpu getrandom gettimeofday; do
    one /tests/vDSO/vdso_test_$test
done
echo "guest: all tests are done"
poweroff -f
"#;

#[test]
#[ignore = "long"]
fn the_kernel_s_own_tests_pass() {
    // Some of them are not static.
    let mut trees = programs();
    trees.push((part("kernel-tests"), "tests"));
    let guest = with_trees(&trees, &[("kernel-tests", KERNEL_TESTS.as_bytes())]);
    let files = [("vmlinuz", &image(Kernel::Newer)[..]), ("guest-initrd", &guest)];
    let script = r#"
status=0
escrow run --kernel /vmlinuz --initrd /guest-initrd --memory 512M --cpus 2 \
    --cmdline 'quiet do=kernel-tests' </dev/null >/tmp/out 2>&1 || status=$?
cat /tmp/out
[ $status = 0 ]
grep 'guest: all tests are done' /tmp/out
[ "$(grep -c '^test .*: 0: ' /tmp/out)" -ge 24 ]
if grep 'guest failed' /tmp/out; then exit 1; fi
home
"#;
    Host::new("long-kernel-tests").runs(script, &files);
}

#[test]
#[ignore = "long"]
fn a_program_killed_at_any_moment_leaves_nothing() {
    let kills = setting("LONG_KILLS", 40);
    let files = [("vmlinuz", &image(Kernel::Newer)[..]), ("guest-initrd", &initrd())];
    let script = format!(
        r#"
counts() {{ escrow info --json | grep -v uptime; }}
K='--kernel /vmlinuz --memory 256M --cpus 2'
# The first makes what is kept for good.
guest 0 $K --cmdline quiet </dev/null
home
counts > /tmp/before
for kill in $(seq {kills}); do
    how=
    [ $((kill % 3)) = 0 ] && how=--share
    [ $((kill % 5)) = 0 ] && how=--hugepages=never
    escrow run $K --initrd /guest-initrd $how --cmdline quiet </dev/null >/tmp/out 2>&1 &
    pid=$!
    usleep $(($(od -An -N4 -tu4 /dev/urandom) % 6000000))
    kill -KILL $pid 2>/dev/null || true
    status=0; wait $pid || status=$?
    echo "kill $kill: $how $status, $(grep -c '^guest: ' /tmp/out) up"
    # Its memory comes home while the program ends.
    home >/dev/null
    counts > /tmp/after
    cmp /tmp/before /tmp/after || {{ diff /tmp/before /tmp/after; exit 1; }}
done
guest 0 $K --cmdline quiet </dev/null
"#
    );
    let limit = Duration::from_secs(600 + 20 * u64::from(kills));
    Host { limit, ..Host::new("long-kills") }.runs(&script, &files);
}

/// The guest's network by passt and its sockets to the host, used by Debian's programs.
const CONNECTED: &str = r#"
mount -t tmpfs tmpfs /tmp
for driver in failover net_failover virtio_net vsock vmw_vsock_virtio_transport_common \
        vmw_vsock_virtio_transport virtio_mmio; do
    insmod /drivers/$driver.ko.xz || echo "guest failed: $driver"
done
ifconfig lo 127.0.0.1 up
udhcpc -q -n -f -i eth0 -s /dhcp 2>&1 || echo "guest failed: no address"
dd if=/dev/urandom of=/tmp/random bs=1M count=2 2>/dev/null
cat /tmp/random | nc -w 5 10.0.0.1 5001 || echo "guest failed: cannot send"
echo "guest sent: $(sha256sum /tmp/random | cut -c1-64)"
socat -u OPEN:/tmp/random VSOCK-CONNECT:2:7000 || echo "guest failed: no socket of the host's"
socat VSOCK-LISTEN:22 SYSTEM:'head -c 5 | tr a-z A-Z' &
echo "guest: listens"
wait
poweroff -f
"#;

const DHCP: &str = r#"#!/bin/sh
[ "$1" = bound ] || exit 0
ifconfig $interface $ip netmask $subnet
route add default gw $router
echo "guest has $ip"
"#;

/// A user who is not root: a guest on lent memory with a console, one with a network and with
/// sockets.
#[test]
#[ignore = "long"]
fn a_user_runs_guests_on_the_newer_host() {
    let kernel = Kernel::Newer;
    let drivers = [
        "net/core/failover",
        "drivers/net/net_failover",
        "drivers/net/virtio_net",
        "net/vmw_vsock/vsock",
        "net/vmw_vsock/vmw_vsock_virtio_transport_common",
        "net/vmw_vsock/vmw_vsock_virtio_transport",
        "drivers/virtio/virtio_mmio",
    ];
    let drivers = drivers.map(|path| {
        let name = path.rsplit('/').next().expect("a name");
        (format!("drivers/{name}.ko.xz"), super::devices::module(kernel, path))
    });
    let mut files: Vec<(&str, &[u8])> =
        drivers.iter().map(|(path, contents)| (&path[..], &contents[..])).collect();
    files.extend([("connected", CONNECTED.as_bytes()), ("dhcp", DHCP.as_bytes())]);
    let mut folder = Archive::new();
    folder.directory("drivers").expect("an archive");
    let mut guest = with_trees(&programs(), &[]);
    guest.resize(guest.len().next_multiple_of(4), 0);
    for (path, contents) in files {
        folder.file(path, 0o755, contents).expect("an archive");
    }
    guest.extend(folder.finish().expect("an archive"));

    let mut host_files = Archive::new();
    for (from, to) in programs() {
        add_tree(&mut host_files, &from, to);
    }
    let host_programs = host_files.finish().expect("an archive");
    let tun = super::devices::module(kernel, "drivers/net/tun");
    let files = [
        ("vmlinuz", &image(kernel)[..]),
        ("guest-initrd", &guest),
        ("programs.gz", &host_programs),
        ("tun.ko.xz", &tun),
    ];
    // passt wants to leave its root folder, which cannot be that of an initramfs.
    let script = r#"
insmod /tun.ko.xz
ifconfig lo 127.0.0.1 up
tunctl -t tap0
ifconfig tap0 10.0.0.2 netmask 255.255.255.0 up
route add default gw 10.0.0.1
mkdir /root2 && mount -t tmpfs tmpfs /root2
cp -a /bin /lib /etc /vmlinuz /guest-initrd /programs.gz /root2/
cd /root2 && zcat programs.gz | cpio -idu 2>/dev/null && rm programs.gz
mkdir -p dev proc sys tmp run etc root
for folder in dev proc sys; do mount --bind /$folder $folder; done
mount -t tmpfs tmpfs run; mount -t tmpfs tmpfs tmp; chmod 1777 tmp
printf 'root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\nann:x:1000:1000::/tmp:/bin/sh\n' > etc/passwd
printf 'root:x:0:\nnogroup:x:65534:\nann:x:1000:\nescrow:x:999:ann\n' > etc/group
mkdir -p run/user/1000 && chown 1000:1000 run/user/1000 && chmod 700 run/user/1000
chgrp 999 /dev/gunyah; chmod 660 /dev/gunyah; ls -l /dev/gunyah
cat > user.sh <<'END'
export XDG_RUNTIME_DIR=/run/user/1000 PATH=/bin
set -e
id
status=0
escrow run --kernel /vmlinuz --initrd /guest-initrd --memory 256M --cmdline quiet </dev/null >/tmp/lent 2>&1 || status=$?
cat /tmp/lent
[ $status = 0 ]
mkdir -p /tmp/host
nc -l -p 5001 > /tmp/host/tcp &
escrow run --kernel /vmlinuz --initrd /guest-initrd --memory 256M --share --net user --vsock 5 --name net \
    --cmdline 'quiet do=connected' </dev/null >/tmp/net 2>&1 &
guest=$!
until [ -e /run/user/1000/escrow/net.vsock ]; do sleep 0.1; done
socat -u UNIX-LISTEN:/run/user/1000/escrow/net.vsock_7000 OPEN:/tmp/host/vsock,creat &
for try in $(seq 600); do grep -q 'guest: listens' /tmp/net && break; sleep 0.2; done
escrow ls
sleep 2
(printf 'CONNECT 22\nhello'; sleep 3) | socat - UNIX-CONNECT:/run/user/1000/escrow/net.vsock > /tmp/host/back
status=0; wait $guest || status=$?
cat /tmp/net /tmp/host/back
[ $status = 0 ]
if grep 'guest failed' /tmp/net; then exit 1; fi
grep 'guest has 10.0.0.2' /tmp/net
sum=$(sha256sum /tmp/host/tcp | cut -c1-64)
grep "guest sent: $sum" /tmp/net
[ $(sha256sum /tmp/host/vsock | cut -c1-64) = $sum ]
grep '^HELLO$' /tmp/host/back || grep 'HELLO' /tmp/host/back
END
ulimit -l 600000
chroot /root2 su ann -c 'sh /user.sh'
dmesg | grep -i landlock
# Without the group, and with a low limit, the message says so.
[ "$(escrow ls | wc -l)" = 1 ]
chgrp 0 /dev/gunyah
if chroot /root2 su ann -c 'escrow run --kernel /vmlinuz --memory 256M' 2>/tmp/no; then exit 1; fi
grep 'join the group' /tmp/no
chgrp 999 /dev/gunyah
ulimit -l 64
if chroot /root2 su ann -c 'escrow run --kernel /vmlinuz --memory 256M' 2>/tmp/no; then exit 1; fi
cat /tmp/no
grep 'you may lock' /tmp/no
home
"#;
    Host { kernel, ..Host::new("long-user") }.runs(script, &files);
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! What guests cost on a Debian host: exits that the host answers, the boot of a Linux guest and
//! its idling, its disk. Beside it stand the same kernel on a machine without a hypervisor, and
//! KVM with a VMM of this project's (`tests/peers`).
//!
//! All three boot the same image, with the same device tree, which is Escrow's guest's own.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use xtask::artefacts::Artefacts;
use xtask::initramfs::Archive;
use xtask::layout::MIB;
use xtask::qemu::Machine;

use super::payload::{self, Measured};
use super::report::{ESCROW, LINUX, Row};
use super::{peers, shim};

/// RAM of a guest, and of the machine without a hypervisor.
const GUEST_MIB: u64 = 512;
/// RAM of a host.
const HOST_MIB: u64 = 1536;
/// How often a machine boots for a row: the kernel's random numbers make one boot dearer than
/// another by about a percent.
const BOOTS: u32 = 3;
/// For the guests' kernel, whoever runs it: without random addresses; its lines are as they
/// were said.
const BOOTARGS: &str =
    "console=ttyAMA0 panic=-1 nokaslr norandmaps printk.time=0 printk.devkmsg=on";
/// The drivers of the disk.
const DRIVERS: [&str; 2] = ["drivers/block/virtio_blk", "drivers/virtio/virtio_mmio"];
/// Bytes of the disk.
const DISK: u64 = 64 * MIB;

/// The programs that count.
pub struct Programs<'a> {
    /// With the shim.
    pub shim: &'a Path,
    /// With KVM.
    pub kvm: &'a Path,
    /// The guest's first process.
    pub guest: &'a Path,
}

/// Files that the machines have.
struct Files {
    image: PathBuf,
    initrd: PathBuf,
    folder: PathBuf,
}

/// Measures all of it.
pub fn measure(artefacts: &Artefacts, programs: &Programs<'_>, folder: &Path) -> Result<Vec<Row>> {
    let folder = folder.join("guests");
    fs::create_dir_all(&folder)?;
    let files =
        Files { image: folder.join("Image"), initrd: folder.join("initrd.cpio.gz"), folder };
    fs::write(&files.image, telling(read(&artefacts.guest_kernel)?)?)?;
    fs::write(&files.initrd, guest_initrd(artefacts, programs.guest)?)?;
    let host = host(artefacts, programs, &files)?;
    let (escrow, disk) = thread::scope(|scope| {
        let disk = scope.spawn(|| bare_disk(artefacts, &files).context("a disk without Escrow"));
        let escrow = payload::run(&host, ESCROW).context("with Escrow");
        (escrow, joined(disk))
    });
    let (escrow, disk) = (escrow?, disk?);
    let (bare, kvm) = thread::scope(|scope| {
        let bare = scope.spawn(|| bare(artefacts, &files, &escrow).context("without Escrow"));
        let kvm = kvm(artefacts, programs, &files, &escrow).context("on KVM");
        (joined(bare), kvm)
    });
    Ok(merged(escrow.rows.into_iter().chain(bare?).chain(disk).chain(kvm?).collect()))
}

fn joined<T>(thread: thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().map_err(|_| anyhow!("a thread died"))?
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The kernel's image, which puts the counter's low half into the device tree's header before all
/// else: `tests/guest-bench` finds it there. The header of an image (Linux,
/// Documentation/arch/arm64/booting.rst) begins with two instructions, of which the second
/// branches to the kernel, and has room for six where nothing is yet.
fn telling(mut image: Vec<u8>) -> Result<Vec<u8>> {
    /// Second instruction, reserved words, magic number.
    const BRANCH: usize = 4;
    const ROOM: usize = 32;
    const MAGIC: usize = 56;
    /// `B`, and the bits of its offset in words (DDI 0487, C6.2.28).
    const B: u32 = 0b000101 << 26;
    const OFFSET: u32 = (1 << 26) - 1;

    ensure!(image.get(MAGIC..MAGIC + 4) == Some(b"ARM\x64"), "the kernel is no image");
    ensure!(image[ROOM..MAGIC].iter().all(|&byte| byte == 0), "there is no room in its header");
    let branch = u32::from_le_bytes(image[BRANCH..BRANCH + 4].try_into()?);
    ensure!(branch & !OFFSET == B, "its second instruction is {branch:#x}");
    let instructions = [
        0xd53b_e049, // mrs x9, cntvct_el0
        0x5ac0_0929, // rev w9, w9
        0xb900_1c09, // str w9, [x0, #28]
    ];
    let words = (ROOM - BRANCH) / 4 + instructions.len();
    let on = B | (branch & OFFSET).wrapping_sub(words as u32) & OFFSET;
    for (number, word) in instructions.into_iter().chain([on]).enumerate() {
        image[ROOM + 4 * number..][..4].copy_from_slice(&word.to_le_bytes());
    }
    let there = B | ((ROOM - BRANCH) / 4) as u32;
    image[BRANCH..BRANCH + 4].copy_from_slice(&there.to_le_bytes());
    Ok(image)
}

/// The guest's initramfs: one program, and drivers.
fn guest_initrd(artefacts: &Artefacts, program: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::new();
    for folder in ["dev", "lib", "proc", "sys"] {
        archive.directory(folder)?;
    }
    archive.character_device("dev/console", 5, 1)?;
    archive.file("init", 0o755, &read(program)?)?;
    for driver in DRIVERS {
        let path = artefacts.newer_modules.join(format!("kernel/{driver}.ko.xz"));
        let name = driver.rsplit('/').next().context("a driver without a name")?;
        archive.file(&format!("lib/{name}.ko.xz"), 0o644, &read(&path)?)?;
    }
    Ok(archive.finish()?)
}

/// What the host does. Exits are counted in runs of their own: a probe takes instructions.
fn script() -> String {
    format!(
        r#"#!/bin/sh
fail() {{
    echo "test bench::guests ... FAILED: $*"
    echo "payload bench: 0 passed, 1 failed, 0 skipped"
    exit 1
}}
# WORDS OPTIONS: runs a guest to its power-off, with more words on its command line.
guest() {{
    words=$1
    shift
    # Lent memory without devices, as the rows say, whatever the kernel can.
    case " $* " in
        *" --share "*) ;;
        *) set -- --protected=no "$@" ;;
    esac
    escrow run --kernel /vmlinuz --initrd /guest-initrd --memory {GUEST_MIB}M \
        --cmdline "{BOOTARGS} $words" "$@" </dev/null 2>&1 || fail "guest: $?: $words $*"
}}
runs() {{
    awk '$1 == "run" {{ print $2 }}' $trace/kprobe_profile
}}
shim-bench exits > /tmp/exits || fail "shim-bench"
grep -v ^payload /tmp/exits
grep -q ' 1 passed, 0 failed' /tmp/exits || fail "shim-bench"
tell=" tell=tree"
for turn in $(seq {BOOTS}); do
    guest "quiet boot=guest_boot$tell"
    guest "quiet boot=guest_boot_4k" --hugepages=never
    guest "boot=guest_boot_verbose"
    tell=
done
truncate -s {DISK} /tmp/disk
guest "quiet disk" --share --disk /tmp/disk
trace=/sys/kernel/tracing
mount -t tracefs tracefs $trace 2>/dev/null
echo 'p:run escrow:escrow_guest_run' > $trace/kprobe_events || fail "no probe"
echo 1 > $trace/events/kprobes/run/enable
start=$(runs)
guest "quiet"
boot=$(runs)
guest "quiet idle=20"
idle=$(runs)
echo "bench: guest_boot_exits count $((boot - start)) of exits"
echo "bench: guest_idle_exits count $(((idle - boot - (boot - start)) / 20)) of exits/s"
echo "payload bench: 1 passed, 0 failed, 0 skipped"
"#
    )
}

/// Escrow with a Debian host that runs guests.
fn host(artefacts: &Artefacts, programs: &Programs<'_>, files: &Files) -> Result<Machine> {
    let mut addition = Archive::new();
    addition.file("vmlinuz", 0o644, &read(&files.image)?)?;
    addition.file("guest-initrd", 0o644, &read(&files.initrd)?)?;
    let bare = shim::initramfs(artefacts, programs.shim, &script(), &files.folder)?;
    let mut archive = read(&bare)?;
    archive.extend(addition.finish()?);
    let initrd = files.folder.join("host.cpio.gz");
    fs::write(&initrd, archive).with_context(|| format!("cannot write {}", initrd.display()))?;
    shim::machine(artefacts, HOST_MIB, &initrd)
}

/// Words that the guest told after `key`.
fn told<'a>(measured: &'a Measured, key: &str) -> impl Iterator<Item = &'a str> {
    let lines = measured.lines.iter();
    lines.filter_map(move |line| line.trim().strip_prefix(key)?.strip_prefix(": "))
}

/// The guest's device tree.
fn tree(measured: &Measured) -> Result<Vec<u8>> {
    let mut tree = Vec::new();
    for line in told(measured, "tree") {
        for at in (0..line.len()).step_by(2) {
            let byte = line.get(at..at + 2).and_then(|byte| u8::from_str_radix(byte, 16).ok());
            tree.push(byte.context("the guest's tree is nonsense")?);
        }
    }
    ensure!(!tree.is_empty(), "the guest told no tree");
    Ok(tree)
}

/// The machine without a hypervisor.
fn bare_machine(artefacts: &Artefacts, files: &Files, words: &str) -> Machine {
    let mut machine = Machine::new(&artefacts.qemu, &files.image);
    machine.memory_mib = GUEST_MIB;
    machine.smp = 1;
    machine.icount = true;
    machine.el2 = false;
    machine.initrd = Some(files.initrd.clone());
    machine.append = format!("{BOOTARGS} {words} last");
    machine
}

/// Boots with the devices of Escrow's guest, by its tree.
fn bare(artefacts: &Artefacts, files: &Files, escrow: &Measured) -> Result<Vec<Row>> {
    let path = files.folder.join("tree.dtb");
    fs::write(&path, tree(escrow)?)?;
    let mut rows = Vec::new();
    for _ in 0..BOOTS {
        for words in ["quiet boot=guest_boot", "boot=guest_boot_verbose"] {
            let mut machine = bare_machine(artefacts, files, words);
            machine.extra = vec!["-dtb".into(), path.clone().into()];
            rows.extend(payload::run(&machine, LINUX)?.rows);
        }
    }
    let quiet = rows.iter().filter(|row| row.name == "guest_boot").cloned();
    let in_pages: Vec<_> = quiet.map(|row| Row { name: "guest_boot_4k".into(), ..row }).collect();
    rows.extend(in_pages);
    Ok(rows)
}

/// The disk as QEMU's own device.
fn bare_disk(artefacts: &Artefacts, files: &Files) -> Result<Vec<Row>> {
    let disk = files.folder.join("disk");
    fs::File::create(&disk).and_then(|file| file.set_len(DISK))?;
    let mut machine = bare_machine(artefacts, files, "quiet disk");
    let mut drive = OsString::from("if=none,id=disk,format=raw,file=");
    drive.push(&disk);
    machine.extra = ["-global", "virtio-mmio.force-legacy=false", "-drive"].map(Into::into).into();
    machine.extra.push(drive);
    machine.extra.extend(["-device", "virtio-blk-device,drive=disk"].map(OsString::from));
    // As time passes while QEMU works, so that few timers come due.
    machine.extra.extend(["-icount", "shift=0,sleep=on"].map(OsString::from));
    machine.icount = false;
    let rows = payload::run(&machine, LINUX)?.rows;
    fs::remove_file(&disk)?;
    Ok(rows)
}

/// KVM on the guests' kernel, with the same guest.
fn kvm(
    artefacts: &Artefacts,
    programs: &Programs<'_>,
    files: &Files,
    escrow: &Measured,
) -> Result<Vec<Row>> {
    let place = told(escrow, "initrd").next().and_then(|place| place.strip_prefix("0x"));
    let place = u64::from_str_radix(place.context("the guest told no place")?, 16)?;
    let mut addition = Archive::new();
    addition.directory("guest")?;
    addition.file("guest/Image", 0o644, &read(&files.image)?)?;
    addition.file("guest/initrd", 0o644, &read(&files.initrd)?)?;
    addition.file("guest/tree", 0o644, &tree(escrow)?)?;
    let mut archive = read(&peers::initramfs(programs.kvm, &files.folder)?)?;
    archive.extend(addition.finish()?);
    let initrd = files.folder.join("kvm.cpio.gz");
    fs::write(&initrd, archive).with_context(|| format!("cannot write {}", initrd.display()))?;
    peers::guests(artefacts, &initrd, HOST_MIB, GUEST_MIB * MIB, place)
}

/// One row for all of a name and a subject; rows of a name next to each other.
fn merged(rows: Vec<Row>) -> Vec<Row> {
    let mut merged: Vec<Row> = Vec::new();
    for row in rows {
        let same = |known: &&mut Row| known.name == row.name && known.subject == row.subject;
        if let Some(known) = merged.iter_mut().find(same) {
            let n = known.n + row.n;
            known.mean = (known.mean * known.n as f64 + row.mean * row.n as f64) / n as f64;
            known.min = known.min.min(row.min);
            known.n = n;
            continue;
        }
        let behind = merged.iter().rposition(|known| known.name == row.name);
        merged.insert(behind.map_or(merged.len(), |at| at + 1), row);
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a branch at an offset of the image leads to.
    fn target(image: &[u8], at: usize) -> i64 {
        let word = u32::from_le_bytes(image[at..at + 4].try_into().unwrap());
        assert_eq!(word >> 26, 0b000101);
        at as i64 + i64::from((word << 6) as i32 >> 6) * 4
    }

    #[test]
    fn an_image_tells_the_counter_and_goes_on() {
        for branch in [0x1481_9c3b_u32, 0x17ff_fff0] {
            let mut image = vec![0; 64];
            image[4..8].copy_from_slice(&branch.to_le_bytes());
            image[56..60].copy_from_slice(b"ARM\x64");
            let before = target(&image, 4);
            let image = telling(image).unwrap();
            assert_eq!(target(&image, 4), 32);
            assert_eq!(target(&image, 44), before);
            telling(image).expect_err("there is no room any more");
        }
        telling(vec![0; 64]).expect_err("this is no image");
    }

    #[test]
    fn a_guest_tells_its_tree() {
        let told = |lines: &[&str]| Measured {
            lines: lines.iter().map(|&line| line.into()).collect(),
            ..Measured::default()
        };
        let lines = ["else", "tree: d00dfeed01\r", "bench: x", "tree: 02", "initrd: 0x1"];
        assert_eq!(tree(&told(&lines)).unwrap(), [0xd0, 0x0d, 0xfe, 0xed, 1, 2]);
        for bad in [&["tree: 0"][..], &["tree: 0x"], &["initrd: 01"]] {
            tree(&told(bad)).expect_err("no tree");
        }
    }

    #[test]
    fn rows_of_a_name_are_one() {
        let row = |name, subject, value| Row::instructions(name, subject, value, value, 1);
        let rows = vec![
            row("boot", ESCROW, 3.0),
            row("idle", ESCROW, 7.0),
            row("boot", ESCROW, 1.0),
            row("boot", LINUX, 9.0),
            row("boot", ESCROW, 2.0),
        ];
        let expected = [
            Row::instructions("boot", ESCROW, 1.0, 2.0, 3),
            row("boot", LINUX, 9.0),
            row("idle", ESCROW, 7.0),
        ];
        assert_eq!(merged(rows), expected);
    }
}

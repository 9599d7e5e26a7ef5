// SPDX-License-Identifier: MIT OR Apache-2.0

//! A fixed user-space workload on a Debian host, under Escrow and on the same
//! machine without it.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use xtask::artefacts::Artefacts;
use xtask::initramfs::Archive;
use xtask::qemu::Machine;

use super::console::read_console;
use super::report::{ESCROW, LINUX, Row};

const TIME_LIMIT: Duration = Duration::from_secs(300);
/// RAM of the machines.
const MEMORY_MIB: u64 = 1024;
/// Both kernels get the same, and no random numbers that would place them
/// or their programs differently from run to run.
const BOOTARGS: &str = "console=ttyAMA0 quiet panic=-1 nokaslr norandmaps escrow.init=script";
const SCRIPT: &[u8] = b"#!/bin/sh\nexec /bin/workload\n";

/// Runs the workload on both machines, at the same time.
pub fn measure(artefacts: &Artefacts, program: &Path, folder: &Path) -> Result<Vec<Row>> {
    let initrd = initramfs(artefacts, program, folder)?;
    let mut with = Machine::new(&artefacts.qemu, &artefacts.image);
    with.memory_mib = MEMORY_MIB;
    with.load_host(&artefacts.host_kernel, Some(&initrd), BOOTARGS)?;
    let mut without = Machine::new(&artefacts.qemu, &artefacts.host_kernel);
    without.memory_mib = MEMORY_MIB;
    without.el2 = false;
    without.initrd = Some(initrd);
    without.append = BOOTARGS.into();
    let subjects = [(ESCROW, with), (LINUX, without)];
    thread::scope(|scope| {
        let runs = subjects.map(|(subject, mut machine)| {
            machine.smp = 1;
            machine.icount = true;
            let same = ["-machine", "dtb-randomness=off", "-seed", "1"];
            machine.extra.extend(same.map(OsString::from));
            scope.spawn(move || run(&machine, subject).with_context(|| format!("on {subject}")))
        });
        let mut rows = Vec::new();
        for run in runs {
            rows.extend(run.join().map_err(|_| anyhow!("a thread died"))??);
        }
        // Rows of one name next to each other.
        rows.sort_by(|a: &Row, b| a.name.cmp(&b.name));
        Ok(rows)
    })
}

/// The host's initramfs with the workload added.
fn initramfs(artefacts: &Artefacts, program: &Path, folder: &Path) -> Result<PathBuf> {
    let read =
        |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let mut addition = Archive::new();
    addition.file("bin/workload", 0o755, &read(program)?)?;
    addition.file("test.sh", 0o755, SCRIPT)?;
    let mut archive = read(&artefacts.initramfs)?;
    archive.extend(addition.finish()?);
    let path = folder.join("workload.cpio.gz");
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(&path, archive))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// What the workload's lines told.
#[derive(Debug, Default)]
struct Counts {
    /// Instructions of each repetition: of all of it, then of its parts.
    of: Vec<(String, Vec<u64>)>,
}

impl Counts {
    /// `rep N total T NAME T NAME T …`
    fn read(&mut self, text: &str) -> Option<()> {
        let mut words = text.split_whitespace();
        let (rep, number) = (words.next()?, words.next()?);
        if rep != "rep" || number.parse::<u64>().is_err() {
            return None;
        }
        while let Some(name) = words.next() {
            let count = words.next()?.parse().ok()?;
            match self.of.iter_mut().find(|(known, _)| known == name) {
                Some((_, counts)) => counts.push(count),
                None => self.of.push((name.into(), vec![count])),
            }
        }
        Some(())
    }
}

fn run(machine: &Machine, subject: &str) -> Result<Vec<Row>> {
    let mut counts = Counts::default();
    read_console(machine, TIME_LIMIT, |line| {
        let Some(text) = line.trim().strip_prefix("workload: ") else { return Ok(false) };
        match text.strip_prefix("frequency ") {
            Some(frequency) => {
                ensure!(frequency == "1000000000", "the counter runs at {frequency} Hz")
            }
            None if text == "done" => return Ok(true),
            None => counts.read(text).with_context(|| format!("what does {line:?} mean?"))?,
        }
        Ok(false)
    })?;
    ensure!(!counts.of.is_empty(), "the workload counted nothing");
    let row = |(part, counts): &(String, Vec<u64>)| match part.as_str() {
        "total" => Row::of_samples("workload", subject, counts),
        part => Row::of_samples(&format!("workload_{part}"), subject, counts),
    };
    counts.of.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetitions_add_up() {
        let mut counts = Counts::default();
        counts.read("rep 0 total 30 a 10 b 20").unwrap();
        counts.read("rep 1 total 32 a 11 b 21").unwrap();
        let expected = [("total", [30, 32]), ("a", [10, 11]), ("b", [20, 21])];
        assert_eq!(counts.of, expected.map(|(name, n)| (name.to_owned(), n.to_vec())));
        for bad in ["", "rep", "rep x total 3", "rep 0 total", "rep 0 total x"] {
            assert!(Counts::default().read(bad).is_none(), "{bad}");
        }
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! CPUs that lend at once: what each executes, counted by a plugin of QEMU's.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use object::{Object as _, ObjectSymbol as _};
use xtask::artefacts::Artefacts;
use xtask::layout::{MIB, RAM_BASE};
use xtask::qemu::{Machine, Module};

use super::payload;
use super::report::{ESCROW, Row};

/// Where QEMU puts Escrow.
const ESCROW_AT: u64 = RAM_BASE + 2 * MIB;
/// What begins the symbols of functions that take samples.
const PREFIX: &str = "sample_";
/// `hvc #0`, little-endian.
const HVC: [u8; 4] = 0xd400_0002_u32.to_le_bytes();
/// CPUs of the machine on which they lend at once.
const CPUS: u32 = 8;
/// How many of the calls of several CPUs must have met another, at the least:
/// nobody waits for nobody. A call meets another if a slice ended within that one, so
/// of two CPUs as many do as a CPU's time is spent in calls; the shorter the call, the fewer.
const MEETINGS: f64 = 0.25;

/// A row and where it makes its call.
struct Site {
    name: String,
    at: u64,
}

/// What a call took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sample {
    instructions: u64,
    tlbi: u64,
    dsb: u64,
    isb: u64,
    /// Whether another CPU was in a call meanwhile.
    met: bool,
}

/// Measures on a machine with one CPU, where the counter must agree with the
/// plugin, and on one with several.
pub fn measure(artefacts: &Artefacts, plugin: &Path) -> Result<Vec<Row>> {
    let (alone, counted) = run(artefacts, plugin, 1)?;
    let mut rows = Vec::new();
    for (name, samples) in &alone {
        let counter = counted.iter().find(|row| row.name == format!("{PREFIX}{name}"));
        let counter = counter.with_context(|| format!("the counter knows no {name}"))?;
        let row = instructions(name, samples)?;
        ensure!(
            (row.min - counter.min).abs() < 0.01 && (row.mean - counter.mean).abs() < 0.01,
            "{name}: the plugin counts {row:?}, the counter {counter:?}"
        );
        if cpus(name).is_none() {
            rows.extend(upkeep(name, samples)?);
        }
    }
    let (together, _) = run(artefacts, plugin, CPUS)?;
    for (name, samples) in together {
        let Some(cpus) = cpus(&name) else { continue };
        let met = samples.iter().filter(|sample| sample.met).count() as f64;
        ensure!(
            cpus == 1 || met >= MEETINGS * samples.len() as f64,
            "{name}: only {met} of {} calls met another",
            samples.len()
        );
        rows.push(instructions(&name, &samples)?);
    }
    Ok(rows)
}

/// How many CPUs lend at once in a row, if that is its subject.
fn cpus(name: &str) -> Option<u32> {
    name.rsplit_once("_cpus_")?.1.parse().ok()
}

/// How many pages a row's call is about: rows of lists are about one of them.
fn pages(name: &str) -> f64 {
    let pages = || name.split_once("x4k")?.0.rsplit('_').next()?.parse().ok();
    pages().unwrap_or(1.0)
}

fn instructions(name: &str, samples: &[Sample]) -> Result<Row> {
    let counts: Vec<_> = samples.iter().map(|sample| sample.instructions).collect();
    let mut row = Row::of_samples(name, ESCROW, &counts)?;
    row.min /= pages(name);
    row.mean /= pages(name);
    Ok(row)
}

/// Rows of the invalidations and barriers of a call.
fn upkeep(name: &str, samples: &[Sample]) -> Result<Vec<Row>> {
    type Count = fn(&Sample) -> u64;
    let kinds: [(&str, Count); 3] = [("tlbi", |s| s.tlbi), ("dsb", |s| s.dsb), ("isb", |s| s.isb)];
    let rows = kinds.map(|(kind, count)| {
        let counts: Vec<_> = samples.iter().map(count).collect();
        Row::of_samples(&format!("{name}_{kind}"), ESCROW, &counts)
    });
    rows.into_iter().collect()
}

type Rows = Vec<(String, Vec<Sample>)>;

/// Boots the payload. What the plugin counted in each row, and what the payload
/// counted itself.
fn run(artefacts: &Artefacts, plugin: &Path, cpus: u32) -> Result<(Rows, Vec<Row>)> {
    let program = artefacts.payloads.join("bench_cpus");
    let mut machine = Machine::new(&artefacts.qemu, &artefacts.image);
    machine.smp = cpus;
    machine.icount = true;
    machine.load_host(&program.with_extension("img"), None, "")?;
    let at = machine.modules.iter().find_map(|module| match module {
        Module::Kernel { address, .. } => Some(*address),
        Module::Ramdisk { .. } => None,
    });
    let sites = sites(&program.with_extension("elf"), at.context("there is no payload")?)?;
    let size = fs::metadata(&artefacts.image)?.len();
    machine.extra = plugin_arguments(plugin, ESCROW_AT..ESCROW_AT + size, &sites);
    machine.extra.extend(many_slices());
    let measured = payload::run(&machine, ESCROW)?;
    let mut rows: Rows = sites.into_iter().map(|site| (site.name, Vec::new())).collect();
    for line in measured.log.lines().filter(|line| line.starts_with("sample ")) {
        let (number, sample) = parse(line).with_context(|| format!("what is {line:?}?"))?;
        let row = rows.get_mut(number).with_context(|| format!("no row is {line:?}'s"))?;
        row.1.push(sample);
    }
    rows.retain(|(_, samples)| !samples.is_empty());
    ensure!(!rows.is_empty(), "the plugin counted nothing: {}", measured.log);
    Ok((rows, measured.rows))
}

/// Where the payload, loaded at `base`, makes the calls of its rows.
fn sites(elf: &Path, base: u64) -> Result<Vec<Site>> {
    let data = fs::read(elf).with_context(|| format!("cannot read {}", elf.display()))?;
    let file = object::File::parse(&*data).context("the payload is no ELF file")?;
    let mut sites = Vec::new();
    for symbol in file.symbols() {
        let Some(name) = symbol.name().ok().and_then(|name| name.strip_prefix(PREFIX)) else {
            continue;
        };
        let code = symbol.section_index().and_then(|index| {
            use object::ObjectSection as _;
            let section = file.section_by_index(index).ok()?;
            let start = usize::try_from(symbol.address().checked_sub(section.address())?).ok()?;
            section.data().ok()?.get(start..)
        });
        let code = code.with_context(|| format!("{name} is in no section"))?;
        // Each function has one call, or none.
        let words = || code.chunks_exact(4);
        let ends = words().position(|word| word == 0xd65f_03c0_u32.to_le_bytes());
        let call = words().take(ends.unwrap_or(0)).position(|word| word == HVC);
        sites.extend(
            call.map(|n| Site { name: name.into(), at: base + symbol.address() + 4 * n as u64 }),
        );
    }
    ensure!(!sites.is_empty(), "{} has no samples", elf.display());
    Ok(sites)
}

fn plugin_arguments(plugin: &Path, code: std::ops::Range<u64>, sites: &[Site]) -> Vec<OsString> {
    let samples: Vec<_> = sites.iter().map(|site| format!("{:x}", site.at)).collect();
    let mut argument = plugin.as_os_str().to_owned();
    argument.push(format!(
        ",from={:x},to={:x},samples={}",
        code.start,
        code.end,
        samples.join(":")
    ));
    vec!["-plugin".into(), argument, "-d".into(), "plugin".into()]
}

/// Has QEMU change between CPUs all the time. It lets each run until some timer
/// is due, so there has to be one: a network filter's, every microsecond, which
/// is 1,000 instructions of all CPUs.
fn many_slices() -> [OsString; 4] {
    [
        "-netdev".into(),
        "hubport,id=slices,hubid=0".into(),
        "-object".into(),
        "filter-buffer,id=slicer,netdev=slices,interval=1".into(),
    ]
}

/// A line of the plugin's: the number of its row, and the sample.
fn parse(line: &str) -> Option<(usize, Sample)> {
    let words: Vec<_> = line.split_whitespace().collect();
    let value = |key| {
        let at = words.iter().position(|word| *word == key)?;
        words.get(at + 1)?.parse::<u64>().ok()
    };
    let sample = Sample {
        instructions: value("instructions")?,
        tlbi: value("tlbi")?,
        dsb: value("dsb")?,
        isb: value("isb")?,
        met: value("met")? == 1,
    };
    Some((usize::try_from(value("sample")?).ok()?, sample))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_cpus_and_pages() {
        assert_eq!(cpus("lend_4k_cpus_8"), Some(8));
        assert_eq!(cpus("lend_4k"), None);
        assert_eq!(pages("lend_64x4k_per_page_cpus_2"), 64.0);
        assert_eq!(pages("lend_512x4k"), 512.0);
        assert_eq!(pages("lend_2m"), 1.0);
    }

    #[test]
    fn the_plugins_lines() {
        let line = "sample 3 cpu 1 instructions 250 tlbi 2 dsb 4 isb 1 met 1";
        let sample = Sample { instructions: 250, tlbi: 2, dsb: 4, isb: 1, met: true };
        assert_eq!(parse(line), Some((3, sample)));
        assert_eq!(parse("sample 3 cpu 1 instructions"), None);
    }
}

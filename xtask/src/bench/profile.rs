// SPDX-License-Identifier: MIT OR Apache-2.0

//! Which functions the instructions of a lend through the shim, or of an exit, are spent in: of
//! the host's kernel, of the module and of EL2. A plugin of QEMU's counts each instruction between
//! a guest's load and its next instruction; the host's kernel names its own functions.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use object::{Object as _, ObjectSymbol as _};
use xtask::artefacts::{Artefacts, BuildPaths};
use xtask::console::{Event, Session};
use xtask::layout::{MIB, RAM_BASE};

use super::shim;

/// Where QEMU puts Escrow.
const ESCROW_AT: u64 = RAM_BASE + 2 * MIB;
/// Where the guest's program begins, for the guest: `escrow_peers::guest::MEMORY`.
const GUEST_AT: u64 = 0x4000_0000;
/// Parts whose samples are exits, not lends.
const EXITS: [&str; 2] = ["mmio_user", "exit_with_host"];
/// Functions with less than this for each sample are not shown.
const LEAST: f64 = 0.5;
/// The plugin makes the machine several times slower.
const TIME_LIMIT: Duration = Duration::from_secs(1800);

/// Names of functions by where they begin.
#[derive(Default)]
struct Symbols(BTreeMap<u64, String>);

impl Symbols {
    /// A line of `/proc/kallsyms`.
    fn add_line(&mut self, line: &str) -> Option<()> {
        let mut words = line.split_whitespace();
        let (address, _kind, name) = (words.next()?, words.next()?, words.next()?);
        let address = u64::from_str_radix(address, 16).ok()?;
        if is_mapping_symbol(name) {
            return None;
        }
        let name = words.next().map_or(name.into(), |module| format!("{name} {module}"));
        self.0.insert(address, name);
        Some(())
    }

    /// The functions of EL2, where they are once it is loaded.
    fn add_elf(&mut self, elf: &Path) -> Result<()> {
        let data = fs::read(elf).with_context(|| format!("cannot read {}", elf.display()))?;
        let file = object::File::parse(&*data).context("EL2's image is no ELF file")?;
        let base = file.symbols().find(|symbol| symbol.name() == Ok("__image_start"));
        let base = base.context("EL2's image has no beginning")?.address();
        for symbol in file.symbols().filter(|symbol| !symbol.is_undefined()) {
            if is_mapping_symbol(symbol.name()?) {
                continue;
            }
            let address = symbol.address().wrapping_sub(base).wrapping_add(ESCROW_AT);
            self.0.insert(address, format!("{} [el2]", symbol.name()?));
        }
        Ok(())
    }

    fn name(&self, address: u64) -> &str {
        self.0.range(..=address).next_back().map_or("?", |(_, name)| name)
    }
}

/// Symbols of the architecture's own ("ELF for the Arm 64-bit Architecture", mapping
/// symbols) are no names of functions.
fn is_mapping_symbol(name: &str) -> bool {
    name.is_empty() || name.starts_with('$')
}

/// Runs a part of the program `shim-bench` and shows the functions of its lends or exits, the
/// dearest first.
pub fn show(
    artefacts: &Artefacts,
    paths: &BuildPaths,
    plugin: &Path,
    program: &Path,
    part: &str,
) -> Result<String> {
    let script = format!(
        "#!/bin/sh\ngrep -i ' t ' /proc/kallsyms | sed 's/^/symbol /'\nexec /bin/shim-bench {part}\n"
    );
    let initrd = shim::initramfs(artefacts, program, &script, &paths.bench())?;
    let mut machine = shim::machine(artefacts, shim::MEMORY_MIB, &initrd)?;
    let mut argument = plugin.as_os_str().to_owned();
    // A load that is lent for is executed again; one that is emulated is not.
    let samples = if EXITS.contains(&part) { 2 } else { 1 };
    argument.push(format!(",profile={samples},samples={:x}", touch(program)?));
    machine.extra = vec!["-plugin".into(), argument, "-d".into(), OsString::from("plugin")];

    let mut symbols = Symbols::default();
    symbols.add_elf(&paths.elf())?;
    let deadline = Instant::now() + TIME_LIMIT;
    let mut session = Session::start(machine.command())?;
    let mut passed = false;
    loop {
        match session.next(deadline) {
            Event::Line(line) => {
                if let Some(symbol) = line.strip_prefix("symbol ") {
                    symbols.add_line(symbol);
                }
                ensure!(!line.contains("FAILED"), "{line}");
                passed |= line.contains(" 1 passed, 0 failed");
            }
            Event::End => break,
            Event::TimeUp => bail!("no result within {} s", TIME_LIMIT.as_secs()),
        }
    }
    let log = session.finish()?.errors;
    ensure!(passed, "the machine stopped too early: {log}");
    table(&log, &symbols)
}

/// The guest's load that takes a sample.
fn touch(program: &Path) -> Result<u64> {
    let data = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    let file = object::File::parse(&*data).context("the program is no ELF file")?;
    let address = |name: &str| {
        let symbol = file.symbols().find(|symbol| symbol.name() == Ok(name));
        symbol.map(|symbol| symbol.address()).with_context(|| format!("there is no {name}"))
    };
    Ok(GUEST_AT + address("peer_guest_touch")? - address("peer_guest_begin")?)
}

/// What the plugin has told, by functions.
fn table(log: &str, symbols: &Symbols) -> Result<String> {
    let mut samples = 0;
    let mut functions = BTreeMap::<&str, u64>::new();
    for line in log.lines() {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["samples", number] => samples = number.parse::<u64>()?,
            ["executed", address, count] => {
                let name = symbols.name(u64::from_str_radix(address, 16)?);
                *functions.entry(name).or_default() += count.parse::<u64>()?;
            }
            _ => {}
        }
    }
    ensure!(samples > 0, "the plugin saw no sample: {log}");
    let each = |count: u64| count as f64 / samples as f64;
    let all = each(functions.values().sum());
    let mut functions: Vec<_> = functions.into_iter().collect();
    functions.sort_by_key(|&(name, count)| (std::cmp::Reverse(count), name));
    let mut text =
        format!("instructions of each of {samples} samples, by function:\n{all:9.1} all\n");
    for (name, count) in functions {
        if each(count) >= LEAST {
            text += &format!("{:9.1} {name}\n", each(count));
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_of_the_function_that_begins_before_them() {
        let mut symbols = Symbols::default();
        symbols.add_line("ffff800080010000 T first").unwrap();
        symbols.add_line("ffff800080010010 t second\t[escrow]").unwrap();
        let log = "samples 2\nexecuted ffff80008001000c 4\nexecuted ffff800080010010 1\n\
            executed ffff800080010014 3\nexecuted 10 2\n";
        let table = table(log, &symbols).unwrap();
        let lines: Vec<_> = table.lines().skip(1).map(str::trim).collect();
        assert_eq!(lines, ["5.0 all", "2.0 first", "2.0 second [escrow]", "1.0 ?"]);
    }
}

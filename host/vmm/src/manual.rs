// SPDX-License-Identifier: MIT OR Apache-2.0

//! `escrow man`: the manual pages, made of the help texts.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use clap::Command;
use clap_mangen::Man;

/// The date that the pages bear: none, so that they are the same each time.
const NO_DATE: &str = "";

/// Writes a page for `program` and one for each of its subcommands.
pub fn write(program: Command, folder: &Path) -> Result<()> {
    for (name, page) in pages(program)? {
        let path = folder.join(name);
        fs::write(&path, page).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// The pages, by the names of their files.
fn pages(mut program: Command) -> Result<Vec<(String, Vec<u8>)>> {
    // This sets the full name of each subcommand.
    program.build();
    let commands = program
        .get_subcommands()
        .filter(|command| command.get_name() != "help" && !command.is_hide_set());
    std::iter::once(&program)
        .chain(commands)
        .map(|command| {
            let name = command.get_display_name().unwrap_or(command.get_name()).to_owned();
            let mut page = Vec::new();
            let man = Man::new(command.clone()).title(&name).date(NO_DATE);
            man.source(concat!("escrow ", env!("CARGO_PKG_VERSION"))).render(&mut page)?;
            Ok((format!("{name}.1"), page))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_has_a_page_with_its_help() {
        let run = Command::new("run")
            .about("Start it")
            .after_help("Exit status:\n  0  well")
            .arg(clap::arg!(--kernel <FILE> "The kernel"));
        let pages = pages(Command::new("escrow").subcommand(run)).unwrap();
        let names: Vec<_> = pages.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["escrow.1", "escrow-run.1"]);
        let run = String::from_utf8(pages[1].1.clone()).unwrap();
        for words in [".TH escrow-run 1", "Start it", "The kernel", "Exit status:"] {
            assert!(run.contains(words), "{words} is not in {run}");
        }
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! The measured part of docs/performance.md: its tables, and its charts.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::report::Report;
use super::{chart, table};
use crate::say;
use crate::shell::write_if_changed;

/// What is between the two lines is written here.
const BEGIN: &str = "<!-- Written by `cargo xtask bench --chart`: -->\n";
const END: &str = "<!-- end of what it writes -->\n";

/// Writes tables and charts into the folder of the documentation.
pub fn update(report: &Report, folder: &Path) -> Result<()> {
    let page = folder.join("performance.md");
    let text =
        fs::read_to_string(&page).with_context(|| format!("cannot read {}", page.display()))?;
    write_if_changed(&page, replace(&text, &measured(report))?.as_bytes())?;
    let charts = [
        ("performance-peers.svg", chart::peers(report)),
        ("performance-growth.svg", chart::growth(report)),
    ];
    for (name, drawn) in charts {
        let drawn = drawn.with_context(|| format!("cannot draw {name}"))?;
        write_if_changed(&folder.join(name), drawn.as_bytes())?;
    }
    say!("tables and charts are in {}", folder.display());
    Ok(())
}

fn replace(text: &str, measured: &str) -> Result<String> {
    let parts = text.split_once(BEGIN).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(END)?;
        Some((before, after))
    });
    let Some((before, after)) = parts else { bail!("there is no place for the results") };
    Ok(format!("{before}{BEGIN}{measured}{END}{after}"))
}

fn measured(report: &Report) -> String {
    let parts = [
        ("### Escrow", table::own(report)),
        ("### Against peers", table::peers(report)),
        ("### What else the peers take", table::others(report)),
        ("### More pages in a call", table::growth(report)),
        ("### More CPUs at once", table::cpus(report)),
    ];
    let shown = parts.into_iter().filter(|(_, table)| !table.is_empty());
    let shown = shown.map(|(head, table)| format!("\n{head}\n\n{}", table.markdown()));
    shown.chain(["\n".into()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_replace_results() {
        let text = format!("before\n{BEGIN}old\n{END}after\n");
        let new = replace(&text, "new\n").unwrap();
        assert_eq!(new, format!("before\n{BEGIN}new\n{END}after\n"));
        assert_eq!(replace(&new, "new\n").unwrap(), new);
        assert!(replace("before\n", "new\n").is_err());
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

use std::io::{self, Write as _};

use anyhow::Result;
use escrow_abi::{FrameState, PAGE_SIZE};

use crate::host::Facts;

/// Prints what Escrow says of itself.
pub fn print(json: bool) -> Result<()> {
    let facts = Facts::read()?;
    let text = if json { serde_json::to_string_pretty(&facts)? + "\n" } else { table(&facts) };
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

fn table(facts: &Facts) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name:<24}{value}");
    };
    line("version", facts.version.clone());
    line("CPUs", facts.cpus.to_string());
    let list = |all: &[&str]| if all.is_empty() { "none".into() } else { all.join("; ") };
    line("errata of its CPUs", list(&facts.errata));
    line("entries hardened by", list(&facts.hardening));
    line("VMs besides the host", facts.vms.to_string());
    line("pages of RAM", format!("{:>10}", facts.pages.values().sum::<u64>()));
    for state in FrameState::ALL {
        let count = facts.pages_in(state);
        let kib = count * PAGE_SIZE / 1024;
        line(&format!("  {}", state.name()), format!("{count:>10}  ({kib} KiB)"));
    }
    text
}

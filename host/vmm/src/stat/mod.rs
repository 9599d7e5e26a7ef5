// SPDX-License-Identifier: MIT OR Apache-2.0

//! `escrow stat`: Escrow's pages by state and what the shim has counted, once
//! or again and again, for people or as JSON.

mod read;
mod table;
mod watch;

use std::io::{self, IsTerminal as _, Write as _};
use std::os::fd::AsFd as _;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use read::{Report, Sources};
use watch::{Next, Pace};

/// What to show, and how often.
#[derive(Args, Clone, Copy, Debug)]
pub struct Arguments {
    /// Print JSON; with --watch one object a line
    #[arg(long)]
    json: bool,
    /// Show it again every so many seconds (1, if not said), until Ctrl-C
    #[arg(
        long,
        short,
        value_name = "SECONDS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "1",
        value_parser = watch::parse_seconds,
    )]
    watch: Option<Duration>,
}

/// Shows it.
pub fn stat(arguments: Arguments) -> Result<()> {
    let sources = Sources::default();
    let out = io::stdout();
    // Read once before the screen is cleared, so that an error stays visible.
    let first = sources.read()?;
    let Some(period) = arguments.watch else {
        out.lock().write_all(&text(arguments.json, &first, None)?)?;
        return Ok(out.lock().flush()?);
    };
    let pace = Pace::start(period)?;
    let mut before: Option<Report> = None;
    let mut report = first;
    loop {
        let text = text(arguments.json, &report, before.as_ref().or(Some(&report)))?;
        if pace.write(out.as_fd(), &text)? == Next::End || pace.wait(out.as_fd())? == Next::End {
            return Ok(());
        }
        let now = sources.read()?;
        before = Some(std::mem::replace(&mut report, now));
    }
}

/// One report as it is printed; `before` is there if it is one of several.
fn text(json: bool, report: &Report, before: Option<&Report>) -> Result<Vec<u8>> {
    if !json {
        let screen = table::Screen::of(io::stdout().is_terminal());
        return Ok(table::render(report, before, screen).into_bytes());
    }
    let mut text = match before {
        None => serde_json::to_vec_pretty(report)?,
        Some(_) => serde_json::to_vec(report)?,
    };
    text.push(b'\n');
    Ok(text)
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! `escrow stat`: Escrow's pages by state and what the shim has counted, once
//! or again and again, for people or as JSON.

mod read;
mod table;
mod watch;

use std::io::{self, IsTerminal as _, Write};
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
    let mut out = io::stdout().lock();
    // What is wrong with the machine is said before the screen is cleared.
    let first = sources.read()?;
    let Some(period) = arguments.watch else {
        return show(&mut out, arguments.json, &first, None);
    };
    let pace = Pace::start(period)?;
    let mut before: Option<Report> = None;
    let mut report = first;
    loop {
        if let Err(error) =
            show(&mut out, arguments.json, &report, before.as_ref().or(Some(&report)))
        {
            // Whoever read has seen enough.
            let closed = error.downcast_ref::<io::Error>();
            if closed.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
                return Ok(());
            }
            return Err(error);
        }
        match pace.wait()? {
            Next::Show => {}
            Next::End => return Ok(()),
        }
        let now = sources.read()?;
        before = Some(std::mem::replace(&mut report, now));
    }
}

/// Prints one report; `before` is there if it is one of several.
fn show(out: &mut impl Write, json: bool, report: &Report, before: Option<&Report>) -> Result<()> {
    if json {
        match before {
            None => serde_json::to_writer_pretty(&mut *out, report).map_err(io::Error::from)?,
            Some(_) => serde_json::to_writer(&mut *out, report).map_err(io::Error::from)?,
        }
        writeln!(out)?;
    } else {
        let screen = table::Screen::of(io::stdout().is_terminal());
        out.write_all(table::render(report, before, screen).as_bytes())?;
    }
    out.flush()?;
    Ok(())
}

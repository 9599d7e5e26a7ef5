// SPDX-License-Identifier: MIT OR Apache-2.0

//! `escrow stat`: Escrow's pages by state, what the shim has counted and the
//! guests, or one guest alone; once or again and again, for people or as JSON.

mod guests;
mod read;
mod table;
mod watch;

use std::io::{self, IsTerminal as _, Write as _};
use std::os::fd::AsFd as _;
use std::time::Duration;
use std::{mem, slice};

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use guests::Guest;
use read::{Report, Sources};
use watch::{Next, Pace};

use crate::run::Name;

/// What to show, and how often.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// A guest's name: only this guest. A user who is not root may ask for his own
    name: Option<Name>,
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

/// What is shown.
enum Shown {
    Machine(Box<Report>),
    Guest(Box<Guest>),
}

impl Shown {
    fn read(name: Option<&Name>, sources: &Sources) -> Result<Shown> {
        Ok(match name {
            None => Shown::Machine(Box::new(sources.read()?)),
            Some(name) => Shown::Guest(Box::new(guests::read_one(name)?)),
        })
    }

    /// As it is printed; `before` is there if it is one of several.
    fn text(&self, json: bool, before: Option<&Shown>) -> Result<Vec<u8>> {
        let mut text = match (self, json) {
            (Shown::Machine(report), true) => as_json(report, before.is_some())?,
            (Shown::Guest(guest), true) => as_json(guest, before.is_some())?,
            (Shown::Machine(report), false) => {
                let before = before.and_then(|before| match before {
                    Shown::Machine(report) => Some(&**report),
                    Shown::Guest(_) => None,
                });
                table::render(report, before, screen()).into_bytes()
            }
            (Shown::Guest(guest), false) => {
                let before = before.and_then(|before| match before {
                    Shown::Guest(guest) => Some(slice::from_ref(&**guest)),
                    Shown::Machine(_) => None,
                });
                table::render_guests(slice::from_ref(guest), before, screen()).into_bytes()
            }
        };
        if json {
            text.push(b'\n');
        }
        Ok(text)
    }
}

/// An object, in one line if it is one of several.
fn as_json(value: &impl Serialize, repeats: bool) -> Result<Vec<u8>> {
    Ok(if repeats { serde_json::to_vec(value)? } else { serde_json::to_vec_pretty(value)? })
}

fn screen() -> table::Screen {
    table::Screen::of(io::stdout().is_terminal())
}

/// Shows it.
pub fn stat(arguments: &Arguments) -> Result<()> {
    let sources = Sources::default();
    let read = || Shown::read(arguments.name.as_ref(), &sources);
    let out = io::stdout();
    // Read once before the screen is cleared, so that an error stays visible.
    let mut shown = read()?;
    let Some(period) = arguments.watch else {
        out.lock().write_all(&shown.text(arguments.json, None)?)?;
        return Ok(out.lock().flush()?);
    };
    let pace = Pace::start(period)?;
    let mut before: Option<Shown> = None;
    loop {
        let text = shown.text(arguments.json, before.as_ref().or(Some(&shown)))?;
        if pace.write(out.as_fd(), &text)? == Next::End || pace.wait(out.as_fd())? == Next::End {
            return Ok(());
        }
        before = Some(mem::replace(&mut shown, read()?));
    }
}

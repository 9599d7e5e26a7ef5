// SPDX-License-Identifier: MIT OR Apache-2.0

//! Counts what lending 256 MiB through the shim takes, in 4 KiB and in 2 MiB
//! folios, and what their way home takes; or what a guest's exits take.
//!
//! The guest and the counting are those of the peers (`tests/peers`). The lines
//! that `cargo xtask bench` reads are those of the payload `bench`, and end with
//!
//! ```text
//! payload bench: 1 passed, 0 failed, 0 skipped
//! ```
//!
//! With the argument `exits` it counts those. With another, `lend_4k`, `lend_2m` or
//! `lend_4k_scattered`, it only lends in that way, and with `mmio_user` or `exit_with_host` it has
//! only those exits, with the PMU off, for whoever profiles it.

#![deny(clippy::print_stdout, clippy::print_stderr)]

mod exits;
mod lender;

use std::io::{self, Write as _};

use anyhow::{Result, bail};
use escrow_peers::counter::{self, Counters};
use escrow_peers::guest::PAGES_PER_BLOCK;
use escrow_peers::lending::{self, Rows};
use escrow_peers::{tell, wait_for_quiet};
use escrow_shim_tests::gunyah::Device;
use escrow_vmcore::uapi::MEM_ALLOW_HUGEPAGE;

use lender::Shim;

const PAGES: &[Rows] =
    &[Rows { lend: "shim_lend_4k", reclaim: "shim_reclaim_4k", parts: PAGES_PER_BLOCK }];
const BLOCKS: &[Rows] = &[Rows { lend: "shim_lend_2m", reclaim: "shim_reclaim_2m", parts: 1 }];

fn main() {
    tell("bench::shim", measure());
}

fn measure() -> Result<()> {
    wait_for_quiet();
    writeln!(io::stdout(), "bench: frequency {}", counter::frequency())?;
    let device = Device::open()?;
    let mut counters = Counters::start()?;
    let (pages, blocks, scattered) = (
        Shim { device: &device, flags: 0 },
        Shim { device: &device, flags: MEM_ALLOW_HUGEPAGE },
        "shim_lend_4k_scattered",
    );
    match std::env::args().nth(1).as_deref() {
        None => {
            lending::measure(&pages, PAGES, &mut counters)?;
            lending::measure(&blocks, BLOCKS, &mut counters)?;
            pages.scattered(&mut counters, true)?.print(scattered, PAGES_PER_BLOCK)?;
            pages.fetches(&mut counters)
        }
        Some("exits") => exits::measure(&pages, &mut counters),
        Some(row @ ("mmio_user" | "exit_with_host")) => exits::only(&pages, row, &mut counters),
        Some("lend_4k") => lending::totals(&pages, &mut counters).map(drop),
        Some("lend_2m") => lending::totals(&blocks, &mut counters).map(drop),
        Some("lend_4k_scattered") => pages.scattered(&mut counters, false).map(drop),
        Some(other) => bail!("nothing is called {other}"),
    }
}

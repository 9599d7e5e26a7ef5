// SPDX-License-Identifier: MIT OR Apache-2.0

//! Counts what lending 256 MiB through the shim takes, in 4 KiB and in 2 MiB
//! folios, and what their way home takes.
//!
//! The guest and the counting are those of the peers (`tests/peers`). The lines
//! that `cargo xtask bench` reads are those of the payload `bench`, and end with
//!
//! ```text
//! payload bench: 1 passed, 0 failed, 0 skipped
//! ```
//!
//! With an argument, `lend_4k`, `lend_2m` or `fetch_4k`, it counts only that, for
//! whoever profiles it.

#![deny(clippy::print_stdout, clippy::print_stderr)]

mod lender;

use std::io::{self, Write as _};

use anyhow::Result;
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
    let only = std::env::args().nth(1);
    let wanted = |part: &str| only.as_deref().is_none_or(|only| only == part);
    for (part, flags, rows) in [("lend_4k", 0, PAGES), ("lend_2m", MEM_ALLOW_HUGEPAGE, BLOCKS)] {
        if wanted(part) {
            lending::measure(&Shim { device: &device, flags }, rows, &mut counters)?;
        }
    }
    if wanted("lend_4k_scattered") {
        Shim { device: &device, flags: 0 }.scattered(&mut counters)?;
    }
    if wanted("fetch_4k") {
        Shim { device: &device, flags: 0 }.fetches(&mut counters)?;
    }
    Ok(())
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! Tests of the shim from user space: what programs may do with `/dev/gunyah`,
//! and what becomes of pages when several do several things at once.
//!
//! Each test is a process of its own. Whatever it leaves open ends with it,
//! and Escrow's counts must then be what they were before.
//!
//! ```text
//! test lent::pages_come_home ... ok
//! 1 passed, 0 failed
//! ```
//!
//! `--hold`, `--crowd`, `--storm`, `--kexec` and `--reboot-kexec` are for the system tests of sleep and of the machine's
//! end, `--scene` and `--vmcore` for that of a crash dump.

#![deny(clippy::print_stdout, clippy::print_stderr)]

mod crowd;
mod dump;
mod hold;
mod kexec;
mod nbd;
mod tests;
mod uffd;
mod wait;

use std::process::ExitCode;

use escrow_shim_tests::say;
use escrow_shim_tests::{access, facts, guest, gunyah, holder, modules, runner, tree};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["--hold", pages] => pages.parse().map_err(anyhow::Error::from).and_then(hold::hold),
        ["--crowd", vms] => vms.parse().map_err(anyhow::Error::from).and_then(crowd::crowd),
        ["--storm"] => crowd::storm(),
        ["--kexec", image, initrd] => kexec::load(image, initrd),
        ["--reboot-kexec"] => kexec::reboot(),
        ["--scene"] => dump::scene(),
        ["--vmcore"] => dump::vmcore(),
        _ => {
            let tests: Vec<_> = [tests::ALL, tests::holders::ALL].concat();
            return runner::run(&tests);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say!("FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

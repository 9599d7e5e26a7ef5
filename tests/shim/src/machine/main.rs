// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a host finds beside the RAM that it was booted with: memory that was added
//! since, and memory of PCI devices; and what becomes of it when all its RAM is taken. The machine has to have it; the first argument
//! says which tests are about it.

#![deny(clippy::print_stdout, clippy::print_stderr)]

mod added;
mod bars;
mod oom;

use std::process::ExitCode;

use escrow_shim_tests::runner::{self, Test};

const ALL: &[Test] = &[
    ("added::works_as_memory", added::works_as_memory),
    ("added::guests_have_memory_of_boot", added::guests_have_memory_of_boot),
    ("added::guests_have_blocks_of_boot", added::guests_have_blocks_of_boot),
    ("added::what_a_guest_had_is_used_again", added::what_a_guest_had_is_used_again),
    ("added::want_of_memory_of_boot_is_an_error", added::want_of_memory_of_boot_is_an_error),
    ("bars::combine_writes", bars::combine_writes),
    ("oom::the_vmm_is_killed", oom::the_vmm_is_killed),
];

fn main() -> ExitCode {
    runner::run(ALL)
}

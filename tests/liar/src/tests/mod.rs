// SPDX-License-Identifier: MIT OR Apache-2.0

//! The tests.

mod compat;
mod ends;
mod kernel;
mod uaccess;
mod user;
mod walks;

use anyhow::{Context as _, Result};
use escrow_shim_tests::say;
use escrow_shim_tests::tests;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use crate::borrower::Borrower;
use crate::device::Liar;
use crate::region::{PAGE, Region};

tests! {
    user::loads_and_stores_of_anonymous_memory,
    user::loads_and_stores_of_a_huge_page,
    user::loads_and_stores_of_a_file,
    user::accesses_over_the_edge,
    user::instructions,
    user::who_does_not_handle_it_dies_alone,
    compat::of_32_bit_processes,
    uaccess::of_the_kernel_s_functions,
    uaccess::of_system_calls,
    uaccess::part_of_a_buffer,
    uaccess::futexes,
    uaccess::a_futex_operation_waits_for_the_page,
    kernel::nofault,
    kernel::kcore,
    kernel::words_over_the_edge,
    ends::of_a_load,
    ends::of_a_store,
    ends::of_an_atomic,
    ends::of_a_jump,
    ends::of_a_kernel_thread,
    ends::of_a_read_of_a_file,
    ends::of_many_tasks,
    walks::of_user_loads,
    walks::of_user_stores,
    walks::of_user_fetches,
    walks::of_uaccess,
    walks::of_at,
}

/// Three pages of this process, the middle one of which is lent behind Linux's
/// back.
fn middle_lent<'a>(liar: &'a Liar, region: &Region) -> Result<(Borrower<'a>, usize)> {
    let mut borrower = Borrower::new(liar)?;
    borrower.lend(liar.hold(region.page(1))?.frame)?;
    Ok((borrower, region.page(1)))
}

/// Takes the middle page home; its neighbours are as they were all along.
fn middle_home(borrower: Borrower<'_>, region: &Region) -> Result<()> {
    borrower.home()?;
    let [before, middle, after] = [region.is_filled(0), region.is_zero(1), region.is_filled(2)];
    anyhow::ensure!(before && after, "a page that was never lent has changed");
    anyhow::ensure!(middle, "the page has come home with something in it");
    region.fill();
    anyhow::ensure!(region.is_filled(1), "the page does not keep what is written to it");
    Ok(())
}

/// How a process ends that does this; 0 for its status if it comes to the end
/// of it.
fn in_child(run: impl FnOnce() -> Result<()>) -> Result<WaitStatus> {
    // SAFETY: this process has one thread, so the child may do anything.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Child => {
            let status = match run() {
                Ok(()) => 0,
                Err(error) => {
                    say!("in the child: {error:#}");
                    1
                }
            };
            // SAFETY: ends this process without what the parent set up for
            // its own end.
            unsafe { libc::_exit(status) }
        }
        ForkResult::Parent { child } => waitpid(child, None).context("waitpid"),
    }
}

/// The status of a process that a signal has ended.
fn killed_by(status: WaitStatus) -> Option<nix::sys::signal::Signal> {
    match status {
        WaitStatus::Signaled(_, signal, _) => Some(signal),
        _ => None,
    }
}

/// An address with nothing near: it has tables of its own at all levels but
/// the topmost.
const REMOTE: usize = 0x4000_0000_0000;
const _: () = assert!(REMOTE.is_multiple_of(PAGE << 27));

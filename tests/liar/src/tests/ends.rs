// SPDX-License-Identifier: MIT OR Apache-2.0

//! Accesses of the kernel's own that nothing repairs: they end the task that
//! made them, and that task alone.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, Result, ensure};
use escrow_shim_tests::runner::same;
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;

use super::{in_child, killed_by, middle_home, middle_lent};
use crate::borrower::Borrower;
use crate::device::{Liar, Way};
use crate::log;
use crate::region::{PAGE, Region};

/// The task ends in its access, the kernel says so, and all others live.
fn ends(way: Way, function: &str) -> Result<()> {
    let (liar, region) = (Liar::open()?, Region::shared(3)?);
    let at = liar.hold(region.page(1))?.linear as usize + 0x48;
    let (borrower, _) = middle_lent(&liar, &region)?;
    log::clear()?;
    for _ in 0..2 {
        let status = in_child(|| liar.probe(way, at, 0, 1).map(drop))?;
        same(killed_by(status), Some(Signal::SIGSEGV))?;
        let oops = log::oops()?;
        same(oops.function.as_str(), function)?;
        same(oops.address, Some(at))?;
    }
    alive()?;
    middle_home(borrower, &region)?;
    let status = in_child(|| liar.probe(way, at, 0, 1).map(drop))?;
    ensure!(matches!(status, WaitStatus::Exited(_, 0)), "at home: {status:?}");
    region.fill();
    Ok(())
}

/// The machine still does what machines do.
fn alive() -> Result<()> {
    let status = in_child(|| {
        let path = "/tmp/alive";
        std::fs::write(path, [7; 3 * PAGE])?;
        let seen = std::fs::read(path)?;
        std::fs::remove_file(path)?;
        ensure!(seen == [7; 3 * PAGE], "files do not keep what is in them");
        Ok(())
    })?;
    ensure!(matches!(status, WaitStatus::Exited(_, 0)), "{status:?}");
    Ok(())
}

/// A load.
pub fn of_a_load() -> Result<()> {
    ends(Way::Load, "liar_load")
}

/// A store.
pub fn of_a_store() -> Result<()> {
    ends(Way::Store, "liar_store")
}

/// An atomic addition.
pub fn of_an_atomic() -> Result<()> {
    ends(Way::Atomic, "liar_atomic")
}

/// An instruction fetch.
pub fn of_a_jump() -> Result<()> {
    let liar = Liar::open()?;
    let code = liar.code()?;
    let at = code.linear as usize;
    liar.probe(Way::Call, at, 0, 0)?;
    let mut borrower = Borrower::new(&liar)?;
    borrower.lend(code.frame)?;
    log::clear()?;
    let status = in_child(|| liar.probe(Way::Call, at, 0, 0).map(drop))?;
    same(killed_by(status), Some(Signal::SIGSEGV))?;
    let oops = log::oops()?;
    ensure!(oops.error.starts_with("synchronous external abort"), "{oops:x?}");
    alive()?;
    borrower.home()?;
    same(liar.probe(Way::NoFault, at, 0, 0)?, (0, 0))?;
    liar.restore()?;
    liar.probe(Way::Call, at, 0, 0).map(drop)
}

/// A thread of the kernel's, which belongs to no program.
pub fn of_a_kernel_thread() -> Result<()> {
    let (liar, region) = (Liar::open()?, Region::shared(3)?);
    let at = liar.hold(region.page(1))?.linear as usize;
    same(liar.probe(Way::ThreadLoad, at, 0, 0)?.1, 0)?;
    let (borrower, _) = middle_lent(&liar, &region)?;
    log::clear()?;
    same(liar.probe(Way::ThreadLoad, at, 0, 0)?.1, -i64::from(libc::EINTR))?;
    let oops = log::oops()?;
    same((oops.function.as_str(), oops.address), ("liar_load", Some(at)))?;
    alive()?;
    middle_home(borrower, &region)?;
    same(liar.probe(Way::ThreadLoad, at, 0, 0)?.1, 0)
}

/// `read` of a file whose page in the page cache is lent: the fault is on the
/// kernel's side of the copy.
pub fn of_a_read_of_a_file() -> Result<()> {
    let path = "/tmp/cached";
    std::fs::write(path, [7; 3 * PAGE])?;
    let file = File::options().read(true).write(true).open(path)?;
    let (liar, region) = (Liar::open()?, Region::file(&file, 3)?);
    region.fill();
    let linear = liar.hold(region.page(1))?.linear as usize;
    let (borrower, _) = middle_lent(&liar, &region)?;
    log::clear()?;
    let status = in_child(|| {
        let mut bytes = vec![0; PAGE];
        file.read_at(&mut bytes, PAGE as u64)?;
        Ok(())
    })?;
    same(killed_by(status), Some(Signal::SIGSEGV))?;
    let oops = log::oops()?;
    same((oops.function.as_str(), oops.address), ("__arch_copy_to_user", Some(linear)))?;
    alive()?;
    std::fs::remove_file(path)?;
    middle_home(borrower, &region)
}

/// Several at once, on all CPUs.
pub fn of_many_tasks() -> Result<()> {
    let (liar, region) = (Liar::open()?, Region::shared(3)?);
    let at = liar.hold(region.page(1))?.linear as usize;
    let (borrower, _) = middle_lent(&liar, &region)?;
    let mut children = Vec::new();
    for _ in 0..8 {
        // SAFETY: this process has one thread, so the child may do anything.
        match unsafe { nix::unistd::fork() }.context("fork")? {
            nix::unistd::ForkResult::Child => {
                let _ = liar.probe(Way::Load, at, 0, 0);
                // SAFETY: ends this process without what the parent set up
                // for its own end.
                unsafe { libc::_exit(0) }
            }
            nix::unistd::ForkResult::Parent { child } => children.push(child),
        }
    }
    for child in children {
        let status = nix::sys::wait::waitpid(child, None)?;
        same(killed_by(status), Some(Signal::SIGSEGV))?;
    }
    let lines = log::take()?;
    let count = lines.iter().filter(|line| line.contains("Internal error: ")).count();
    same(count, 8)?;
    alive()?;
    middle_home(borrower, &region)
}

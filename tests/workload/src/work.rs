// SPDX-License-Identifier: MIT OR Apache-2.0

//! The parts of the work. Sizes are such that each part is some millions of
//! instructions: long enough for a few timer interrupts, so that these count
//! in both of two runs that are compared.

use std::fs::{self, File};
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::num::NonZeroUsize;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork, getppid};

const PAGE: usize = 4096;

/// Ends a child of a fork, without what the parent would do at its end.
fn leave(result: Result<()>) -> ! {
    // SAFETY: ends the process; no code of it runs afterwards.
    unsafe { nix::libc::_exit(i32::from(result.is_err())) }
}

/// Runs `f` in a child process, and `g` meanwhile in this one.
fn with_child(f: impl FnOnce() -> Result<()>, g: impl FnOnce() -> Result<()>) -> Result<()> {
    // SAFETY: the program has one thread, so the child may do whatever it
    // could do.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Child => leave(f()),
        ForkResult::Parent { child } => {
            let here = g();
            let status = waitpid(child, None).context("waitpid")?;
            ensure!(matches!(status, WaitStatus::Exited(_, 0)), "the child: {status:?}");
            here
        }
    }
}

/// The shortest system calls.
pub fn system_calls() -> Result<()> {
    for _ in 0..20_000 {
        getppid();
    }
    Ok(())
}

/// Fresh memory, touched page by page, and given back.
pub fn page_faults() -> Result<()> {
    const PAGES: usize = 512;
    let length = NonZeroUsize::new(PAGES * PAGE).context("no pages")?;
    for _ in 0..8 {
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a mapping of its own, at an address of the kernel's choice.
        let memory = unsafe { mmap_anonymous(None, length, access, MapFlags::MAP_PRIVATE) }?;
        for page in 0..PAGES {
            // SAFETY: within the mapping, which nobody else knows.
            unsafe { memory.byte_add(page * PAGE).cast::<u8>().write_volatile(1) };
        }
        // SAFETY: nothing points into the mapping any more.
        unsafe { munmap(memory, length.get()) }?;
    }
    Ok(())
}

/// Processes that begin and end.
pub fn processes() -> Result<()> {
    for _ in 0..40 {
        with_child(|| Ok(()), || Ok(()))?;
    }
    Ok(())
}

/// Two processes that pass a word back and forth.
pub fn pipe() -> Result<()> {
    const ROUNDS: u64 = 1_000;
    fn receive(from: &mut PipeReader) -> Result<u64> {
        let mut word = [0; 8];
        from.read_exact(&mut word)?;
        Ok(u64::from_le_bytes(word))
    }
    fn send(to: &mut PipeWriter, word: u64) -> Result<()> {
        Ok(to.write_all(&word.to_le_bytes())?)
    }
    let (mut there_reader, mut there_writer) = io::pipe()?;
    let (mut back_reader, mut back_writer) = io::pipe()?;
    with_child(
        || (0..ROUNDS).try_for_each(|_| send(&mut back_writer, receive(&mut there_reader)? + 1)),
        || {
            (0..ROUNDS).try_for_each(|round| {
                send(&mut there_writer, round)?;
                let answer = receive(&mut back_reader)?;
                ensure!(answer == round + 1, "{answer} came back for {round}");
                Ok(())
            })
        },
    )
}

/// A file in memory, written, copied block by block, compared, removed.
pub fn files() -> Result<()> {
    const BLOCK: usize = 16 * 1024;
    const BLOCKS: usize = 64;
    let folder = Path::new("/tmp/workload");
    fs::create_dir_all(folder)?;
    let (source, copy) = (folder.join("source"), folder.join("copy"));
    for _ in 0..4 {
        let mut file = File::create(&source)?;
        for number in 0..BLOCKS {
            file.write_all(&[number as u8; BLOCK])?;
        }
        drop(file);
        let (mut from, mut to) = (File::open(&source)?, File::create(&copy)?);
        let mut block = vec![0; BLOCK];
        loop {
            let length = from.read(&mut block)?;
            if length == 0 {
                break;
            }
            to.write_all(&block[..length])?;
        }
        drop((from, to));
        ensure!(fs::read(&source)? == fs::read(&copy)?, "the copy differs");
        fs::remove_file(&source)?;
        fs::remove_file(&copy)?;
    }
    Ok(fs::remove_dir(folder)?)
}

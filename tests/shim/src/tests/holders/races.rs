// SPDX-License-Identifier: MIT OR Apache-2.0

//! Holders and lends at the same time, on all CPUs: whoever wins, a word is
//! what the host or the guest has written, and nobody's reference is lost.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail, ensure};
use escrow_abi::call::MODIFY_UNLOCK;
use escrow_vmcore::uapi::fdinfo;
use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};

use super::pipes::first_word;
use super::uring::Registered;
use super::{HELD, Holder, OFFSET, advice, at_home};
use crate::access::{Pin, read, write};
use crate::guest::{Guest, Order, RAM};
use crate::gunyah::{Device, Exit, Mapping, Memory, PAGE, RWX};
use crate::tests::same;

/// At least so long, and at most.
const TIME: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(40);

/// The pages that are fought for.
const PAGES: u64 = 6;

/// One thing that a host does to a page, once. `false`: the page was not in
/// reach.
type Peer = fn(&Guest, u64) -> Result<bool>;

/// Sorts what a system call says: done, out of reach, or wrong.
fn done<T>(result: Result<T, Errno>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Errno::EFAULT | Errno::EIO | Errno::ENOMEM) => Ok(None),
        Err(error) => bail!("{error}"),
    }
}

/// The guest writes a page's address there; a fresh page is zero.
fn check(page: u64, word: u64) -> Result<bool> {
    ensure!(word == 0 || word == RAM + page * PAGE, "page {page} holds {word:#x}");
    Ok(true)
}

fn reads(guest: &Guest, page: u64) -> Result<bool> {
    done(read(&guest.mapping, page * PAGE))?.map_or(Ok(false), |word| check(page, word))
}

/// Not the guest's word, but another one of the page.
fn writes(guest: &Guest, page: u64) -> Result<bool> {
    Ok(done(write(&guest.mapping, page * PAGE + 8, 1))?.is_some())
}

fn splices(guest: &Guest, page: u64) -> Result<bool> {
    match done(Pin::take(&guest.mapping, page))? {
        Some(pin) => check(page, first_word(&pin.drain()?)?),
        None => Ok(false),
    }
}

fn registers(guest: &Guest, page: u64) -> Result<bool> {
    match Registered::take(&guest.mapping, page) {
        Ok(ring) => check(page, ring.release()?),
        Err(error) => match error.downcast::<std::io::Error>()?.raw_os_error() {
            Some(libc::EFAULT) => Ok(false),
            other => bail!("the ring says {other:?}"),
        },
    }
}

fn copies(guest: &Guest, page: u64) -> Result<bool> {
    let mut word = [0; 8];
    let local = libc::iovec { iov_base: word.as_mut_ptr().cast(), iov_len: 8 };
    let remote = libc::iovec { iov_base: guest.mapping.at(page * PAGE).cast(), iov_len: 8 };
    let this = nix::unistd::getpid().as_raw();
    // SAFETY: into this frame, from an address that the kernel checks.
    let count = unsafe { libc::process_vm_readv(this, &local, 1, &remote, 1, 0) };
    done(Errno::result(count))?.map_or(Ok(false), |_| check(page, u64::from_le_bytes(word)))
}

fn peeks(guest: &Guest, page: u64) -> Result<bool> {
    let mut word = [0; 8];
    let file = File::open("/proc/self/mem")?;
    match file.read_exact_at(&mut word, guest.mapping.at(page * PAGE) as u64) {
        Ok(()) => check(page, u64::from_le_bytes(word)),
        Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn populates(guest: &Guest, page: u64) -> Result<bool> {
    Ok(done(advice::madvise_range(&guest.mapping, page, 1, advice::MADV_POPULATE_WRITE))?.is_some())
}

fn maps_anew(guest: &Guest, page: u64) -> Result<bool> {
    let mapping = guest.memory.map(page, 1)?;
    done(read(&mapping, 0))?.map_or(Ok(false), |word| check(page, word))
}

fn locks(guest: &Guest, page: u64) -> Result<bool> {
    let start = guest.mapping.at(page * PAGE).cast();
    // SAFETY: changes no contents.
    Ok(done(Errno::result(unsafe { libc::mlock(start, PAGE as usize) }))?.is_some())
}

/// Threads of one host, and the guest that takes the pages and gives them back.
struct Race {
    guest: Guest,
    over: AtomicBool,
    /// For each peer: in reach, and not.
    seen: Vec<[AtomicU64; 2]>,
}

impl Race {
    fn peer(&self, index: usize, peer: Peer) -> Result<()> {
        let cpus = sched_getaffinity(Pid::from_raw(0))?;
        let mut own = CpuSet::new();
        let count = (0..CpuSet::count()).filter(|cpu| cpus.is_set(*cpu) == Ok(true)).count();
        own.set(index % count.max(1))?;
        sched_setaffinity(Pid::from_raw(0), &own)?;
        for page in (HELD..HELD + PAGES).cycle() {
            if self.over.load(Ordering::Relaxed) {
                break;
            }
            let reached = peer(&self.guest, page)?;
            self.seen[index][usize::from(!reached)].fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn run(&self) -> Result<()> {
        while !self.over.load(Ordering::Relaxed) {
            match self.guest.vcpu.run() {
                Ok(Exit::PageFault(_, Errno::EAGAIN)) | Err(Errno::EINTR) => {}
                Ok(exit) => bail!("the guest says {exit:x?}"),
                Err(error) => bail!("the run ends with {error}"),
            }
        }
        Ok(())
    }

    /// Whether each has found a page in reach, and some have found one out of
    /// it. (Those who are often asleep seldom meet the guest.)
    fn has_seen_all(&self) -> bool {
        let is_seen = |count: &AtomicU64| count.load(Ordering::Relaxed) > 0;
        self.seen.iter().all(|[reached, _]| is_seen(reached))
            && self.seen.iter().any(|[_, out_of_reach]| is_seen(out_of_reach))
    }
}

fn race(peers: &[Peer]) -> Result<()> {
    let guest = at_home()?;
    write(&guest.mapping, OFFSET, 0)?;
    guest.order(Order::ComeAndGo(RAM + HELD * PAGE, PAGES, MODIFY_UNLOCK))?;
    let race = Race {
        guest,
        over: AtomicBool::new(false),
        seen: peers.iter().map(|_| Default::default()).collect(),
    };
    thread::scope(|scope| {
        let race = &race;
        let mut threads = vec![scope.spawn(|| race.run())];
        threads.extend(
            peers
                .iter()
                .enumerate()
                .map(|(index, &peer)| scope.spawn(move || race.peer(index, peer))),
        );
        let begin = Instant::now();
        while begin.elapsed() < TIME || !race.has_seen_all() && begin.elapsed() < PATIENCE {
            if threads.iter().any(|thread| thread.is_finished()) {
                break;
            }
            thread::sleep(TIME / 20);
        }
        race.over.store(true, Ordering::Relaxed);
        race.guest.vcpu.set_immediate_exit(true);
        for thread in threads {
            let Ok(result) = thread.join() else { bail!("a thread has panicked") };
            result?;
        }
        Ok(())
    })?;
    ensure!(race.has_seen_all(), "in reach and not, by peer: {:?}", race.seen);
    let Guest { memory, mapping, vm, vcpu } = race.guest;
    drop((vm, vcpu));
    for state in [fdinfo::LENT, fdinfo::SHARED, fdinfo::QUARANTINED] {
        same(memory.count(state)?, 0)?;
    }
    // Nobody's reference is left: it can be lent whole.
    drop(mapping);
    let other = Guest::started(&Device::open()?, 1, 0)?;
    let at = RAM + HELD * PAGE;
    other.vm.bind(at, RWX, &memory, HELD, PAGES)?;
    same(other.ask(Order::Visit(at, PAGES))?, PAGES)
}

/// Loads and stores on all CPUs, by more threads than there are of them.
pub fn faults_on_several_cpus() -> Result<()> {
    race(&[reads, writes, reads, writes, maps_anew, reads])
}

/// All who take a page by other ways than their tables.
pub fn everybody() -> Result<()> {
    race(&[reads, splices, registers, copies, peeks, populates, locks])
}

/// Bytes whose hole takes long enough to be waited for.
const LONG: u64 = 128 << 20;

/// A program that has faults in the last page of a memory, without a pause, and maps and
/// unmaps another one in a second thread: a byte each time.
fn that_faults(mapping: &Mapping, memory: &Memory) -> Result<(Pid, std::io::PipeReader)> {
    let (reader, writer) = std::io::pipe()?;
    // SAFETY: the tests run in a process with one thread.
    if let ForkResult::Parent { child } = unsafe { fork() }? {
        return Ok((child, reader));
    }
    thread::scope(|scope| {
        scope.spawn(|| {
            while read(mapping, LONG - PAGE).is_ok() {
                let _ = mapping.forget(LONG / PAGE - 1, 1);
            }
        });
        while let Ok(other) = memory.map(0, 1) {
            drop(other);
            let _ = nix::unistd::write(&writer, &[0]);
        }
    });
    // SAFETY: ends the child at once.
    unsafe { libc::_exit(1) }
}

/// A long hole keeps faults of the memory waiting. Meanwhile the other threads of the
/// program that faults map and unmap as they like, and it can be killed.
pub fn a_fault_that_waits_keeps_nobody() -> Result<()> {
    let memory = Device::open()?.memory(LONG / PAGE)?;
    let mapping = memory.map(0, LONG / PAGE)?;
    let (child, mut reader) = that_faults(&mapping, &memory)?;
    let is_done = AtomicBool::new(false);
    let hole = || {
        let begin = Instant::now();
        let result = memory.punch(0, LONG / PAGE);
        is_done.store(true, Ordering::Relaxed);
        result.map(|()| begin.elapsed())
    };
    let (took, longest) = thread::scope(|scope| -> Result<_> {
        memory.fallocate(0, 0, LONG)?;
        reader.read_exact(&mut [0])?;
        let hole = scope.spawn(hole);
        let mut last = Instant::now();
        let mut longest = Duration::ZERO;
        while !is_done.load(Ordering::Relaxed) {
            reader.read_exact(&mut [0])?;
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
        let took = hole.join().map_err(|_| anyhow!("a thread died"))??;
        Ok((took, longest))
    })?;
    ensure!(longest < took / 2, "kept waiting for {longest:?} by a hole that took {took:?}");

    is_done.store(false, Ordering::Relaxed);
    thread::scope(|scope| -> Result<_> {
        memory.fallocate(0, 0, LONG)?;
        let hole = scope.spawn(hole);
        thread::sleep(took / 4);
        kill(child, Signal::SIGKILL)?;
        waitpid(child, None)?;
        ensure!(!is_done.load(Ordering::Relaxed), "killed only when the hole was made");
        hole.join().map_err(|_| anyhow!("a thread died"))??;
        Ok(())
    })
}

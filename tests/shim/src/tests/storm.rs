// SPDX-License-Identifier: MIT OR Apache-2.0

//! Everything at once: a guest takes and gives up pages as fast as it can,
//! while threads of the host touch them, pin them, punch holes into them and
//! read them behind each other's backs.

use std::io::IoSliceMut;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use escrow_abi::call::{MODIFY_SANITIZE, MODIFY_UNLOCK};
use escrow_vmcore::uapi::fdinfo;
use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::getpid;

use crate::access::{self, Pin};
use crate::guest::{Guest, Order, RAM};
use crate::gunyah::{Device, Exit, PAGE};

/// The first page that is fought for, and how many there are.
const FIRST: u64 = 16;
const COUNT: u64 = 16;
const TIME: Duration = Duration::from_secs(3);
/// How long it goes on at the most, to see what must be seen.
const PATIENCE: Duration = Duration::from_secs(30);

/// The guest's pages come home zeroed.
pub fn unlocking_with_zeros() -> Result<()> {
    storm(MODIFY_UNLOCK | MODIFY_SANITIZE)
}

/// The guest's pages come home with what it wrote.
pub fn unlocking_with_contents() -> Result<()> {
    storm(MODIFY_UNLOCK)
}

/// Random enough to get in each other's way.
struct Random(u64);

impl Random {
    fn page(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        FIRST + self.0 % COUNT
    }
}

/// What the threads share.
struct Storm {
    guest: Guest,
    over: AtomicBool,
    /// Reads that came through.
    reached: AtomicU64,
    /// Reads that found the page with the guest.
    out_of_reach: AtomicU64,
}

impl Storm {
    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    fn run(&self) -> Result<()> {
        while self.goes_on() {
            match self.guest.vcpu.run() {
                // The host holds a page: the guest tries again.
                Ok(Exit::PageFault(_, Errno::EAGAIN)) | Err(Errno::EINTR) => {}
                Ok(exit) => bail!("the guest says {exit:x?}"),
                Err(error) => bail!("the run ends with {error}"),
            }
        }
        Ok(())
    }

    fn touch(&self, seed: u64) -> Result<()> {
        let (mut random, mapping) = (Random(seed), &self.guest.mapping);
        while self.goes_on() {
            let page = random.page();
            // The guest's own word for this page, zeros, or nothing at all.
            match access::read(mapping, page * PAGE) {
                Ok(word) if word == 0 || word == RAM + page * PAGE => {
                    self.reached.fetch_add(1, Ordering::Relaxed);
                }
                Ok(word) => bail!("page {page} holds {word:#x}"),
                Err(Errno::EFAULT) => {
                    self.out_of_reach.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => bail!("a read ends with {error}"),
            }
            match access::write(mapping, page * PAGE + 8, page) {
                Ok(()) | Err(Errno::EFAULT) => {}
                Err(error) => bail!("a write ends with {error}"),
            }
        }
        Ok(())
    }

    fn pin(&self, seed: u64) -> Result<()> {
        let mut random = Random(seed);
        while self.goes_on() {
            match Pin::take(&self.guest.mapping, random.page()) {
                Ok(pin) => drop(pin.drain()?),
                Err(Errno::EFAULT) => {}
                Err(error) => bail!("a pin ends with {error}"),
            }
        }
        Ok(())
    }

    fn punch(&self, seed: u64) -> Result<()> {
        let mut random = Random(seed);
        while self.goes_on() {
            match self.guest.memory.punch(random.page(), 1) {
                Ok(()) | Err(Errno::EBUSY) => {}
                Err(error) => bail!("a hole ends with {error}"),
            }
            thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    }

    fn peek(&self, seed: u64) -> Result<()> {
        let mut random = Random(seed);
        while self.goes_on() {
            let base = self.guest.mapping.at(random.page() * PAGE).addr();
            let mut bytes = [0; 64];
            let remote = [RemoteIoVec { base, len: bytes.len() }];
            match process_vm_readv(getpid(), &mut [IoSliceMut::new(&mut bytes)], &remote) {
                Ok(_) | Err(Errno::EFAULT) => {}
                Err(error) => bail!("process_vm_readv ends with {error}"),
            }
        }
        Ok(())
    }
}

impl Storm {
    /// Whether reads came through and others did not, as must be by turns.
    fn has_seen_both(&self) -> bool {
        [&self.reached, &self.out_of_reach].iter().all(|n| n.load(Ordering::Relaxed) > 0)
    }
}

fn storm(flags: u64) -> Result<()> {
    let guest = Guest::started(&Device::open()?, 32, 0)?;
    guest.order(Order::ComeAndGo(RAM + FIRST * PAGE, COUNT, flags))?;
    let storm = Storm {
        guest,
        over: AtomicBool::new(false),
        reached: AtomicU64::new(0),
        out_of_reach: AtomicU64::new(0),
    };
    let all: [fn(&Storm) -> Result<()>; 6] = [
        Storm::run,
        |storm| storm.touch(1),
        |storm| storm.touch(2),
        |storm| storm.pin(3),
        |storm| storm.punch(4),
        |storm| storm.peek(5),
    ];
    thread::scope(|scope| {
        let storm = &storm;
        let threads = all.map(|one| scope.spawn(move || one(storm)));
        let begin = Instant::now();
        thread::sleep(TIME);
        // On a slow machine one of the two may not have been seen yet.
        while !storm.has_seen_both() && begin.elapsed() < PATIENCE {
            thread::sleep(TIME / 10);
        }
        storm.over.store(true, Ordering::Relaxed);
        storm.guest.vcpu.set_immediate_exit(true);
        for thread in threads {
            thread.join().expect("no thread panics")?;
        }
        anyhow::Ok(())
    })?;

    let seen = [&storm.reached, &storm.out_of_reach].map(|n| n.load(Ordering::Relaxed));
    ensure!(storm.has_seen_both(), "reads that came through, or not: {seen:?}");
    let Guest { memory, vm, vcpu, .. } = storm.guest;
    drop((vm, vcpu));
    for state in [fdinfo::LENT, fdinfo::SHARED, fdinfo::QUARANTINED] {
        ensure!(memory.count(state)? == 0, "some pages are still {state}");
    }
    Ok(())
}

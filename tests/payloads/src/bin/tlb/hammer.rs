// SPDX-License-Identifier: MIT OR Apache-2.0

//! A CPU that reads and writes one place without a pause, and says which of
//! its accesses got through.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use escrow_abi::PAGE_SIZE;
use escrow_payloads::expect::is_taken_away;
use escrow_payloads::{Outcome, check, check_eq, cpus, probe};

/// Accesses that are enough to say that a CPU is in its loop.
const WARM: u64 = 20;

/// What a hammering CPU says of itself.
#[derive(Default)]
pub struct Hammer {
    /// Accesses that were begun; the number of the last of them.
    begun: AtomicU64,
    /// The number of the last one that got through.
    through: AtomicU64,
    /// Accesses that faulted as they should.
    faults: AtomicU64,
}

/// Where all hammering CPUs are at work, and until when.
#[derive(Default)]
pub struct Target {
    at: AtomicU64,
    /// Pages that nobody takes, in the same block; accesses to them never fault.
    kept: AtomicU64,
    stop: AtomicBool,
    pub hammers: [Hammer; cpus::MAX_CPUS],
}

impl Target {
    /// Sets the CPUs at another place; `kept` is a page that stays the host's.
    pub fn aim(&self, at: u64, kept: u64) {
        self.kept.store(kept, Ordering::SeqCst);
        self.at.store(at, Ordering::SeqCst);
    }

    /// Ends their loops.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    /// The loop of CPU `n`: even numbers read, odd ones write. Each CPU has a
    /// word of its own.
    ///
    /// # Errors
    /// A fault is not the one that it should be, or hits what is nobody else's.
    pub fn hammer(&self, n: usize) -> Outcome {
        let Hammer { begun, through, faults } = &self.hammers[n];
        while !self.stop.load(Ordering::Relaxed) {
            let at = self.at.load(Ordering::Relaxed) + n as u64 * 8;
            let number = begun.load(Ordering::Relaxed) + 1;
            begun.store(number, Ordering::SeqCst);
            // The number is seen before the access is made.
            fence(Ordering::SeqCst);
            let is_write = n % 2 == 1;
            let result =
                if is_write { probe::write(at, number) } else { probe::read(at).map(|_| ()) };
            match result {
                Ok(()) => through.store(number, Ordering::SeqCst),
                Err(fault) => {
                    is_taken_away(fault, at, is_write)?;
                    faults.fetch_add(1, Ordering::SeqCst);
                }
            }
            let kept = self.kept.load(Ordering::Relaxed);
            if kept != 0 {
                let kept = kept + n as u64 * 8;
                check_eq!(probe::write(kept, number), Ok(()), "a neighbour, {kept:#x}");
                check_eq!(probe::read(kept), Ok(number), "a neighbour, {kept:#x}");
            }
            cpus::relax();
        }
        Ok(())
    }

    /// CPU 0 does `work`, all others hammer meanwhile.
    ///
    /// # Errors
    /// Somebody has one.
    pub fn against(&self, work: impl Fn() -> Outcome + Sync) -> Outcome {
        cpus::try_on_all(|n| {
            let outcome = if n == 0 { work() } else { self.hammer(n) };
            if n == 0 || outcome.is_err() {
                self.stop();
            }
            outcome
        })
    }

    fn each(&self) -> impl Iterator<Item = &Hammer> {
        self.hammers[1..cpus::count()].iter()
    }

    /// Waits until each CPU has got through several times more.
    ///
    /// # Errors
    /// One does not.
    pub fn wait_until_through(&self) -> Outcome {
        for hammer in self.each() {
            let before = hammer.through.load(Ordering::SeqCst);
            let is_through = || hammer.through.load(Ordering::SeqCst) >= before + WARM;
            cpus::wait_until(|| is_through() || self.stop.load(Ordering::Relaxed), "none through")?;
        }
        Ok(())
    }

    /// The call that took the place away has just returned: from now on, no
    /// access that begins gets through.
    ///
    /// # Errors
    /// One does.
    pub fn is_taken(&self) -> Outcome {
        fence(Ordering::SeqCst);
        let mut begun = [0; cpus::MAX_CPUS];
        let mut faults = [0; cpus::MAX_CPUS];
        for (n, hammer) in self.each().enumerate() {
            begun[n] = hammer.begun.load(Ordering::SeqCst);
            faults[n] = hammer.faults.load(Ordering::SeqCst);
        }
        for (n, hammer) in self.each().enumerate() {
            let more = || hammer.begun.load(Ordering::SeqCst) > begun[n] + WARM;
            cpus::wait_until(|| more() || self.stop.load(Ordering::Relaxed), "no more accesses")?;
            let through = hammer.through.load(Ordering::SeqCst);
            check!(
                through <= begun[n],
                "CPU {}: access {through} got through; {} were begun when the call returned",
                n + 1,
                begun[n]
            );
            check!(
                hammer.faults.load(Ordering::SeqCst) > faults[n]
                    || self.stop.load(Ordering::Relaxed),
                "CPU {} has no fault",
                n + 1
            );
        }
        Ok(())
    }
}

/// A page of the block of `at` that is not `at`'s own.
pub fn neighbour(at: u64) -> u64 {
    at ^ PAGE_SIZE
}

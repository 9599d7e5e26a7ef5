// SPDX-License-Identifier: MIT OR Apache-2.0

use crate::sync::{AtomicU32, Ordering, fence, spin_loop};

/// A ticket lock without a guard.
///
/// A call over a list holds up to 512 of these at once; guards for them would
/// need an array as long. The data that it protects are atomics, so code that forgets to unlock
/// or unlocks twice causes a hang or a race over records, but never undefined
/// behaviour.
#[derive(Debug, Default)]
pub struct TicketLock {
    next: AtomicU32,
    serving: AtomicU32,
}

impl TicketLock {
    #[inline]
    /// Takes the lock. Waiters get it in the order in which they came.
    pub fn lock(&self) {
        let ticket = self.next.fetch_add(1, Ordering::Relaxed);
        while self.serving.load(Ordering::Acquire) != ticket {
            spin_loop();
        }
        // Pairs with `read`: a reader that sees a change made under the lock also sees the
        // ticket.
        fence(Ordering::Release);
    }

    /// Reads without the lock; `None` if a CPU held it meanwhile.
    #[inline(always)]
    pub fn read<T>(&self, read: impl FnOnce() -> T) -> Option<T> {
        // This reads as a sequence lock does. A CPU takes a ticket before it changes data that
        // the lock covers, and before it gives a page to a new owner, which may write to it.
        // If `read` sees any such change, the second load of `next` below sees the ticket.
        let ticket = self.next.load(Ordering::Acquire);
        let free = self.serving.load(Ordering::Acquire) == ticket;
        let value = read();
        fence(Ordering::Acquire);
        (free && self.next.load(Ordering::Relaxed) == ticket).then_some(value)
    }

    #[inline]
    /// Gives it back.
    pub fn unlock(&self) {
        let serving = self.serving.load(Ordering::Relaxed);
        self.serving.store(serving.wrapping_add(1), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::TicketLock;

    #[test]
    fn excludes_other_threads() {
        let lock = TicketLock::default();
        let count = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        lock.lock();
                        // Without the lock, this would lose increments.
                        let seen = count.load(Ordering::Relaxed);
                        std::thread::yield_now();
                        count.store(seen + 1, Ordering::Relaxed);
                        lock.unlock();
                    }
                });
            }
        });
        assert_eq!(count.load(Ordering::Relaxed), 800);
    }
}

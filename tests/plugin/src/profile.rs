// SPDX-License-Identifier: MIT OR Apache-2.0

//! How often each instruction is executed within samples, whoever executes it: for a
//! machine with one CPU. A sample is a load or a call at one address, up to the
//! instruction behind it: see [`Samples`].

use std::collections::HashMap;
use std::ffi::CString;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Instructions that are told apart.
const PLACES: usize = 1 << 21;

/// Which samples count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Samples {
    /// Those in which the load was executed again before they ended, because it faulted the first
    /// time.
    Repeated,
    /// All: the load is emulated, and executed once.
    All,
}

/// How often each was executed in the samples.
static COUNTS: [AtomicU64; PLACES] = [const { AtomicU64::new(0) }; PLACES];
/// The place of each address.
static ADDRESSES: Mutex<Option<HashMap<u64, usize>>> = Mutex::new(None);
static INSIDE: AtomicBool = AtomicBool::new(false);
/// Whether a sample counts from its first instruction on.
static ALL: AtomicBool = AtomicBool::new(false);
static SAMPLES: AtomicU64 = AtomicU64::new(0);

/// Which samples count from now on.
pub fn count_only(samples: Samples) {
    ALL.store(samples == Samples::All, Relaxed);
}

/// The number by which an address counts; the last one is shared by those that find no
/// room.
pub fn place(address: u64) -> usize {
    let Ok(mut addresses) = ADDRESSES.lock() else { return PLACES - 1 };
    let addresses = addresses.get_or_insert_default();
    let next = addresses.len().min(PLACES - 1);
    *addresses.entry(address).or_insert(next)
}

/// The first instruction of a sample is about to be executed, once more if it faulted.
pub fn begin(place: usize) {
    if INSIDE.swap(true, Relaxed) || ALL.load(Relaxed) {
        SAMPLES.fetch_add(1, Relaxed);
        count(place);
    }
}

/// An instruction is about to be executed.
pub fn count(place: usize) {
    if INSIDE.load(Relaxed)
        && let Some(count) = COUNTS.get(place)
    {
        count.fetch_add(1, Relaxed);
    }
}

/// A sample is over.
pub fn end() {
    INSIDE.store(false, Relaxed);
}

/// The results, a line each.
pub fn lines() -> Vec<CString> {
    let mut lines = vec![format!("samples {}\n", SAMPLES.load(Relaxed))];
    if let Ok(addresses) = ADDRESSES.lock() {
        let executed = addresses.iter().flatten().filter_map(|(address, &place)| {
            let count = COUNTS.get(place)?.load(Relaxed);
            (count > 0).then(|| format!("executed {address:x} {count}\n"))
        });
        lines.extend(executed);
    }
    lines.into_iter().filter_map(|line| CString::new(line).ok()).collect()
}

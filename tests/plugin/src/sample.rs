// SPDX-License-Identifier: MIT OR Apache-2.0

//! The samples that CPUs are in. A QEMU that counts instructions runs all CPUs
//! in one thread, so no order between these atomics matters.

use std::ffi::CString;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// CPUs of a machine at the most.
const CPUS: usize = 8;

/// What an instruction is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Other = 0,
    Tlbi = 1,
    Dsb = 2,
    Isb = 3,
}

const KINDS: usize = 4;

impl Kind {
    /// By its encoding (Arm ARM, "System instructions", "Barriers").
    pub const fn of(word: u32) -> Kind {
        // SYS with CRn 8 or 9; the barriers of CRn 3, with any domain.
        match word {
            _ if word & 0xfff8_e000 == 0xd508_8000 => Kind::Tlbi,
            _ if word & 0xffff_f0ff == 0xd503_309f => Kind::Dsb,
            _ if word & 0xffff_f3ff == 0xd503_323f => Kind::Dsb,
            _ if word & 0xffff_f0ff == 0xd503_30df => Kind::Isb,
            _ => Kind::Other,
        }
    }
}

struct Cpu {
    /// Whether it is in a sample.
    inside: AtomicBool,
    /// Whether another was meanwhile.
    met: AtomicBool,
    number: AtomicU64,
    counts: [AtomicU64; KINDS],
}

static ALL: [Cpu; CPUS] = [const {
    Cpu {
        inside: AtomicBool::new(false),
        met: AtomicBool::new(false),
        number: AtomicU64::new(0),
        counts: [const { AtomicU64::new(0) }; KINDS],
    }
}; CPUS];

/// Whether any CPU is in a sample.
pub fn any() -> bool {
    ALL.iter().any(|cpu| cpu.inside.load(Relaxed))
}

/// A CPU is about to execute the call.
pub fn begin(cpu: usize, number: usize) {
    let Some(this) = ALL.get(cpu) else { return };
    this.inside.store(false, Relaxed);
    let mut met = false;
    for other in ALL.iter().filter(|other| other.inside.load(Relaxed)) {
        other.met.store(true, Relaxed);
        met = true;
    }
    this.met.store(met, Relaxed);
    this.number.store(number as u64, Relaxed);
    this.counts.iter().for_each(|count| count.store(0, Relaxed));
    // The call itself.
    this.counts[Kind::Other as usize].store(1, Relaxed);
    this.inside.store(true, Relaxed);
}

/// A CPU is about to execute an instruction at EL2.
pub fn count(cpu: usize, kind: usize) {
    let Some(this) = ALL.get(cpu).filter(|cpu| cpu.inside.load(Relaxed)) else { return };
    if let Some(count) = this.counts.get(kind) {
        count.fetch_add(1, Relaxed);
    }
}

/// A CPU is back behind the call. The sample, as a line.
pub fn end(cpu: usize) -> Option<CString> {
    let this = ALL.get(cpu).filter(|cpu| cpu.inside.swap(false, Relaxed))?;
    let [other, tlbi, dsb, isb] = this.counts.each_ref().map(|count| count.load(Relaxed));
    let (number, met) = (this.number.load(Relaxed), u8::from(this.met.load(Relaxed)));
    let all = other + tlbi + dsb + isb;
    let line = format!(
        "sample {number} cpu {cpu} instructions {all} tlbi {tlbi} dsb {dsb} isb {isb} met {met}\n"
    );
    CString::new(line).ok()
}

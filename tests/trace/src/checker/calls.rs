// SPDX-License-Identifier: MIT OR Apache-2.0

//! The ledger against the tables, whenever a call returns.
//!
//! In the middle of a call the two may differ: which is written first is the
//! hypervisor's choice. And while one CPU's call returns, another one's may be
//! in the middle of changing the same memory again. So each piece of memory is
//! checked when the call returns that was the last to change it.

use super::{At, Checker};
use crate::finding::Rule;

impl Checker {
    /// A call changes the state of memory, or who it is mapped to.
    pub(super) fn touch(&mut self, at: At, from: u64, size: u64) {
        let range = from..from + size;
        self.touched_by.insert(range.clone(), at.cpu);
        self.cpu(at.cpu).touched.insert(range);
    }

    /// Nobody has a translation to what this CPU's call touched last, but those
    /// of whom the ledger says so.
    pub(super) fn settle_access(&mut self, at: At) {
        let touched = std::mem::take(&mut self.cpu(at.cpu).touched);
        for range in touched.iter() {
            let mut mine = Vec::new();
            for (part, &cpu) in self.touched_by.overlapping(range) {
                if cpu == at.cpu {
                    mine.push(part.start.max(range.start)..part.end.min(range.end));
                }
            }
            for part in mine {
                self.check_access(at, part.start, part.end);
                self.touched_by.remove(part);
            }
        }
    }

    fn check_access(&mut self, at: At, from: u64, end: u64) {
        let mut found = Vec::new();
        for (part, reach) in self.ledger.overlapping(&(from..end)) {
            let part = part.start.max(from)..part.end.min(end);
            for leaf in self.leaves.overlapping(part.clone()) {
                let first = leaf.pa.max(part.start);
                if !reach.contains(&leaf.vm) && self.trespassed.insert((first, leaf.vm)) {
                    found.push((leaf, first));
                }
            }
        }
        for (leaf, first) in found {
            let text = format!(
                "the ledger says that VM {} does not reach {first:#x}, and its tables lead there \
                 from {:#x}",
                leaf.vm,
                leaf.ipa + (first - leaf.pa)
            );
            self.find(Rule::Access, at, None, text);
        }
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! A descriptor is written.

use super::{At, Checker};
use crate::descriptor::{self, Kind};
use crate::finding::Rule;
use crate::stale::Stale;
use crate::tables::{Slot, split};

impl Checker {
    pub(super) fn write(&mut self, at: At, slot: u64, old: u64, new: u64, release: bool) {
        let (page_at, index) = split(slot);
        let Some(page) = self.tables.page(page_at) else {
            let text = format!("a descriptor is written to {slot:#x}, where no table is known");
            self.find(Rule::Replay, at, None, text);
            return;
        };
        let held = page.write(index, old, new);
        page.unpublished.push((at.cpu, at.line));
        let place = page.place;
        self.cpu(at.cpu).written.insert(page_at);
        if held != old {
            let text = format!(
                "the descriptor at {slot:#x} held {old:#x} before, says the event, and {held:#x}, \
                 say those before it"
            );
            self.find(Rule::Replay, at, None, text);
        }
        match place {
            Some(place) => {
                self.write_placed(at, Slot::new(page_at, index, place), held, new, release);
            }
            None if new & 1 != 0 => {
                // Not in any table, unless TLBs still lead walkers here.
                if let Some(stale) = self.stale_table(slot) {
                    let vmid = self.stales[stale].vmid;
                    let text = format!(
                        "a valid descriptor is written to {slot:#x}, which may be walked as a \
                         table of VMID {vmid}"
                    );
                    self.find_stale(Rule::TableReuse, at, stale, text);
                }
            }
            None => {}
        }
    }

    /// A descriptor that walkers can find is written.
    fn write_placed(&mut self, at: At, slot: Slot, old: u64, new: u64, release: bool) {
        let (was, is) = (slot.decode(old), slot.decode(new));
        match (was, is) {
            (Kind::Invalid, Kind::Invalid) => {}
            (_, Kind::Invalid) => {
                self.report.counts.breaks += 1;
                self.leave(at, slot, old);
            }
            (Kind::Invalid, _) => self.make(at, slot, new, release),
            _ if old == new => {}
            (Kind::Leaf(_), Kind::Leaf(_)) if descriptor::differ_in_permissions_only(old, new) => {
                let vmid = self.vmid(slot.vm);
                self.permissions(at, Stale::entry(slot, old, vmid, at.cpu, at.line), new);
                self.cpu(at.cpu).made.get_or_insert(at.line);
            }
            _ => {
                let text = format!(
                    "the valid descriptor at {:#x} (level {}, guest address {:#x} of VM {}) is \
                     overwritten: {}",
                    slot.at,
                    slot.level,
                    slot.ipa,
                    slot.vm,
                    change(was, is, old, new)
                );
                self.find(Rule::BreakBeforeMake, at, None, text);
                let before = self.stales.len();
                self.leave(at, slot, old);
                for stale in &mut self.stales[before..] {
                    stale.reported = true;
                }
                self.make(at, slot, new, release);
            }
        }
    }

    /// A descriptor becomes valid.
    fn make(&mut self, at: At, slot: Slot, new: u64, release: bool) {
        self.enter(at, slot, new, release);
        self.cpu(at.cpu).made.get_or_insert(at.line);
    }
}

/// What changed between two valid descriptors.
fn change(was: Kind, is: Kind, old: u64, new: u64) -> String {
    let what = match (was, is) {
        (Kind::Table(_), Kind::Table(_)) => "another table",
        (Kind::Table(_), _) => "a block in place of a table",
        (_, Kind::Table(_)) => "a table in place of a block",
        (Kind::Leaf(a), Kind::Leaf(b)) if a != b => "another output address",
        _ => "another memory type, shareability or cacheability",
    };
    format!("{what} ({old:#x} to {new:#x})")
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! What is seen of memory: by the ledger's own account, by the host, by guests.

use alloc::vec::Vec;

use escrow_abi::{Error, MemEntry, PAGE_SIZE, call, run};
use escrow_payloads::expect::is_taken_away;
use escrow_payloads::guest::{Exit, routine};
use escrow_payloads::{Outcome, check_eq, fail, hvc, probe};
use escrow_spec::{Entry, Life, VmId};

use crate::member::{Guest, Member};
use crate::pick::GUEST;
use crate::world::{TAG, World, refused};

/// Addresses at which pages that come home zeroed are looked at.
const SAMPLES: [u64; 4] = [0, TAG, 0x7f8, 0xff8];

impl World<'_> {
    /// Looks at what a list names, if it is the world's.
    pub fn look_at_list(&mut self, list: &[MemEntry]) -> Outcome {
        for entry in list {
            let at = entry.frame & !0xfff;
            let own = [
                self.place.blocks..self.place.blocks + crate::BLOCKS * escrow_abi::BLOCK_SIZE,
                self.place.part..self.place.part + crate::world::PART * PAGE_SIZE,
            ];
            if own.iter().any(|range| range.contains(&at)) {
                self.look_at(at)?;
            }
        }
        Ok(())
    }

    /// One page: its state, whether the host reaches it, and what it finds.
    pub fn look_at(&mut self, at: u64) -> Outcome {
        let frame = self.spec.frame(at);
        let info = refused(hvc::call(call::FRAME_INFO, &[at]));
        if self.spec.is_alive(frame.owner) && frame.owner != VmId::HOST {
            check_eq!(info, Err((Error::NotOwner, 0, 0)), "{at:#x}, {frame:?}");
        } else {
            let own = self.own_pages_from(at);
            check_eq!(
                info.map(|[state, alike, x3, x4]| [state, alike.min(own), x3, x4]),
                Ok([frame.state as u64, self.spec.held_alike(at).min(own), 0, 0]),
                "{at:#x}, {frame:?}"
            );
        }
        if !frame.is_reached_by(VmId::HOST) {
            match probe::read(at) {
                Err(fault) => is_taken_away(fault, at, false)?,
                Ok(_) => fail!("the host reads {at:#x}, {frame:?}"),
            }
            return Ok(());
        }
        if self.spec.is_zero(at) {
            for sample in SAMPLES {
                check_eq!(probe::read(at + sample), Ok(0), "{at:#x} + {sample:#x}, {frame:?}");
            }
        } else {
            match (probe::read(at + TAG), self.tag(at)) {
                (Ok(seen), Some(tag)) => check_eq!(seen, tag, "{at:#x}, {frame:?}"),
                (seen, _) => check_eq!(seen.is_ok(), true, "{at:#x}, {frame:?}"),
            }
        }
        Ok(())
    }

    /// All pages, all VMs.
    pub fn look_at_all(&mut self) -> Outcome {
        for at in self.pages().collect::<Vec<u64>>() {
            self.look_at(at)?;
        }
        for Member { id, handle, .. } in &self.members {
            let guest = self.spec.guest(*id);
            let state = if guest.life == Life::Created { 0 } else { 1 };
            let expected = [state, self.spec.reachable(*id), guest.metadata, guest.pool];
            check_eq!(refused(hvc::call(call::VM_INFO, &[*handle])), Ok(expected));
        }
        Ok(())
    }

    /// A guest reads, and perhaps writes, at some of its addresses.
    pub fn look_as_guest(&mut self, member: &Member, guest: &Guest) -> Outcome {
        let entries: Vec<(u64, Entry)> =
            self.spec.guest(member.id).entries().filter(|&(at, _)| at >= GUEST).collect();
        for _ in 0..4 {
            let (at, entry) = if entries.is_empty() || self.random.below(4) == 0 {
                let at = GUEST + self.random.below(2048) * PAGE_SIZE;
                (at, self.spec.guest(member.id).entry(at))
            } else {
                self.random.pick(&entries)
            };
            match entry {
                Entry::Valid(frame, rights) => {
                    let seen = guest.agent.load(at + TAG)?;
                    check_eq!(seen, self.tag(frame).unwrap_or(seen), "{at:#x} of a guest");
                    if rights.write() && self.random.below(2) == 0 {
                        let tag = self.new_tag();
                        guest.agent.store(at + TAG, tag)?;
                        self.tags.insert(frame, tag);
                        self.spec.write(frame, false);
                    }
                }
                Entry::Away(frame, _) if self.spec.touch(member.id, at) => {
                    let seen = guest.agent.load(at + TAG)?;
                    check_eq!(seen, self.tag(frame).unwrap_or(seen), "{at:#x}, opened");
                }
                Entry::Away(..) | Entry::Poisoned => {
                    let results = guest.agent.call(routine::ldr_x(), &[0, at + TAG])?;
                    let class = results.exception.map(|e| (e.esr >> 26, e.esr & 0x3f));
                    check_eq!(class, Some((0x25, 0x10)), "{at:#x}, away");
                }
                Entry::Nothing => {
                    let exit = guest.agent.begin(routine::ldr_x(), &[0, at + TAG])?;
                    check_eq!(exit, Exit::MmioRead(at + TAG, 8), "nothing at {at:#x}");
                    guest.agent.finish([0, run::ACTION_FAULT, 0])?;
                }
            }
        }
        Ok(())
    }
}

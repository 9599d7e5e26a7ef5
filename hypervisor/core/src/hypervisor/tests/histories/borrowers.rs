// SPDX-License-Identifier: MIT OR Apache-2.0

//! What guests do with their own addresses.

use escrow_abi::{Error, FrameState, MemEntry, PAGE_SIZE, Rights, call, run};
use escrow_spec::{Asked, Entry, Frame, VmId};

use super::super::fake::{Called, exit_of};
use super::steps::{Pages, Reaction, Taking, Who};
use super::world::{Pair, World, bare, vcpu};
use crate::addr::Ipa;
use crate::vcpu::Next;
use crate::vcpu::syndrome::{Ec, IL, abort};

impl World {
    pub(super) fn ask_back(&mut self, vm: usize, at: (Pages, u64), reaction: Reaction) {
        let opened = |frame: Frame| frame.state == FrameState::SharedBack;
        let Some((pair, at, size)) = self.range(vm, at, opened) else { return };
        let mut real = self.host.begin_guest_call(vcpu(&pair), call::MEM_ASK_BACK, &[at, size]);
        let mut spec = self.spec.ask_back(pair.id, at, size);
        if spec == Ok(Asked::HostIsAsked) {
            assert_eq!(real, Called::Exited([run::TAKE_BACK, at, size, 0]));
            self.react(&pair, at, size, reaction);
            real = self.host.resume_guest_call(vcpu(&pair));
            spec = match self.spec.ask_back(pair.id, at, size) {
                Ok(Asked::HostIsAsked) => Err(Error::Busy),
                other => other,
            };
        }
        let Called::Returned(real) = real else { panic!("{real:x?}, not {spec:?}") };
        self.agree("ask back", Some(&pair), &real, &spec.map_err(bare));
    }

    /// The host lets go of pages that it was asked about, or does not.
    pub(super) fn react(&mut self, pair: &Pair, at: u64, size: u64, reaction: Reaction) {
        let pages = (at..at + size).step_by(PAGE_SIZE as usize);
        let frames = pages.filter_map(|at| self.spec.guest(pair.id).entry(at).frame());
        let opened = frames.filter(|&at| {
            let frame = self.spec.frame(at);
            frame.state == FrameState::SharedBack && frame.owner == VmId::HOST
        });
        let most = match reaction {
            Reaction::Nothing => return,
            Reaction::TakeFirst => 1,
            Reaction::TakeAll => 512,
        };
        let list: Vec<_> =
            opened.take(most).map(|at| MemEntry::new(at, 0, 0, Rights::NONE)).collect();
        self.take(Who::Host, Taking::TakeBack, &list);
    }

    /// A guest touches what it has lent.
    pub(super) fn touch(&mut self, vm: usize, at: Pages) {
        let Some(pair) = self.running(vm) else { return };
        let own = |frame: Frame| frame.owner == pair.id;
        let Some(at) = self.first_of(Who::Guest(vm), at, own) else { return };
        if !matches!(self.spec.guest(pair.id).entry(at), Entry::Away(..) | Entry::Poisoned) {
            return;
        }
        let esr = Ec::DATA_ABORT_LOWER.bits() | IL | abort::ISV | 2 << 22 | 3 << 16 | 0x7;
        let real = self.host.guest_exit(vcpu(&pair), exit_of(esr, Some(Ipa(at))));
        let reached = self.spec.touch(pair.id, at);
        match real {
            Next::Enter => assert!(reached, "{at:#x} is reached"),
            Next::Inject(_) => assert!(!reached, "{at:#x} is not reached"),
            other => panic!("{other:?}"),
        }
    }

    /// Somebody writes to memory that it reaches.
    pub(super) fn write(&mut self, who: Who, at: Pages) {
        let by = match who {
            Who::Host => VmId::HOST,
            Who::Guest(vm) => match self.running(vm) {
                Some(pair) => pair.id,
                None => return,
            },
        };
        let Some(at) = self.first_of(who, at, |frame| frame.is_reached_by(by)) else { return };
        let frame = match who {
            Who::Host => at,
            Who::Guest(_) => match self.spec.guest(by).entry(at) {
                Entry::Valid(frame, rights) if rights.write() => frame,
                _ => return,
            },
        };
        if self.spec.frame(frame).is_reached_by(by) {
            self.host.escrow.machine.scribble(frame);
            self.spec.write(frame, false);
        }
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! The calls that are made: by the host and by guests.

use arrayvec::ArrayVec;
use escrow_abi::{Error, FrameState, MemEntry, ORDER_PAGE, call};
use escrow_payloads::guest::{Exit, routine};
use escrow_payloads::{Outcome, check_eq};
use escrow_spec::{Asked, Frame, Target, VmId};

use crate::member::{Guest, Member, answered, guest_hvc};
use crate::world::World;

impl World<'_> {
    /// One call, or a few that belong together.
    pub fn step(&mut self) -> Outcome {
        if self.members.is_empty() {
            return self.create();
        }
        match self.random.below(24) {
            0 => self.change_members(),
            1 => self.change_capabilities(),
            2..=7 => self.host_gives(),
            8..=12 => self.host_takes(),
            13..=15 => self.guest_gives_up(),
            16..=18 => self.guest_gives(),
            19..=21 => self.guest_takes(),
            _ => self.guest_looks(),
        }
    }

    fn host_gives(&mut self) -> Outcome {
        let mut first = self.page();
        for _ in 0..4 {
            if self.spec.frame(first) == Frame::HOME {
                break;
            }
            first = self.page();
        }
        let folios = self.frames_like(first);
        let member = self.member();
        let list = self.mapped(&folios, Some(member.id));
        let list = self.spoil(&list);
        let to = Target::Vm(member.id);
        let function = self.random.pick(&[call::MEM_LEND, call::MEM_SHARE, call::MEM_DONATE]);
        let real = self.list_call(function, Some(member.handle), &list);
        let spec = match function {
            call::MEM_LEND => self.spec.lend(VmId::HOST, to, &list),
            call::MEM_SHARE => self.spec.share(VmId::HOST, to, &list),
            _ => self.spec.donate(VmId::HOST, to, &list),
        };
        self.agree("the host gives", real, &spec)?;
        self.look_at_list(&list)
    }

    fn host_takes(&mut self) -> Outcome {
        let mut first = self.page();
        for _ in 0..20 {
            if self.is_takeable(VmId::HOST, self.spec.frame(first)) {
                break;
            }
            first = self.page();
        }
        let frame = self.spec.frame(first);
        let living = self.spec.living(frame);
        let mut function = match frame.state {
            _ if !living.owner || !living.borrower => call::MEM_RECLAIM,
            FrameState::Shared => call::MEM_UNSHARE,
            FrameState::SharedBack => call::MEM_TAKE_BACK,
            _ => call::MEM_RECLAIM,
        };
        if self.random.below(12) == 0 {
            let any = [call::MEM_UNSHARE, call::MEM_RECLAIM, call::MEM_TAKE_BACK];
            function = self.random.pick(&any);
        }
        let folios = self.frames_like(first);
        // Not from under an agent that runs.
        let folios: ArrayVec<_, 8> =
            folios.into_iter().filter(|&(at, _)| !self.is_kept(at)).collect();
        let list = self.bare(&folios);
        let list = self.spoil(&list);
        if list.is_empty() {
            return Ok(());
        }
        let real = self.list_call(function, None, &list);
        let spec = self.take(VmId::HOST, function, &list);
        self.agree("the host takes", real, &spec)?;
        self.look_at_list(&list)?;
        // What has come home is told from others again.
        for entry in &list {
            let at = entry.frame & !0xfff;
            if spec.is_ok() && self.is_home(at) {
                self.mark(at);
            }
        }
        Ok(())
    }

    fn take(
        &mut self,
        by: VmId,
        function: u32,
        list: &[MemEntry],
    ) -> Result<(), escrow_spec::Refused> {
        match function {
            call::MEM_UNSHARE => self.spec.unshare(by, list),
            call::MEM_TAKE_BACK => self.spec.take_back(by, list),
            _ => self.spec.reclaim(by, list),
        }
    }

    /// Whether there is a call by which a VM, or the host, can take a frame.
    fn is_takeable(&self, by: VmId, frame: Frame) -> bool {
        let living = self.spec.living(frame);
        let given_up = match frame.state {
            FrameState::Owned | FrameState::Donated => false,
            FrameState::Lent | FrameState::Metadata => !living.borrower,
            _ => true,
        };
        let heir = by == VmId::HOST && !living.owner;
        if frame.owner == by { given_up } else { heir && (given_up || frame.borrower.is_none()) }
    }

    /// A VM that runs.
    fn runner(&mut self) -> Option<(Member, Guest)> {
        let member = self.member();
        let guest = member.guest?;
        Some((member, guest))
    }

    /// A guest changes what its owner may do with a range.
    fn guest_gives_up(&mut self) -> Outcome {
        let Some((member, guest)) = self.runner() else { return Ok(()) };
        let (at, size) = self.range(&member);
        match self.random.below(5) {
            0 => {
                let real = guest_hvc(&guest, &[call::MEM_SHARE_BACK as u64, at, size])?;
                let spec = self.spec.share_back(member.id, at, size).map_err(bare);
                self.agree("MEM_SHARE_BACK", real, &spec)
            }
            1 => self.ask_back(&member, &guest, at, size),
            _ => {
                let flags = self.random.pick(&[1, 1, 3, 3, 2, 4, 5, 7, 0, 8]);
                let real = guest_hvc(&guest, &[call::MODIFY_PAGES as u64, 0, at, size, flags])?;
                let spec = self.spec.modify(member.id, at, size, flags).map_err(bare);
                self.agree("MODIFY_PAGES", real, &spec)
            }
        }
    }

    fn ask_back(&mut self, member: &Member, guest: &Guest, at: u64, size: u64) -> Outcome {
        let asked = self.spec.ask_back(member.id, at, size);
        let arguments = [call::MEM_ASK_BACK as u64, at, size];
        if asked != Ok(Asked::HostIsAsked) {
            let real = guest_hvc(guest, &arguments)?;
            return self.agree("MEM_ASK_BACK", real, &asked.map_err(bare));
        }
        let exit = guest.agent.begin(routine::hvc(), &arguments)?;
        check_eq!(exit, Exit::TakeBack(at, size));
        if self.random.below(3) != 0 {
            // The host lets go of all, or of one page.
            let mut open: ArrayVec<(u64, u32), 8> = ArrayVec::new();
            for (there, entry) in self.spec.guest(member.id).entries() {
                let Some(frame) = entry.frame() else { continue };
                let inside = (at..at + size).contains(&there) && !open.is_full();
                let record = self.spec.frame(frame);
                if inside && record.state == FrameState::SharedBack && record.owner == VmId::HOST {
                    open.push((frame, ORDER_PAGE));
                }
            }
            let list = self.bare(&open);
            let real = self.list_call(call::MEM_TAKE_BACK, None, &list);
            let spec = self.spec.take_back(VmId::HOST, &list);
            self.agree("MEM_TAKE_BACK", real, &spec)?;
            self.look_at_list(&list)?;
        }
        let results = guest.agent.finish([0; 3])?;
        let spec = match self.spec.ask_back(member.id, at, size) {
            Ok(Asked::Done) => Ok(()),
            Ok(Asked::HostIsAsked) => Err(bare(Error::Busy)),
            Err(error) => Err(bare(error)),
        };
        let real = answered(&results)?;
        self.agree("MEM_ASK_BACK, in the end", real, &spec)
    }

    fn guest_gives(&mut self) -> Outcome {
        let Some((member, guest)) = self.runner() else { return Ok(()) };
        let (target, handle, object) = self.target(&member);
        let functions = [call::MEM_LEND, call::MEM_SHARE, call::MEM_DONATE];
        let mut function = self.random.pick(&functions);
        if target == Target::Host && self.random.below(8) != 0 {
            function = call::MEM_DONATE;
        }
        let folios = self.own_like(&member);
        if folios.is_empty() {
            return Ok(());
        }
        let list =
            if target == Target::Host { self.bare(&folios) } else { self.mapped(&folios, object) };
        let list = self.spoil(&list);
        let real = self.guest_call(&guest, function, Some(handle), &list)?;
        let spec = match function {
            call::MEM_LEND => self.spec.lend(member.id, target, &list),
            call::MEM_SHARE => self.spec.share(member.id, target, &list),
            _ => self.spec.donate(member.id, target, &list),
        };
        self.agree("a guest gives", real, &spec)
    }

    fn guest_takes(&mut self) -> Outcome {
        let Some((member, guest)) = self.runner() else { return Ok(()) };
        let mut folios = self.own_like(&member);
        let mut record = None;
        for _ in 0..10 {
            let Some(&(first, _)) = folios.first() else { return Ok(()) };
            let frame = self.spec.guest(member.id).entry(first).frame();
            record = frame.map(|frame| self.spec.frame(frame));
            if record.is_some_and(|record| self.is_takeable(member.id, record)) {
                break;
            }
            folios = self.own_like(&member);
        }
        let mut function = match record.map(|record| record.state) {
            Some(FrameState::Shared) => call::MEM_UNSHARE,
            Some(FrameState::SharedBack) => call::MEM_TAKE_BACK,
            _ => call::MEM_RECLAIM,
        };
        if self.random.below(12) == 0 {
            let any = [call::MEM_UNSHARE, call::MEM_RECLAIM, call::MEM_TAKE_BACK];
            function = self.random.pick(&any);
        }
        let list = self.bare(&folios);
        let list = self.spoil(&list);
        let real = self.guest_call(&guest, function, None, &list)?;
        let spec = self.take(member.id, function, &list);
        self.agree("a guest takes", real, &spec)
    }

    fn guest_looks(&mut self) -> Outcome {
        let Some((member, guest)) = self.runner() else { return Ok(()) };
        self.look_as_guest(&member, &guest)
    }
}

/// A refusal about nothing else.
fn bare(error: Error) -> escrow_spec::Refused {
    (error, 0, 0)
}

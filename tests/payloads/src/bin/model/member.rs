// SPDX-License-Identifier: MIT OR Apache-2.0

//! VMs of a world: made, run, ended.

use alloc::vec::Vec;

use arrayvec::ArrayVec;
use escrow_abi::{Error, Handle, HandleKind, MemEntry, ORDER_PAGE, PAGE_SIZE, Rights, call};
use escrow_payloads::guest::{Agent, CODE, Exit, MAILBOX, routine};
use escrow_payloads::host::{frame, note_vm, poke};
use escrow_payloads::hvc;
use escrow_payloads::{Outcome, check_eq, fail};
use escrow_spec::{CapId, Frame, Target, VmId};

use crate::world::{Answered, MEMBERS, World, refused};

/// A VM.
#[derive(Clone)]
pub struct Member {
    pub id: VmId,
    pub handle: u64,
    /// If it runs.
    pub guest: Option<Guest>,
    /// The handles that it was given, in the order of their numbers.
    pub capabilities: Vec<(CapId, u64, VmId)>,
}

/// What runs in a VM.
#[derive(Clone, Copy)]
pub struct Guest {
    pub agent: Agent,
    /// A page shared with it, for its lists.
    pub list: u64,
}

/// VMs, living and dead, that are too many.
const CROWD: u64 = 6;

/// Where a guest has its lists.
pub const LIST: u64 = CODE + 0xc000;

impl World<'_> {
    /// Makes a VM and, if there is enough for it, what runs in it.
    pub fn create(&mut self) -> Outcome {
        let count = 1 + self.random.below(14);
        // Dead VMs keep their places as long as they have a page.
        if self.spec.existing() > CROWD {
            return self.bring_home();
        }
        let Some(pages) = self.supplies(count) else { return self.bring_home() };
        let list: ArrayVec<MemEntry, 16> = pages.iter().map(|&at| frame(at)).collect();
        let real = self.list_call(call::VM_CREATE, None, &list);
        let spec = self.spec.create(&list);
        self.agree("VM_CREATE", real, &spec)?;
        let (Ok([handle, ..]), Ok(id)) = (real, spec) else { return Ok(()) };
        note_vm(handle);
        let mut member = Member { id, handle, guest: None, capabilities: Vec::new() };
        member.guest = self.populate(&member)?;
        self.members.push(member);
        Ok(())
    }

    fn populate(&mut self, member: &Member) -> Outcome<Option<Guest>> {
        let &Member { id, handle, .. } = member;
        let real = refused(hvc::call(call::VCPU_CREATE, &[handle, 0]));
        let spec = self.spec.create_vcpu(id, 0);
        self.agree("VCPU_CREATE", real, &spec)?;
        let Ok([vcpu, ..]) = real else { return Ok(None) };
        let Some(pages) = self.supplies(3) else { return Ok(None) };
        let [code, mailbox, list] = [pages[0], pages[1], pages[2]];
        Agent::install(code)?;
        // What the agent has and leaves there is nothing to tell the pages by.
        for at in [code, mailbox, list] {
            self.tags.remove(&at);
            self.spec.write(at, false);
        }
        let lent = [MemEntry::new(code, ORDER_PAGE, CODE, Rights::READ_EXECUTE)];
        let shared = [
            MemEntry::new(mailbox, ORDER_PAGE, MAILBOX, Rights::READ_WRITE),
            MemEntry::new(list, ORDER_PAGE, LIST, Rights::READ),
        ];
        let real = self.list_call(call::MEM_LEND, Some(handle), &lent);
        let spec = self.spec.lend(VmId::HOST, Target::Vm(id), &lent);
        self.agree("MEM_LEND of the agent", real, &spec)?;
        let real = self.list_call(call::MEM_SHARE, Some(handle), &shared);
        let spec = self.spec.share(VmId::HOST, Target::Vm(id), &shared);
        self.agree("MEM_SHARE of the mailbox", real, &spec)?;
        if spec.is_err() {
            return Ok(None);
        }
        Agent::aim(vcpu)?;
        let real = refused(hvc::call(call::VM_START, &[handle]));
        let spec = self.spec.start(id);
        self.agree("VM_START", real, &spec)?;
        let agent = Agent { vm: handle, vcpu, code, mailbox, mailbox_at: MAILBOX };
        check_eq!(agent.run([0; 3])?, Exit::DOORBELL, "the agent comes up");
        Ok(Some(Guest { agent, list }))
    }

    /// Whether a page is an agent's own: it is not to be taken from it while it runs.
    pub fn is_kept(&self, at: u64) -> bool {
        self.members
            .iter()
            .filter_map(|member| member.guest)
            .any(|Guest { agent, list }| [agent.code, agent.mailbox, list].contains(&at))
    }

    /// Ends a VM.
    pub fn destroy(&mut self, member: &Member) -> Outcome {
        let real = refused(hvc::call(call::VM_DESTROY, &[member.handle]));
        let spec = self.spec.destroy(member.id);
        self.agree("VM_DESTROY", real, &spec)?;
        // Dead for good.
        let info = hvc::call(call::VM_INFO, &[member.handle]);
        check_eq!(refused(info), Err((Error::HandleRevoked, 0, 0)));
        Ok(())
    }

    /// One VM more, one less, or one with more pages.
    pub fn change_members(&mut self) -> Outcome {
        match self.random.below(4) {
            0 if !self.members.is_empty() => {
                let n = self.random.below(self.members.len() as u64) as usize;
                let member = self.members.remove(n);
                self.destroy(&member)
            }
            1 if !self.members.is_empty() => self.top_up(),
            _ if self.members.len() < MEMBERS => self.create(),
            _ => self.top_up(),
        }
    }

    fn top_up(&mut self) -> Outcome {
        let count = 1 + self.random.below(4);
        let Some(pages) = self.supplies(count) else { return Ok(()) };
        let member = self.member();
        let list: ArrayVec<MemEntry, 16> = pages.iter().map(|&at| frame(at)).collect();
        let list = self.spoil(&list);
        let real = self.list_call(call::VM_TOP_UP, Some(member.handle), &list);
        let spec = self.spec.top_up(Target::Vm(member.id), &list);
        self.agree("VM_TOP_UP", real, &spec)
    }

    /// One of the VMs. There is one.
    pub fn member(&mut self) -> Member {
        let n = self.random.below(self.members.len() as u64) as usize;
        self.members[n].clone()
    }

    /// A handle that a guest gets on another, or loses.
    pub fn change_capabilities(&mut self) -> Outcome {
        let [to, mut object] = [self.member(), self.member()];
        if to.id == object.id {
            object = self.member();
        }
        if self.random.below(4) == 0 && !to.capabilities.is_empty() {
            let (cap, handle, _) = self.random.pick(&to.capabilities);
            let real = refused(hvc::call(call::CAP_REVOKE, &[to.handle, handle]));
            let spec = self.spec.revoke(Target::Vm(to.id), Some(cap));
            return self.agree("CAP_REVOKE", real, &spec);
        }
        let rights = self.random.pick(&[7, 7, 7, 7, 1, 2, 4, 3, 0, 8]);
        let base = self.random.pick(&[0, 0, crate::pick::GUEST, crate::pick::GUEST + 0x10_0000]);
        let size = self.random.pick(&[1 << 38, 1 << 38, 1 << 38, 0x20_0000, 0x8000, 0, 0x800]);
        let arguments = [to.handle, object.handle, rights, base, size];
        let real = refused(hvc::call(call::CAP_GRANT, &arguments));
        let spec = self.spec.grant(Target::Vm(to.id), Target::Vm(object.id), rights, base, size);
        self.agree("CAP_GRANT", real, &spec)?;
        if let (Ok([handle, ..]), Ok(cap)) = (real, spec) {
            let held = self.members.iter_mut().find(|member| member.id == to.id);
            match held {
                Some(member) => member.capabilities.push((cap, handle, object.id)),
                None => fail!("a handle for nobody"),
            }
        }
        Ok(())
    }

    /// What a guest may write into X1 to name another VM, and which that is.
    pub fn target(&mut self, of: &Member) -> (Target, u64, Option<VmId>) {
        if of.capabilities.is_empty() || self.random.below(6) == 0 {
            let vcpu = Handle { generation: 1, kind: HandleKind::Vcpu, slot: 1, index: 0 };
            return self.random.pick(&[
                (Target::Host, Handle::HOST, None),
                (Target::Host, Handle::HOST, None),
                (Target::Null, 0, None),
                (Target::Null, u64::MAX, None),
                (Target::WrongType, vcpu.to_register(), None),
            ]);
        }
        let (cap, handle, object) = self.random.pick(&of.capabilities);
        (Target::Capability(cap), handle, Some(object))
    }

    /// A guest's call, with a list if there is one.
    pub fn guest_call(
        &self,
        guest: &Guest,
        function: u32,
        vm: Option<u64>,
        list: &[MemEntry],
    ) -> Outcome<Answered> {
        for (n, entry) in (0..).zip(list) {
            let at = guest.list + n * size_of::<MemEntry>() as u64;
            poke(at, entry.frame);
            poke(at + 8, entry.guest);
            poke(at + 16, entry.refcount as u64 | (entry.safe as u64) << 32);
            poke(at + 24, entry.accessible as u64 | (entry.reserved as u64) << 32);
        }
        let count = list.len() as u64;
        match vm {
            Some(vm) => guest_hvc(guest, &[function as u64, vm, LIST, count]),
            None => guest_hvc(guest, &[function as u64, LIST, count]),
        }
    }

    /// The frames of a guest's list page and its like are its agent's.
    pub fn is_home(&self, at: u64) -> bool {
        self.spec.frame(at) == Frame::HOME
    }
}

/// A guest's call; it may end with its host being asked.
pub fn guest_hvc(guest: &Guest, arguments: &[u64]) -> Outcome<Answered> {
    let results = guest.agent.call(routine::hvc(), arguments)?;
    answered(&results)
}

/// What a guest's call has answered.
pub fn answered(results: &escrow_payloads::guest::Results) -> Outcome<Answered> {
    let [x0, x1, x2, x3, ..] = results.x;
    if results.exception.is_some() {
        fail!("{results:x?}");
    }
    if x0 == 0 {
        return Ok(Ok([x1, x2, x3, 0]));
    }
    match Error::from_register(x0) {
        Some(error) => Ok(Err((error, x1, x2))),
        None => fail!("{x0:#x} is no error"),
    }
}

const _: () = assert!(LIST < CODE + 0x1_0000 && LIST.is_multiple_of(PAGE_SIZE));

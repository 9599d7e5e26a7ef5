// SPDX-License-Identifier: MIT OR Apache-2.0

//! VMs and vCPUs: made, put together, started, ended.

use core::sync::atomic::Ordering;

use escrow_abi::{CREATE_BLOCKS_MAX, Error, FrameState, Handle, HandleKind, Rights, call, run};

use super::extents::{Scratch, for_each_block};
use super::list::{Form, List, Reader};
use super::portions::{Part, Progress};
use super::{Hypervisor, Refusal, check_range};
use crate::addr::{Ipa, PAGE_SIZE};
use crate::capability::Capabilities;
use crate::ledger::{GuestId, Record, VmId};
use crate::machine::{Machine, Note};
use crate::stage2::{GuestMap, PagePool, Span, Stage2Context, TableCount, VcpuPage};
use crate::sync::TicketMutexGuard;
use crate::vcpu::{Vcpu, VcpuCell};
use crate::vgic;
use crate::vm::{Entered, First, Life, MAX_VCPUS, Run, Slot, Vm, vm_handle};

const _: () = assert!(size_of::<VcpuCell>() as u64 <= PAGE_SIZE, "a vCPU fits a page");

/// Why a run does not begin.
enum NoRun {
    Refused(Error),
    /// The guest is down, for this reason.
    Down(u64),
}

impl From<Error> for NoRun {
    fn from(error: Error) -> NoRun {
        NoRun::Refused(error)
    }
}

/// Why a register is no handle of the kind that was asked for.
#[cold]
#[inline(never)]
fn not_of_kind(register: u64) -> Error {
    match Handle::from_register(register) {
        Some(_) => Error::HandleType,
        None => Error::HandleNull,
    }
}

impl<M: Machine> Hypervisor<M> {
    /// The slot that a handle names, whatever has become of its VM.
    pub(super) fn slot(
        &self,
        handle: u64,
        kind: HandleKind,
    ) -> Result<(Handle, GuestId, &Slot), Error> {
        let handle = Handle::of_kind(handle, kind).ok_or_else(|| not_of_kind(handle))?;
        let slot = self.slots.numbered(handle.slot).ok_or(Error::HandleNull)?;
        Ok((handle, slot.id(), slot))
    }

    /// Locks the VM that a handle names, if its handles are valid.
    pub(super) fn lock_named(
        &self,
        handle: u64,
        kind: HandleKind,
    ) -> Result<(Handle, GuestId, &Slot, TicketMutexGuard<'_, Vm>), Error> {
        let (handle, id, slot) = self.slot(handle, kind)?;
        let vm = slot.lock();
        if vm.generation != handle.generation || !vm.is_alive() {
            return Err(Error::HandleRevoked);
        }
        Ok((handle, id, slot, vm))
    }

    /// Locks a VM that is created or started.
    pub(super) fn lock_live_vm(
        &self,
        handle: u64,
    ) -> Result<(GuestId, TicketMutexGuard<'_, Vm>), Error> {
        let (_, id, _, vm) = self.lock_named(handle, HandleKind::Vm)?;
        if vm.life == Life::Ending {
            return Err(Error::HandleRevoked);
        }
        Ok((id, vm))
    }

    pub(super) fn vm_create(&self, scratch: &mut Scratch, list: List) -> Result<[u64; 4], Refusal> {
        scratch.broken = 0;
        self.read_list(scratch, Reader::Host, Form::METADATA, list, Part::AT_ONCE)?;
        scratch.sort_by_frame()?;
        // This call is done at once, and not in portions: so its blocks are limited.
        let mut blocks = 0;
        for_each_block(scratch.extents(), |_| blocks += 1);
        if blocks > CREATE_BLOCKS_MAX {
            return Err(Error::InvalidSize.into());
        }
        let free = self.slots.iter().filter(|(_, slot)| !slot.counts().is_taken());
        // Another CPU may take the slot first: check it under its lock.
        let mut free = free.filter_map(|(id, slot)| {
            let vm = slot.lock();
            let usable = vm.life == Life::Free && vm.generation < Handle::GENERATION_MAX;
            usable.then_some((id, slot, vm))
        });
        let (id, slot, mut vm) = free.next().ok_or(Error::TableFull)?;
        if !self.gate().is_open() {
            return Err(Error::Denied.into());
        }
        self.donate_metadata(scratch, id, &mut vm)?;
        // The list has at least one page. If all are broken, the slot is free as before.
        let none = Refusal { detail: 1, ..Error::NoMemory.into() };
        let root = vm.pool.pop(&self.machine).ok_or(none)?;
        let vttbr = u64::from(id.get()) << 48 | root.address().0;
        let context = Stage2Context { vttbr, vtcr: self.guest_vtcr };
        self.machine.note(|| Note::Root(id.into(), &context));
        let generation = vm.begin(GuestMap::new(self.guest_geometry, root, context));
        slot.open(&context, generation);
        vm.live_handle = vm_handle(id.get(), generation).to_register();
        Ok([vm.live_handle, scratch.broken, 0, 0])
    }

    pub(super) fn vm_top_up(
        &self,
        scratch: &mut Scratch,
        vm: u64,
        list: List,
    ) -> Result<Progress, Refusal> {
        self.in_portions(scratch, list, true, |scratch, part| {
            self.read_list(scratch, Reader::Host, Form::METADATA, list, part)?;
            let (id, mut vm) = self.lock_live_vm(vm)?;
            self.donate_metadata(scratch, id, &mut vm)?;
            Ok(scratch.end(list))
        })
    }

    pub(super) fn vm_configure(
        &self,
        vm: u64,
        key: u64,
        base: u64,
        size: u64,
    ) -> Result<(), Refusal> {
        let (_, mut vm) = self.lock_live_vm(vm)?;
        let end = check_range(base, size, self.guest_geometry.end())?;
        match key {
            call::CONFIGURE_MEMORY_ADD => self.declare(&mut vm, base, end, true),
            call::CONFIGURE_MEMORY_REMOVE => self.declare(&mut vm, base, end, false),
            _ => Err(Error::InvalidArgument.into()),
        }
    }

    pub(super) fn vm_start(&self, vm: u64) -> Result<(), Refusal> {
        let (handle, _, slot, mut vm) = self.lock_named(vm, HandleKind::Vm)?;
        if vm.life != Life::Created || slot.vcpus() == 0 {
            return Err(Error::Denied.into());
        }
        vm.life = Life::Started;
        if let Some(map) = &mut vm.map {
            map.start();
        }
        slot.allow_runs(handle.generation);
        Ok(())
    }

    pub(super) fn vm_pv_time(&self, vm: u64, at: u64) -> Result<(), Refusal> {
        let (_, id, slot, mut vm) = self.lock_named(vm, HandleKind::Vm)?;
        check_range(at, PAGE_SIZE, self.guest_geometry.end())?;
        let is_new = slot.time_page().is_none();
        let Vm { life: Life::Created, map: Some(map), pool, .. } = &mut *vm else {
            return Err(Error::Denied.into());
        };
        if !is_new || map.shared_bit().is_some_and(|shared| at & shared != 0) {
            return Err(Error::Denied.into());
        }
        let span = Span { at: Ipa(at), pages: 1, is_block: false };
        let mut tables = TableCount::new();
        let room = map.prepare_map(&self.machine, span, &mut tables);
        let room = room.map_err(|_| Error::GuestMapped)?;
        let missing = (tables.tables() + 1).saturating_sub(pool.len());
        let no_memory = Refusal { detail: missing, ..Error::NoMemory.into() };
        if missing != 0 {
            return Err(no_memory);
        }
        let page = pool.pop(&self.machine).ok_or(no_memory)?;
        // A trace takes the page as lent: only the guest accesses it.
        let record = Record::borrowed(FrameState::Lent, VmId::Host, id, Ipa(at));
        self.machine.note(|| Note::Record { at: page.address(), size: PAGE_SIZE, record });
        let attributes = self.guest_attributes[Rights::READ.bits() as usize];
        map.map(&self.machine, pool, span, room, page.address(), attributes);
        self.machine.publish();
        slot.tell_time(page.into_time_page(), at);
        for index in 0..MAX_VCPUS as u8 {
            if let Some(vcpu) = slot.vcpu(index) {
                // As in `vcpu_set_register`: nobody else holds it.
                self.machine.vcpu(vcpu).lock().stolen = slot.time_of(index);
            }
        }
        Ok(())
    }

    pub(super) fn vm_destroy(&self, vm: u64) -> Result<(), Refusal> {
        let (_, id, slot, mut vm) = self.lock_named(vm, HandleKind::Vm)?;
        if !slot.end(&mut vm) {
            return Err(Error::Busy.into());
        }
        self.bury(id, slot, &mut vm);
        Ok(())
    }

    /// The end of a VM that no CPU is inside of, and none can enter.
    pub(super) fn bury(&self, id: GuestId, slot: &Slot, vm: &mut Vm) {
        slot.close();
        self.sum_up_unknown(id, slot);
        // One invalidation for all pages of the VM, before its VMID is used again.
        if let Some(map) = vm.map.take() {
            self.machine.note(|| Note::Drop(id.into()));
            self.machine.invalidate_all(map.context());
        }
        // The tables and vCPUs are plain metadata pages from here on.
        vm.pool = PagePool::new();
        vm.capabilities = Capabilities::new();
        vm.life = Life::Dead;
        vm.free_if_empty();
    }

    pub(super) fn vm_info(&self, vm: u64) -> Result<[u64; 4], Refusal> {
        let (_, _, _, vm) = self.lock_named(vm, HandleKind::Vm)?;
        let state = match vm.life {
            Life::Created => 0,
            Life::Started => 1,
            Life::Free | Life::Ending | Life::Dead => 2,
        };
        Ok([state, vm.counts.reachable(), vm.counts.get(FrameState::Metadata), vm.pool.len()])
    }

    pub(super) fn vcpu_create(&self, vm: u64, index: u64) -> Result<u64, Refusal> {
        if index >= MAX_VCPUS as u64 {
            return Err(Error::InvalidArgument.into());
        }
        let (handle, _, slot, mut vm) = self.lock_named(vm, HandleKind::Vm)?;
        if vm.life == Life::Ending || slot.vcpu(index as u8).is_some() {
            return Err(Error::Denied.into());
        }
        let mut vcpu = match vm.life {
            Life::Created => Vcpu::new(index as u8),
            _ => Vcpu::late(index as u8),
        };
        vcpu.has_gic = slot.controller().exists();
        vcpu.stolen = slot.time_of(index as u8);
        let Vm { map: Some(map), pool, .. } = &mut *vm else { return Err(Error::Denied.into()) };
        let mut frames = None;
        if vcpu.has_gic {
            let more = map.frames().with(index as u8, map.frames_end())?;
            map.must_be_free(&self.machine, &more)?;
            frames = Some(more);
        }
        let Some(page) = pool.pop(&self.machine) else {
            return Err(Refusal { detail: 1, ..Error::NoMemory.into() });
        };
        if let Some(frames) = frames {
            map.keep_free(frames);
        }
        slot.set_on(index as u8, vcpu.is_on());
        let has_gic = vcpu.has_gic;
        let page = page.place_vcpu(&self.machine, vcpu);
        // The other vCPUs can find it from here on. It cannot be switched on before the GIC has
        // it as well.
        let cell = self.machine.vcpu(page).lock();
        slot.set_vcpu(index as u8, page);
        if has_gic {
            self.admit(slot, index as u8);
        }
        drop(cell);
        let vcpu = Handle { kind: HandleKind::Vcpu, index: index as u8, ..handle };
        Ok(vcpu.to_register())
    }

    pub(super) fn vcpu_set_register(
        &self,
        vcpu: u64,
        register: u64,
        value: u64,
    ) -> Result<(), Refusal> {
        let (handle, _, slot, vm) = self.lock_named(vcpu, HandleKind::Vcpu)?;
        if vm.life != Life::Created {
            return Err(Error::Denied.into());
        }
        let page = slot.vcpu(handle.index).ok_or(Error::HandleRevoked)?;
        // Nobody else holds this lock: the vCPU has never run, and the VM's lock is held.
        let mut cell = self.machine.vcpu(page).lock();
        let ok = match (register >> 8, register & 0xff) {
            (0, n) if n < 31 => {
                cell.regs.x[n as usize] = value;
                true
            }
            (1, 0) => {
                cell.regs.pc = value;
                true
            }
            (2, 0) => {
                cell.el1.sp_el0 = value;
                true
            }
            (2, 1) => {
                cell.el1.sp_el1 = value;
                true
            }
            _ => false,
        };
        if ok { Ok(()) } else { Err(Error::InvalidArgument.into()) }
    }

    /// Begins a run. Takes no lock but the vCPU's own.
    ///
    /// # Errors
    /// What goes to `x0`–`x4` instead, which may be no error.
    pub(super) fn vcpu_run(&self, args: &[u64; 8]) -> Result<Run<'_>, [u64; 5]> {
        self.begin_run(args).map_err(|no| match no {
            NoRun::Refused(error) => [error.to_register(), 0, 0, 0, 0],
            NoRun::Down(reason) => [0, run::SYSTEM_DOWN, reason, 0, 0],
        })
    }

    #[inline(always)]
    fn begin_run(&self, args: &[u64; 8]) -> Result<Run<'_>, NoRun> {
        let [_, vcpu, resume0, resume1, resume2, x5, x6, x7] = *args;
        if x5 | x6 | x7 != 0 {
            return Err(Error::InvalidArgument.into());
        }
        let (handle, _, slot) = self.slot(vcpu, HandleKind::Vcpu)?;
        let Some(entered) = slot.enter(handle.generation) else {
            // Slow path: say why.
            let (_, _, _, vm) = self.lock_named(vcpu, HandleKind::Vcpu)?;
            let ended = vm.life == Life::Ending;
            return Err(if ended { Error::HandleRevoked } else { Error::Denied }.into());
        };
        let page = slot.vcpu(handle.index).ok_or(Error::HandleRevoked)?;
        let resume = [resume0, resume1, resume2];
        match slot.first() {
            None => self.lock_vcpu(page, entered, resume, None),
            Some(First::Down(reason)) => Err(NoRun::Down(reason)),
            Some(First::More) => {
                let interrupts = self.machine.vcpu_interrupts(page);
                let mut run = self.lock_vcpu(page, entered, resume, Some(interrupts))?;
                if run.stolen.is_some() {
                    self.begin_timed(slot, &mut run);
                }
                Ok(run)
            }
        }
    }

    #[inline(always)]
    fn lock_vcpu<'a>(
        &'a self,
        page: VcpuPage,
        entered: Entered<'a>,
        resume: [u64; 3],
        more: Option<&'a vgic::Cpu>,
    ) -> Result<Run<'a>, NoRun> {
        let cell = self.machine.vcpu(page).try_lock().ok_or(Error::Busy)?;
        let mut run = Run::new(cell, entered, more);
        run.resume(resume)?;
        Ok(run)
    }

    /// The registers that select the address space of a run's guest.
    #[inline(always)]
    pub fn context_of(&self, run: &Run<'_>) -> Stage2Context {
        Stage2Context { vttbr: run.slot().vttbr(), vtcr: self.guest_vtcr }
    }

    /// 4 KiB pages in a state, as they are counted without a lock: one look at each slot.
    pub fn pages(&self, state: FrameState) -> u64 {
        match state {
            FrameState::Hypervisor | FrameState::Pinned => self.at_boot[state as usize],
            FrameState::Poisoned => self.poisoned.load(Ordering::Relaxed),
            FrameState::Owned => {
                let away = FrameState::ALL.into_iter().filter(|state| {
                    !matches!(
                        state,
                        FrameState::Owned | FrameState::Hypervisor | FrameState::Pinned
                    )
                });
                let away = away.map(|state| self.pages(state)).sum();
                // Other CPUs may change the counts meanwhile, so this must not underflow.
                self.at_boot[FrameState::Owned as usize].saturating_sub(away)
            }
            _ => self.slots.iter().map(|(_, slot)| slot.counts().get(state)).sum(),
        }
    }

    pub(super) fn ledger_info(&self, selector: u64, detail: u64) -> Result<u64, Refusal> {
        let value = match selector {
            call::INFO_PAGES => {
                let state = FrameState::from_number(detail).ok_or(Error::InvalidArgument)?;
                return Ok(self.pages(state));
            }
            call::INFO_VMS => {
                self.slots.iter().filter(|(_, slot)| slot.counts().is_taken()).count() as u64
            }
            call::INFO_CPUS => self.cpus.load(Ordering::Relaxed) as u64,
            call::INFO_VERSION => version(),
            call::INFO_ERRATA => self.machine.errata().bits().into(),
            call::INFO_HARDENING => self.machine.hardening(),
            _ => return Err(Error::InvalidArgument.into()),
        };
        if detail == 0 { Ok(value) } else { Err(Error::InvalidArgument.into()) }
    }
}

/// The package version, as [`call::INFO_VERSION`] says it.
fn version() -> u64 {
    let part = |text: &str| text.parse::<u16>().unwrap_or(0) as u64;
    part(env!("CARGO_PKG_VERSION_MAJOR")) << 32
        | part(env!("CARGO_PKG_VERSION_MINOR")) << 16
        | part(env!("CARGO_PKG_VERSION_PATCH"))
}

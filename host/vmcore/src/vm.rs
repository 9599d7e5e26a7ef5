// SPDX-License-Identifier: MIT OR Apache-2.0

//! One VM: what it is configured with, and whether it can start.

use core::sync::atomic::{AtomicU32, Ordering};

use escrow_abi::{PAGE_SIZE, Rights};

use crate::Errno;
use crate::binding::{Binding, Bindings, Give};
use crate::exit::Exit;
use crate::interrupts::Interrupts;
use crate::stolen::StolenTime;
use crate::uapi;
use crate::vcpus::Vcpus;

/// The largest room for a device tree, in bytes: all of it is lent at the start.
pub const DTB_MAX: u64 = 64 << 20;

const X_REGISTERS: usize = 31;
const SP_REGISTERS: usize = 2;

/// A VM as its program has put it together. `M` names a memory.
///
/// The caller serialises the changes; [`down`](Self::down) and
/// [`status`](Self::status) may come at any time.
#[derive(Debug)]
pub struct Vm<M> {
    /// Escrow's name for it.
    handle: u64,
    /// Its memory.
    pub bindings: Bindings<M>,
    /// Its vCPUs.
    pub vcpus: Vcpus,
    /// Its interrupt controller, and what its tree's labels stand for.
    pub interrupts: Interrupts,
    /// Where its guest finds its stolen time.
    pub stolen_time: StolenTime,
    dtb: Option<uapi::DtbConfig>,
    x: [Option<u64>; X_REGISTERS],
    pc: Option<u64>,
    sp: [Option<u64>; SP_REGISTERS],
    /// A register was set that v17 takes and its hypervisor does not have.
    no_register: bool,
    started: bool,
    /// The bit that is 1 in the shared half of the guest's addresses, if the VM is protected.
    shared_bit: Option<u64>,
    /// `EXIT_TYPE_* + 1` once the guest is down, 0 before.
    down: AtomicU32,
}

/// The memory that must be with the guest before its first instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartRange<M> {
    /// Guest address, page-aligned.
    pub guest: u64,
    /// How many pages; at most [`DTB_MAX`] is in them, or on their edges.
    pub pages: u32,
    /// Whether it must not be mapped in the host at that moment: who still
    /// has the device tree mapped may still be writing it.
    pub unmapped: bool,
    /// The binding that holds all of them.
    pub binding: Binding<M>,
}

/// Where memory that a guest asks for is, and how the guest gets it there.
#[derive(Debug, PartialEq, Eq)]
pub struct Place<'a, M> {
    /// The binding behind it.
    pub binding: &'a Binding<M>,
    /// How the guest gets it.
    pub give: Give,
    /// What is added to the binding's guest addresses: the bit of the shared half, or 0.
    pub half: u64,
}

/// What a start needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start<M> {
    /// Nothing: it runs.
    Running,
    /// This memory has to be brought in, the registers set, and Escrow told.
    From(StartRange<M>),
}

impl<M: Clone + PartialEq> Vm<M> {
    /// A VM without anything.
    pub fn new(handle: u64) -> Self {
        Vm {
            handle,
            bindings: Bindings::default(),
            vcpus: Vcpus::default(),
            interrupts: Interrupts::default(),
            stolen_time: StolenTime::default(),
            dtb: None,
            x: [None; X_REGISTERS],
            pc: None,
            sp: [None; SP_REGISTERS],
            no_register: false,
            started: false,
            shared_bit: None,
            down: AtomicU32::new(0),
        }
    }

    /// Escrow's name for the VM.
    pub fn handle(&self) -> u64 {
        self.handle
    }

    /// Whether the VM has been started.
    pub fn is_started(&self) -> bool {
        self.started
    }

    /// Makes the VM a protected one. `ask` has Escrow do so, and returns the bit that is 1 in the
    /// shared half of the guest's addresses. → how many bits these have
    ///
    /// # Errors
    /// `Busy` if the VM has a binding or a vCPU, has started or is protected already; those of
    /// `ask`, but `Busy` where Escrow says that it is too late.
    pub fn protect(&mut self, ask: impl FnOnce() -> Result<u64, Errno>) -> Result<u32, Errno> {
        let has_some = self.bindings.get(0).is_some() || self.vcpus.count() != 0;
        if has_some || self.started || self.shared_bit.is_some() {
            return Err(Errno::Busy);
        }
        let shared = ask().map_err(|errno| match errno {
            Errno::Exists | Errno::NotPermitted => Errno::Busy,
            errno => errno,
        })?;
        self.shared_bit = Some(shared);
        Ok(shared.trailing_zeros() + 1)
    }

    /// Whether the VM is protected.
    pub fn is_protected(&self) -> bool {
        self.shared_bit.is_some()
    }

    /// Adds a binding.
    ///
    /// # Errors
    /// `Invalid` if the VM is protected and the addresses reach into their shared half; those of
    /// [`Bindings::insert`].
    pub fn bind(&mut self, binding: Binding<M>) -> Result<(), Errno> {
        if self.shared_bit.is_some_and(|shared| binding.guest.end > shared) {
            return Err(Errno::Invalid);
        }
        self.bindings.insert(binding)
    }

    /// What is behind a guest address at which the guest lacks memory, for that access (`FAULT_*`
    /// bits).
    ///
    /// # Errors
    /// `NotFound` if nothing is bound there any more; `Access` if the guest may not do that;
    /// `NotPermitted` in the protected half, where it is RAM to the guest and none is to come. Escrow refuses an abort
    /// in its place, so the guest is at its end.
    pub fn find(&self, guest: u64, access: u64) -> Result<Place<'_, M>, Errno> {
        let half = guest & self.shared_bit.unwrap_or(0);
        let binding = self.bindings.find(guest & !half);
        let place = match (binding, self.shared_bit) {
            (Some(binding), None) => Place { binding, give: binding.give, half },
            (Some(binding), Some(_)) if half != 0 => Place { binding, give: Give::Share, half },
            (Some(binding), Some(_)) if binding.give == Give::Lend => {
                Place { binding, give: Give::Lend, half }
            }
            // Escrow decides anew what is there: MMIO, as a rule.
            (None, _) if self.shared_bit.is_none() || half != 0 => return Err(Errno::NotFound),
            // Escrow would ask for ever.
            _ => return Err(Errno::NotPermitted),
        };
        let refusal = match self.shared_bit {
            Some(_) if half == 0 => Errno::NotPermitted,
            _ => Errno::Access,
        };
        place.binding.allows(access).then_some(place).ok_or(refusal)
    }

    /// Sets where the device tree is. The start looks at it, and nothing after that.
    ///
    /// # Errors
    /// `Overflow` for a range that wraps.
    pub fn set_dtb(&mut self, config: uapi::DtbConfig) -> Result<(), Errno> {
        let end = config.guest_phys_addr.checked_add(config.size).ok_or(Errno::Overflow)?;
        end.checked_next_multiple_of(PAGE_SIZE).ok_or(Errno::Overflow)?;
        if !self.started {
            self.dtb = Some(config);
        }
        Ok(())
    }

    /// Where the device tree is.
    pub fn dtb(&self) -> Option<uapi::DtbConfig> {
        self.dtb
    }

    /// Sets a register that the boot vCPU starts with.
    ///
    /// v17 does not look at the upper half of the register's number, nor at the reserved
    /// field. It takes one number too many of X and SP, which its hypervisor refuses when
    /// the VM starts.
    ///
    /// # Errors
    /// `Invalid` after the start and for a register that does not exist.
    pub fn set_boot_context(&mut self, context: uapi::BootContext) -> Result<(), Errno> {
        if self.started {
            return Err(Errno::Invalid);
        }
        let index = (context.reg & 0xff) as usize;
        let register = match context.reg >> 8 & 0xff {
            uapi::REG_SET_X if index <= X_REGISTERS => self.x.get_mut(index),
            uapi::REG_SET_PC if index == 0 => Some(&mut self.pc),
            uapi::REG_SET_SP if index <= SP_REGISTERS => self.sp.get_mut(index),
            _ => return Err(Errno::Invalid),
        };
        match register {
            Some(register) => *register = Some(context.value),
            None => self.no_register = true,
        }
        Ok(())
    }

    /// Whether the VM can start, and with what. Changes nothing.
    ///
    /// # Errors
    /// `Invalid` without a vCPU (there may be more than the host has CPUs), with a register
    /// that there is not, with a device tree that is empty or larger than [`DTB_MAX`], or
    /// if the guest may not use the memory that it starts from as its boot
    /// needs; `NotFound` if that memory is not bound, in one piece.
    pub fn check_start(&self) -> Result<Start<M>, Errno> {
        if self.started {
            return Ok(Start::Running);
        }
        let dtb_fits = self.dtb.is_none_or(|dtb| (1..=DTB_MAX).contains(&dtb.size));
        if self.vcpus.count() == 0 || self.no_register || !dtb_fits {
            return Err(Errno::Invalid);
        }
        let (start, size, rights) = match self.dtb {
            Some(dtb) => (dtb.guest_phys_addr, dtb.size, Rights::ALL),
            None => (self.boot_pc().ok_or(Errno::NotFound)?, 1, Rights::READ_EXECUTE),
        };
        let binding = self.bindings.find(start).ok_or(Errno::NotFound)?;
        // Neither sum overflows: `set_dtb` has checked the first one, and the last page of a
        // binding is below the end of the address space.
        let guest = start & !(PAGE_SIZE - 1);
        let end = (start + size).next_multiple_of(PAGE_SIZE);
        if binding.guest.end < end {
            return Err(Errno::NotFound);
        }
        if binding.rights.bits() & rights.bits() != rights.bits() {
            return Err(Errno::Invalid);
        }
        let pages = u32::try_from((end - guest) / PAGE_SIZE).map_err(|_| Errno::Invalid)?;
        let unmapped = self.dtb.is_some();
        Ok(Start::From(StartRange { guest, pages, unmapped, binding: binding.clone() }))
    }

    /// The VM runs.
    pub fn started(&mut self) {
        self.started = true;
    }

    /// The registers that the boot vCPU starts with, as `set << 8 | index`
    /// and value: those that were set, the device tree's address in X0, and
    /// the start of memory as PC where nothing else was said.
    pub fn boot_registers(&self) -> impl Iterator<Item = (u32, u64)> {
        let x = self.x.iter().enumerate().map(|(index, value)| {
            let dtb = self.dtb.filter(|_| index == 0).map(|dtb| dtb.guest_phys_addr);
            (uapi::boot_register(uapi::REG_SET_X, index as u32), value.or(dtb))
        });
        let sp =
            self.sp.iter().enumerate().map(|(index, value)| {
                (uapi::boot_register(uapi::REG_SET_SP, index as u32), *value)
            });
        let pc = (uapi::boot_register(uapi::REG_SET_PC, 0), self.boot_pc());
        x.chain(sp).chain([pc]).filter_map(|(register, value)| Some((register, value?)))
    }

    fn boot_pc(&self) -> Option<u64> {
        self.pc.or_else(|| self.bindings.get(0).map(|first| first.guest.start))
    }

    /// The guest is down, for that `EXIT_TYPE_*`. The first reason stays.
    pub fn down(&self, kind: u16) {
        let _ = self.down.compare_exchange(
            0,
            u32::from(kind) + 1,
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
    }

    /// What the vCPUs' programs are told once the guest is down.
    pub fn status(&self) -> Option<Exit> {
        let kind = u16::try_from(self.down.load(Ordering::Relaxed).checked_sub(1)?).ok()?;
        let status = match kind {
            uapi::EXIT_TYPE_HYPERVISOR_ERROR => uapi::STATUS_CRASHED,
            _ => uapi::STATUS_EXITED,
        };
        Some(Exit::status(status, kind))
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use escrow_abi::BLOCK_SIZE;

    use super::*;

    const RAM: u64 = 0x8000_0000;

    fn bound(rights: Rights) -> Vm<char> {
        let mut vm = Vm::new(1);
        vm.vcpus.add(0, || Ok(10)).unwrap();
        vm.bindings
            .insert(Binding {
                guest: RAM..RAM + 0x40_0000,
                memory: 'a',
                offset: 0,
                give: Give::Lend,
                rights,
            })
            .unwrap();
        vm
    }

    fn range(start: Result<Start<char>, Errno>) -> (u64, u32) {
        match start {
            Ok(Start::From(range)) => {
                assert_eq!(range.unmapped, range.binding.rights == Rights::ALL);
                (range.guest, range.pages)
            }
            other => panic!("{other:?}"),
        }
    }

    fn context(reg: u32, value: u64) -> uapi::BootContext {
        uapi::BootContext { reg, reserved: 0, value }
    }

    #[test]
    fn without_a_device_tree_the_first_page_of_code_is_needed() {
        let mut vm = bound(Rights::READ_EXECUTE);
        assert_eq!(range(vm.check_start()), (RAM, 1));
        vm.set_boot_context(context(uapi::boot_register(uapi::REG_SET_PC, 0), RAM + 0x1234))
            .unwrap();
        assert_eq!(range(vm.check_start()), (RAM + 0x1000, 1));
        vm.set_boot_context(context(uapi::boot_register(uapi::REG_SET_PC, 0), 0x6000)).unwrap();
        assert_eq!(vm.check_start(), Err(Errno::NotFound));
        assert_eq!(bound(Rights::READ_WRITE).check_start(), Err(Errno::Invalid));
    }

    #[test]
    fn a_device_tree_must_be_bound_like_ordinary_memory() {
        let dtb = |start, size| uapi::DtbConfig { guest_phys_addr: start, size };
        let mut vm = bound(Rights::ALL);
        vm.set_dtb(dtb(RAM + 0x1800, 0x1000)).unwrap();
        assert_eq!(range(vm.check_start()), (RAM + 0x1000, 2));
        vm.set_dtb(dtb(RAM + 0x20_0000, BLOCK_SIZE)).unwrap();
        assert_eq!(range(vm.check_start()), (RAM + 0x20_0000, 512));
        vm.set_dtb(dtb(RAM + 0x20_1000, BLOCK_SIZE)).unwrap();
        assert_eq!(vm.check_start(), Err(Errno::NotFound));
        vm.set_dtb(dtb(RAM - 0x1000, 0x1000)).unwrap();
        assert_eq!(vm.check_start(), Err(Errno::NotFound));
        for size in [0, DTB_MAX + 1] {
            vm.set_dtb(dtb(RAM, size)).unwrap();
            assert_eq!(vm.check_start(), Err(Errno::Invalid), "{size:#x} bytes");
        }
        assert_eq!(vm.set_dtb(dtb(u64::MAX - 1, 2)), Err(Errno::Overflow));
        assert_eq!(vm.set_dtb(dtb(u64::MAX - 2, 2)), Err(Errno::Overflow));

        let mut vm = bound(Rights::READ_WRITE);
        vm.set_dtb(dtb(RAM, 0x1000)).unwrap();
        assert_eq!(vm.check_start(), Err(Errno::Invalid));
    }

    #[test]
    fn a_start_needs_a_vcpu() {
        let mut vm = bound(Rights::ALL);
        assert!(vm.check_start().is_ok());
        vm.vcpus.remove(0).unwrap();
        assert_eq!(vm.check_start(), Err(Errno::Invalid));
    }

    #[test]
    fn a_started_vm_starts_again_and_is_not_changed() {
        let mut vm = bound(Rights::ALL);
        vm.started();
        assert_eq!(vm.check_start(), Ok(Start::Running));
        assert_eq!(vm.set_boot_context(context(0, 1)), Err(Errno::Invalid));
        let dtb = uapi::DtbConfig { guest_phys_addr: RAM, size: 1 };
        assert_eq!((vm.set_dtb(dtb), vm.dtb()), (Ok(()), None), "nobody looks at it any more");
    }

    const SHARED: u64 = 1 << 38;

    fn protected(give: Give) -> Vm<char> {
        let mut vm = Vm::new(1);
        assert_eq!(vm.protect(|| Ok(SHARED)), Ok(39));
        let guest = RAM..RAM + 0x40_0000;
        let rights = Rights::READ_WRITE;
        vm.bind(Binding { guest, memory: 'a', offset: 0, give, rights }).unwrap();
        vm
    }

    #[test]
    fn a_vm_is_protected_before_all_else_and_once() {
        let ask = || Ok(SHARED);
        assert_eq!(protected(Give::Lend).protect(ask), Err(Errno::Busy), "a binding");
        let mut vm = Vm::<char>::new(1);
        vm.vcpus.add(0, || Ok(10)).unwrap();
        assert_eq!(vm.protect(ask), Err(Errno::Busy), "a vCPU");
        let mut vm = Vm::<char>::new(1);
        for (says, told) in [
            (Errno::Unsupported, Errno::Unsupported),
            (Errno::Exists, Errno::Busy),
            (Errno::NotPermitted, Errno::Busy),
            (Errno::NoDevice, Errno::NoDevice),
        ] {
            assert_eq!(vm.protect(|| Err(says)), Err(told));
            assert!(!vm.is_protected());
        }
        assert_eq!(vm.protect(ask), Ok(39));
        assert!(vm.is_protected());
        assert_eq!(vm.protect(|| panic!("it is asked once")), Err(Errno::Busy));
        let mut vm = Vm::<char>::new(1);
        vm.started();
        assert_eq!(vm.protect(ask), Err(Errno::Busy), "started");
    }

    #[test]
    fn bindings_are_below_the_shared_half() {
        let mut vm = protected(Give::Lend);
        let mut bind = |guest, offset| {
            let rights = Rights::ALL;
            vm.bind(Binding { guest, memory: 'a', offset, give: Give::Lend, rights })
        };
        let at = 0x40_0000;
        assert_eq!(bind(SHARED..SHARED + 0x1000, at), Err(Errno::Invalid));
        assert_eq!(bind(SHARED - 0x1000..SHARED + 0x1000, at), Err(Errno::Invalid));
        assert_eq!(bind(SHARED - 0x1000..SHARED, at), Ok(()));
        let mut vm = bound(Rights::ALL);
        let guest = SHARED..SHARED + 0x1000;
        let rights = Rights::ALL;
        let far = Binding { guest, memory: 'a', offset: at, give: Give::Lend, rights };
        assert_eq!(vm.bind(far), Ok(()), "it has no halves");
    }

    #[test]
    fn both_halves_lead_to_the_same_binding() {
        let write = escrow_abi::run::FAULT_WRITE;
        let execute = escrow_abi::run::FAULT_EXECUTE;
        let vm = protected(Give::Lend);
        let place = |vm: &Vm<char>, at, access| {
            vm.find(at, access).map(|place| (place.binding.guest.start, place.give, place.half))
        };
        assert_eq!(place(&vm, RAM + 0x1000, write), Ok((RAM, Give::Lend, 0)));
        assert_eq!(place(&vm, (RAM + 0x1000) | SHARED, write), Ok((RAM, Give::Share, SHARED)));
        assert_eq!(place(&vm, RAM | SHARED, execute), Err(Errno::Access));
        // Escrow takes no abort for RAM.
        assert_eq!(place(&vm, RAM, execute), Err(Errno::NotPermitted));
        assert_eq!(place(&vm, RAM - 1, 0), Err(Errno::NotPermitted));
        assert_eq!(place(&vm, (RAM - 1) | SHARED, 0), Err(Errno::NotFound));
        let vm = protected(Give::Share);
        let refusal = place(&vm, RAM, 0);
        assert_eq!(refusal, Err(Errno::NotPermitted), "nothing shared in the protected half");
        assert_eq!(place(&vm, RAM | SHARED, 0), Ok((RAM, Give::Share, SHARED)));
        let vm = bound(Rights::ALL);
        assert_eq!(place(&vm, RAM, execute), Ok((RAM, Give::Lend, 0)));
        assert_eq!(place(&vm, RAM | SHARED, 0), Err(Errno::NotFound));
        assert_eq!(place(&vm, RAM - 1, 0), Err(Errno::NotFound));
    }

    #[test]
    fn registers_have_their_defaults() {
        let mut vm = bound(Rights::ALL);
        let all = |vm: &Vm<char>| vm.boot_registers().collect::<Vec<_>>();
        assert_eq!(all(&vm), [(0x100, RAM)]);
        vm.set_dtb(uapi::DtbConfig { guest_phys_addr: RAM + 0x1000, size: 8 }).unwrap();
        assert_eq!(all(&vm), [(0, RAM + 0x1000), (0x100, RAM)]);
        for (reg, value) in [(0, 7), (30, 8), (0x100, 9), (0x200, 10), (0x201, 11)] {
            vm.set_boot_context(context(reg, value)).unwrap();
        }
        assert_eq!(all(&vm), [(0, 7), (30, 8), (0x200, 10), (0x201, 11), (0x100, 9)]);
        for reg in [32, 0xff, 0x101, 0x203, 0x300, u32::MAX] {
            assert_eq!(vm.set_boot_context(context(reg, 0)), Err(Errno::Invalid), "{reg:#x}");
        }
        let ignored = uapi::BootContext { reserved: 1, ..context(0xabcd_0001, 12) };
        vm.set_boot_context(ignored).unwrap();
        assert_eq!(all(&vm)[..2], [(0, 7), (1, 12)]);
    }

    #[test]
    fn a_register_too_many_is_refused_by_the_start() {
        for reg in [31, 0x202] {
            let mut vm = bound(Rights::ALL);
            let before = vm.boot_registers().collect::<Vec<_>>();
            vm.set_boot_context(context(reg, 1)).unwrap();
            assert_eq!(vm.boot_registers().collect::<Vec<_>>(), before);
            assert_eq!(vm.check_start(), Err(Errno::Invalid), "{reg:#x}");
        }
    }

    #[test]
    fn the_first_end_is_the_one_that_is_told() {
        let vm = bound(Rights::ALL);
        assert_eq!(vm.status(), None);
        vm.down(uapi::EXIT_TYPE_RESET);
        vm.down(uapi::EXIT_TYPE_POWER_OFF);
        assert_eq!(vm.status(), Some(Exit::status(uapi::STATUS_EXITED, uapi::EXIT_TYPE_RESET)));
    }
}

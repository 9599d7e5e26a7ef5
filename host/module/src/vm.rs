// SPDX-License-Identifier: MIT OR Apache-2.0

//! A VM: bindings, vCPUs, start and end.

use alloc::boxed::Box;
use core::ops::Range;

use escrow_abi::{PAGE_SIZE, Rights};
use escrow_memfd::How;
use escrow_vmcore::args::{self, MapRequest};
use escrow_vmcore::binding::{self, Binding, Give};
use escrow_vmcore::exit::Vcpu;
use escrow_vmcore::lifecycle::{self, Lifecycle};
use escrow_vmcore::vm::{Place, Start, Vm};
use escrow_vmcore::{Errno, hypercall, uapi};

use crate::kernel::{BorrowerPtr, Hvc, MemPtr, MemRef};
use crate::vcpu::CExit;
use crate::{new, status, store};

/// `ESCROW_MEM_*`: what a CREATE_GUEST_MEM asks for.
pub const MEM_CLOEXEC: i32 = 1;
/// May be made of large folios.
pub const MEM_HUGE: i32 = 2;
/// Lends go before new mappings.
pub const MEM_LEND_FIRST: i32 = 4;

/// `ESCROW_EXPORT_*`: what a MEM_EXPORT_DMABUF asks for.
pub const EXPORT_CLOEXEC: i32 = 1;
/// Programs may write to it.
pub const EXPORT_WRITE: i32 = 2;

/// A VM as the module keeps it.
pub type Core = Vm<MemRef>;

/// `struct escrow_map_request`: a checked VM_MAP_MEM.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct CMapRequest {
    pub(crate) guest: u64,
    pub(crate) size: u64,
    pub(crate) offset: u64,
    pub(crate) how: u32,
    pub(crate) rights: u32,
    pub(crate) unbind: bool,
    pub(crate) reserved: [u8; 7],
}

/// [`CMapRequest::how`] of an unmapping: however it is bound.
const HOW_ANY: u32 = u32::MAX;

impl CMapRequest {
    fn guest(&self) -> Range<u64> {
        self.guest..self.guest.saturating_add(self.size)
    }

    /// How it is bound, or must be.
    fn give(&self) -> Option<Give> {
        [Give::Lend, Give::Share].into_iter().find(|&give| how(give) == self.how)
    }

    /// What the guest may do, or must be allowed; without any, none is named.
    fn rights(&self) -> Option<Rights> {
        Rights::from_bits(self.rights.into()).filter(|rights| rights.bits() != 0)
    }
}

/// `struct escrow_binding`: a binding, guest addresses and the memory behind
/// them.
#[repr(C)]
pub struct CBinding {
    pub(crate) mem: Option<MemPtr>,
    pub(crate) guest: u64,
    pub(crate) size: u64,
    pub(crate) offset: u64,
    pub(crate) how: u32,
    pub(crate) rights: u32,
}

impl CBinding {
    fn of(binding: &Binding<MemRef>) -> CBinding {
        CBinding::at(&Place { binding, give: binding.give, half: 0 })
    }

    fn at(place: &Place<'_, MemRef>) -> CBinding {
        let Place { binding, give, half } = *place;
        CBinding {
            mem: Some(binding.memory.as_ptr()),
            guest: binding.guest.start + half,
            size: binding.guest.end - binding.guest.start,
            offset: binding.offset,
            how: how(give),
            rights: binding.rights.bits().into(),
        }
    }
}

fn how(give: Give) -> u32 {
    match give {
        Give::Lend => How::Lent as u32,
        Give::Share => How::Shared as u32,
    }
}

/// An event of a VM's life. false: it must not happen now, and has not.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_vm_advance(life: &Lifecycle, number: u32) -> bool {
    lifecycle::event(number).is_some_and(|event| life.advance(event).is_some())
}

/// A VM without anything; null without memory.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_vm_new(handle: u64) -> Option<Box<Core>> {
    new(Vm::new(handle))
}

/// The end of what `escrow_rs_vm_new` made.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_vm_free(vm: Option<Box<Core>>) {
    drop(vm);
}

/// Makes the VM a protected one. → how many bits its guest's addresses have
///
/// EBUSY: it is too late. EOPNOTSUPP: EL2 does not have that.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_vm_protect(vm: &mut Core) -> i32 {
    let handle = vm.handle();
    match vm.protect(|| hypercall::vm_protect(&mut Hvc, handle).map_err(Errno::from)) {
        Ok(bits) => bits.cast_signed(),
        Err(errno) => errno.to_return(),
    }
}

/// Sets where the device tree is.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_vm_set_dtb(vm: &mut Core, config: &uapi::DtbConfig) -> i32 {
    status(vm.set_dtb(*config))
}

/// Sets a register that the boot vCPU starts with.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_vm_set_boot_context(vm: &mut Core, context: &uapi::BootContext) -> i32 {
    status(vm.set_boot_context(*context))
}

/// Checks a VM_MAP_MEM.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_map_check(args: &uapi::MapMem, request: &mut CMapRequest) -> i32 {
    let checked = args::map_mem(args).map(|checked| match checked {
        MapRequest::Bind { guest, offset, give, rights } => CMapRequest {
            guest: guest.start,
            size: guest.end - guest.start,
            offset,
            how: how(give),
            rights: rights.bits().into(),
            ..CMapRequest::default()
        },
        MapRequest::Unbind { guest, offset, give, rights } => CMapRequest {
            guest: guest.start,
            size: guest.end - guest.start,
            offset,
            how: give.map_or(HOW_ANY, how),
            rights: rights.map_or(0, |rights| rights.bits().into()),
            unbind: true,
            ..CMapRequest::default()
        },
    });
    store(checked, request)
}

/// Checks a CREATE_GUEST_MEM. → `ESCROW_MEM_*`
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_create_mem_check(args: &uapi::CreateMem) -> i32 {
    match args::create_mem(args) {
        Ok(kind) => {
            let flag = |set, flag| if set { flag } else { 0 };
            flag(kind.close_on_exec, MEM_CLOEXEC)
                | flag(kind.allow_huge, MEM_HUGE)
                | flag(kind.lend_first, MEM_LEND_FIRST)
        }
        Err(errno) => errno.to_return(),
    }
}

/// Checks a MEM_EXPORT_DMABUF. → `ESCROW_EXPORT_*`
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_export_check(args: &uapi::ExportDmabuf) -> i32 {
    match args::export_dmabuf(args) {
        Ok(export) => {
            let flag = |set, flag| if set { flag } else { 0 };
            flag(export.close_on_exec, EXPORT_CLOEXEC) | flag(export.write, EXPORT_WRITE)
        }
        Err(errno) => errno.to_return(),
    }
}

/// Binds a checked request's addresses, and tells Escrow that they are
/// memory.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_vm_bind(
    vm: &mut Core,
    donor: BorrowerPtr,
    request: &CMapRequest,
    mem: MemPtr,
) -> i32 {
    let mut donor = donor;
    let (Some(give), Some(rights)) = (request.give(), request.rights()) else {
        return Errno::Invalid.to_return();
    };
    let guest = request.guest();
    let binding = Binding {
        guest: guest.clone(),
        memory: MemRef::new(mem),
        offset: request.offset,
        give,
        rights,
    };
    let bound = vm.bind(binding).and_then(|()| {
        let handle = vm.handle();
        hypercall::vm_configure(&mut Hvc, &mut donor, handle, true, request.guest, request.size)
            .map_err(|error| {
                // Removing a whole binding allocates nothing, so it cannot fail.
                let _ = vm.bindings.remove(&guest);
                error.into()
            })
    });
    status(bound)
}

/// Checks that a range can be unbound, and sees to it that neither memory nor the limit of
/// bindings is a reason for it to fail later.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_vm_begin_unbind(
    vm: &mut Core,
    request: &CMapRequest,
    mem: MemPtr,
) -> i32 {
    let mem = MemRef::new(mem);
    let (guest, give, rights) = (request.guest(), request.give(), request.rights());
    let checked = vm.bindings.check(&guest, &mem, request.offset, give, rights);
    status(checked.and_then(|()| vm.bindings.prepare_removal(&request.guest())))
}

/// Unbinds a range, of which the guest has no page any more.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_vm_end_unbind(
    vm: &mut Core,
    donor: BorrowerPtr,
    request: &CMapRequest,
) -> i32 {
    let mut donor = donor;
    let handle = vm.handle();
    let told =
        hypercall::vm_configure(&mut Hvc, &mut donor, handle, false, request.guest, request.size);
    status(told.map_err(Errno::from).and_then(|()| vm.bindings.remove(&request.guest())))
}

/// Whether a folio at that offset of the memory fits into the binding as a
/// whole, and the guest address where it belongs.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_binding_fits(
    binding: &CBinding,
    offset: u64,
    size: u64,
    guest: &mut u64,
) -> bool {
    match binding::place_of(binding.guest, binding.offset, binding.size, offset, size) {
        Some(at) => {
            *guest = at;
            true
        }
        None => false,
    }
}

/// Finds the binding of a guest address, as the guest gets memory there: see [`Vm::find`]. ENOENT:
/// nothing is bound there. EACCES: the guest may not do that. EPERM: it waits for RAM that does not come.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_vm_find(vm: &Core, guest: u64, access: u64, to: &mut CBinding) -> i32 {
    store(vm.find(guest, access).map(|place| CBinding::at(&place)), to)
}

/// The binding at a place of the list. ENOENT: there are not so many.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_vm_binding(vm: &Core, index: usize, to: &mut CBinding) -> i32 {
    store(vm.bindings.get(index).map(CBinding::of).ok_or(Errno::NotFound), to)
}

/// Adds a vCPU, and creates Escrow's half of it. EINVAL: the guest's interrupt controller has no
/// room for it.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_vm_add_vcpu(
    vm: &mut Core,
    donor: BorrowerPtr,
    id: u32,
    vcpu: &mut Vcpu,
) -> i32 {
    let mut donor = donor;
    let handle = vm.handle();
    if !vm.interrupts.has_room_for(id) {
        return Errno::Invalid.to_return();
    }
    let added = vm
        .vcpus
        .add(id, || hypercall::vcpu_create(&mut Hvc, &mut donor, handle, id).map_err(Errno::from));
    store(added.map(Vcpu::new), vcpu)
}

/// Takes a vCPU away.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_vm_remove_vcpu(vm: &mut Core, id: u32) -> i32 {
    status(vm.vcpus.remove(id))
}

/// Whether the VM has been started.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_vm_is_started(vm: &Core) -> bool {
    vm.is_started()
}

/// Whether the VM can start. → 0 it runs already, 1 once it has `size` bytes
/// from `guest` on, which nobody in the host may have mapped if `unmapped`
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_vm_check_start(
    vm: &Core,
    binding: &mut CBinding,
    guest: &mut u64,
    size: &mut u64,
    unmapped: &mut bool,
) -> i32 {
    match vm.check_start() {
        Ok(Start::Running) => 0,
        Ok(Start::From(range)) => {
            *binding = CBinding::of(&range.binding);
            (*guest, *size) = (range.guest, u64::from(range.pages) * PAGE_SIZE);
            *unmapped = range.unmapped;
            1
        }
        Err(errno) => errno.to_return(),
    }
}

/// Sets the registers that the boot vCPU starts with.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_vm_set_registers(vm: &Core) -> i32 {
    let Some(boot) = vm.vcpus.boot() else {
        return Errno::Invalid.to_return();
    };
    status(vm.boot_registers().try_for_each(|(register, value)| {
        hypercall::vcpu_set_register(&mut Hvc, boot, register, value).map_err(Errno::from)
    }))
}

/// Starts the VM.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_vm_start(vm: &mut Core, donor: BorrowerPtr) -> i32 {
    let mut donor = donor;
    let started = hypercall::vm_start(&mut Hvc, &mut donor, vm.handle()).map_err(Errno::from);
    status(started.map(|()| vm.started()))
}

/// The guest is down.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_vm_down(vm: &Core, kind: u32) {
    vm.down(u16::try_from(kind).unwrap_or(uapi::EXIT_TYPE_HYPERVISOR_ERROR));
}

/// Whether the guest is down, and what its vCPUs' programs are told then.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_vm_status(vm: &Core, exit: &mut CExit) -> bool {
    match vm.status() {
        Some(status) => {
            *exit = status.into();
            true
        }
        None => false,
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! A VM with one vCPU, and the guest of `guest.S` in it.

use std::num::NonZeroUsize;
use std::ptr::NonNull;

use anyhow::{Context, Result, bail};
use kvm_bindings::{
    KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CTRL,
    KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST, kvm_create_device, kvm_device_attr,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3, kvm_userspace_memory_region, kvm_vcpu_init,
};
use kvm_ioctls::{DeviceFd, Kvm, VcpuExit, VcpuFd, VmFd};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};

use escrow_peers::guest::{Access, BLOCK, DEVICE, MEMORY, PAGE, Vcpu, program};

/// Where its interrupt controller is, which it does not use.
const DISTRIBUTOR: u64 = 0x0800_0000;
const REDISTRIBUTOR: u64 = 0x080a_0000;
/// `KVM_VM_TYPE_ARM_PROTECTED`: not in released headers yet.
const PROTECTED: u64 = 1 << 31;

/// `KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE`; the number of a
/// register is its offset in words of 32 bits.
const CORE_REGISTERS: u64 = 0x6030_0000_0010_0000;
const PC: u64 = 32 * 2;
const X0: u64 = 0;
const X28: u64 = 28 * 2;

/// Anonymous memory; each page held its guest address at first.
pub struct Memory {
    at: NonNull<std::ffi::c_void>,
    mapped: NonNull<std::ffi::c_void>,
    length: NonZeroUsize,
}

impl Memory {
    /// `size` bytes, aligned as blocks are; of blocks, if the kernel has them. None is there yet.
    fn new(size: u64, blocks: bool) -> Result<Memory> {
        let length = NonZeroUsize::new((size + BLOCK) as usize).context("no memory")?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a mapping of its own, at an address of the kernel's choice.
        let mapped = unsafe { mmap_anonymous(None, length, access, MapFlags::MAP_PRIVATE) }?;
        let offset = mapped.as_ptr().align_offset(BLOCK as usize);
        // SAFETY: the mapping is a block longer than what is used of it.
        let at = unsafe { mapped.byte_add(offset) };
        let memory = Memory { at, mapped, length };
        let advice = if blocks { MmapAdvise::MADV_HUGEPAGE } else { MmapAdvise::MADV_NOHUGEPAGE };
        // SAFETY: advice changes no contents.
        unsafe { madvise(at, size as usize, advice) }?;
        Ok(memory)
    }

    /// Writes into each of the first `size` bytes' pages its guest address.
    fn number(&self, size: u64) {
        for offset in (0..size).step_by(PAGE as usize) {
            // SAFETY: within the mapping, which nobody else knows.
            let page = unsafe { self.at.byte_add(offset as usize) };
            // SAFETY: as above.
            unsafe { page.cast::<u64>().write_volatile(MEMORY + offset) };
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the VM that knew the mapping is gone. If it cannot be
        // unmapped, it stays until the program ends.
        let _ = unsafe { munmap(self.mapped, self.length.get()) };
    }
}

/// An interrupt controller: without one in the kernel, KVM has more to do for
/// the timer at each exit. To be called when the vCPU is there.
fn gic(vm: &VmFd) -> Result<DeviceFd> {
    let mut device =
        kvm_create_device { type_: kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3, fd: 0, flags: 0 };
    let gic = vm.create_device(&mut device)?;
    let set = |group: u32, what: u32, address: Option<&u64>| {
        let addr = address.map_or(0, |value| std::ptr::from_ref(value) as u64);
        gic.set_device_attr(&kvm_device_attr { flags: 0, group, attr: what.into(), addr })
    };
    let (group, init) = (KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_CTRL_INIT);
    set(group, KVM_VGIC_V3_ADDR_TYPE_DIST, Some(&DISTRIBUTOR))?;
    set(group, KVM_VGIC_V3_ADDR_TYPE_REDIST, Some(&REDISTRIBUTOR))?;
    set(KVM_DEV_ARM_VGIC_GRP_CTRL, init, None)?;
    Ok(gic)
}

/// The VM. Fields are dropped in this order.
pub struct Vm {
    vcpu: VcpuFd,
    _gic: DeviceFd,
    _vm: VmFd,
    memory: Memory,
}

/// How a VM begins.
pub struct Boot<'a> {
    /// What is in its memory, by guest addresses.
    pub parts: &'a [(u64, &'a [u8])],
    /// Its first instruction.
    pub pc: u64,
    /// X0 there.
    pub x0: u64,
}

impl Vm {
    /// A VM with `blocks` blocks of memory for the guest to touch, of 2 MiB
    /// where the kernel finds such.
    pub fn new(kvm: &Kvm, protected: bool, blocks: u64, large: bool) -> Result<Vm> {
        let size = (1 + blocks) * BLOCK;
        let memory = Memory::new(size, large)?;
        memory.number(size);
        let boot = Boot { parts: &[(MEMORY, program())], pc: MEMORY, x0: 0 };
        Vm::of(kvm, protected, memory, size, &boot)
    }

    /// A VM that is not protected, with so many bytes of memory.
    pub fn with(kvm: &Kvm, size: u64, large: bool, boot: &Boot<'_>) -> Result<Vm> {
        Vm::of(kvm, false, Memory::new(size, large)?, size, boot)
    }

    fn of(kvm: &Kvm, protected: bool, memory: Memory, size: u64, boot: &Boot<'_>) -> Result<Vm> {
        let vm = kvm.create_vm_with_type(if protected { PROTECTED } else { 0 });
        let vm = vm.context("KVM_CREATE_VM")?;
        for (address, part) in boot.parts {
            let offset = address.checked_sub(MEMORY).filter(|offset| {
                offset.checked_add(part.len() as u64).is_some_and(|end| end <= size)
            });
            let offset = offset.with_context(|| format!("no room at {address:#x}"))?;
            // SAFETY: within the mapping, as has just been checked; nobody else knows it.
            let to = unsafe { memory.at.byte_add(offset as usize) }.as_ptr().cast();
            // SAFETY: as above.
            unsafe { std::ptr::copy_nonoverlapping(part.as_ptr(), to, part.len()) };
        }
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: MEMORY,
            memory_size: size,
            userspace_addr: memory.at.as_ptr() as u64,
        };
        // SAFETY: the memory outlives the VM.
        unsafe { vm.set_user_memory_region(region) }.context("KVM_SET_USER_MEMORY_REGION")?;
        let vcpu = vm.create_vcpu(0).context("KVM_CREATE_VCPU")?;
        let gic = gic(&vm).context("a GICv3")?;
        let mut features = kvm_vcpu_init::default();
        vm.get_preferred_target(&mut features).context("KVM_ARM_PREFERRED_TARGET")?;
        features.features[0] |= 1 << kvm_bindings::KVM_ARM_VCPU_PSCI_0_2;
        vcpu.vcpu_init(&features).context("KVM_ARM_VCPU_INIT")?;
        for (register, value) in [(PC, boot.pc), (X0, boot.x0), (X28, DEVICE)] {
            vcpu.set_one_reg(CORE_REGISTERS | register, &value.to_le_bytes())
                .context("KVM_SET_ONE_REG")?;
        }
        Ok(Vm { vcpu, _gic: gic, _vm: vm, memory })
    }

    /// Its vCPU.
    pub fn vcpu(&mut self) -> &mut VcpuFd {
        &mut self.vcpu
    }

    /// Ends the VM. Its memory is left.
    pub fn end(self) -> Memory {
        let Vm { vcpu, _gic, _vm, memory } = self;
        drop((vcpu, _gic, _vm));
        memory
    }
}

impl Vcpu for Vm {
    fn run(&mut self, answer: u64) -> Result<Access> {
        match self.vcpu.run().context("KVM_RUN")? {
            VcpuExit::MmioRead(address, data) => {
                data.copy_from_slice(&answer.to_le_bytes());
                Ok(Access::Load(address))
            }
            VcpuExit::MmioWrite(address, data) => {
                Ok(Access::Store(address, u64::from_le_bytes(data.try_into()?)))
            }
            exit => bail!("the guest ends: {exit:?}"),
        }
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! A VM with one vCPU, and the guest of `guest.S` in it.

use std::arch::global_asm;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use anyhow::{Context, Result, bail, ensure};
use kvm_bindings::{
    KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CTRL,
    KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST, kvm_create_device, kvm_device_attr,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3, kvm_userspace_memory_region, kvm_vcpu_init,
};
use kvm_ioctls::{DeviceFd, Kvm, VcpuExit, VcpuFd, VmFd};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::counter::El2;

global_asm!(include_str!("guest.S"));

unsafe extern "C" {
    static peer_guest_begin: u8;
    static peer_guest_end: u8;
}

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Bytes of a block.
pub const BLOCK: u64 = 2 << 20;

/// Where the guest's memory begins. Its first block holds the program.
const MEMORY: u64 = 0x4000_0000;
/// Where it has none.
const DEVICE: u64 = 0x0900_0000;
/// Where its interrupt controller is, which it does not use.
const DISTRIBUTOR: u64 = 0x0800_0000;
const REDISTRIBUTOR: u64 = 0x080a_0000;
/// `KVM_VM_TYPE_ARM_PROTECTED`: not in released headers yet.
const PROTECTED: u64 = 1 << 31;

/// `KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE`; the number of a
/// register is its offset in words of 32 bits.
const CORE_REGISTERS: u64 = 0x6030_0000_0010_0000;
const PC: u64 = 32 * 2;
const X28: u64 = 28 * 2;

/// What the guest is to do.
#[derive(Clone, Copy)]
pub enum What {
    /// Calls of a function, with `first` as their argument.
    Calls(u64),
    /// Loads from `first` on.
    Loads,
    /// Nothing: as calls, with a NOP in their place.
    Nothing,
}

/// Work for the guest.
#[derive(Clone, Copy)]
pub struct Work {
    pub what: What,
    /// Argument of the first call, or address of the first load.
    pub first: u64,
    /// What is added to it each time.
    pub stride: u64,
    /// How often it is done.
    pub count: u64,
}

/// What the guest did.
pub struct Done {
    /// Instructions at EL2, the exits before and after the work among them,
    /// and perhaps the guest's own.
    pub el2: i64,
    /// Sum of the answers or of the loaded words.
    pub sum: u64,
    /// Ticks of each, if they were to be told.
    pub ticks: Vec<u64>,
}

/// Anonymous memory; each page holds its guest address.
struct Memory {
    at: NonNull<std::ffi::c_void>,
    mapped: NonNull<std::ffi::c_void>,
    length: NonZeroUsize,
}

impl Memory {
    /// `size` bytes, aligned as blocks are; of blocks, if the kernel has them.
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
        for offset in (0..size).step_by(PAGE as usize) {
            // SAFETY: within the mapping, which nobody else knows.
            unsafe { at.byte_add(offset as usize).cast::<u64>().write_volatile(MEMORY + offset) };
        }
        Ok(memory)
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
    _memory: Memory,
}

impl Vm {
    /// A VM with `blocks` blocks of memory for the guest to touch, of 2 MiB
    /// where the kernel finds such.
    pub fn new(kvm: &Kvm, protected: bool, blocks: u64, large: bool) -> Result<Vm> {
        let vm = kvm.create_vm_with_type(if protected { PROTECTED } else { 0 });
        let vm = vm.context("KVM_CREATE_VM")?;
        let memory = Memory::new((1 + blocks) * BLOCK, large)?;
        let program = &raw const peer_guest_begin;
        let size = &raw const peer_guest_end as usize - program as usize;
        // SAFETY: the first block is larger than the guest.
        unsafe { std::ptr::copy_nonoverlapping(program, memory.at.as_ptr().cast(), size) };
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: MEMORY,
            memory_size: (1 + blocks) * BLOCK,
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
        for (register, value) in [(PC, MEMORY), (X28, DEVICE)] {
            vcpu.set_one_reg(CORE_REGISTERS | register, &value.to_le_bytes())
                .context("KVM_SET_ONE_REG")?;
        }
        Ok(Vm { vcpu, _gic: gic, _vm: vm, _memory: memory })
    }

    /// Address of the block that the guest may touch.
    pub fn block(number: u64) -> u64 {
        MEMORY + (1 + number) * BLOCK
    }

    /// Has the guest do something, `timed` one by one. Counts what EL2 does
    /// meanwhile.
    pub fn run(&mut self, work: Work, timed: bool, el2: &mut El2) -> Result<Done> {
        let (number, function) = match (work.what, timed) {
            (What::Calls(function), false) => (0, function),
            (What::Loads, false) => (1, 0),
            (What::Calls(function), true) => (2, function),
            (What::Loads, true) => (3, 0),
            (What::Nothing, true) => (4, 0),
            (What::Nothing, false) => (5, 0),
        };
        for word in [number, function, work.first, work.stride, work.count] {
            match self.vcpu.run().context("KVM_RUN")? {
                VcpuExit::MmioRead(DEVICE, data) => data.copy_from_slice(&word.to_le_bytes()),
                exit => bail!("the guest asks for nothing: {exit:?}"),
            }
        }
        let mut ticks = Vec::new();
        let before = el2.read()?;
        let sum = loop {
            match self.vcpu.run().context("KVM_RUN")? {
                VcpuExit::MmioWrite(address, data) => {
                    let value = u64::from_le_bytes(data.try_into()?);
                    match address.checked_sub(DEVICE) {
                        Some(0) => break value,
                        Some(8) => ticks.push(value),
                        _ => bail!("the guest stores {value:#x} at {address:#x}"),
                    }
                }
                exit => bail!("the guest does not do its work: {exit:?}"),
            }
        };
        let el2 = el2.read()? - before;
        let told = if timed { work.count } else { 0 };
        ensure!(ticks.len() as u64 == told, "the guest told {} of {told}", ticks.len());
        Ok(Done { el2, sum, ticks })
    }
}

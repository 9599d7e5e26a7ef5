// SPDX-License-Identifier: MIT OR Apache-2.0

//! A VM's interrupts: what its device tree configures, and the lines of its IRQFDs.

use core::slice;

use escrow_vmcore::exit::vcpus;
use escrow_vmcore::interrupts::Maker;
use escrow_vmcore::line::{Call, Caller, Line};
use escrow_vmcore::tree::Gic;
use escrow_vmcore::{Errno, hypercall, tree};

use crate::kernel::{BorrowerPtr, Hvc, tree_refused};
use crate::vm::Core;
use crate::{status, store};

/// The guest addresses of the device tree, as the program has set them.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_vm_dtb(vm: &Core, guest: &mut u64, size: &mut u64) -> bool {
    match vm.dtb() {
        Some(dtb) => {
            (*guest, *size) = (dtb.guest_phys_addr, dtb.size);
            true
        }
        None => false,
    }
}

/// The size in bytes of a tree that begins like this; 0 if none does.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_tree_size(head: &[u8; tree::HEAD]) -> u32 {
    tree::size(head).unwrap_or(0)
}

/// Has a tree of `size` bytes end with its strings. → its size then, at most 2 MiB, or an
/// error
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_tree_trim(tree: &mut u8, size: usize) -> i32 {
    // SAFETY: by the contract of this crate there are so many bytes, and nobody
    // else has them.
    let tree = unsafe { slice::from_raw_parts_mut(tree, size) };
    tree::trim(tree).map_or_else(Errno::to_return, |size| i32::try_from(size).unwrap_or(i32::MAX))
}

/// Tells EL2 of a VM's interrupts.
struct El2 {
    vm: u64,
    donor: BorrowerPtr,
}

impl El2 {
    fn stolen_time(&mut self, at: u64) -> Result<(), Errno> {
        hypercall::vm_pv_time(&mut Hvc, &mut self.donor, self.vm, at).map_err(Errno::from)
    }
}

impl Maker for El2 {
    fn gic(&mut self, gic: &Gic, spis: u32) -> Result<(), Errno> {
        let (distributor, redistributors) = (gic.distributor, gic.redistributors);
        let donor = &mut self.donor;
        hypercall::vm_vgic(&mut Hvc, donor, self.vm, distributor, redistributors, spis)
            .map_err(Errno::from)
    }

    fn doorbell(&mut self, label: u32) -> Result<u64, Errno> {
        hypercall::bell_create(&mut Hvc, self.vm, label).map_err(Errno::from)
    }
}

/// Sees to it that the VM has the interrupts that a tree of `size` bytes
/// configures. What is no tree configures none. `highest` is the highest INTID that anything
/// else needs, or 0.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_vm_configure(
    vm: &mut Core,
    donor: BorrowerPtr,
    highest: u32,
    tree: &u8,
    size: usize,
) -> i32 {
    // SAFETY: by the contract of this crate there are so many bytes, and nobody
    // else has them.
    let tree = unsafe { slice::from_raw_parts(tree, size) };
    let mut el2 = El2 { vm: vm.handle(), donor };
    let vcpus = vm.vcpus.end();
    let configured = tree::config(tree).and_then(|config| {
        let stolen_time = config.stolen_time;
        vm.interrupts.configure(config, vcpus, highest, &mut el2)?;
        vm.stolen_time.configure(stolen_time, |at| el2.stolen_time(at))
    });
    status(configured.map_err(|refusal| {
        if let Some(why) = refusal.why {
            tree_refused(vm.handle(), why);
        }
        refusal.errno
    }))
}

/// Whether the VM has an SPI. → 1, or 0 if it has no interrupt controller
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_vm_has_spi(vm: &Core, intid: u32) -> i32 {
    match vm.interrupts.has_spi(intid) {
        Some(true) => 1,
        Some(false) => Errno::Invalid.to_return(),
        None => 0,
    }
}

/// Makes a line's calls for a VM.
struct LineOf(u64);

impl Caller for LineOf {
    fn make(&mut self, call: Call) -> Result<u32, Errno> {
        match call {
            // Doorbells interrupt vCPU 0.
            Call::Ring(bell) => Ok(hypercall::bell_send(&mut Hvc, bell, 1).map(|()| 1)?),
            Call::SetMask { bell, enabled, acknowledged } => {
                Ok(hypercall::bell_set_mask(&mut Hvc, bell, enabled, acknowledged).map(|()| 0)?)
            }
            Call::Input { intid, input } => {
                vcpus(hypercall::spi_input(&mut Hvc, self.0, intid, input)?)
            }
        }
    }
}

/// Makes a line that is connected with nothing.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_line_init(line: &mut Line, level: bool, resamples: bool) {
    *line = Line::new(level, resamples);
}

/// The eventfd of a line is signalled. `wake` is the vCPUs to run.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_line_signal(line: &mut Line, vm: u64, wake: &mut u32) -> i32 {
    store(line.signal(&mut LineOf(vm)), wake)
}

/// Connects a line with what its label stands for, if that has changed. → 1 if it stands for
/// something
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_line_connect(
    line: &mut Line,
    vm: &Core,
    label: u32,
    wake: &mut u32,
) -> i32 {
    match line.connect(vm.interrupts.find(label), &mut LineOf(vm.handle())) {
        Ok(vcpus) => {
            *wake = vcpus;
            line.is_connected().into()
        }
        Err(errno) => errno.to_return(),
    }
}

/// The guest is done with an SPI, which may be the line's. → 1 if the eventfd of the way back is to
/// be signalled
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_line_done(line: &mut Line, vm: u64, intid: u32, wake: &mut u32) -> i32 {
    match line.done(intid, &mut LineOf(vm)) {
        Ok((vcpus, resample)) => {
            *wake = vcpus;
            resample.into()
        }
        Err(errno) => errno.to_return(),
    }
}

/// Ends what a line asserts.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_line_disconnect(line: &mut Line, vm: u64, wake: &mut u32) -> i32 {
    store(line.disconnect(&mut LineOf(vm)), wake)
}

/// Sets the level of an SPI.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_spi_level(vm: u64, intid: u32, high: bool, wake: &mut u32) -> i32 {
    let input = if high { escrow_abi::call::INPUT_HIGH } else { escrow_abi::call::INPUT_LOW };
    store(LineOf(vm).make(Call::Input { intid, input }), wake)
}

/// Takes an SPI that the guest is done with. → its INTID, 0 if there is none
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_spi_done(vm: u64) -> i32 {
    match hypercall::spi_done(&mut Hvc, vm) {
        Ok(intid) => i32::try_from(intid).unwrap_or(Errno::Io.to_return()),
        Err(refused) => Errno::from(refused).to_return(),
    }
}

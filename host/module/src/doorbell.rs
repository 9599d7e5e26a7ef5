// SPDX-License-Identifier: MIT OR Apache-2.0

//! Doorbells, and where a guest's device tree says which there are.

use core::slice;

use escrow_vmcore::{Errno, hypercall, tree};

use crate::kernel::Hvc;
use crate::status;
use crate::vm::Core;

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

/// Sees to it that the VM has the doorbells that a tree of `size` bytes
/// configures. What is no tree configures none.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_vm_configure_bells(vm: &mut Core, tree: &u8, size: usize) -> i32 {
    // SAFETY: by the contract of this crate there are so many bytes, and nobody
    // else has them.
    let tree = unsafe { slice::from_raw_parts(tree, size) };
    let handle = vm.handle();
    status(tree::config(tree).map_err(|refusal| refusal.errno).and_then(|config| {
        let labels = config.bells.iter().map(|bell| bell.label);
        let make = |label| hypercall::bell_create(&mut Hvc, handle, label).map_err(Errno::from);
        vm.doorbells.configure(labels, make)
    }))
}

/// Escrow's handle of the doorbell with a label; 0 if there is none.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_vm_bell(vm: &Core, label: u32) -> u64 {
    vm.doorbells.find(label).unwrap_or(0)
}

/// Sets a flag of a doorbell.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_bell_send(bell: u64, flags: u64) -> i32 {
    status(hypercall::bell_send(&mut Hvc, bell, flags).map_err(Errno::from))
}

/// Sets the masks of a doorbell.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_bell_set_mask(bell: u64, enabled: u64, acknowledged: u64) -> i32 {
    let set = hypercall::bell_set_mask(&mut Hvc, bell, enabled, acknowledged);
    status(set.map_err(Errno::from))
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! Which CPU executes. Callbacks are told, but QEMU 10.0 tells them the CPU that
//! an instruction was first translated for when one thread runs all CPUs. So
//! they look into `TPIDR_EL1`, where the payloads' runtime keeps a CPU's number
//! and Escrow leaves it as long as no guest runs. (`MPIDR_EL1` is not among the
//! registers that QEMU shows.)

use std::ffi::CStr;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering::Relaxed};

use crate::api::{self, ByteArray, Plugin, Register};

const NAME: &CStr = c"TPIDR_EL1";

static REGISTER: AtomicPtr<Register> = AtomicPtr::new(null_mut());
static BUFFER: AtomicPtr<ByteArray> = AtomicPtr::new(null_mut());

/// Finds the register; QEMU calls this for each CPU that it makes.
pub extern "C" fn find_register(_plugin: Plugin, _cpu: u32) {
    // SAFETY: QEMU makes the array for this call; its entries hold C strings.
    let found = unsafe {
        let registers = &*api::qemu_plugin_get_registers();
        let registers = std::slice::from_raw_parts(registers.data, registers.length as usize);
        registers.iter().find(|register| CStr::from_ptr(register.name) == NAME)
    };
    if let Some(found) = found {
        REGISTER.store(found.handle, Relaxed);
        // SAFETY: it has no conditions.
        BUFFER.store(unsafe { api::g_byte_array_new() }, Relaxed);
    }
}

/// The CPU that executes, for callbacks; a number that none has if it cannot be
/// told.
pub fn current() -> usize {
    let (register, buffer) = (REGISTER.load(Relaxed), BUFFER.load(Relaxed));
    if register.is_null() || buffer.is_null() {
        return usize::MAX;
    }
    // SAFETY: QEMU's own register and GLib's own array; one thread runs all CPUs,
    // so nobody else uses the array meanwhile.
    let number = unsafe {
        api::g_byte_array_set_size(buffer, 0);
        api::qemu_plugin_read_register(register, buffer);
        std::slice::from_raw_parts((*buffer).data, (*buffer).length as usize)
    };
    number.first().map_or(usize::MAX, |&low| low.into())
}

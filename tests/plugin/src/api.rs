// SPDX-License-Identifier: MIT OR Apache-2.0

//! As much of QEMU's interface for plugins as this one uses. QEMU itself
//! provides the functions when it loads it.

use std::ffi::{c_char, c_int, c_void};

/// What QEMU calls the plugin by.
pub type Plugin = u64;

/// A block of instructions in translation.
#[repr(C)]
pub struct TranslationBlock([u8; 0]);

/// An instruction of one.
#[repr(C)]
pub struct Instruction([u8; 0]);

/// A register.
#[repr(C)]
pub struct Register([u8; 0]);

/// What a register is called.
#[repr(C)]
pub struct RegisterDescriptor {
    /// By which it is read.
    pub handle: *mut Register,
    /// Its name.
    pub name: *const c_char,
    feature: *const c_char,
}

/// GLib's, of register descriptors.
#[repr(C)]
pub struct Array {
    /// The first.
    pub data: *const RegisterDescriptor,
    /// How many there are.
    pub length: u32,
}

/// GLib's, of bytes.
#[repr(C)]
pub struct ByteArray {
    /// The first.
    pub data: *const u8,
    /// How many there are.
    pub length: u32,
}

/// A callback reads no registers.
pub const NO_REGISTERS: c_int = 0;

/// A callback reads registers.
pub const READS_REGISTERS: c_int = 1;

unsafe extern "C" {
    pub fn qemu_plugin_register_vcpu_tb_trans_cb(
        plugin: Plugin,
        callback: extern "C" fn(Plugin, *mut TranslationBlock),
    );
    pub fn qemu_plugin_tb_n_insns(block: *const TranslationBlock) -> usize;
    pub fn qemu_plugin_tb_get_insn(block: *const TranslationBlock, n: usize) -> *mut Instruction;
    pub fn qemu_plugin_insn_vaddr(instruction: *const Instruction) -> u64;
    pub fn qemu_plugin_insn_data(
        instruction: *const Instruction,
        to: *mut c_void,
        size: usize,
    ) -> usize;
    pub fn qemu_plugin_register_vcpu_insn_exec_cb(
        instruction: *mut Instruction,
        callback: extern "C" fn(u32, *mut c_void),
        flags: c_int,
        data: *mut c_void,
    );
    pub fn qemu_plugin_register_vcpu_init_cb(plugin: Plugin, callback: extern "C" fn(Plugin, u32));
    pub fn qemu_plugin_register_atexit_cb(
        plugin: Plugin,
        callback: extern "C" fn(Plugin, *mut c_void),
        data: *mut c_void,
    );
    pub fn qemu_plugin_get_registers() -> *mut Array;
    pub fn qemu_plugin_read_register(register: *mut Register, to: *mut ByteArray) -> c_int;
    pub fn g_byte_array_new() -> *mut ByteArray;
    pub fn g_byte_array_set_size(array: *mut ByteArray, length: u32) -> *mut ByteArray;
    pub fn qemu_plugin_outs(text: *const c_char);
}

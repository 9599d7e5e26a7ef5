// SPDX-License-Identifier: MIT OR Apache-2.0

//! A QEMU plugin that counts what each CPU executes at EL2 in samples of calls.
//!
//! The virtual counter of a QEMU that counts instructions runs with those of
//! all CPUs, so it cannot tell what one of several took. This can. Arguments:
//!
//! ```text
//! from=HEX,to=HEX       where EL2's code is
//! samples=HEX:HEX:…     addresses of instructions that call EL2
//! ```
//!
//! A sample begins with an instruction at one of these addresses and ends before
//! the one behind it. At its end it says so in QEMU's log (`-d plugin`): the
//! number of the address, the CPU, what was executed, how much of that were TLB
//! invalidations and barriers, and whether another CPU was in a sample at the
//! same time.
//!
//! ```text
//! sample 0 cpu 1 instructions 250 tlbi 2 dsb 3 isb 2 met 1
//! ```
//!
//! With `profile=1` it counts at all exception levels instead, how often each instruction
//! is executed in samples of accesses that fault, and with `profile=2` in all samples
//! ([`profile::Samples`]). It tells at QEMU's end:
//!
//! ```text
//! samples 65536
//! executed ffff800080012340 131072
//! ```

mod api;
mod cpu;
mod profile;
mod sample;

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::null_mut;
use std::sync::OnceLock;

use api::{Instruction, Plugin, TranslationBlock};
use sample::Kind;

/// Version of the interface that this was written for, QEMU 9.1's; QEMU reads it.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static qemu_plugin_version: c_int = 3;

/// What is to be counted.
#[derive(Default)]
struct Options {
    from: u64,
    to: u64,
    samples: Vec<u64>,
    profile: Option<profile::Samples>,
}

static OPTIONS: OnceLock<Options> = OnceLock::new();

/// Bytes of an instruction.
const INSTRUCTION: u64 = 4;

/// Called by QEMU when it has loaded the plugin. Not 0: it does not start.
///
/// # Safety
/// QEMU's own: `argv` are `argc` C strings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    plugin: Plugin,
    _information: *const c_void,
    argc: c_int,
    argv: *const *const c_char,
) -> c_int {
    // SAFETY: QEMU passes that many strings.
    let words = (0..argc as usize).map(|n| unsafe { CStr::from_ptr(*argv.add(n)) });
    let Some(options) = parse(words) else { return 1 };
    let profile = options.profile;
    if OPTIONS.set(options).is_err() {
        return 1;
    }
    // SAFETY: the functions have the types that the interface asks for, and live
    // as long as QEMU.
    unsafe {
        if let Some(samples) = profile {
            profile::count_only(samples);
            api::qemu_plugin_register_vcpu_tb_trans_cb(plugin, translate_for_profile);
            api::qemu_plugin_register_atexit_cb(plugin, tell_profile, null_mut());
        } else {
            api::qemu_plugin_register_vcpu_init_cb(plugin, cpu::find_register);
            api::qemu_plugin_register_vcpu_tb_trans_cb(plugin, translate);
        }
    }
    0
}

fn parse<'a>(words: impl Iterator<Item = &'a CStr>) -> Option<Options> {
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let mut options = Options::default();
    for word in words {
        let (key, value) = word.to_str().ok()?.split_once('=')?;
        match key {
            "from" => options.from = hex(value)?,
            "to" => options.to = hex(value)?,
            "samples" => options.samples = value.split(':').map(hex).collect::<Option<_>>()?,
            "profile" => {
                options.profile = match hex(value)? {
                    1 => Some(profile::Samples::Repeated),
                    2 => Some(profile::Samples::All),
                    _ => return None,
                };
            }
            _ => return None,
        }
    }
    Some(options)
}

/// Has each instruction that matters count.
extern "C" fn translate(_plugin: Plugin, block: *mut TranslationBlock) {
    let Some(options) = OPTIONS.get() else { return };
    for (instruction, at) in instructions(block) {
        let begins = |sample: &u64| *sample == at;
        let ends = |sample: &u64| *sample + INSTRUCTION == at;
        if let Some(number) = options.samples.iter().position(begins) {
            on_execution(instruction, begin, number);
        } else if options.samples.iter().any(ends) {
            on_execution(instruction, end, 0);
        } else if (options.from..options.to).contains(&at) {
            let mut word = [0; INSTRUCTION as usize];
            // SAFETY: as for the block; there is room for an instruction.
            unsafe {
                api::qemu_plugin_insn_data(instruction, word.as_mut_ptr().cast(), word.len())
            };
            on_execution(instruction, count, Kind::of(u32::from_le_bytes(word)) as usize);
        }
    }
}

/// The same for a profile.
extern "C" fn translate_for_profile(_plugin: Plugin, block: *mut TranslationBlock) {
    let Some(options) = OPTIONS.get() else { return };
    for (instruction, at) in instructions(block) {
        if options.samples.contains(&at) {
            when_executed(instruction, begin_profile, profile::place(at), api::NO_REGISTERS);
        } else if options.samples.iter().any(|sample| *sample + INSTRUCTION == at) {
            when_executed(instruction, end_profile, 0, api::NO_REGISTERS);
        } else {
            when_executed(instruction, count_profile, profile::place(at), api::NO_REGISTERS);
        }
    }
}

/// The instructions of a block in translation, and their addresses.
fn instructions(block: *mut TranslationBlock) -> impl Iterator<Item = (*mut Instruction, u64)> {
    // SAFETY: QEMU passes a block that is valid until the translation is over.
    (0..unsafe { api::qemu_plugin_tb_n_insns(block) }).map(move |n| unsafe {
        let instruction = api::qemu_plugin_tb_get_insn(block, n);
        (instruction, api::qemu_plugin_insn_vaddr(instruction))
    })
}

fn on_execution(
    instruction: *mut Instruction,
    callback: extern "C" fn(u32, *mut c_void),
    number: usize,
) {
    when_executed(instruction, callback, number, api::READS_REGISTERS);
}

fn when_executed(
    instruction: *mut Instruction,
    callback: extern "C" fn(u32, *mut c_void),
    number: usize,
    flags: c_int,
) {
    let data = std::ptr::without_provenance_mut(number);
    // SAFETY: the function has the type that the interface asks for, and does
    // not follow its pointer.
    unsafe {
        api::qemu_plugin_register_vcpu_insn_exec_cb(instruction, callback, flags, data);
    }
}

extern "C" fn begin(_cpu: u32, number: *mut c_void) {
    sample::begin(cpu::current(), number.addr());
}

extern "C" fn count(_cpu: u32, kind: *mut c_void) {
    // Most of what EL2 executes is in no sample of any CPU.
    if sample::any() {
        sample::count(cpu::current(), kind.addr());
    }
}

extern "C" fn end(_cpu: u32, _: *mut c_void) {
    if let Some(line) = sample::end(cpu::current()) {
        // SAFETY: QEMU copies the text.
        unsafe { api::qemu_plugin_outs(line.as_ptr()) };
    }
}

extern "C" fn begin_profile(_cpu: u32, place: *mut c_void) {
    profile::begin(place.addr());
}

extern "C" fn count_profile(_cpu: u32, place: *mut c_void) {
    profile::count(place.addr());
}

extern "C" fn end_profile(_cpu: u32, _: *mut c_void) {
    profile::end();
}

extern "C" fn tell_profile(_plugin: Plugin, _: *mut c_void) {
    for line in profile::lines() {
        // SAFETY: QEMU copies the text.
        unsafe { api::qemu_plugin_outs(line.as_ptr()) };
    }
}

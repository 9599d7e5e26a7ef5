// SPDX-License-Identifier: MIT OR Apache-2.0

//! Calls to the firmware.

use core::sync::atomic::{AtomicBool, Ordering};

use escrow_abi::psci;

use crate::hvc;

unsafe extern "C" {
    fn payload_smc(registers: *mut [u64; 18]);
}

static BY_HVC: AtomicBool = AtomicBool::new(false);

/// Chooses how the firmware is called.
pub(crate) fn set_conduit(by_hvc: bool) {
    BY_HVC.store(by_hvc, Ordering::Relaxed);
}

/// `SMC` with X0 to X17, whatever answers.
pub fn raw(registers: &mut [u64; 18]) {
    // SAFETY: the routine preserves all that its convention asks for. What the
    // call does is the test's affair.
    unsafe { payload_smc(registers) };
}

/// A call to the firmware, by the way that the device tree names; X0 of the
/// answer.
pub fn firmware(function: u32, arguments: &[u64]) -> u64 {
    let mut registers = [0; 18];
    registers[0] = function as u64;
    registers[1..=arguments.len()].copy_from_slice(arguments);
    if BY_HVC.load(Ordering::Relaxed) {
        hvc::raw(&mut registers);
    } else {
        raw(&mut registers);
    }
    registers[0]
}

/// Switches the machine off.
pub fn system_off() -> ! {
    firmware(psci::SYSTEM_OFF, &[]);
    loop {
        aarch64_cpu::asm::wfe();
    }
}

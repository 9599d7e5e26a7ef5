// SPDX-License-Identifier: MIT OR Apache-2.0

//! Calls to Escrow.

use escrow_abi::Error;

unsafe extern "C" {
    fn payload_hvc(registers: *mut [u64; 18]);
    fn payload_hvc_vectors(registers: *mut [u64; 18], vectors: *mut [u128; 32]);
}

/// Values for the registers that the calls do not use, to come back unchanged.
const KEPT: u64 = 0x5a5a_0000_a5a5_0000;

/// Why a call was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub error: Error,
    /// The list entry that it is about, or 0.
    pub index: u64,
    /// What the error says in X2, or 0.
    pub detail: u64,
}

/// X1 to X4 of an answer, or why there is none.
pub type Answer = Result<[u64; 4], Refusal>;

/// `HVC` with X0 to X17, whatever answers.
pub fn raw(registers: &mut [u64; 18]) {
    // SAFETY: the routine preserves all that its convention asks for. A call
    // of Escrow's changes no memory but pages that are in its lists, and those
    // come from the arena.
    unsafe { payload_hvc(registers) };
}

/// Makes a call with X0 to X7.
///
/// # Panics
/// X0 of the answer is no error of the interface, or a register that the
/// calling convention preserves has changed.
pub fn call_registers(arguments: &[u64; 8]) -> Answer {
    let mut registers = [0; 18];
    registers[..8].copy_from_slice(arguments);
    for (n, register) in registers.iter_mut().enumerate().skip(8) {
        *register = KEPT | n as u64;
    }
    raw(&mut registers);
    answer(arguments, &registers)
}

fn answer(arguments: &[u64; 8], registers: &[u64; 18]) -> Answer {
    for (n, &register) in registers.iter().enumerate().skip(5) {
        let before = if n < 8 { arguments[n] } else { KEPT | n as u64 };
        // X5 to X7 are a result in no call; SMCCC 1.2 preserves them, too. X7 is for EL2
        // in calls that take long, and zero after them.
        assert!(
            register == before || n == 7 && register == 0,
            "call {:#x}: X{n} changed to {register:#x}",
            arguments[0]
        );
    }
    let [x0, x1, x2, x3, x4] = [0, 1, 2, 3, 4].map(|n| registers[n]);
    if x0 == 0 {
        return Ok([x1, x2, x3, x4]);
    }
    let Some(error) = Error::from_register(x0) else {
        panic!("call {:#x}: {x0:#x} is no error of the interface", arguments[0])
    };
    // X3: how much a long call had done when somebody changed the rest of its pages.
    assert!(x3 <= 1 << 14 || arguments[7] != 0, "call {:#x}: {error:?}, X3 {x3:#x}", arguments[0]);
    assert!(x4 == 0, "call {:#x}: {error:?} with X4 not zero", arguments[0]);
    Err(Refusal { error, index: x1, detail: x2 })
}

/// Makes a call with the given arguments, the rest being zero.
///
/// # Panics
/// See [`call_registers`].
pub fn call(function: u32, arguments: &[u64]) -> Answer {
    let mut registers = [0; 8];
    registers[0] = function as u64;
    registers[1..=arguments.len()].copy_from_slice(arguments);
    call_registers(&registers)
}

/// Makes a call with `vectors` in V0 to V31, and leaves there what they hold
/// when it returns.
///
/// # Panics
/// See [`call_registers`].
pub fn call_with_vectors(function: u32, arguments: &[u64], vectors: &mut [u128; 32]) -> Answer {
    let mut first = [0; 8];
    first[0] = function as u64;
    first[1..=arguments.len()].copy_from_slice(arguments);
    let mut registers = [0; 18];
    registers[..8].copy_from_slice(&first);
    for (n, register) in registers.iter_mut().enumerate().skip(8) {
        *register = KEPT | n as u64;
    }
    // SAFETY: as for `raw`; compiled code has no use for the vector registers
    // on this target.
    unsafe { payload_hvc_vectors(&mut registers, vectors) };
    answer(&first, &registers)
}

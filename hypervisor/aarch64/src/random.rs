// SPDX-License-Identifier: MIT OR Apache-2.0

//! Random numbers for guests: by the CPUs (FEAT_RNG) or by the firmware (DEN0098).

use core::arch::asm;
use core::hint::black_box;

use escrow_abi::trng;
use escrow_core::controls::fields::ISAR0_RNDR;

use crate::errata::has_smccc_1_1;
use crate::features::Promise;
use crate::smc::smc;

/// How often the CPU is asked for a word that it could not make "in a
/// reasonable period of time" (DDI 0487, "RNDRRS").
const ATTEMPTS: u32 = 8;
/// How often the firmware is asked that has no entropy yet, in one call of a guest's. Interrupts are off meanwhile,
/// and the host's own calls wait for the same generator. The guest asks again (DEN0098, NO_ENTROPY).
const FIRMWARE_ATTEMPTS: u32 = 2;
/// TRNG 1.0.
const VERSION_1_0: i32 = 0x1_0000;

/// The source of random numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// There is no source.
    None,
    /// The calling CPU. All CPUs have FEAT_RNG.
    Cpu,
    /// The firmware.
    Firmware,
}

impl Source {
    /// What the machine has.
    pub fn find(promise: &Promise) -> Source {
        if promise.guest.has(&ISAR0_RNDR, 1) {
            Source::Cpu
        } else if has_firmware_trng() {
            Source::Firmware
        } else {
            Source::None
        }
    }

    /// Fills words, three at the most; `false` if it could not.
    pub fn fill(self, words: &mut [u64]) -> bool {
        match self {
            Source::None => false,
            Source::Cpu => words.iter_mut().all(|word| {
                (0..ATTEMPTS).any(|_| {
                    rndrrs().is_some_and(|random| {
                        *word = random;
                        true
                    })
                })
            }),
            Source::Firmware => (0..FIRMWARE_ATTEMPTS).any(|_| ask_firmware(words)),
        }
    }
}

/// A random number from a generator that is seeded anew for it; `None` if there is none now.
#[inline(always)]
fn rndrrs() -> Option<u64> {
    let (value, there): (u64, u64);
    // SAFETY: reads a register that this CPU has, as `Source::Cpu` says; it sets the flags.
    unsafe {
        asm!(
            "mrs {value}, s3_3_c2_c4_1", // RNDRRS
            "cset {there}, ne",
            value = out(reg) value,
            there = out(reg) there,
            options(nomem, nostack),
        );
    }
    (there != 0).then_some(value)
}

/// Whether the firmware has the 64-bit calls.
fn has_firmware_trng() -> bool {
    let ask = |function: u32, argument: u32| {
        // SAFETY: these say what there is and change nothing.
        unsafe { smc([function.into(), argument.into(), 0, 0, 0, 0, 0, 0])[0] as i32 }
    };
    has_smccc_1_1()
        && ask(trng::VERSION, 0) >= VERSION_1_0
        && ask(trng::FEATURES, trng::RND_64) >= 0
}

/// Fills words, three at the most, by one call.
fn ask_firmware(words: &mut [u64]) -> bool {
    let bits = 64 * words.len() as u64;
    // SAFETY: numbers in, numbers out.
    let mut answer = unsafe { smc([trng::RND_64.into(), bits, 0, 0, 0, 0, 0, 0]) };
    let there = answer[0] as i32 >= 0;
    if there {
        // TRNG_RND returns the least significant bits in X3.
        for (word, random) in words.iter_mut().zip(answer.iter().skip(1).rev()) {
            *word = *random;
        }
    }
    // Erase EL2's copy: the numbers are the guest's secret.
    answer.fill(0);
    black_box(&answer);
    there
}

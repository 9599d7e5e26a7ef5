// SPDX-License-Identifier: MIT OR Apache-2.0

//! A guest's calls for random numbers: Arm's True Random Number Generator Firmware Interface 1.0
//! (DEN0098).
//!
//! The numbers come from the CPU or from the firmware ([`Machine::random`]), never from the host. On a
//! machine where neither has a source, the calls return NOT_SUPPORTED.

use core::hint::black_box;

use escrow_abi::psci::{INVALID_PARAMETERS, NOT_SUPPORTED, SUCCESS};
use escrow_abi::trng;

use crate::hypervisor::Hypervisor;
use crate::machine::Machine;
use crate::vm::Run;

/// TRNG 1.0.
const VERSION_1_0: u64 = 0x1_0000;

/// A call, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrngCall {
    /// TRNG_VERSION.
    Version,
    /// TRNG_FEATURES, of a function.
    Features(u32),
    /// TRNG_GET_UUID.
    Uuid,
    /// TRNG_RND: so many bits, in three registers of this many bits each.
    Random {
        /// How many are asked for.
        bits: u64,
        /// 32 or 64.
        width: u32,
    },
}

impl TrngCall {
    /// Decodes a call from its first two registers; `None` if it is none of these.
    pub(super) fn decode(function: u64, argument: u64) -> Option<TrngCall> {
        Some(match function as u32 {
            trng::VERSION => TrngCall::Version,
            trng::FEATURES => TrngCall::Features(argument as u32),
            trng::GET_UUID => TrngCall::Uuid,
            trng::RND_32 => TrngCall::Random { bits: argument as u32 as u64, width: 32 },
            trng::RND_64 => TrngCall::Random { bits: argument, width: 64 },
            _ => return None,
        })
    }
}

impl<M: Machine> Hypervisor<M> {
    /// Answers a call in the guest's registers.
    pub(super) fn random(&self, run: &mut Run<'_>, call: TrngCall) {
        let x = &mut run.regs.x;
        if !self.machine.has_random() {
            x[0] = NOT_SUPPORTED;
            return;
        }
        match call {
            TrngCall::Version => x[0] = VERSION_1_0,
            TrngCall::Features(function) => {
                let there = TrngCall::decode(function.into(), 0).is_some();
                x[0] = if there { SUCCESS } else { NOT_SUPPORTED };
            }
            TrngCall::Uuid => {
                for (register, word) in x.iter_mut().zip(trng::UUID) {
                    *register = word.into();
                }
            }
            TrngCall::Random { bits, width } => {
                x[1..4].fill(0);
                x[0] = if bits == 0 || bits > 3 * u64::from(width) {
                    INVALID_PARAMETERS
                } else {
                    let [_, x1, x2, x3, ..] = x;
                    self.fill([x3, x2, x1], bits, width)
                };
            }
        }
    }

    /// Puts bits into the lowest of registers that hold 0, the least significant one first.
    fn fill(&self, registers: [&mut u64; 3], bits: u64, width: u32) -> u64 {
        let mut words = [0; 3];
        let asked = bits.div_ceil(64) as usize;
        let complete = words.get_mut(..asked).is_some_and(|words| self.machine.random(words));
        if complete {
            let mut left = bits;
            for (n, register) in registers.into_iter().enumerate() {
                let here = left.min(width.into());
                left -= here;
                let word = match width {
                    64 => words[n],
                    _ => words[n / 2] >> (n % 2 * 32),
                };
                // `here` is 0 for a register that is not needed.
                *register = word & u64::MAX.checked_shr(64 - here as u32).unwrap_or(0);
            }
        }
        // Random bits of a guest must not stay on EL2's stack. `black_box` keeps the compiler from
        // removing the stores as dead.
        words.fill(0);
        black_box(&words);
        if complete { SUCCESS } else { trng::NO_ENTROPY }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::tests::fake::{Host, guest};

    #[test]
    fn calls_are_decoded() {
        let wide = TrngCall::Random { bits: 1 << 40 | 8, width: 64 };
        assert_eq!(TrngCall::decode(trng::RND_64.into(), 1 << 40 | 8), Some(wide));
        // Upper halves do not count in the 32-bit convention, and not of the identifier.
        let narrow = TrngCall::Random { bits: 8, width: 32 };
        assert_eq!(TrngCall::decode(7 << 32 | u64::from(trng::RND_32), 1 << 40 | 8), Some(narrow));
        for unknown in [trng::VERSION | 1 << 30, trng::RND_64 + 1, trng::VERSION - 1] {
            assert_eq!(TrngCall::decode(unknown.into(), 0), None, "{unknown:#x}");
        }
    }

    #[test]
    fn a_machine_without_a_source_has_no_such_calls() {
        let mut host = Host::new();
        let vcpu = guest(&mut host);
        for function in [trng::VERSION, trng::FEATURES, trng::GET_UUID, trng::RND_64, trng::RND_32]
        {
            let x = host.guest_asks(vcpu, &[function.into(), 64, 2, 3]);
            assert_eq!(x, [NOT_SUPPORTED, 64, 2, 3], "{function:#x}");
        }
    }

    #[test]
    fn what_there_is() {
        let mut host = Host::new();
        let vcpu = guest(&mut host);
        host.escrow.machine.has_entropy(Some(9));
        assert_eq!(host.guest_asks(vcpu, &[trng::VERSION.into()])[0], 0x1_0000);
        for (function, there) in [
            (trng::VERSION, SUCCESS),
            (trng::GET_UUID, SUCCESS),
            (trng::RND_32, SUCCESS),
            (trng::RND_64, SUCCESS),
            (trng::RND_64 + 1, NOT_SUPPORTED),
            (0, NOT_SUPPORTED),
        ] {
            let x = host.guest_asks(vcpu, &[trng::FEATURES.into(), function.into()]);
            assert_eq!(x[0], there, "{function:#x}");
        }
        let uuid = host.guest_asks(vcpu, &[trng::GET_UUID.into()]);
        assert_eq!(uuid, trng::UUID.map(u64::from));
        // DEN0098: it would be NOT_SUPPORTED.
        assert_ne!(uuid[0], 0xffff_ffff);
    }

    /// Every number of bits: as many as were asked for, in the lowest places of x3, then x2,
    /// then x1, and zeros above.
    #[test]
    fn as_many_bits_as_were_asked_for() {
        let mut host = Host::new();
        let vcpu = guest(&mut host);
        for (function, width) in [(trng::RND_64, 64u32), (trng::RND_32, 32)] {
            for bits in 1..=3 * width {
                // All ones, so that each bit that is there shows.
                host.escrow.machine.has_entropy(Some(u32::MAX));
                let args = [function.into(), bits.into(), 7, 7];
                let [x0, x1, x2, x3] = host.guest_asks(vcpu, &args);
                assert_eq!(x0, SUCCESS);
                let ones = |n: u32| u64::MAX.checked_shr(64 - n).unwrap_or(0);
                let expected = [2, 1, 0].map(|n| ones(bits.saturating_sub(n * width).min(width)));
                assert_eq!([x1, x2, x3], expected, "{function:#x}, {bits}");
            }
        }
        for (function, bits) in [
            (trng::RND_64, 0),
            (trng::RND_64, 193),
            (trng::RND_64, 1 << 32 | 64),
            (trng::RND_32, 0),
            (trng::RND_32, 97),
        ] {
            let x = host.guest_asks(vcpu, &[function.into(), bits, 7, 7]);
            assert_eq!(x, [INVALID_PARAMETERS, 0, 0, 0], "{function:#x}, {bits}");
        }
    }

    /// No bit is told twice, in one call or in two.
    #[test]
    fn bits_are_fresh() {
        let mut host = Host::new();
        let vcpu = guest(&mut host);
        host.escrow.machine.has_entropy(Some(100));
        let mut seen = std::collections::BTreeSet::new();
        for function in [trng::RND_32, trng::RND_64, trng::RND_32] {
            let width = if function == trng::RND_64 { 64 } else { 32 };
            let [x0, words @ ..] = host.guest_asks(vcpu, &[function.into(), 3 * width]);
            assert_eq!(x0, SUCCESS);
            for word in words {
                assert!(seen.insert(word), "{word:#x} again");
            }
        }
    }

    #[test]
    fn a_source_that_fails_gives_nothing() {
        let mut host = Host::new();
        let vcpu = guest(&mut host);
        // One word is there of the two that are needed.
        host.escrow.machine.has_entropy(Some(1));
        let x = host.guest_asks(vcpu, &[trng::RND_64.into(), 65, 7, 7]);
        assert_eq!(x, [trng::NO_ENTROPY, 0, 0, 0]);
        host.escrow.machine.has_entropy(Some(1));
        assert_eq!(host.guest_asks(vcpu, &[trng::RND_64.into(), 64])[0], SUCCESS);
        assert_eq!(host.guest_asks(vcpu, &[trng::RND_64.into(), 64])[0], trng::NO_ENTROPY);
    }
}

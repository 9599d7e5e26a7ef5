// SPDX-License-Identifier: MIT OR Apache-2.0

//! The host's calls to the firmware: PSCI, decoded, and which of the others
//! may pass.
//!
//! Every `SMC` of the host traps. What it asks of PSCI goes through EL2, which
//! has to be on a CPU before the host is. Of the rest, the firmware sees what
//! is on the list of [`FirmwareCall::decode`]: calls that neither name memory
//! nor make the firmware enter the host anywhere. A call that is not listed is
//! answered like one that does not exist, so the list can be kept short.

use escrow_abi::{call, psci};

use crate::hardening::{WORKAROUND_1, WORKAROUND_2, WORKAROUND_3, WORKAROUND_4};

/// A PSCI call (Arm DEN0022), arguments narrowed to what its convention passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PsciCall {
    /// The version of PSCI.
    Version,
    /// Suspends the calling CPU.
    CpuSuspend {
        /// Power state to enter, in the firmware's encoding.
        state: u32,
        /// Where the CPU resumes if it was powered down, a physical address.
        entry: u64,
        /// `x0` at `entry`.
        context: u64,
    },
    /// Switches the calling CPU off.
    CpuOff,
    /// Switches another CPU on.
    CpuOn {
        /// The CPU, as in `MPIDR_EL1` with the non-affinity bits clear.
        target: u64,
        /// Where it starts, a physical address.
        entry: u64,
        /// `x0` at `entry`.
        context: u64,
    },
    /// Asks whether a CPU is on.
    AffinityInfo {
        /// The CPU, as for [`Self::CpuOn`].
        target: u64,
        /// Lowest affinity level that `target` means.
        level: u32,
    },
    /// Asks whether a trusted OS has to be moved between CPUs.
    MigrateInfoType,
    /// Switches the machine off.
    SystemOff,
    /// Resets the machine.
    SystemReset,
    /// Resets the machine in a certain way.
    SystemReset2 {
        /// The kind of reset.
        kind: u32,
        /// For the vendor's kinds.
        cookie: u64,
    },
    /// Suspends the machine to RAM.
    SystemSuspend {
        /// Where it resumes, a physical address.
        entry: u64,
        /// `x0` at `entry`.
        context: u64,
    },
    /// Asks whether a function is there.
    Features {
        /// Its identifier.
        function: u32,
    },
}

impl PsciCall {
    /// Decodes a call from its registers; `None` if it is no PSCI call that
    /// Escrow knows.
    pub fn decode(args: &[u64; 4]) -> Option<PsciCall> {
        let function = args[0] as u32;
        // Bit 30 selects 64-bit arguments; else upper halves are ignored
        // (DEN0028, "Register use in AArch64 SMC and HVC calls").
        let wide = function & 1 << 30 != 0;
        let arg = |n: usize| if wide { args[n] } else { args[n] as u32 as u64 };
        Some(match function {
            psci::VERSION => PsciCall::Version,
            psci::CPU_SUSPEND_32 | psci::CPU_SUSPEND_64 => {
                PsciCall::CpuSuspend { state: args[1] as u32, entry: arg(2), context: arg(3) }
            }
            psci::CPU_OFF => PsciCall::CpuOff,
            psci::CPU_ON_32 | psci::CPU_ON_64 => {
                PsciCall::CpuOn { target: arg(1), entry: arg(2), context: arg(3) }
            }
            psci::AFFINITY_INFO_32 | psci::AFFINITY_INFO_64 => {
                PsciCall::AffinityInfo { target: arg(1), level: args[2] as u32 }
            }
            psci::MIGRATE_INFO_TYPE => PsciCall::MigrateInfoType,
            psci::SYSTEM_OFF => PsciCall::SystemOff,
            psci::SYSTEM_RESET => PsciCall::SystemReset,
            psci::SYSTEM_RESET2_32 | psci::SYSTEM_RESET2_64 => {
                PsciCall::SystemReset2 { kind: args[1] as u32, cookie: arg(2) }
            }
            psci::SYSTEM_SUSPEND_32 | psci::SYSTEM_SUSPEND_64 => {
                PsciCall::SystemSuspend { entry: arg(1), context: arg(2) }
            }
            psci::FEATURES => PsciCall::Features { function: args[1] as u32 },
            _ => return None,
        })
    }
}

/// What becomes of an `SMC` of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirmwareCall {
    /// EL2 sees to it.
    Psci(PsciCall),
    /// The firmware may have it as it is.
    Forward,
    /// SMCCC_ARCH_WORKAROUND_2, or (`asked`) whether it is there: by
    /// [`store_bypass`](crate::hardening::store_bypass). The host does not switch it off,
    /// because it would for EL2 and guests as well.
    StoreBypass {
        /// Whether it is only asked for.
        asked: bool,
    },
    /// Answered with "not supported".
    Refuse,
}

/// SMCCC_ARCH_SOC_ID, SMCCC_ARCH_FEATURE_AVAILABILITY and the mitigations for CVE-2017-5715,
/// CVE-2022-23960 and CVE-2024-7881 (DEN0028, "Arm Architecture Calls"): numbers in,
/// numbers out, about the CPU that calls.
const ARCH: [u32; 6] =
    [0x8000_0002, 0xC000_0002, WORKAROUND_1, WORKAROUND_3, 0x8000_0003, WORKAROUND_4];
/// TRNG version, features, UUID and random numbers (DEN0098): all in registers.
const TRNG: [u32; 5] = [0x8400_0050, 0x8400_0051, 0x8400_0052, 0x8400_0053, 0xC400_0053];

impl FirmwareCall {
    /// Decides about a call by its registers.
    pub fn decode(args: &[u64; 4]) -> FirmwareCall {
        if let Some(psci) = PsciCall::decode(args) {
            return FirmwareCall::Psci(psci);
        }
        let allowed = |function: u32| {
            function == call::SMCCC_VERSION
                || function == call::SMCCC_ARCH_FEATURES
                || ARCH.contains(&function)
                || TRNG.contains(&function)
        };
        match args[0] as u32 {
            WORKAROUND_2 => FirmwareCall::StoreBypass { asked: false },
            call::SMCCC_ARCH_FEATURES if args[1] as u32 == WORKAROUND_2 => {
                FirmwareCall::StoreBypass { asked: true }
            }
            // A function that is not on the list is also unknown to SMCCC_ARCH_FEATURES.
            call::SMCCC_ARCH_FEATURES if !allowed(args[1] as u32) => FirmwareCall::Refuse,
            function if allowed(function) => FirmwareCall::Forward,
            _ => FirmwareCall::Refuse,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JUNK: u64 = 0xdead_beef << 32;

    #[test]
    fn narrow_calls_lose_their_upper_halves() {
        let args = [psci::CPU_ON_32 as u64 | JUNK, JUNK | 1, JUNK | 0x4000_0000, JUNK | 7];
        assert_eq!(
            PsciCall::decode(&args),
            Some(PsciCall::CpuOn { target: 1, entry: 0x4000_0000, context: 7 })
        );
        let args = [psci::CPU_ON_64 as u64, 0x1_0000_0001, JUNK, 7];
        assert_eq!(
            PsciCall::decode(&args),
            Some(PsciCall::CpuOn { target: 0x1_0000_0001, entry: JUNK, context: 7 })
        );
    }

    #[test]
    fn every_psci_number_decodes() {
        for function in [
            psci::VERSION,
            psci::CPU_SUSPEND_32,
            psci::CPU_SUSPEND_64,
            psci::CPU_OFF,
            psci::CPU_ON_32,
            psci::CPU_ON_64,
            psci::AFFINITY_INFO_32,
            psci::AFFINITY_INFO_64,
            psci::MIGRATE_INFO_TYPE,
            psci::SYSTEM_OFF,
            psci::SYSTEM_RESET,
            psci::FEATURES,
            psci::SYSTEM_SUSPEND_32,
            psci::SYSTEM_SUSPEND_64,
            psci::SYSTEM_RESET2_32,
            psci::SYSTEM_RESET2_64,
        ] {
            let decoded = FirmwareCall::decode(&[function as u64, 0, 0, 0]);
            assert!(matches!(decoded, FirmwareCall::Psci(_)), "{function:#x}");
        }
        // These functions have no 64-bit form.
        for function in [psci::VERSION, psci::CPU_OFF, psci::SYSTEM_OFF, psci::FEATURES] {
            assert_eq!(PsciCall::decode(&[(function | 1 << 30) as u64, 0, 0, 0]), None);
        }
    }

    #[test]
    fn only_the_list_reaches_the_firmware() {
        let decode = |function: u64, arg| FirmwareCall::decode(&[function, arg, 0, 0]);
        assert_eq!(decode(0x8000_0000, 0), FirmwareCall::Forward);
        assert_eq!(decode(0x8000_8000, 0), FirmwareCall::Forward);
        assert_eq!(decode(0xC400_0053, 0), FirmwareCall::Forward);
        // Firmware framework, SDEI, silicon provider, OEM, trusted OS.
        for function in
            [0x8400_0063, 0xC400_0020, 0x8200_0000, 0xC200_0001, 0x8300_0000, 0xB200_0000u64]
        {
            assert_eq!(decode(function, 0), FirmwareCall::Refuse, "{function:#x}");
        }
        assert_eq!(decode(0x8000_0001, 0x8000_8000), FirmwareCall::Forward);
        assert_eq!(decode(0x8000_7fff, 0), FirmwareCall::StoreBypass { asked: false });
        assert_eq!(decode(0x8000_0001, 0x8000_7fff), FirmwareCall::StoreBypass { asked: true });
        assert_eq!(decode(0x8000_0001, 0xC400_0020), FirmwareCall::Refuse);
    }
}

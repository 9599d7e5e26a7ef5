// SPDX-License-Identifier: MIT OR Apache-2.0

//! Workarounds for the calling CPU's errata, and mitigations for its branch predictors. The tables are in
//! `escrow_core::errata` and `escrow_core::hardening`; here they are applied.

use escrow_abi::call;
use escrow_abi::errata::{Hardening, OPEN};
use escrow_core::controls::fields::{ISAR2_CLRBHB, MMFR1_ECBHB, PFR0_CSV2};
use escrow_core::errata::{Errata, Midr, Remedy};
use escrow_core::hardening::{self, Entry, WORKAROUND_1, WORKAROUND_2, WORKAROUND_3, Workaround};

use crate::features::Cpu;
use crate::machine::Hardware;
use crate::percpu::PerCpu;
use crate::smc::smc;

/// Says in the log what is new with a CPU.
#[cold]
fn describe(midr: Midr, errata: Errata, hardening: Hardening) {
    log::info!("CPU {midr:?}: errata: {errata}; hardening of entries: {}", hardening.name());
    let unseen = errata.among(Errata::with(Remedy::Firmware));
    if !unseen.is_empty() {
        log::warn!("CPU {midr:?}: EL2 cannot see whether the firmware works around {unseen}");
    }
    if hardening.bit() & OPEN != 0 {
        log::warn!("CPU {midr:?}: open to speculation at EL2: {}", hardening.name());
    }
}

/// The vectors that a CPU uses, and their mitigation against trained branch predictors.
pub(crate) struct Vectors {
    pub host: u64,
    pub guest: u64,
    /// Branches of the loop, or the firmware's function identifier.
    pub argument: u32,
}

macro_rules! vectors {
    ($host:ident, $guest:ident, $argument:expr) => {{
        unsafe extern "C" {
            static $host: [u8; 0];
            static $guest: [u8; 0];
        }
        Vectors {
            host: (&raw const $host) as u64,
            guest: (&raw const $guest) as u64,
            argument: $argument,
        }
    }};
}

impl Vectors {
    fn of(entry: Entry) -> Vectors {
        match entry {
            Entry::Plain => vectors!(escrow_host_vectors, escrow_guest_vectors, 0),
            Entry::ClearHistory => {
                vectors!(escrow_host_vectors_clear, escrow_guest_vectors_clear, 0)
            }
            Entry::Loop(branches) => {
                vectors!(escrow_host_vectors_loop, escrow_guest_vectors_loop, branches.into())
            }
            Entry::Firmware(function) => {
                vectors!(escrow_host_vectors_firmware, escrow_guest_vectors_firmware, function)
            }
        }
    }
}

/// The workarounds and mitigations that the calling CPU needs.
fn choose(identity: &Cpu, firmware: &Firmware) -> (Entry, Hardening) {
    Entry::choose(&hardening::Cpu {
        midr: identity.midr,
        csv2: identity.ids.get(&PFR0_CSV2) as u8,
        clrbhb: identity.ids.has(&ISAR2_CLRBHB, 1),
        ecbhb: identity.ids.has(&MMFR1_ECBHB, 1),
        workaround_1: firmware.knows(WORKAROUND_1),
        workaround_3: firmware.knows(WORKAROUND_3),
    })
}

/// Says in the log what there is to know of the CPU that boots, as long as the
/// console is EL2's own.
pub fn announce(hardware: &Hardware, identity: &Cpu) {
    let (errata, (_, hardening)) = (identity.errata(), choose(identity, &Firmware::find()));
    if hardware.meet(errata, hardening) {
        describe(identity.midr, errata, hardening);
    }
}

/// Finds out what the calling CPU needs, tells the machine, and switches on what
/// the firmware has to. The CPU's vectors are chosen, not yet in force.
///
/// To be called before the CPU runs any VM. What it tells is seen by every CPU whose
/// `TLBI` has to reach this one: [`Hardware::finish`] says why.
pub(crate) fn meet(cpu: &mut PerCpu, hardware: &Hardware, identity: &Cpu) {
    let firmware = Firmware::find();
    let (entry, hardening) = choose(identity, &firmware);
    let vectors = Vectors::of(entry);
    cpu.host_vectors_at = vectors.host;
    cpu.guest_vectors_at = vectors.guest;
    cpu.hardening = vectors.argument;
    cpu.errata = identity.errata();
    // Speculative loads before older stores (CVE-2018-3639): with FEAT_SSBS,
    // SCTLR_EL2.DSSBS is 0 and so is PSTATE.SSBS at EL2. Older CPUs leave it to a
    // call, whose effect is for all levels of the CPU. It stays on: the host's calls do not
    // come through (`FirmwareCall`).
    if firmware.knows(WORKAROUND_2) == Workaround::Needed {
        firmware.call(WORKAROUND_2, 1);
    }
    if hardware.meet(cpu.errata, hardening) {
        describe(identity.midr, cpu.errata, hardening);
    }
}

/// The firmware's side of the mitigations.
struct Firmware {
    /// SMCCC 1.1 or later, which has them.
    present: bool,
}

/// Whether the firmware has SMCCC 1.1 or later.
pub(crate) fn has_smccc_1_1() -> bool {
    // SMCCC_VERSION itself may be unknown: PSCI knows (DEN0028, "Discovery").
    let ask = |function: u32, argument: u32| {
        // SAFETY: these say what there is and change nothing.
        unsafe { smc([function.into(), argument.into(), 0, 0, 0, 0, 0, 0])[0] as i32 }
    };
    let known = ask(escrow_abi::psci::FEATURES, call::SMCCC_VERSION) >= 0;
    known && ask(call::SMCCC_VERSION, 0) >= 0x1_0001
}

impl Firmware {
    fn find() -> Firmware {
        Firmware { present: has_smccc_1_1() }
    }

    fn knows(&self, function: u32) -> Workaround {
        if !self.present {
            return Workaround::Unknown;
        }
        Workaround::of(self.call(call::SMCCC_ARCH_FEATURES, function))
    }

    fn call(&self, function: u32, argument: u32) -> i32 {
        // SAFETY: SMCCC_ARCH_FEATURES and the workarounds take numbers, and change
        // nothing but the CPU's predictors.
        unsafe { smc([function.into(), argument.into(), 0, 0, 0, 0, 0, 0])[0] as i32 }
    }
}

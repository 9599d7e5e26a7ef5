// SPDX-License-Identifier: MIT OR Apache-2.0

//! What EL2 lets EL1 and EL0 do: from the identification registers of CPUs to
//! the control registers of EL2, and to the identification registers that the
//! host and guests see.
//!
//! All of it comes from one table ([`FEATURES`]). The host gets the features of the CPUs,
//! as if there were no EL2; a guest gets the base architecture with
//! floating point and pointer authentication. One entry of the table both traps a feature
//! and hides it from the ID registers of an EL1 that does not get it, so
//! neither can be forgotten. Features that the table does not have are trapped and
//! hidden for the host and guests: on a CPU newer than Escrow, no feature is shown that traps, and
//! none is accessible whose registers EL2 does not switch.
//!
//! | module | subject |
//! | --- | --- |
//! | [`fields`] | the fields of the identification registers |
//! | [`ids`] | their values on a CPU, and what several CPUs have in common |
//! | [`registers`] | EL2's control registers |
//! | [`table`] | the table |
//! | [`features`] | what EL2 itself has to know of a CPU |
//! | [`promise`] | what all CPUs have |
//!
//! `docs/cpu.md` is made from the table (`tests/document.rs`).

pub mod features;
pub mod fields;
pub mod ids;
pub mod promise;
pub mod registers;
pub mod table;
#[cfg(test)]
mod tests;

pub use features::{Cpu, Features, MissingFeature};
pub use ids::{Ids, Other};
pub use promise::{Broken, Promise};
pub use table::{FEATURES, Treatment};

use fields::ALL;
use ids::Register;
use registers::{Reg, cptr, hcr};
use table::Feature;

/// Which VM runs at EL1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum El1 {
    /// The host.
    Host,
    /// A guest.
    Guest,
}

impl Feature {
    /// What an EL1 gets of it.
    pub const fn treatment(&self, el1: El1) -> Treatment {
        match el1 {
            El1::Host => self.host,
            El1::Guest => self.guest,
        }
    }
}

impl Ids {
    /// What an EL1 is shown of CPUs that have this: fields of the table, up to
    /// the newest value that it knows and to the last one before what the EL1
    /// does not get.
    pub fn seen_by(&self, el1: El1) -> Ids {
        let mut seen = self.masked(|crm, op2| {
            let known = |mask: u64, field: &ids::Field| match field.register {
                Register::Space(c, o) if (c, o) == (crm, op2) => mask | field.mask(),
                _ => mask,
            };
            // AArch32's registers go with what PFR0.EL0 shows.
            if crm < 4 { u64::MAX } else { ALL.iter().fold(0, known) }
        });
        for field in ALL {
            let value = field.at_most(seen.get(field), field.newest);
            seen.set(field, value);
        }
        for feature in FEATURES.iter().filter(|feature| !feature.treatment(el1).shows()) {
            for (field, from) in feature.shown {
                seen.set(field, field.before(seen.get(field), *from));
            }
        }
        seen.drop_orphans();
        seen
    }

    /// Takes a feature away: all that the row that this field begins shows.
    pub fn hide(&mut self, field: &ids::Field) {
        let is_it =
            |feature: &&Feature| feature.shown.first().is_some_and(|(first, _)| first == field);
        for (field, from) in FEATURES.iter().filter(is_it).flat_map(|feature| feature.shown) {
            self.set(field, field.before(self.get(field), *from));
        }
        self.drop_orphans();
    }
}

/// One set of controls. A register that the CPU lacks is 0 here and never
/// written. The layout is known to the world switch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
#[allow(missing_docs)] // The names are the architecture's.
pub struct Controls {
    pub hcr: u64,
    pub cptr: u64,
    pub mdcr: u64,
    pub cnthctl: u64,
    pub ich_hcr: u64,
    pub icc_sre: u64,
    pub hcrx: u64,
    pub mpam2: u64,
    pub hfgrtr: u64,
    pub hfgwtr: u64,
    pub hfgitr: u64,
    pub hdfgrtr: u64,
    pub hdfgwtr: u64,
    pub hafgrtr: u64,
    pub hfgrtr2: u64,
    pub hfgwtr2: u64,
    pub hfgitr2: u64,
    pub hdfgrtr2: u64,
    pub hdfgwtr2: u64,
    pub ich_hfgrtr: u64,
    pub ich_hfgwtr: u64,
    pub ich_hfgitr: u64,
}

/// The host's controls that no feature decides. SMC is trapped for PSCI and
/// the filter. FWB stays clear: the host's stage 1 says how its memory is
/// cached, and its stage-2 attributes are encoded for that. EL1PCTEN: the
/// physical counter can be read.
const HOST: Controls = Controls {
    hcr: hcr::RW | hcr::VM | hcr::SWIO | hcr::TSC,
    cptr: cptr::RES1,
    cnthctl: 0b01,
    // SRE, DFB, DIB.
    icc_sre: 0x7,
    ..NONE
};

/// Those of guests. Interrupts and SErrors end the run (IMO, FMO, AMO). A vCPU
/// moves between CPUs, so its local TLB and cache maintenance and barriers
/// reach all of them (FB, BSU). What it reads of the CPU is EL2's to say (TID1,
/// TID3). Trace registers are trapped even where no ID register shows them.
const GUEST: Controls = Controls {
    hcr: hcr::RW
        | hcr::VM
        | hcr::SWIO
        | hcr::PTW
        | hcr::FMO
        | hcr::IMO
        | hcr::AMO
        | hcr::FB
        | hcr::BSU_INNER
        | hcr::TWI
        | hcr::TID1
        | hcr::TID3
        | hcr::TSC,
    cptr: cptr::RES1 | cptr::TTA,
    cnthctl: 0b01,
    icc_sre: 0x7,
    ..NONE
};

const NONE: Controls = Controls {
    hcr: 0,
    cptr: 0,
    mdcr: 0,
    cnthctl: 0,
    ich_hcr: 0,
    icc_sre: 0,
    hcrx: 0,
    mpam2: 0,
    hfgrtr: 0,
    hfgwtr: 0,
    hfgitr: 0,
    hdfgrtr: 0,
    hdfgwtr: 0,
    hafgrtr: 0,
    hfgrtr2: 0,
    hfgwtr2: 0,
    hfgitr2: 0,
    hdfgrtr2: 0,
    hdfgwtr2: 0,
    ich_hfgrtr: 0,
    ich_hfgwtr: 0,
    ich_hfgitr: 0,
};

impl Controls {
    /// The host's controls on a CPU, given what all CPUs have.
    ///
    /// ID registers are trapped where the CPU's own say something else than the
    /// host is to see.
    pub fn host(cpu: &Cpu, promise: &Promise) -> Controls {
        let mut controls = Controls::of(El1::Host, HOST, cpu, &promise.host);
        if !cpu.ids.same_space(&promise.host) {
            controls.hcr |= hcr::TID3;
        }
        controls
    }

    /// The controls of guests on a CPU. Floating point and pointer
    /// authentication are trapped until the guest has its own registers for
    /// them.
    pub fn guest(cpu: &Cpu, promise: &Promise) -> Controls {
        let mut controls = Controls::of(El1::Guest, GUEST, cpu, &promise.guest);
        if promise.features.stage2.force_write_back {
            controls.hcr |= hcr::FWB;
        }
        controls
    }

    /// An EL1's controls: each feature that the CPU has is open if the EL1
    /// is to have it and sees it, and closed otherwise.
    fn of(el1: El1, base: Controls, cpu: &Cpu, seen: &Ids) -> Controls {
        let mut controls = base;
        // MDCR_EL2.HPMN: all of the event counters are EL1's.
        controls.mdcr |= cpu.event_counters as u64;
        for feature in FEATURES.iter().filter(|feature| feature.is_in(&cpu.ids)) {
            let open = feature.treatment(el1).opens() && feature.is_in(seen);
            for control in feature.controls {
                let register = controls.register_mut(control.register);
                let bits = if open { control.open } else { control.closed };
                *register = *register & !control.mask | bits;
            }
        }
        for register in Reg::ALL.into_iter().filter(|register| !register.is_in(&cpu.ids)) {
            *controls.register_mut(register) = 0;
        }
        controls
    }

    /// One of the registers.
    pub fn register(&self, register: Reg) -> u64 {
        let mut copy = *self;
        *copy.register_mut(register)
    }

    fn register_mut(&mut self, register: Reg) -> &mut u64 {
        match register {
            Reg::Hcr => &mut self.hcr,
            Reg::Cptr => &mut self.cptr,
            Reg::Mdcr => &mut self.mdcr,
            Reg::Cnthctl => &mut self.cnthctl,
            Reg::IchHcr => &mut self.ich_hcr,
            Reg::IccSre => &mut self.icc_sre,
            Reg::Hcrx => &mut self.hcrx,
            Reg::Mpam2 => &mut self.mpam2,
            Reg::Hfgrtr => &mut self.hfgrtr,
            Reg::Hfgwtr => &mut self.hfgwtr,
            Reg::Hfgitr => &mut self.hfgitr,
            Reg::Hdfgrtr => &mut self.hdfgrtr,
            Reg::Hdfgwtr => &mut self.hdfgwtr,
            Reg::Hafgrtr => &mut self.hafgrtr,
            Reg::Hfgrtr2 => &mut self.hfgrtr2,
            Reg::Hfgwtr2 => &mut self.hfgwtr2,
            Reg::Hfgitr2 => &mut self.hfgitr2,
            Reg::Hdfgrtr2 => &mut self.hdfgrtr2,
            Reg::Hdfgwtr2 => &mut self.hdfgwtr2,
            Reg::IchHfgrtr => &mut self.ich_hfgrtr,
            Reg::IchHfgwtr => &mut self.ich_hfgwtr,
            Reg::IchHfgitr => &mut self.ich_hfgitr,
        }
    }
}

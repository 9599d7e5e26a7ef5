// SPDX-License-Identifier: MIT OR Apache-2.0

//! The features that all CPUs have: the host, its guests and EL2's tables rely on them.

use core::fmt;

use super::features::{Cpu, Features};
use super::fields::ALL;
use super::ids::{Field, Ids};
use super::{El1, MissingFeature};

/// What all CPUs of the machine have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promise {
    /// The identification registers, before anything is hidden.
    least: Ids,
    /// As the host sees them.
    pub host: Ids,
    /// As guests see them, but for the bits of address that they have.
    pub guest: Ids,
    /// What EL2 uses on all CPUs.
    pub features: Features,
}

/// Why a CPU cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// Escrow cannot do without it.
    Missing(MissingFeature),
    /// It has less in this field than the host was told.
    Field {
        /// The field.
        field: Field,
        /// Its value on this CPU.
        has: u64,
        /// The value that was promised.
        promised: u64,
    },
    /// Its AArch32 ID registers show less than the host was shown.
    Aarch32,
    /// It lacks a feature of stage 2 or the caches that EL2 relies on.
    Memory,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Broken::Missing(missing) => missing.fmt(f),
            Broken::Field { field, has, promised } => {
                write!(f, "its {} is {has:#x}, the host was promised {promised:#x}", field.name)
            }
            Broken::Aarch32 => f.write_str("it lacks what the host was promised of AArch32"),
            Broken::Memory => f.write_str("its stage 2 or its caches can do less than the others'"),
        }
    }
}

impl core::error::Error for Broken {}

impl Promise {
    /// What one CPU has.
    pub fn of(cpu: &Cpu) -> Promise {
        Promise::from(cpu.sound(), cpu, None)
    }

    /// What another CPU has as well.
    #[must_use]
    pub fn and(&self, cpu: &Cpu) -> Promise {
        Promise::from(self.least.common(&cpu.sound()), cpu, Some(&self.features))
    }

    fn from(least: Ids, cpu: &Cpu, others: Option<&Features>) -> Promise {
        let host = least.seen_by(El1::Host);
        let own = Features::of(cpu, &host);
        Promise {
            least,
            host,
            guest: least.seen_by(El1::Guest),
            features: others.map_or(own, |others| own.least(others)),
        }
    }

    /// The fields of a CPU of which the host sees less, or nothing.
    pub fn hidden_of(&self, cpu: &Cpu) -> impl Iterator<Item = &'static Field> + use<> {
        let (own, host) = (cpu.ids, self.host);
        ALL.iter().filter(move |field| own.get(field) != host.get(field))
    }

    /// Whether a CPU has all that was promised.
    ///
    /// # Errors
    ///
    /// What it lacks.
    pub fn is_kept_by(&self, cpu: &Cpu) -> Result<(), Broken> {
        cpu.check().map_err(Broken::Missing)?;
        let both = self.and(cpu);
        if let Some(field) = ALL.iter().find(|field| both.host.get(field) != self.host.get(field)) {
            let (has, promised) = (cpu.sound().get(field), self.host.get(field));
            return Err(Broken::Field { field: *field, has, promised });
        }
        if !both.host.same_space(&self.host) {
            return Err(Broken::Aarch32);
        }
        if both.features != self.features { Err(Broken::Memory) } else { Ok(()) }
    }
}

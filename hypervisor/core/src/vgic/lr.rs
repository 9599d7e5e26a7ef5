// SPDX-License-Identifier: MIT OR Apache-2.0

//! The registers of a CPU's virtual CPU interface (IHI 0069, "AArch64 System register
//! descriptions of the virtual registers"), as far as this module reads and writes them.

use super::bits::Intid;

/// The most list registers that a CPU has.
pub const LIST_REGISTERS: usize = 16;

/// What this module needs of the virtual CPU interface of the CPU that it runs on.
/// Implemented by the machine half for the registers, by tests for a simulated one.
pub trait Interface {
    /// How many list registers there are: `ICH_VTR_EL2.ListRegs` + 1.
    fn list_registers(&self) -> usize;
    /// Reads `ICH_LR<n>_EL2`.
    fn list_register(&self, n: usize) -> u64;
    /// Writes it.
    fn set_list_register(&mut self, n: usize, value: u64);
    /// Reads `ICH_HCR_EL2`.
    fn hcr(&self) -> u64;
    /// Writes it.
    fn set_hcr(&mut self, value: u64);
    /// Reads `ICH_VMCR_EL2`.
    fn vmcr(&self) -> u64;
    /// Whether `ICH_MISR_EL2` is not 0: the maintenance interrupt is asserted.
    fn has_maintenance(&self) -> bool;
    /// The active priorities of both groups together: `ICH_AP0R<n>_EL2 | ICH_AP1R<n>_EL2`; 0 for
    /// registers that the CPU does not have.
    fn active_priorities(&self) -> [u32; 4];
    /// The lowest bit of a priority that has a bit of its own among the active priorities: 3
    /// if `ICH_VTR_EL2.PREbits` + 1 is 5.
    fn preemption_shift(&self) -> u32;
}

/// Groups of interrupts: bit 0 for group 0, bit 1 for group 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Groups(pub u8);

impl Groups {
    pub const BOTH: Groups = Groups(3);

    pub const fn one(group: u8) -> Groups {
        Groups(1 << (group & 1))
    }

    pub const fn contains(self, group: u8) -> bool {
        self.0 & Groups::one(group).0 != 0
    }

    pub const fn and(self, other: Groups) -> Groups {
        Groups(self.0 & other.0)
    }

    pub const fn without(self, other: Groups) -> Groups {
        Groups(self.0 & !other.0)
    }
}

/// `ICH_LR<n>_EL2`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ListRegister(pub u64);

impl ListRegister {
    const PENDING: u64 = 1 << 62;
    const ACTIVE: u64 = 1 << 63;
    const HW: u64 = 1 << 61;
    const GROUP_1: u64 = 1 << 60;
    /// EOI, which counts with HW clear: deactivation asserts the maintenance interrupt.
    const EOI: u64 = 1 << 41;

    /// A list register whose interrupt is neither pending nor active yet.
    pub fn new(intid: Intid, level: u8, group: u8, kind: Kind) -> ListRegister {
        let kind = match kind {
            Kind::Plain => 0,
            Kind::Told => ListRegister::EOI,
            Kind::Linked(physical) => ListRegister::HW | u64::from(physical) << 32,
        };
        let group = if group & 1 != 0 { ListRegister::GROUP_1 } else { 0 };
        ListRegister(u64::from(intid.number()) | u64::from(level) << 51 | group | kind)
    }

    pub const fn with(self, pending: bool, active: bool) -> ListRegister {
        let state = if pending { ListRegister::PENDING } else { 0 }
            | if active { ListRegister::ACTIVE } else { 0 };
        ListRegister(self.0 & !(ListRegister::PENDING | ListRegister::ACTIVE) | state)
    }

    pub const fn is_pending(self) -> bool {
        self.0 & ListRegister::PENDING != 0
    }

    pub const fn is_active(self) -> bool {
        self.0 & ListRegister::ACTIVE != 0
    }

    /// Pending and not active: what can be signalled.
    pub const fn is_offered(self) -> bool {
        self.is_pending() && !self.is_active()
    }

    pub const fn is_idle(self) -> bool {
        self.0 & (ListRegister::PENDING | ListRegister::ACTIVE) == 0
    }

    pub const fn number(self) -> u32 {
        self.0 as u32
    }

    /// The upper five bits of its priority.
    pub const fn level(self) -> u8 {
        (self.0 >> 51) as u8 & 31
    }

    pub const fn group(self) -> u8 {
        (self.0 >> 60) as u8 & 1
    }

    /// Whether deactivation asserts the maintenance interrupt.
    pub const fn is_told(self) -> bool {
        self.0 & (ListRegister::HW | ListRegister::EOI) == ListRegister::EOI
    }

    /// The same, with or without the maintenance interrupt on deactivation. A linked one has none.
    pub const fn with_told(self, told: bool) -> ListRegister {
        if self.is_linked() {
            return self;
        }
        let eoi = if told { ListRegister::EOI } else { 0 };
        ListRegister(self.0 & !ListRegister::EOI | eoi)
    }

    pub const fn is_linked(self) -> bool {
        self.0 & ListRegister::HW != 0
    }
}

/// What else happens when an interrupt in a list register is deactivated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing.
    Plain,
    /// The maintenance interrupt is asserted, so that EL2 looks at the interrupt's level.
    Told,
    /// A physical interrupt of this number is deactivated.
    Linked(u16),
}

/// Bits of `ICH_HCR_EL2`.
pub(super) mod hcr {
    /// Maintenance interrupt while at most one list register is in use. This module never sets it.
    pub const UIE: u64 = 1 << 1;
    /// Maintenance interrupt while no list register is pending.
    pub const NPIE: u64 = 1 << 3;
    /// Maintenance interrupt while EOIcount is not 0.
    pub const LRENPIE: u64 = 1 << 2;
    /// Maintenance interrupt while group 0 is enabled.
    pub const VGRP0EIE: u64 = 1 << 4;
    /// Maintenance interrupt while group 0 is disabled.
    pub const VGRP0DIE: u64 = 1 << 5;
    /// Maintenance interrupt while group 1 is enabled.
    pub const VGRP1EIE: u64 = 1 << 6;
    /// Maintenance interrupt while group 1 is disabled.
    pub const VGRP1DIE: u64 = 1 << 7;
    /// Writes to `ICC_DIR_EL1` trap.
    pub const TDIR: u64 = 1 << 14;
    /// EOIcount: deactivations of interrupts that are in no list register.
    pub const EOI_COUNT: u64 = 31 << 27;
    /// All of the above.
    pub const OURS: u64 =
        UIE | NPIE | LRENPIE | VGRP0EIE | VGRP0DIE | VGRP1EIE | VGRP1DIE | TDIR | EOI_COUNT;

    pub const fn eoi_count(hcr: u64) -> u32 {
        ((hcr & EOI_COUNT) >> 27) as u32
    }
}

/// Whether a guest with this `ICH_VMCR_EL2` is in EOImode 1.
pub const fn splits_eoi(vmcr: u64) -> bool {
    Vmcr(vmcr).splits_eoi()
}

/// `ICH_VMCR_EL2`: what the guest has set up in its CPU interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Vmcr(pub u64);

impl Vmcr {
    /// The groups that are enabled (VENG0, VENG1).
    pub const fn groups(self) -> Groups {
        Groups(self.0 as u8 & 3)
    }

    /// The fields that decide what is in list registers and in `ICH_HCR_EL2`: VENG0, VENG1, VEOIM.
    pub const fn controls(self) -> u32 {
        self.0 as u32 & (3 | 1 << 9)
    }

    /// EOImode 1: `ICC_EOIR<n>_EL1` drops the priority, `ICC_DIR_EL1` deactivates (VEOIM).
    pub const fn splits_eoi(self) -> bool {
        self.0 & 1 << 9 != 0
    }

    /// `ICC_PMR_EL1` (VPMR).
    pub const fn mask(self) -> u8 {
        (self.0 >> 24) as u8
    }

    /// The part of a group's priorities that decides about preemption (VBPR0, VBPR1, VCBPR;
    /// IHI 0069, "Priority grouping").
    pub const fn group_priority(self, priority: u8, group: u8) -> u8 {
        let common = self.0 & 1 << 4 != 0;
        let kept = if group == 0 || common {
            !0u32 << (((self.0 >> 21) & 7) + 1)
        } else {
            !0u32 << ((self.0 >> 18) & 7)
        };
        priority & kept as u8
    }
}

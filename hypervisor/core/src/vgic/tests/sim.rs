// SPDX-License-Identifier: MIT OR Apache-2.0

//! A virtual CPU interface, as IHI 0069 describes it: what the guest's instructions do to
//! list registers and active priorities, and when the maintenance interrupt is asserted.

use crate::vgic::Interface;

pub const VENG0: u64 = 1 << 0;
pub const VENG1: u64 = 1 << 1;
pub const VCBPR: u64 = 1 << 4;
pub const VEOIM: u64 = 1 << 9;

const ACTIVE: u64 = 1 << 63;
const PENDING: u64 = 1 << 62;
const HW: u64 = 1 << 61;
const EOI: u64 = 1 << 41;

/// What the guest reads if nothing is signalled.
pub const SPURIOUS: u32 = 1023;

#[derive(Clone, Debug)]
pub struct Simulated {
    pub lrs: Vec<u64>,
    pub hcr: u64,
    pub vmcr: u64,
    /// ICH_AP0R0, ICH_AP1R0.
    pub active: [u32; 2],
    /// Physical interrupts that were deactivated by the guest.
    pub deactivated: Vec<u32>,
}

fn intid(lr: u64) -> u32 {
    lr as u32
}

fn priority(lr: u64) -> u8 {
    (lr >> 48) as u8
}

fn group(lr: u64) -> usize {
    (lr >> 60) as usize & 1
}

impl Simulated {
    pub fn new(registers: usize) -> Simulated {
        Simulated {
            lrs: vec![0; registers],
            hcr: 1,
            vmcr: 0,
            active: [0; 2],
            deactivated: Vec::new(),
        }
    }

    /// The group priority field of a priority.
    pub fn preempts_by(&self, priority: u8, group: usize) -> u8 {
        let (bpr0, bpr1) = (self.vmcr >> 21 & 7, self.vmcr >> 18 & 7);
        let low_bits = match group {
            1 if self.vmcr & VCBPR == 0 => bpr1,
            _ => bpr0 + 1,
        };
        (u16::from(priority) >> low_bits << low_bits) as u8
    }

    fn highest_active(&self) -> Option<(u32, usize)> {
        let [zero, one] = self.active.map(u32::trailing_zeros);
        if zero == 32 && one == 32 {
            None
        } else if zero <= one {
            Some((zero, 0))
        } else {
            Some((one, 1))
        }
    }

    pub fn running_priority(&self) -> u8 {
        self.highest_active().map_or(0xff, |(level, _)| (level << 3) as u8)
    }

    /// The pending list register that comes first, of enabled groups.
    fn highest_pending(&self) -> Option<usize> {
        let enabled = |lr: u64| self.vmcr & [VENG0, VENG1][group(lr)] != 0;
        (0..self.lrs.len())
            .filter(|&n| self.lrs[n] & (ACTIVE | PENDING) == PENDING && enabled(self.lrs[n]))
            .min_by_key(|&n| priority(self.lrs[n]))
    }

    /// What is signalled to the guest: an interrupt and its group.
    pub fn signalled(&self) -> Option<(u32, usize)> {
        let lr = self.lrs[self.highest_pending()?];
        let signalled = u64::from(priority(lr)) < self.vmcr >> 24 & 0xff
            && self.preempts_by(priority(lr), group(lr)) < self.running_priority();
        signalled.then(|| (intid(lr), group(lr)))
    }

    /// ICC_IAR<group>_EL1.
    pub fn acknowledge(&mut self, of: usize) -> u32 {
        match self.signalled() {
            Some((intid, group)) if group == of => {
                let n = self.highest_pending().unwrap();
                let lr = self.lrs[n];
                self.lrs[n] = lr & !PENDING | ACTIVE;
                self.active[group] |= 1 << (self.preempts_by(priority(lr), group) >> 3);
                intid
            }
            _ => SPURIOUS,
        }
    }

    /// ICC_EOIR<group>_EL1.
    pub fn end(&mut self, of: usize, intid: u32) {
        if let Some((level, group)) = self.highest_active()
            && group == of
        {
            self.active[group] &= !(1 << level);
        }
        if self.vmcr & VEOIM == 0 {
            self.deactivate_here(intid);
        }
    }

    /// ICC_DIR_EL1; `false` if it traps.
    pub fn deactivate(&mut self, intid: u32) -> bool {
        if self.hcr & 1 << 14 != 0 {
            return false;
        }
        if self.vmcr & VEOIM != 0 {
            self.deactivate_here(intid);
        }
        true
    }

    fn deactivate_here(&mut self, number: u32) {
        let found = self.lrs.iter_mut().find(|lr| intid(**lr) == number && **lr & ACTIVE != 0);
        match found {
            Some(lr) => {
                *lr &= !ACTIVE;
                if *lr & HW != 0 {
                    self.deactivated.push((*lr >> 32) as u32 & 0x1fff);
                }
            }
            None => self.hcr += 1 << 27,
        }
    }

    /// ICH_MISR_EL2.
    fn maintenance(&self) -> u32 {
        let on = |bit: u32| self.hcr & 1 << bit != 0;
        let ended = |lr: &u64| *lr & (HW | EOI | ACTIVE | PENDING) == EOI;
        let pending = |lr: &u64| *lr & (ACTIVE | PENDING) == PENDING;
        let valid = |lr: &&u64| **lr & (ACTIVE | PENDING) != 0;
        let (group0, group1) = (self.vmcr & VENG0 != 0, self.vmcr & VENG1 != 0);
        u32::from(self.lrs.iter().any(ended))
            | u32::from(on(1) && self.lrs.iter().filter(valid).count() <= 1) << 1
            | u32::from(on(2) && self.hcr >> 27 & 31 != 0) << 2
            | u32::from(on(3) && !self.lrs.iter().any(pending)) << 3
            | u32::from(on(4) && group0) << 4
            | u32::from(on(5) && !group0) << 5
            | u32::from(on(6) && group1) << 6
            | u32::from(on(7) && !group1) << 7
    }
}

impl Interface for Simulated {
    fn list_registers(&self) -> usize {
        self.lrs.len()
    }

    fn list_register(&self, n: usize) -> u64 {
        self.lrs[n]
    }

    fn set_list_register(&mut self, n: usize, value: u64) {
        self.lrs[n] = value;
    }

    fn hcr(&self) -> u64 {
        self.hcr
    }

    fn set_hcr(&mut self, value: u64) {
        self.hcr = value;
    }

    fn vmcr(&self) -> u64 {
        self.vmcr
    }

    fn has_maintenance(&self) -> bool {
        self.maintenance() != 0
    }

    fn active_priorities(&self) -> [u32; 4] {
        [self.active[0] | self.active[1], 0, 0, 0]
    }

    fn preemption_shift(&self) -> u32 {
        3
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! Software-generated interrupts: writes to `ICC_SGI1R_EL1`, `ICC_SGI0R_EL1`,
//! `ICC_ASGI1R_EL1`, which always trap (HCR_EL2.IMO, FMO).

use super::bits::Intid;
use super::lines::Change;
use super::{Effects, Pages, Vgic, vcpu_of_affinity};

/// The register that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SgiRegister {
    /// `ICC_SGI0R_EL1`.
    Group0,
    /// `ICC_SGI1R_EL1`.
    Group1,
    /// `ICC_ASGI1R_EL1`.
    OtherGroup1,
}

impl SgiRegister {
    /// Whether it makes interrupts of group 1 pending. All make those of group 0: with
    /// `GICD_CTLR.DS` set, ICC_SGI1R_EL1 is for both, and ICC_ASGI1R_EL1 for group 0 (IHI 0069,
    /// "Use of control registers for SGI forwarding").
    const fn is_for_group_1(self) -> bool {
        matches!(self, SgiRegister::Group1)
    }
}

impl<P: Pages> Vgic<P> {
    /// A vCPU has written one of those registers.
    pub fn send(&self, me: u8, register: SgiRegister, value: u64, effects: &mut Effects) {
        let Some(sgi) = Intid::new((value >> 24) as u32 & 0xf) else { return };
        if value & 1 << 40 != 0 {
            // Interrupt Routing Mode: all but the sender.
            for (index, _) in self.cpus().filter(|&(index, _)| index != me) {
                self.send_to(index, sgi, register, effects);
            }
            return;
        }
        if value >> 48 & 0xff != 0 {
            // No vCPU has an Aff3.
            return;
        }
        let cluster = (value >> 32 & 0xff) << 16 | (value >> 16 & 0xff) << 8;
        let range = (value >> 44 & 0xf) << 4;
        for target in super::ones(value as u32 & 0xffff) {
            let affinity = cluster | range | u64::from(target);
            if let Some(index) = vcpu_of_affinity(affinity as u32) {
                self.send_to(index, sgi, register, effects);
            }
        }
    }

    #[inline(always)]
    fn send_to(&self, target: u8, sgi: Intid, register: SgiRegister, effects: &mut Effects) {
        let Some(cpu) = self.pages().cpu(target) else { return };
        let mut state = cpu.state.lock();
        if state.lines.group.get(sgi) && !register.is_for_group_1() {
            return;
        }
        let is_new = state.event(sgi, Change::Pend);
        drop(state);
        if is_new {
            self.notify(target, effects);
        }
    }
}

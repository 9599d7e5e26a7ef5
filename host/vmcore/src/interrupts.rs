// SPDX-License-Identifier: MIT OR Apache-2.0

//! The interrupt controller and the doorbells of a VM: the shim has EL2 make those that the VM's
//! device tree names.

use alloc::vec::Vec;

use escrow_abi::call::SPIS_MAX;

use crate::Errno;
use crate::doorbell::Doorbells;
use crate::line::Target;
use crate::tree::{Bell, Config, Gic, Refusal, SPIS};

/// The fewest SPIs of a VM: INTIDs 32 to 255. A VM gets more if its tree names higher ones. Not
/// more than that, as Linux sets up each SPI when it boots.
const SPIS_USUAL: u32 = 224;

/// A VM's interrupt controller. EL2 keeps it as long as the VM lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Controller {
    gic: Gic,
    spis: u32,
}

/// Makes the calls to EL2.
pub trait Maker {
    /// Gives the VM an interrupt controller with so many SPIs.
    ///
    /// # Errors
    /// EL2's.
    fn gic(&mut self, gic: &Gic, spis: u32) -> Result<(), Errno>;

    /// Gives it a doorbell. → its handle
    ///
    /// # Errors
    /// EL2's.
    fn doorbell(&mut self, label: u32) -> Result<u64, Errno>;
}

/// The interrupts of a VM.
///
/// A start that fails may be tried again with another device tree. Then the VM keeps the
/// interrupt controller that it has, and the other tree must be for the same.
#[derive(Debug, Default)]
pub struct Interrupts {
    controller: Option<Controller>,
    doorbells: Doorbells,
    /// The tree's doorbells, if their labels stand for SPIs (in a VM with an interrupt controller).
    bells: Vec<Bell>,
}

impl Interrupts {
    /// Makes what a device tree configures and EL2 does not have yet. `vcpus` is one more than the
    /// highest number of a vCPU, `highest` the highest INTID that others than the tree need.
    ///
    /// # Errors
    /// `Invalid` for a tree that does not fit the VM, and those of `maker`. What has been made
    /// stays for the next time.
    pub fn configure(
        &mut self,
        config: Config,
        vcpus: u32,
        highest: u32,
        maker: &mut impl Maker,
    ) -> Result<(), Refusal> {
        self.bells = Vec::new();
        let Some(gic) = config.gic else {
            if self.controller.is_some() {
                return Err(Refusal::wrong(
                    "it lacks the GICv3 that the VM has since a start before",
                ));
            }
            let labels = config.bells.iter().map(|bell| bell.label);
            return Ok(self.doorbells.configure(labels, |label| maker.doorbell(label))?);
        };
        if vcpus > gic.room {
            return Err(Refusal::wrong(
                "its GICv3 has no room for the redistributors of all vCPUs",
            ));
        }
        let spis = config.bells.iter().filter_map(|bell| bell.interrupt).map(|it| it.intid);
        let last = spis.chain([highest, SPIS.start + SPIS_USUAL - 1]).max().unwrap_or(highest);
        let spis = (last + 1 - SPIS.start).next_multiple_of(32).min(SPIS_MAX as u32);
        match self.controller {
            None => {
                maker.gic(&gic, spis)?;
                self.controller = Some(Controller { gic, spis });
            }
            Some(controller) if controller.fits(&gic, spis) => {}
            Some(_) => {
                return Err(Refusal::wrong(
                    "its GICv3 is not the one that the VM has since a start before",
                ));
            }
        }
        self.doorbells.configure([], |label| maker.doorbell(label))?;
        self.bells = config.bells;
        Ok(())
    }

    /// What a label stands for.
    pub fn find(&self, label: u32) -> Option<Target> {
        if self.controller.is_none() {
            return self.doorbells.find(label).map(Target::Doorbell);
        }
        let at = self.bells.binary_search_by_key(&label, |bell| bell.label).ok()?;
        self.bells.get(at)?.interrupt.map(Target::Spi)
    }

    /// Whether the VM has an SPI; `None` if it has no interrupt controller.
    pub fn has_spi(&self, intid: u32) -> Option<bool> {
        let controller = self.controller?;
        Some((SPIS.start..SPIS.start + controller.spis).contains(&intid))
    }

    /// Whether there is room for the redistributor of a vCPU.
    pub fn has_room_for(&self, vcpu: u32) -> bool {
        self.controller.is_none_or(|controller| vcpu < controller.gic.room)
    }
}

impl Controller {
    fn fits(&self, gic: &Gic, spis: u32) -> bool {
        let frames = |gic: &Gic| (gic.distributor, gic.redistributors);
        frames(&self.gic) == frames(gic) && self.gic.room <= gic.room && spis <= self.spis
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec;

    use super::*;
    use crate::tree::Interrupt;

    const GIC: Gic = Gic { distributor: 0x800_0000, redistributors: 0x80a_0000, room: 4 };

    #[derive(Default)]
    struct El2 {
        gics: Vec<(Gic, u32)>,
        bells: Vec<u32>,
        refuses: bool,
    }

    impl Maker for El2 {
        fn gic(&mut self, gic: &Gic, spis: u32) -> Result<(), Errno> {
            self.gics.push((*gic, spis));
            if self.refuses { Err(Errno::NoMemory) } else { Ok(()) }
        }

        fn doorbell(&mut self, label: u32) -> Result<u64, Errno> {
            self.bells.push(label);
            Ok(u64::from(label) + 100)
        }
    }

    fn bell(label: u32, intid: u32) -> Bell {
        Bell { label, interrupt: Some(Interrupt { intid, level: true }) }
    }

    fn config(gic: Option<Gic>, bells: &[Bell]) -> Config {
        Config { gic, bells: bells.to_vec(), ..Config::default() }
    }

    #[test]
    fn without_a_controller_there_are_doorbells() {
        let (mut interrupts, mut el2) = (Interrupts::default(), El2::default());
        let bells = [Bell { label: 5, interrupt: None }];
        interrupts.configure(config(None, &bells), 32, 99, &mut el2).unwrap();
        assert_eq!((el2.bells, el2.gics), (vec![5], vec![]));
        assert_eq!(interrupts.find(5), Some(Target::Doorbell(105)));
        assert_eq!((interrupts.find(6), interrupts.has_spi(40)), (None, None));
        assert!(interrupts.has_room_for(31));
    }

    #[test]
    fn with_a_controller_labels_are_spis() {
        let (mut interrupts, mut el2) = (Interrupts::default(), El2::default());
        let bells = [bell(5, 48), Bell { label: 6, interrupt: None }];
        interrupts.configure(config(Some(GIC), &bells), 4, 0, &mut el2).unwrap();
        assert_eq!((el2.bells, el2.gics), (vec![], vec![(GIC, 224)]));
        let target = Target::Spi(Interrupt { intid: 48, level: true });
        assert_eq!((interrupts.find(5), interrupts.find(6)), (Some(target), None));
        let has = |intid| interrupts.has_spi(intid).unwrap();
        assert!(!has(31) && has(32) && has(255) && !has(256));
        assert!(interrupts.has_room_for(3) && !interrupts.has_room_for(4));
    }

    #[test]
    fn there_are_as_many_spis_as_are_named() {
        for (named, highest, expected) in [
            (255, 0, 224),
            (256, 0, 256),
            (40, 300, 288),
            (991, 40, 960),
            (992, 40, 988),
            (1019, 1019, 988),
        ] {
            let (mut interrupts, mut el2) = (Interrupts::default(), El2::default());
            let config = config(Some(GIC), &[bell(1, named)]);
            interrupts.configure(config, 1, highest, &mut el2).unwrap();
            assert_eq!(el2.gics, [(GIC, expected)], "{named}, {highest}");
        }
    }

    #[test]
    fn a_tree_must_fit_the_vm() {
        let (mut interrupts, mut el2) = (Interrupts::default(), El2::default());
        let mut configure = |config, vcpus| {
            let refused = interrupts.configure(config, vcpus, 0, &mut el2).err();
            refused.map(|refusal| (refusal.errno, refusal.why.is_some()))
        };
        let wrong = Some((Errno::Invalid, true));
        assert_eq!(configure(config(Some(GIC), &[]), 5), wrong, "no room");
        assert_eq!(configure(config(None, &[]), 4), None);
        assert_eq!(configure(config(Some(GIC), &[bell(5, 48)]), 4), None);
        // The same VM is started again.
        assert_eq!(configure(config(Some(GIC), &[bell(5, 49)]), 4), None);
        let more = Gic { room: 9, ..GIC };
        assert_eq!(configure(config(Some(more), &[]), 4), None);
        for other in [
            config(None, &[]),
            config(Some(Gic { distributor: 0, ..GIC }), &[]),
            config(Some(Gic { redistributors: 0, ..GIC }), &[]),
            config(Some(Gic { room: 3, ..GIC }), &[]),
            config(Some(GIC), &[bell(5, 256)]),
        ] {
            assert_eq!(configure(other.clone(), 3), wrong, "{other:?}");
        }
        assert_eq!(el2.gics.len(), 1);
        // After a refused tree, neither its labels nor those of the tree before are known.
        assert_eq!(interrupts.find(5), None);
    }

    #[test]
    fn what_el2_refuses_may_be_tried_again() {
        let (mut interrupts, mut el2) = (Interrupts::default(), El2::default());
        el2.refuses = true;
        let refused = interrupts.configure(config(Some(GIC), &[bell(5, 48)]), 1, 0, &mut el2);
        assert_eq!(refused, Err(Errno::NoMemory.into()));
        assert_eq!((interrupts.has_spi(48), interrupts.find(5)), (None, None));
        el2.refuses = false;
        interrupts.configure(config(Some(GIC), &[bell(5, 48)]), 1, 0, &mut el2).unwrap();
        assert_eq!(interrupts.has_spi(48), Some(true));
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! A guest's interrupt controller and stolen time, as far as its host's calls are about
//! them: where they are, what they take from the pool, and the inputs of SPIs.
//!
//! # Order of checks
//!
//! | call | |
//! | --- | --- |
//! | `VCPU_CREATE` | the index; the handle; that there is none; with an interrupt controller, room for the redistributor; the pool |
//! | `VM_VGIC` | the handle; that the VM is not started and has none; the number of SPIs; alignment; the space; frames in each other's place; pages in their place; the pool |
//! | `VM_PV_TIME` | the handle; the address; that the VM is not started and has none; what is there; the pool |
//! | `SPI_INPUT` | the handle; the two other arguments by themselves; that there is an interrupt controller; that it has the SPI |
//! | `SPI_DONE` | the handle; that there is an interrupt controller |

use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use core::ops::Range;

use escrow_abi::{Error, PAGE_SIZE, Rights, call};

use crate::guest::{Guest, Life};
use crate::machine::{Spec, Target};
use crate::map::Tables;
use crate::{Refused, VmId};

/// vCPUs of a guest.
const VCPUS: u64 = 32;
const FRAME: u64 = 0x1_0000;
/// INTIDs whose state fits a page.
const INTIDS_PER_PAGE: u32 = 512;

/// An interrupt controller. Its guest has never enabled it, so nothing is ever done.
#[derive(Clone, Debug)]
pub struct Gic {
    distributor: u64,
    redistributors: u64,
    /// One more than the highest INTID, in steps of 32.
    pub intids: u32,
    /// SPIs whose input is high. All are level-sensitive.
    high: BTreeSet<u32>,
    /// SPIs that had an edge, which their guest has not taken.
    edges: BTreeSet<u32>,
}

impl Gic {
    /// The frames with these vCPUs, a bit each: the first one's is taken in any case.
    fn frames(&self, vcpus: u32) -> impl Iterator<Item = (u64, u64)> {
        let base = self.redistributors;
        let taken = (0..VCPUS).filter(move |n| *n == 0 || vcpus & 1 << n != 0);
        let redistributor = move |n| (base.saturating_add(n * 2 * FRAME), 2 * FRAME);
        [(self.distributor, FRAME)].into_iter().chain(taken.map(redistributor))
    }

    /// GICD_ISPENDR<n>.
    pub fn pending(&self, word: u32) -> u32 {
        let pending = |bit: &u32| {
            let intid = word * 32 + bit;
            self.high.contains(&intid) || self.edges.contains(&intid)
        };
        (0..32).filter(pending).fold(0, |word, bit| word | 1 << bit)
    }
}

impl Guest {
    /// The addresses of its frames, if an interrupt controller with these vCPUs can be there.
    fn room(&self, gic: &Gic, vcpus: u32, space: u64) -> Result<Vec<Range<u64>>, Error> {
        let mut frames = Vec::new();
        for (at, size) in gic.frames(vcpus) {
            let end = at.checked_add(size).filter(|&end| end <= space);
            frames.push(at..end.ok_or(Error::AddressOverflow)?);
        }
        let mut pairs =
            frames.iter().enumerate().flat_map(|(n, a)| frames[..n].iter().map(move |b| (a, b)));
        if pairs.any(|(a, b)| a.start < b.end && b.start < a.end) {
            return Err(Error::Overlap);
        }
        let there = |(at, _)| frames.iter().any(|frame| frame.contains(&at));
        if self.map.entries().any(there) {
            return Err(Error::GuestMapped);
        }
        Ok(frames)
    }
}

/// The calls. All of them are the host's.
impl Spec {
    /// VCPU_CREATE.
    pub fn create_vcpu(&mut self, vm: VmId, index: u64) -> Result<(), Refused> {
        let refuse = |error| Err((error, 0, 0));
        if index >= VCPUS {
            return refuse(Error::InvalidArgument);
        }
        let space = self.guest_end;
        let guest = self.guest_mut(vm);
        guest.must_live()?;
        let vcpus = guest.vcpus | 1 << index;
        if vcpus == guest.vcpus {
            return refuse(Error::Denied);
        }
        let mut frames = None;
        if let Some(gic) = &guest.gic {
            frames = Some(guest.room(gic, vcpus, space).map_err(|error| (error, 0, 0))?);
        }
        guest.pay(Tables { needed: 1, freed: 0 }, 0)?;
        guest.vcpus = vcpus;
        if let Some(frames) = frames {
            guest.map.kept_free = frames;
        }
        Ok(())
    }

    /// VM_VGIC.
    pub fn vgic(
        &mut self,
        vm: Target,
        distributor: u64,
        redistributors: u64,
        spis: u64,
    ) -> Result<(), Refused> {
        let refuse = |error| Err((error, 0, 0));
        let vm = self.named(vm)?;
        let space = self.guest_end;
        let guest = self.guest_mut(vm);
        guest.must_live()?;
        if guest.life != Life::Created || guest.gic.is_some() {
            return refuse(Error::Denied);
        }
        let most = spis == call::SPIS_MAX;
        if !most && (!spis.is_multiple_of(32) || !(call::SPIS_MIN..call::SPIS_MAX).contains(&spis))
        {
            return refuse(Error::InvalidSize);
        }
        if !distributor.is_multiple_of(FRAME) || !redistributors.is_multiple_of(FRAME) {
            return refuse(Error::Misaligned);
        }
        let intids = if most { 1024 } else { 32 + spis as u32 };
        let (high, edges) = (BTreeSet::new(), BTreeSet::new());
        let gic = Gic { distributor, redistributors, intids, high, edges };
        let frames = guest.room(&gic, guest.vcpus, space).map_err(|error| (error, 0, 0))?;
        let needed = intids.div_ceil(INTIDS_PER_PAGE).into();
        guest.pay(Tables { needed, freed: 0 }, 0)?;
        guest.map.kept_free = frames;
        guest.gic = Some(gic);
        Ok(())
    }

    /// VM_PV_TIME. `page` is the one that EL2 took from the pool: which one that is, is its own
    /// business.
    pub fn pv_time(&mut self, vm: Target, at: u64, page: Option<u64>) -> Result<(), Refused> {
        let refuse = |error| Err((error, 0, 0));
        let vm = self.named(vm)?;
        self.guest(vm).must_live()?;
        self.guest_range(at, PAGE_SIZE, u64::MAX).map_err(|error| (error, 0, 0))?;
        let guest = self.guest(vm);
        if guest.life != Life::Created || guest.time.is_some() {
            return refuse(Error::Denied);
        }
        if !guest.map.is_free(at, PAGE_SIZE) {
            return refuse(Error::GuestMapped);
        }
        self.attempt(|spec| {
            let page = page.unwrap_or(u64::MAX);
            let guest = spec.guest_mut(vm);
            let mut tables = guest.map.map(at, PAGE_SIZE, page, Rights::READ);
            tables.needed += 1;
            guest.time = Some(page);
            guest.pay(tables, 0)
        })
    }

    /// SPI_INPUT. → the vCPUs to run: none, as none waits.
    pub fn spi_input(&mut self, vm: Target, intid: u64, input: u64) -> Result<u64, Refused> {
        let refuse = |error| Err((error, 0, 0));
        let vm = self.named(vm)?;
        let guest = self.guest_mut(vm);
        guest.must_live()?;
        let known =
            [call::INPUT_LOW, call::INPUT_HIGH, call::INPUT_HIGH_UNTIL_DONE, call::INPUT_EDGE];
        if !(32..1020).contains(&intid) || !known.contains(&input) {
            return refuse(Error::InvalidArgument);
        }
        let Some(gic) = &mut guest.gic else { return refuse(Error::Denied) };
        let intid = intid as u32;
        if intid >= gic.intids {
            return refuse(Error::InvalidArgument);
        }
        match input {
            call::INPUT_LOW => drop(gic.high.remove(&intid)),
            call::INPUT_EDGE => drop(gic.edges.insert(intid)),
            _ => drop(gic.high.insert(intid)),
        }
        Ok(0)
    }

    /// SPI_DONE. → the SPI: none, as no guest has taken any.
    pub fn spi_done(&self, vm: Target) -> Result<u64, Refused> {
        let guest = self.guest(self.named(vm)?);
        guest.must_live()?;
        if guest.gic.is_some() { Ok(0) } else { Err((Error::Denied, 0, 0)) }
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a guest holds on other guests.

use core::ops::Range;

use escrow_abi::{Error, call};

use crate::machine::{Spec, Target};
use crate::{Refused, VmId};

/// Entries of a guest's table.
const TABLE: usize = 16;

/// A guest's handle on another, as long as the specification lives: the n-th
/// that the guest was ever given. Numbering never repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CapId(pub usize);

#[derive(Clone, Debug)]
pub(crate) struct Capability {
    pub object: VmId,
    pub rights: u64,
    /// Where in the object's space the holder may put pages.
    pub window: Range<u64>,
    pub revoked: bool,
}

impl Spec {
    /// CAP_GRANT.
    pub fn grant(
        &mut self,
        to: Target,
        object: Target,
        rights: u64,
        base: u64,
        size: u64,
    ) -> Result<CapId, Refused> {
        let refuse = |error| Err((error, 0, 0));
        let (to, object) = (self.named(to)?, self.named(object)?);
        if to == object {
            return refuse(Error::InvalidArgument);
        }
        let known = call::RIGHT_SHARE | call::RIGHT_LEND | call::RIGHT_DONATE;
        if rights == 0 || rights & !known != 0 {
            return refuse(Error::InvalidArgument);
        }
        let window = self.guest_range(base, size, u64::MAX).map_err(|error| (error, 0, 0))?;
        self.guest(to).must_live()?;
        self.guest(object).must_live()?;
        if self.live_capabilities(to) == TABLE {
            return refuse(Error::TableFull);
        }
        let held = &mut self.guest_mut(to).capabilities;
        held.push(Capability { object, rights, window, revoked: false });
        Ok(CapId(held.len() - 1))
    }

    /// CAP_REVOKE. `None` is what no handle of the guest's ever looked like.
    pub fn revoke(&mut self, from: Target, which: Option<CapId>) -> Result<(), Refused> {
        let from = self.named(from)?;
        self.guest(from).must_live()?;
        let which = which.ok_or((Error::HandleNull, 0, 0))?;
        if !self.is_live(from, which) {
            return Err((Error::HandleRevoked, 0, 0));
        }
        self.guest_mut(from).capabilities[which.0].revoked = true;
        Ok(())
    }

    /// The capability that a guest names, if it may do with it what takes
    /// `right`.
    pub(crate) fn held(
        &self,
        by: VmId,
        which: CapId,
        right: u64,
    ) -> Result<(VmId, Range<u64>), Refused> {
        if !self.is_live(by, which) {
            return Err((Error::HandleRevoked, 0, 0));
        }
        let held = &self.guest(by).capabilities[which.0];
        if held.rights & right == 0 {
            return Err((Error::Denied, 0, 0));
        }
        Ok((held.object, held.window.clone()))
    }

    /// Capabilities of a guest that are neither revoked nor their object dead.
    pub fn live_capabilities(&self, of: VmId) -> usize {
        (0..self.guest(of).capabilities.len()).filter(|&n| self.is_live(of, CapId(n))).count()
    }

    fn is_live(&self, of: VmId, which: CapId) -> bool {
        let alive = |object| self.guest(object).is_alive();
        let held = self.guest(of).capabilities.get(which.0);
        held.is_some_and(|held| !held.revoked && alive(held.object))
    }
}

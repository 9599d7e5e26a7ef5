// SPDX-License-Identifier: MIT OR Apache-2.0

//! The oracle in builds without the feature `oracle`: all of its functions are empty.

use super::super::Hypervisor;
use super::super::extents::Extent;
use super::Asked;
use crate::addr::PhysAddr;
use crate::ledger::{Block, Ledger, Record, VmId};
use crate::machine::Machine;
use crate::stage2::GuestMap;

/// Has nothing to write down.
pub(in super::super) fn begin(_: &Ledger) {}

impl<M: Machine> Hypervisor<M> {
    /// Notes that a call changes frames of a block.
    #[inline(always)]
    pub(in super::super) fn oracle_step(
        &self,
        _by: VmId,
        _asked: Asked,
        _block: Block,
        _pages: (usize, usize),
        _new: Record,
    ) {
    }

    /// Looks at the frames of extents whose blocks are locked.
    #[inline(always)]
    pub(in super::super) fn oracle_look(
        &self,
        _extents: &[Extent],
        _vms: &[(VmId, Option<&GuestMap>)],
    ) {
    }

    /// The same for frames of one block.
    #[inline(always)]
    pub(in super::super) fn oracle_look_at(
        &self,
        _block: Block,
        _at: PhysAddr,
        _pages: usize,
        _vms: &[(VmId, Option<&GuestMap>)],
    ) {
    }
}

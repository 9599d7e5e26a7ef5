// SPDX-License-Identifier: MIT OR Apache-2.0

//! A guest accesses an address at which its stage 2 has an invalid entry that is not free:
//! memory that it has given away, or that is broken.

use escrow_abi::FrameState;

use super::Hypervisor;
use crate::addr::{BLOCK_SIZE, Ipa, PAGE_SIZE, PAGES_PER_BLOCK};
use crate::ledger::{GuestId, Record, page_in_block};
use crate::machine::Machine;
use crate::stage2::{Span, TableCount};
use crate::vm::Vm;

/// What a guest that faulted found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Touched {
    /// Nothing of EL2's concern.
    Nothing,
    /// Memory that it owns and has lent, or that is broken: it cannot have it.
    Unreachable,
    /// Memory that it can have: the access may be made again.
    Reachable,
}

impl<M: Machine> Hypervisor<M> {
    /// Looks at what a guest touched and stage 2 had no valid entry for. What it
    /// owns and has lent, and the borrower has opened to it, is mapped now.
    #[cold]
    pub(crate) fn guest_touches(&self, id: GuestId, vm: &mut Vm, at: Ipa) -> Touched {
        let Vm { map: Some(map), pool, .. } = vm else { return Touched::Nothing };
        if at.0 >= map.end() {
            return Touched::Nothing;
        }
        let leaf = map.lookup(&self.machine, at);
        if leaf.entry.is_poisoned() {
            return Touched::Unreachable;
        }
        let Some((frame, leaf)) = map.frame(&self.machine, at) else { return Touched::Nothing };
        if leaf.entry.is_valid() {
            // Another CPU's fault has mapped it.
            return Touched::Reachable;
        }
        let Some(block) = self.ledger.locate(frame) else { return Touched::Nothing };
        let opened =
            |record: Record| record.is(FrameState::SharedBack) && record.owner() == id.into();
        self.ledger.lock(block);
        let whole = leaf.level == 2 && self.ledger.whole_block(block).is_some_and(opened);
        let span = if whole {
            Span { at: at.align_down(BLOCK_SIZE), pages: PAGES_PER_BLOCK, is_block: true }
        } else {
            Span { at: at.align_down(PAGE_SIZE), pages: 1, is_block: false }
        };
        let mut tables = TableCount::new();
        map.prepare_restore(&self.machine, span, &mut tables);
        let comes = tables.tables() <= pool.len()
            && opened(self.ledger.records(block).get(page_in_block(frame)));
        if comes {
            map.restore(&self.machine, pool, span);
            self.machine.publish();
        }
        self.ledger.unlock(block);
        if comes { Touched::Reachable } else { Touched::Unreachable }
    }
}

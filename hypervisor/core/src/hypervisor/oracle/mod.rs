// SPDX-License-Identifier: MIT OR Apache-2.0

//! Checks of the ledger against the specification, in test builds (feature `oracle`).
//!
//! Next to each frame's record stands what the specification
//! ([`escrow_spec::frame`]) says of it. Every change of a record must be one
//! that the table of transitions allows, with the outcome that it names; before
//! the locks of a call are given back, done or refused, every frame of its list
//! is looked up in the ledger, in the host's tables and in those of the VMs
//! that the call holds, and all must say what the specification says. What does
//! not agree stops the machine.
//!
//! In other builds all of this is empty, and nothing is left of it.

#[cfg(not(feature = "oracle"))]
mod blind;
#[cfg(feature = "oracle")]
mod watching;

#[cfg(not(feature = "oracle"))]
pub(super) use blind::begin;
#[cfg(feature = "oracle")]
pub(super) use watching::begin;

/// What a call asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Share,
    Lend,
    Donate,
    Equip,
    Unlock,
    Relock,
    ShareBack,
    TakeBack,
    Unshare,
    Reclaim,
    Poison,
    /// EL2 found the memory to be broken.
    Break,
}

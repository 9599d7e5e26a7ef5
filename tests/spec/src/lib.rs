// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the memory calls do, as a model that is meant to be read.
//!
//! There are two layers. [`frame`] is the table: the states of one frame of
//! RAM, who may do what to it, and what becomes of it and of its contents. It
//! needs no memory but its arguments. On top of it, [`Spec`] is the machine:
//! all frames, the guests with their maps, pools and capabilities, and the
//! lists that calls take; and, in `gic`, what is donated for a guest's interrupt controller
//! and stolen time.
//!
//! There are no locks here, no tables in memory and no blocks of records. A
//! call works on a copy of the machine, and the copy takes the machine's place
//! if the call succeeds; that is all there is to "for all of its entries or for
//! none".
//!
//! Random histories run on this and on the real ledger, and both must agree on
//! every answer, every frame, every entry of every table, every page of every
//! pool (`hypervisor/core/src/hypervisor/tests/histories.rs`).
//!
//! # Order of checks
//!
//! It decides which error a call with several faults ends in, so it is part of
//! the interface. A list call checks
//!
//! 1. each entry by itself, in list order: its form, its report, its frame;
//! 2. guest addresses that overlap;
//! 3. the handle: its form, its object's life, its rights;
//! 4. the handle's window, guest addresses that are taken, tables that the VM
//!    which gets the pages lacks;
//! 5. frames that overlap;
//! 6. the ledger, entry by entry;
//! 7. tables that the VM which loses pages lacks, then those of the calling
//!    guest.
//!
//! Of the entries that one of these refuses, the first in list order is named.
//! A refusal is an [`Error`], that entry's index, and the detail that the error
//! explains.
//!
//! # Portions
//!
//! A call here is one step. EL2 makes one that takes long in portions, between which
//! interrupts are taken and other calls may come: first all of the call is looked at as
//! here, and if it is in order, each portion is a call of its own, over the next
//! entries of the list or pages of the range. So long as nobody changes what is left, all
//! of it happens. If somebody does, the portion that it is in is refused as such a call
//! would be, what is done remains done, and the answer says how much that is.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(feature = "model")]
extern crate alloc;

pub mod frame;

#[cfg(feature = "model")]
mod capability;
#[cfg(feature = "model")]
mod gic;
#[cfg(feature = "model")]
mod guest;
#[cfg(feature = "model")]
mod list;
#[cfg(feature = "model")]
mod machine;
#[cfg(feature = "model")]
mod map;
#[cfg(feature = "model")]
mod transfer;

#[cfg(all(test, feature = "model"))]
mod tests;

use escrow_abi::Error;

pub use frame::{Contents, Event, Frame, Living, Transition, VmId, step};

#[cfg(feature = "model")]
pub use {
    capability::CapId,
    gic::Gic,
    guest::{Guest, Life},
    machine::{Asked, Spec, Target},
    map::Entry,
};

/// A refusal: the error, the entry, the detail.
pub type Refused = (Error, u64, u64);

// SPDX-License-Identifier: MIT OR Apache-2.0

//! The trace of table writes, TLB maintenance and barriers (`docs/trace.md`)
//! that test builds write, those with the feature `trace`.
//!
//! [`event`] stands beside each instruction that a trace is about. In other
//! builds it is nothing, and nothing is left of its argument.

#[cfg(feature = "trace")]
mod buffer;

use escrow_core::machine::Note;

#[cfg(feature = "trace")]
pub use buffer::{Cell, dump, install};
#[cfg(feature = "trace")]
pub(crate) use buffer::{event, write_descriptor};

/// What happens on the calling CPU. Addresses and sizes are in bytes.
///
/// What ends something is recorded after it is done, what begins something
/// before, so that what another CPU does because of it comes later.
#[cfg_attr(not(feature = "trace"), expect(dead_code, reason = "nobody reads it"))]
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event<'a> {
    /// A descriptor changes.
    Write { at: u64, old: u64, new: u64 },
    /// Memory is about to be zeroed.
    Zero { at: u64, size: u64 },
    /// `DSB ISHST` has completed.
    DsbIshst,
    /// `DSB ISH` has completed.
    DsbIsh,
    /// `DSB SY` has completed.
    DsbSy,
    /// An ISB, or another context synchronization event.
    Isb,
    /// `VTTBR_EL2` has been written.
    Vttbr(u64),
    /// `TCR_EL1` has been written, and holds this.
    Tcr(u64),
    /// `SCTLR_EL1` has, and holds this.
    Sctlr(u64),
    /// `IPAS2E1IS` or `RIPAS2E1IS` is about to be issued.
    TlbiIpas2e1is { ipa: u64, size: u64 },
    /// `VMALLE1IS` is.
    TlbiVmalle1is,
    /// `VMALLS12E1IS` is.
    TlbiVmalls12e1is,
    /// `VAE2IS` is, for nothing but its completion.
    TlbiVae2is,
    /// From here on a broadcast `TLBI` has to be repeated ([`Errata::REPEAT_TLBI`](escrow_core::errata::Errata)).
    RepeatTlbi,
    /// The CPU may execute `AT` speculatively ([`Errata::SPECULATIVE_AT`](escrow_core::errata::Errata)).
    SpeculativeAt,
    /// Core has a note.
    Note(Note<'a>),
}

/// Records what happens.
#[cfg(not(feature = "trace"))]
#[inline(always)]
pub(crate) fn event<'a>(_event: impl FnOnce() -> Event<'a>) {}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! The bookkeeping of a guest memory, free of any kernel.
//!
//! A host gives a folio away only when it can show that nobody in the host
//! still uses it. Three counters show it:
//!
//! | counter | counts | kept by |
//! | --- | --- | --- |
//! | `refcount` | all references to the folio | the kernel ([`References`]) |
//! | `safe` | those whose holders know that the folio may leave at any time | [`Folio`] |
//! | `accessible` | kernel users that need to read or write the folio | [`Folio`] |
//!
//! A folio is lent only with `accessible` at zero and with its reference count
//! frozen at `safe`: comparing and blocking are one atomic step, so nobody can
//! take a reference in between. It stays frozen until it is home again.
//!
//! A kernel user takes a safe reference ([`Folio::hold`]) for as long as it has
//! to do with the folio, and counts itself as accessible ([`Folio::access`])
//! while it reads or writes it. The first hinders no lend, and stays while the
//! folio is away; the second does, and is refused while it is away.
//!
//! The life of a folio:
//!
//! ```text
//!            populate            begin_lend           lent
//!    Hole ─────────────► Present ──────────► Lending ──────► Lent
//!     ▲                  ▲ │ ▲ ▲               │              │ begin_take_back
//!     └──────────────────┘ │ │ └───────────────┘              ▼
//!          remove          │ │   lend_cancelled           TakingBack ──► Quarantined
//!                          │ └───────────────────────────────┘ ▲   kept       │
//!             begin_share  │             taken_back            │◄─────────────┘
//!                          ▼       shared      begin_take_back │
//!                       Sharing ──────────► Shared ────────────┘
//! ```
//!
//! A folio that breaks while a guest has it goes from TakingBack to Poisoned,
//! and stays there.
//!
//! A folio is `1 << order` pages that leave and come home together: the kernel
//! counts references to the whole, so nobody could say of a part that it is
//! free.
//!
//! The kernel's side sees to it that nobody else makes a transition of the
//! folio at the same time, or takes or gives up a safe reference; readers and
//! [`Folio::access`] may come at any time.

#![no_std]
#![forbid(unsafe_code)]

mod ahead;
mod counts;
mod folio;
mod moment;
mod refusal;
mod retry;
mod sync;

pub use ahead::{Ahead, Window};
pub use counts::Counts;
pub use folio::{Borrower, Folio, How, References, Report, State};
pub use moment::Moment;
pub use refusal::Refusal;
pub use retry::Retry;

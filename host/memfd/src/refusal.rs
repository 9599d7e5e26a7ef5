// SPDX-License-Identifier: MIT OR Apache-2.0

use core::fmt;

use crate::{Borrower, How, State};

/// Why a folio does not leave the host now. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// So many references are nobody's that agreed to see the folio leave.
    /// Negative: a holder has been counted, and has not taken its reference
    /// yet.
    Excess(i64),
    /// So many kernel users need to reach the folio.
    Accessible(u32),
    /// The memory behind the folio is broken.
    Poisoned,
    /// The folio is with a guest already.
    Away(How, Borrower),
    /// The folio is in a state from which it cannot leave.
    State(State),
}

impl Refusal {
    /// Whether the reason can go away by itself within moments.
    pub const fn is_transient(&self) -> bool {
        matches!(self, Refusal::Excess(_) | Refusal::Accessible(_))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Excess(excess) => write!(f, "excess={excess}"),
            Refusal::Accessible(users) => write!(f, "accessible={users}"),
            Refusal::Poisoned => f.write_str("poisoned"),
            Refusal::Away(how, borrower) => {
                write!(f, "{how:?} to {:#x} at {:#x}", borrower.vm, borrower.guest)
            }
            Refusal::State(state) => write!(f, "{state:?}"),
        }
    }
}

impl core::error::Error for Refusal {}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! What histories have come by: how calls ended, and which rows of the table
//! frames went through. Histories that miss something show nothing.

use std::collections::HashMap;
use std::fmt;

use escrow_abi::{Error, FrameState};
use escrow_spec::{Frame, VmId};

use super::lists::{FRAMES, MET};

/// Counts over many histories.
#[derive(Debug, Default)]
pub struct Tally {
    /// By name, whether a guest made it, and its error.
    calls: HashMap<(&'static str, bool, Option<Error>), u64>,
    /// Frames by whether a guest owned them, and their states before and after
    /// a step.
    frames: HashMap<(bool, FrameState, FrameState), u64>,
}

impl Tally {
    pub fn call(&mut self, name: &'static str, by_guest: bool, error: Option<Error>) {
        *self.calls.entry((name, by_guest, error)).or_default() += 1;
    }

    pub fn frame(&mut self, before: Frame, after: Frame) {
        let of_guest = before.owner != VmId::HOST;
        if before != after {
            *self.frames.entry((of_guest, before.state, after.state)).or_default() += 1;
        }
    }

    pub fn add(&mut self, other: Tally) {
        for (call, times) in other.calls {
            *self.calls.entry(call).or_default() += times;
        }
        for (frame, times) in other.frames {
            *self.frames.entry(frame).or_default() += times;
        }
    }

    /// What of the following never happened.
    pub fn missing(&self) -> Vec<String> {
        let row = |of_guest| move |&(from, to)| (of_guest, from, to);
        let rows = HOSTS.iter().map(row(false)).chain(GUESTS.iter().map(row(true)));
        let rows = rows.filter(|row| !self.frames.contains_key(row)).map(|row| format!("{row:?}"));
        let seen = |error| self.calls.keys().any(|call| call.2 == Some(error));
        let errors = ERRORS.iter().filter(|error| !seen(**error)).map(|error| format!("{error:?}"));
        let met = |name: &str| self.calls.keys().any(|call| call.0 == name);
        let met = [MET, FRAMES].into_iter().filter(|name| !met(name)).map(str::to_string);
        let ends = ENDS.iter().flat_map(|(name, errors)| {
            errors
                .iter()
                .map(|&error| Some(error))
                .chain([None])
                .map(move |end| (*name, false, end))
        });
        let ends = ends.filter(|end| !self.calls.contains_key(end)).map(|end| format!("{end:?}"));
        rows.chain(errors).chain(met).chain(ends).collect()
    }
}

use FrameState::{
    Donated, Lent, Metadata, Owned, Poisoned, Shared, SharedBack, UnlockedContents, UnlockedZeroed,
};

/// What becomes of the host's frames.
const HOSTS: &[(FrameState, FrameState)] = &[
    (Owned, Shared),
    (Owned, Lent),
    (Owned, Donated),
    (Owned, Metadata),
    (Owned, Poisoned),
    (Shared, Owned),
    (Shared, Poisoned),
    (Lent, SharedBack),
    (Lent, UnlockedZeroed),
    (Lent, UnlockedContents),
    (Lent, Owned),
    (Lent, Poisoned),
    (SharedBack, Lent),
    (SharedBack, Owned),
    (SharedBack, Poisoned),
    (UnlockedZeroed, UnlockedContents),
    (UnlockedZeroed, Owned),
    (UnlockedContents, UnlockedZeroed),
    (UnlockedContents, Owned),
    (Metadata, Owned),
];

/// What becomes of guests' frames, when they live or when they are dead.
const GUESTS: &[(FrameState, FrameState)] = &[
    (Donated, Donated),
    (Donated, Shared),
    (Donated, Lent),
    (Donated, Owned),
    (Donated, Poisoned),
    (Shared, Donated),
    (Shared, Owned),
    (Shared, Poisoned),
    (Lent, SharedBack),
    (Lent, UnlockedZeroed),
    (Lent, UnlockedContents),
    (Lent, Donated),
    (Lent, Owned),
    (Lent, Poisoned),
    (SharedBack, Lent),
    (SharedBack, Donated),
    (SharedBack, Owned),
    (SharedBack, Poisoned),
    (UnlockedZeroed, Donated),
    (UnlockedZeroed, Owned),
    (UnlockedContents, Donated),
    (UnlockedContents, Owned),
];

/// Why calls are refused.
const ERRORS: &[Error] = &[
    Error::Unimplemented,
    Error::InvalidArgument,
    Error::InvalidSize,
    Error::Misaligned,
    Error::NoMemory,
    Error::AddressOverflow,
    Error::InvalidAddress,
    Error::Denied,
    Error::Busy,
    Error::HandleNull,
    Error::HandleRevoked,
    Error::HandleType,
    Error::Excess,
    Error::Accessible,
    Error::NotOwner,
    Error::WrongState,
    Error::GuestMapped,
    Error::Overlap,
    Error::Pinned,
    Error::MixedVms,
    Error::Locked,
];

/// How calls end that are about no page in a list.
const ENDS: &[(&str, &[Error])] = &[
    (
        "create vCPU",
        &[
            Error::InvalidArgument,
            Error::NoMemory,
            Error::AddressOverflow,
            Error::Denied,
            Error::HandleRevoked,
            Error::GuestMapped,
            Error::Overlap,
        ],
    ),
    (
        "vGIC",
        &[
            Error::InvalidSize,
            Error::Misaligned,
            Error::NoMemory,
            Error::AddressOverflow,
            Error::Denied,
            Error::HandleNull,
            Error::HandleRevoked,
            Error::HandleType,
            Error::GuestMapped,
            Error::Overlap,
        ],
    ),
    (
        "stolen time",
        &[
            Error::Misaligned,
            Error::NoMemory,
            Error::AddressOverflow,
            Error::Denied,
            Error::HandleNull,
            Error::HandleRevoked,
            Error::HandleType,
            Error::GuestMapped,
        ],
    ),
    (
        "SPI input",
        &[
            Error::InvalidArgument,
            Error::Denied,
            Error::HandleNull,
            Error::HandleRevoked,
            Error::HandleType,
        ],
    ),
    ("SPI done", &[Error::Denied, Error::HandleNull, Error::HandleRevoked, Error::HandleType]),
];

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = |guest: bool| if guest { "guest" } else { "host" };
        let mut calls: Vec<_> = self.calls.iter().collect();
        calls.sort_by_key(|((name, guest, error), _)| (*guest, *name, error.map(|e| e as i32)));
        for ((name, guest, error), times) in calls {
            let end = error.map_or("done".to_string(), |error| format!("{error:?}"));
            writeln!(f, "{times:9} {} {name}: {end}", by(*guest))?;
        }
        let mut frames: Vec<_> = self.frames.iter().collect();
        frames.sort_by_key(|((guest, from, to), _)| (*guest, *from as u8, *to as u8));
        for ((guest, from, to), times) in frames {
            writeln!(f, "{times:9} {}'s frames: {from:?} to {to:?}", by(*guest))?;
        }
        Ok(())
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! What both maps of claims have in common.

use core::fmt;

use cbor4ii::core::dec::IgnoredAny;

use crate::cbor::{Decoder, Error};

/// `eat_profile` (RFC 9711)
pub(crate) const PROFILE: u32 = 265;
/// `eat_nonce` (RFC 9711)
pub(crate) const CHALLENGE: u32 = 10;

/// A hash algorithm, by its name in IANA's registry "Hash Function Textual Names".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashAlgorithm {
    /// SHA-256
    Sha256,
    /// SHA-512
    Sha512,
}

impl HashAlgorithm {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha-256",
            Self::Sha512 => "sha-512",
        }
    }

    /// Bytes of its hashes.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        [Self::Sha256, Self::Sha512].into_iter().find(|algorithm| algorithm.name() == name)
    }
}

/// What is wrong with a map of claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimError {
    /// It is no CBOR, or not of the form that it has to have.
    Malformed,
    /// There are bytes behind its end.
    Trailing,
    /// A claim is there twice.
    Twice(i64),
    /// A claim is missing.
    Missing(&'static str),
    /// A claim's value is none that it can have.
    Value(&'static str),
}

impl fmt::Display for ClaimError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed => f.write_str("the claims are malformed"),
            Self::Trailing => f.write_str("there is something behind the claims"),
            Self::Twice(key) => write!(f, "claim {key} is there twice"),
            Self::Missing(claim) => write!(f, "there is no claim \"{claim}\""),
            Self::Value(claim) => {
                write!(f, "the claim \"{claim}\" has a value that it cannot have")
            }
        }
    }
}

impl core::error::Error for ClaimError {}

impl From<Error> for ClaimError {
    fn from(_: Error) -> Self {
        Self::Malformed
    }
}

/// Puts a claim's value into its place, unless there is one.
pub(crate) fn put<T>(place: &mut Option<T>, key: i64, value: T) -> Result<(), ClaimError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(ClaimError::Twice(key)),
    }
}

/// A byte string of one size.
pub(crate) fn exactly<'a, const N: usize>(
    from: &mut Decoder<'a>,
    claim: &'static str,
) -> Result<&'a [u8; N], ClaimError> {
    from.bytes()?.try_into().map_err(|_| ClaimError::Value(claim))
}

/// A hash algorithm's name.
pub(crate) fn algorithm(
    from: &mut Decoder<'_>,
    claim: &'static str,
) -> Result<HashAlgorithm, ClaimError> {
    HashAlgorithm::named(from.item::<&str>()?).ok_or(ClaimError::Value(claim))
}

/// Entries that a map of claims has at the most.
const MAX_CLAIMS: usize = 32;

/// Has `claim` read the value of each claim whose key is a number. It returns whether it knows the key;
/// the values of others are passed over, as RFC 8392 demands.
pub(crate) fn read_map<'a>(
    bytes: &'a [u8],
    mut claim: impl FnMut(&mut Decoder<'a>, i64) -> Result<bool, ClaimError>,
) -> Result<(), ClaimError> {
    let mut from = Decoder::new(bytes);
    let entries = from.map()?.filter(|n| *n <= MAX_CLAIMS).ok_or(ClaimError::Malformed)?;
    for _ in 0..entries {
        let known = if from.is_at_text() {
            from.item::<&str>()?;
            false
        } else {
            let key = from.item::<i64>()?;
            claim(&mut from, key)?
        };
        if !known {
            from.item::<IgnoredAny>()?;
        }
    }
    if from.is_at_end() { Ok(()) } else { Err(ClaimError::Trailing) }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! A token: the platform's claims and a guest's, each signed. The platform's bind the key that has signed the guest's.

use core::convert::Infallible;
use core::fmt;

use cbor4ii::core::enc::Write;
use sha2::{Digest, Sha256, Sha512};

use crate::cbor::{Decoder, Encoded, Encoder};
use crate::claims::{ClaimError, HashAlgorithm};
use crate::cose::{Sign1, Signature, Signed};
use crate::keys::PublicKey;
use crate::platform::PlatformClaims;
use crate::realm::RealmClaims;
use crate::writers::{Encode, Window, bytes_head};

/// Bytes that a token of one software component has at the most, if its version and its kind have together no
/// more than 64 of them.
pub const MAX_SIZE: usize = 2048;

const TOKEN: u64 = 399;
const PLATFORM: u32 = 44234;
const REALM: u32 = 44241;

/// A token that is complete.
#[derive(Clone, Copy, Debug)]
pub struct Token<'a> {
    /// What it says of the machine and EL2.
    pub platform: &'a PlatformClaims<'a>,
    /// [`platform_digest`](crate::cose::platform_digest), signed.
    pub platform_signature: &'a Signature,
    /// What it says of the guest.
    pub realm: &'a RealmClaims<'a>,
    /// [`realm_digest`](crate::cose::realm_digest), signed.
    pub realm_signature: &'a Signature,
}

impl Encode for Token<'_> {
    fn encode<W: Write<Error = Infallible>>(&self, to: &mut Encoder<W>) -> Encoded {
        let platform = Signed { claims: self.platform, signature: self.platform_signature };
        let realm = Signed { claims: self.realm, signature: self.realm_signature };
        to.tag(TOKEN)?.map(2)?.item(PLATFORM)?;
        bytes_head(to, platform.size())?;
        platform.encode(to)?;
        to.item(REALM)?;
        bytes_head(to, realm.size())?;
        realm.encode(to)
    }
}

impl Token<'_> {
    /// How long it is, in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        Encode::size(self)
    }

    /// Puts the bytes from `offset` on into `out`; returns how many.
    pub fn write(&self, offset: usize, out: &mut [u8]) -> usize {
        let mut to = Encoder::new(Window::new(offset, out));
        // What this sink returns is no error.
        let _ = self.encode(&mut to);
        to.into_writer().used()
    }
}

/// Why a token is none to rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenError {
    /// It is no token.
    Malformed,
    /// There are bytes behind its end.
    Trailing,
    /// The part about the platform is no `COSE_Sign1` with ES384.
    PlatformSign1,
    /// So is the part about the guest.
    RealmSign1,
    /// The claims about the platform are wrong.
    Platform(ClaimError),
    /// The claims about the guest are wrong.
    Realm(ClaimError),
    /// The platform's key has not signed the part about the platform.
    PlatformSignature,
    /// The platform has another key.
    Instance,
    /// The platform's part is about another guest's key.
    Binding,
    /// The key has not signed the part about the guest.
    RealmSignature,
}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed => f.write_str("this is no attestation token"),
            Self::Trailing => f.write_str("there is something behind the token"),
            Self::PlatformSign1 => f.write_str("the platform's part is not signed with ES384"),
            Self::RealmSign1 => f.write_str("the guest's part is not signed with ES384"),
            Self::Platform(error) => write!(f, "the platform's part: {error}"),
            Self::Realm(error) => write!(f, "the guest's part: {error}"),
            Self::PlatformSignature => {
                f.write_str("the platform's part is not signed by the platform's key")
            }
            Self::Instance => {
                f.write_str("the platform's part names another key than it is signed by")
            }
            Self::Binding => f.write_str("the platform's part does not belong to the guest's part"),
            Self::RealmSignature => {
                f.write_str("the guest's part is not signed by the key that it names")
            }
        }
    }
}

impl core::error::Error for TokenError {}

/// What a token claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claims<'a> {
    /// Of the machine and EL2.
    pub platform: PlatformClaims<'a>,
    /// Of the guest.
    pub realm: RealmClaims<'a>,
}

/// Reads a token and verifies that the machine with `key` has signed it. What it claims may still be other than what one
/// expects.
///
/// # Errors
///
/// [`TokenError`]
pub fn verify<'a>(token: &'a [u8], key: &PublicKey) -> Result<Claims<'a>, TokenError> {
    let (platform_part, realm_part) = split(token)?;
    let platform_part = Sign1::decode(platform_part).ok_or(TokenError::PlatformSign1)?;
    let realm_part = Sign1::decode(realm_part).ok_or(TokenError::RealmSign1)?;
    if !platform_part.is_signed_by(key) {
        return Err(TokenError::PlatformSignature);
    }
    let platform = PlatformClaims::decode(platform_part.payload).map_err(TokenError::Platform)?;
    if *platform.instance != key.instance() {
        return Err(TokenError::Instance);
    }
    let (realm, realm_key) = RealmClaims::decode(realm_part.payload).map_err(TokenError::Realm)?;
    let is_bound = match realm.key_algorithm {
        HashAlgorithm::Sha256 => Sha256::digest(realm_key)[..] == *platform.challenge,
        HashAlgorithm::Sha512 => Sha512::digest(realm_key)[..] == *platform.challenge,
    };
    if !is_bound {
        return Err(TokenError::Binding);
    }
    if !realm_part.is_signed_by(&realm.key) {
        return Err(TokenError::RealmSignature);
    }
    Ok(Claims { platform, realm })
}

/// The platform's part and the guest's.
fn split(token: &[u8]) -> Result<(&[u8], &[u8]), TokenError> {
    let malformed = |_| TokenError::Malformed;
    let mut from = Decoder::new(token);
    if from.tag().map_err(malformed)? != TOKEN || from.map().map_err(malformed)? != Some(2) {
        return Err(TokenError::Malformed);
    }
    let (mut platform, mut realm) = (None, None);
    for _ in 0..2 {
        let place = match from.item::<u32>().map_err(malformed)? {
            PLATFORM => &mut platform,
            REALM => &mut realm,
            _ => return Err(TokenError::Malformed),
        };
        *place = Some(from.bytes().map_err(malformed)?);
    }
    if !from.is_at_end() {
        return Err(TokenError::Trailing);
    }
    platform.zip(realm).ok_or(TokenError::Malformed)
}

#[cfg(test)]
mod tests;

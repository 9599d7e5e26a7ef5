// SPDX-License-Identifier: MIT OR Apache-2.0

//! The claims about a guest: `cca-realm-delegated-token`.

use core::convert::Infallible;

use cbor4ii::core::enc::Write;

use crate::cbor::{Decoder, Encoded, Encoder};
use crate::claims::{self, CHALLENGE, ClaimError, HashAlgorithm, PROFILE, exactly, put};
use crate::keys::{CoseKey, PublicKey};
use crate::writers::{Encode, bytes_head};

/// The profile that the claims follow.
pub const PROFILE_NAME: &str = "tag:arm.com,2023:realm#1.0.0";

/// Bytes of a challenge, and of a personalization value.
pub const CHALLENGE_SIZE: usize = 64;

/// Registers that a guest extends.
pub const REGISTERS: usize = 4;

const PERSONALIZATION: u32 = 44235;
const HASH_ALGORITHM: u32 = 44236;
const PUBLIC_KEY: u32 = 44237;
const INITIAL_MEASUREMENT: u32 = 44238;
const EXTENSIBLE_MEASUREMENTS: u32 = 44239;
const PUBLIC_KEY_HASH_ALGORITHM: u32 = 44240;

/// What a token says of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RealmClaims<'a> {
    /// What the guest gave, so that the token is not an old one.
    pub challenge: &'a [u8; CHALLENGE_SIZE],
    /// What the host gave, so that guests of the same contents can be told apart.
    pub personalization: &'a [u8; CHALLENGE_SIZE],
    /// The algorithm of the measurements.
    pub algorithm: HashAlgorithm,
    /// The initial measurement: of all that the host put into the guest.
    pub initial: &'a [u8],
    /// What the guest has measured itself.
    pub extensible: [&'a [u8]; REGISTERS],
    /// The key that signs the claims.
    pub key: PublicKey,
    /// The algorithm of the key's hash in the platform's challenge.
    pub key_algorithm: HashAlgorithm,
}

impl Encode for RealmClaims<'_> {
    fn encode<W: Write<Error = Infallible>>(&self, to: &mut Encoder<W>) -> Encoded {
        to.map(8)?.item(CHALLENGE)?.bytes(self.challenge)?;
        to.item(PROFILE)?.item(PROFILE_NAME)?;
        to.item(PERSONALIZATION)?.bytes(self.personalization)?;
        to.item(HASH_ALGORITHM)?.item(self.algorithm.name())?;
        to.item(PUBLIC_KEY)?;
        let key = CoseKey(&self.key);
        bytes_head(to, key.size())?;
        key.encode(to)?;
        to.item(INITIAL_MEASUREMENT)?.bytes(self.initial)?;
        to.item(EXTENSIBLE_MEASUREMENTS)?.array(REGISTERS)?;
        for measurement in self.extensible {
            to.bytes(measurement)?;
        }
        to.item(PUBLIC_KEY_HASH_ALGORITHM)?.item(self.key_algorithm.name())?.ok()
    }
}

impl<'a> RealmClaims<'a> {
    /// Reads the claims. The key's encoding, whose hash is the platform's challenge, comes besides.
    ///
    /// # Errors
    ///
    /// [`ClaimError`]
    pub fn decode(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), ClaimError> {
        let (mut challenge, mut profile, mut personalization) = (None, None, None);
        let (mut algorithm, mut key, mut initial) = (None, None, None);
        let (mut extensible, mut key_algorithm) = (None, None);
        claims::read_map(bytes, |from, n| {
            match u32::try_from(n) {
                Ok(CHALLENGE) => put(&mut challenge, n, exactly(from, "challenge")?)?,
                Ok(PROFILE) => put(&mut profile, n, from.item::<&str>()?)?,
                Ok(PERSONALIZATION) => {
                    put(&mut personalization, n, exactly(from, "personalization value")?)?;
                }
                Ok(HASH_ALGORITHM) => {
                    put(&mut algorithm, n, claims::algorithm(from, "hash algorithm")?)?;
                }
                Ok(PUBLIC_KEY) => put(&mut key, n, from.bytes()?)?,
                Ok(INITIAL_MEASUREMENT) => put(&mut initial, n, from.bytes()?)?,
                Ok(EXTENSIBLE_MEASUREMENTS) => put(&mut extensible, n, registers(from)?)?,
                Ok(PUBLIC_KEY_HASH_ALGORITHM) => {
                    put(&mut key_algorithm, n, claims::algorithm(from, "key hash algorithm")?)?;
                }
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        if profile.ok_or(ClaimError::Missing("profile"))? != PROFILE_NAME {
            return Err(ClaimError::Value("profile"));
        }
        let encoded = key.ok_or(ClaimError::Missing("public key"))?;
        let claims = Self {
            challenge: challenge.ok_or(ClaimError::Missing("challenge"))?,
            personalization: personalization.ok_or(ClaimError::Missing("personalization value"))?,
            algorithm: algorithm.ok_or(ClaimError::Missing("hash algorithm"))?,
            initial: initial.ok_or(ClaimError::Missing("initial measurement"))?,
            extensible: extensible.ok_or(ClaimError::Missing("extensible measurements"))?,
            key: CoseKey::decode(encoded).ok_or(ClaimError::Value("public key"))?,
            key_algorithm: key_algorithm.ok_or(ClaimError::Missing("key hash algorithm"))?,
        };
        let size = claims.algorithm.size();
        if claims.initial.len() != size {
            return Err(ClaimError::Value("initial measurement"));
        }
        if claims.extensible.iter().any(|register| register.len() != size) {
            return Err(ClaimError::Value("extensible measurements"));
        }
        Ok((claims, encoded))
    }
}

fn registers<'a>(from: &mut Decoder<'a>) -> Result<[&'a [u8]; REGISTERS], ClaimError> {
    if from.array()? != Some(REGISTERS) {
        return Err(ClaimError::Value("extensible measurements"));
    }
    let mut registers: [&[u8]; REGISTERS] = [&[]; REGISTERS];
    for register in &mut registers {
        *register = from.bytes()?;
    }
    Ok(registers)
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! `COSE_Sign1` (RFC 9052) with the algorithm ES384, the only one here.

use core::convert::Infallible;

use cbor4ii::core::enc::Write;

use crate::cbor::{Decoder, Encoded, Encoder};
use crate::keys::PublicKey;
use crate::platform::PlatformClaims;
use crate::realm::RealmClaims;
use crate::writers::{Encode, bytes_head};

/// Bytes of a signature.
pub const SIGNATURE_SIZE: usize = 96;

/// A signature: `r` and `s`, 48 bytes each.
pub type Signature = [u8; SIGNATURE_SIZE];

/// `COSE_Sign1_Tagged`
pub(crate) const SIGN1: u64 = 18;

/// The protected header: a map, of `alg` (1) to ES384 (-35).
const PROTECTED: [u8; 4] = [0xA1, 0x01, 0x38, 0x22];

/// What is signed: the `Sig_structure` of some claims.
struct ToBeSigned<P>(P);

/// Claims that are yet to be encoded, or bytes that are.
trait Payload {
    fn size(&self) -> usize;
    fn put<W: Write<Error = Infallible>>(&self, to: &mut Encoder<W>) -> Encoded;
}

impl<T: Encode> Payload for &T {
    fn size(&self) -> usize {
        (*self).size()
    }

    fn put<W: Write<Error = Infallible>>(&self, to: &mut Encoder<W>) -> Encoded {
        (*self).encode(to)
    }
}

impl Payload for &[u8] {
    fn size(&self) -> usize {
        self.len()
    }

    fn put<W: Write<Error = Infallible>>(&self, to: &mut Encoder<W>) -> Encoded {
        let Ok(()) = to.writer_mut().push(self);
        Ok(())
    }
}

impl<P: Payload> Encode for ToBeSigned<P> {
    fn encode<W: Write<Error = Infallible>>(&self, to: &mut Encoder<W>) -> Encoded {
        // No external data.
        to.array(4)?.item("Signature1")?.bytes(&PROTECTED)?.bytes(&[])?;
        bytes_head(to, self.0.size())?;
        self.0.put(to)
    }
}

/// The SHA-384 that a guest's claims are signed by.
#[must_use]
pub fn realm_digest(claims: &RealmClaims<'_>) -> [u8; 48] {
    ToBeSigned(claims).sha384()
}

/// The SHA-384 that the platform's claims are signed by.
#[must_use]
pub fn platform_digest(claims: &PlatformClaims<'_>) -> [u8; 48] {
    ToBeSigned(claims).sha384()
}

/// Claims with their signature, packed.
pub(crate) struct Signed<'a, T> {
    pub claims: &'a T,
    pub signature: &'a Signature,
}

impl<T: Encode> Encode for Signed<'_, T> {
    fn encode<W: Write<Error = Infallible>>(&self, to: &mut Encoder<W>) -> Encoded {
        to.tag(SIGN1)?.array(4)?.bytes(&PROTECTED)?.map(0)?;
        bytes_head(to, self.claims.size())?;
        self.claims.encode(to)?;
        to.bytes(self.signature)?.ok()
    }
}

/// A `COSE_Sign1` as it was read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sign1<'a> {
    pub payload: &'a [u8],
    signature: &'a Signature,
}

impl<'a> Sign1<'a> {
    /// Reads one that fills `bytes`.
    pub fn decode(bytes: &'a [u8]) -> Option<Self> {
        let mut from = Decoder::new(bytes);
        if from.tag().ok()? != SIGN1 || from.array().ok()? != Some(4) {
            return None;
        }
        // Another algorithm, or a header of which we know nothing, may change what the signature says.
        if from.bytes().ok()? != PROTECTED || from.map().ok()? != Some(0) {
            return None;
        }
        let payload = from.bytes().ok()?;
        let signature = from.bytes().ok()?.try_into().ok()?;
        (from.is_at_end()).then_some(Self { payload, signature })
    }

    /// Whether `key` has signed it.
    pub fn is_signed_by(&self, key: &PublicKey) -> bool {
        key.has_signed(&ToBeSigned(self.payload).sha384(), self.signature)
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! Keys on the curve P-384.
//!
//! The *platform key* is the machine's. From it and from what the platform claims comes the *realm key*. So
//! another EL2 on the same machine has another one, and so has the same EL2 in another configuration: what a
//! token says of the platform fits no guest's part that was signed under other claims.
//!
//! Private keys are zeroed where they end, and so are the numbers of a signature from which the key can be computed.
//! Not zeroed: the state of RFC 6979's generator, for which its crate has no means, and copies that the compiler leaves
//! on the stack when a value moves.

use core::convert::Infallible;
use core::fmt;

use cbor4ii::core::enc::Write;
use hmac::digest::common::Key;
use hmac::{Hmac, KeyInit, Mac};
use p384::SecretKey;
use p384::ecdsa::signature::hazmat::PrehashVerifier;
use p384::ecdsa::{self, VerifyingKey};
use sha2::{Digest, Sha256, Sha384};
use zeroize::Zeroize;

use crate::cbor::{Decoder, Encoded, Encoder};
use crate::cose::Signature;
use crate::platform::PlatformClaims;
use crate::writers::Encode;

/// Bytes of a coordinate, and of a private key.
pub const COORDINATE: usize = 48;

/// Bytes of a public key as it is exchanged: 4, `x`, `y` (SEC 1, 2.3.3, without compression).
pub const POINT_SIZE: usize = 1 + 2 * COORDINATE;

/// From this anybody can derive the development key, with which machines sign that have none of their own.
const DEVELOPMENT: &[u8] = b"Escrow: the development key, which is public and proves nothing";

/// A private key.
pub struct PrivateKey(SecretKey);

impl PrivateKey {
    /// A number, the highest byte first. `None` if it is none that a key can be.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; COORDINATE]) -> Option<Self> {
        SecretKey::from_slice(bytes).ok().map(Self)
    }

    /// The platform key of machines that have none of their own. Whoever reads this can sign with it.
    #[must_use]
    pub fn development() -> Self {
        Self::derive(DEVELOPMENT, b"escrow development platform key", &[])
    }

    /// The key that signs what EL2 says of its guests, on a platform of which it claims that. The claims' challenge
    /// is the hash of this key: it is left out.
    #[must_use]
    pub fn realm_key(&self, platform: &PlatformClaims<'_>) -> Self {
        let context = PlatformClaims { challenge: &[], ..*platform }.sha384();
        let mut secret: [u8; COORDINATE] = self.0.to_bytes().into();
        let key = Self::derive(&secret, b"escrow realm key", &context);
        secret.zeroize();
        key
    }

    /// A key from a secret, by the KDF in counter mode of NIST SP 800-108 with HMAC-SHA-384. A number that
    /// can be no key is passed over; one in 2^190 is such.
    fn derive(secret: &[u8], label: &[u8], context: &[u8]) -> Self {
        let mut counter = 1_u32;
        // The secrets here are shorter than a block, and HMAC puts zeros behind them.
        let mut block = Key::<Hmac<Sha384>>::default();
        for (place, byte) in block.iter_mut().zip(secret) {
            *place = *byte;
        }
        loop {
            let mut mac = Hmac::<Sha384>::new(&block);
            mac.update(&counter.to_be_bytes());
            mac.update(label);
            mac.update(&[0]);
            mac.update(context);
            mac.update(&(8 * COORDINATE as u32).to_be_bytes());
            let mut number: [u8; COORDINATE] = mac.finalize().into_bytes().into();
            let key = Self::from_bytes(&number);
            number.zeroize();
            if let Some(key) = key {
                block.zeroize();
                return key;
            }
            counter = counter.wrapping_add(1);
        }
    }

    pub(crate) const fn secret(&self) -> &SecretKey {
        &self.0
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey")
    }
}

/// A public key: a point's coordinates, the highest byte first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey {
    pub(crate) x: [u8; COORDINATE],
    pub(crate) y: [u8; COORDINATE],
}

impl PublicKey {
    /// A point as it is exchanged. `None` if it is none of the curve.
    #[must_use]
    pub fn from_point(bytes: &[u8]) -> Option<Self> {
        let (4, coordinates) = bytes.split_first()? else { return None };
        if coordinates.len() != 2 * COORDINATE {
            return None;
        }
        let (x, y) = coordinates.split_at(COORDINATE);
        let key = Self { x: x.try_into().ok()?, y: y.try_into().ok()? };
        key.verifying().map(|_| key)
    }

    /// The key as it is exchanged.
    #[must_use]
    pub fn to_point(&self) -> [u8; POINT_SIZE] {
        let mut point = [4; POINT_SIZE];
        let (x, y) = point[1..].split_at_mut(COORDINATE);
        x.copy_from_slice(&self.x);
        y.copy_from_slice(&self.y);
        point
    }

    /// The instance ID of a machine that has this key: 1 and its SHA-256.
    #[must_use]
    pub fn instance(&self) -> [u8; 33] {
        let mut id = [1; 33];
        id[1..].copy_from_slice(&Sha256::digest(self.to_point()));
        id
    }

    /// The platform's challenge that binds a guest's claims signed by this key: the SHA-256 of the key as the
    /// guest's claims have it.
    #[must_use]
    pub fn binding(&self) -> [u8; 32] {
        let mut encoded = [0; 128];
        let mut to = Encoder::new(crate::Window::new(0, &mut encoded));
        // What this sink returns is no error.
        let _ = CoseKey(self).encode(&mut to);
        let used = to.into_writer().used();
        Sha256::digest(&encoded[..used]).into()
    }

    fn verifying(&self) -> Option<VerifyingKey> {
        VerifyingKey::from_sec1_bytes(&self.to_point()).ok()
    }

    pub(crate) fn has_signed(&self, digest: &[u8; 48], signature: &Signature) -> bool {
        let Some(key) = self.verifying() else { return false };
        let Ok(signature) = ecdsa::Signature::from_slice(signature) else { return false };
        key.verify_prehash(digest, &signature).is_ok()
    }
}

/// A public key as a `COSE_Key` (RFC 9053, 7.1.1).
pub(crate) struct CoseKey<'a>(pub &'a PublicKey);

const TYPE: i8 = 1;
const EC2: u8 = 2;
const CURVE: i8 = -1;
const P384: u8 = 2;
const X: i8 = -2;
const Y: i8 = -3;

impl Encode for CoseKey<'_> {
    fn encode<W: Write<Error = Infallible>>(&self, to: &mut Encoder<W>) -> Encoded {
        to.map(4)?.item(TYPE)?.item(EC2)?.item(CURVE)?.item(P384)?;
        to.item(X)?.bytes(&self.0.x)?.item(Y)?.bytes(&self.0.y)?.ok()
    }
}

impl CoseKey<'_> {
    /// Reads one that fills `bytes`; `None` if it is none, or no point of the curve.
    pub fn decode(bytes: &[u8]) -> Option<PublicKey> {
        let mut from = Decoder::new(bytes);
        let (mut kind, mut curve, mut x, mut y) = (None, None, None, None);
        for _ in 0..from.map().ok()?.filter(|n| *n == 4)? {
            match from.item::<i8>().ok()? {
                TYPE => kind = Some(from.item::<u8>().ok()?),
                CURVE => curve = Some(from.item::<u8>().ok()?),
                X => x = Some(from.bytes().ok()?),
                Y => y = Some(from.bytes().ok()?),
                _ => return None,
            }
        }
        if kind? != EC2 || curve? != P384 || !from.is_at_end() {
            return None;
        }
        let key = PublicKey { x: x?.try_into().ok()?, y: y?.try_into().ok()? };
        key.verifying().map(|_| key)
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

use std::vec;
use std::vec::Vec;

use coset::{AsCborValue, CborSerializable, TaggedCborSerializable};
use proptest::prelude::*;

use super::*;
use crate::cose::{platform_digest, realm_digest};
use crate::keys::PrivateKey;
use crate::platform::{self, Component, Components, Config};
use crate::signing::{Columns, Comb, Publishing, Signing};

const IMAGE: [u8; 32] = [0x11; 32];
const CHALLENGE: [u8; 64] = [0xC4; 64];
const PERSONALIZATION: [u8; 64] = [0x99; 64];
const INITIAL: [u8; 64] = [0x77; 64];
const REGISTER: [u8; 64] = [0x66; 64];

fn public(key: &PrivateKey) -> PublicKey {
    let (comb, mut publishing) = (Comb::new(), Publishing::new(key));
    core::iter::from_fn(|| Some(publishing.go_on(&comb, Columns(96)))).flatten().next().unwrap()
}

fn sign(key: &PrivateKey, hash: [u8; 48]) -> Signature {
    let (comb, mut signing) = (Comb::new(), Signing::new(key, hash, &[]));
    core::iter::from_fn(|| Some(signing.go_on(key, &comb, Columns(96)))).flatten().next().unwrap()
}

fn platform_claims<'a>(challenge: &'a [u8; 32], instance: &'a [u8; 33]) -> PlatformClaims<'a> {
    PlatformClaims {
        challenge,
        implementation: &platform::IMPLEMENTATION,
        instance,
        config: Config { dma_confined: false, development_key: true },
        lifecycle: platform::LIFECYCLE_TEST,
        components: Components::one(Component {
            kind: platform::EL2,
            measurement: &IMAGE,
            version: "0.1.0",
            signer: &[0; 32],
            algorithm: Some(HashAlgorithm::Sha256),
        }),
        algorithm: HashAlgorithm::Sha256,
    }
}

fn realm_claims(key: PublicKey, algorithm: HashAlgorithm) -> RealmClaims<'static> {
    let size = algorithm.size();
    RealmClaims {
        challenge: &CHALLENGE,
        personalization: &PERSONALIZATION,
        algorithm,
        initial: &INITIAL[..size],
        extensible: [&REGISTER[..size]; 4],
        key,
        key_algorithm: HashAlgorithm::Sha256,
    }
}

/// A token, with changes of its claims before they are signed.
fn token_with(
    algorithm: HashAlgorithm,
    change_platform: impl FnOnce(&mut PlatformClaims<'_>),
    change_realm: impl FnOnce(&mut RealmClaims<'_>),
) -> (Vec<u8>, PublicKey) {
    let machine = PrivateKey::development();
    let machine_key = public(&machine);
    let instance = machine_key.instance();
    let mut platform = platform_claims(&[0; 32], &instance);
    change_platform(&mut platform);
    let guest = machine.realm_key(&platform);
    let guest_key = public(&guest);
    let challenge = guest_key.binding();
    // A test may have put another one into the claims.
    if platform.challenge == [0; 32] {
        platform.challenge = &challenge;
    }
    let mut realm = realm_claims(guest_key, algorithm);
    change_realm(&mut realm);
    let token = Token {
        platform: &platform,
        platform_signature: &sign(&machine, platform_digest(&platform)),
        realm: &realm,
        realm_signature: &sign(&guest, realm_digest(&realm)),
    };
    let mut bytes = vec![0; token.size()];
    assert_eq!(token.write(0, &mut bytes), bytes.len());
    assert!(bytes.len() <= MAX_SIZE, "{}", bytes.len());
    (bytes, machine_key)
}

fn token() -> (Vec<u8>, PublicKey) {
    token_with(HashAlgorithm::Sha256, |_| {}, |_| {})
}

#[test]
fn what_is_written_is_read() {
    for algorithm in [HashAlgorithm::Sha256, HashAlgorithm::Sha512] {
        let (bytes, key) = token_with(algorithm, |_| {}, |_| {});
        let claims = verify(&bytes, &key).unwrap();
        let instance = key.instance();
        let guest = PrivateKey::development().realm_key(&platform_claims(&[0; 32], &instance));
        let guest = public(&guest);
        assert_eq!(claims.realm, realm_claims(guest, algorithm));
        let challenge = guest.binding();
        assert_eq!(claims.platform, platform_claims(&challenge, &instance));
        assert!(claims.platform.is_for_development());
    }
}

#[test]
fn a_machine_in_production_is_one_with_its_own_key() {
    let of = |lifecycle, development_key| {
        let (bytes, key) = token_with(
            HashAlgorithm::Sha256,
            |platform| {
                platform.lifecycle = lifecycle;
                platform.config.development_key = development_key;
            },
            |_| {},
        );
        verify(&bytes, &key).unwrap().platform.is_for_development()
    };
    assert!(!of(platform::LIFECYCLE_SECURED, false));
    assert!(of(platform::LIFECYCLE_SECURED, true));
    assert!(of(platform::LIFECYCLE_TEST, false));
    assert!(of(0x4000, false));
}

#[test]
fn what_the_platform_claims_has_its_own_realm_key() {
    let machine = PrivateKey::development();
    let claims = platform_claims(&[0; 32], &[1; 33]);
    let image = |measurement| {
        let component = Component { measurement, ..*claims.components.iter().next().unwrap() };
        PlatformClaims { components: Components::one(component), ..claims }
    };
    let open = Config { dma_confined: !claims.config.dma_confined, ..claims.config };
    let own = Config { development_key: !claims.config.development_key, ..claims.config };
    let all = [
        claims,
        image(&[0x12; 32]),
        PlatformClaims { config: open, ..claims },
        PlatformClaims { config: own, ..claims },
        PlatformClaims { lifecycle: platform::LIFECYCLE_SECURED, ..claims },
        PlatformClaims { instance: &[2; 33], ..claims },
        PlatformClaims { implementation: &[3; 32], ..claims },
        PlatformClaims { algorithm: HashAlgorithm::Sha512, ..claims },
    ];
    let keys = all.map(|claims| public(&machine.realm_key(&claims)));
    for (n, key) in keys.iter().enumerate() {
        assert!(*key != public(&machine) && !keys[..n].contains(key), "{n}");
    }
    // The challenge comes from the key.
    let bound = PlatformClaims { challenge: &[4; 32], ..claims };
    assert_eq!(public(&machine.realm_key(&bound)), keys[0]);
}

/// What a machine says of itself at one time is of no use with what it says of a guest at another time.
#[test]
fn parts_of_two_tokens_do_not_fit() {
    let token = |lifecycle, dma_confined| {
        let change = |platform: &mut PlatformClaims<'_>| {
            platform.lifecycle = lifecycle;
            platform.config.dma_confined = dma_confined;
        };
        token_with(HashAlgorithm::Sha256, change, |_| {})
    };
    let join = |platform: &[u8], realm: &[u8]| {
        let mut bytes = vec![0; 2 * MAX_SIZE];
        let mut to = Encoder::new(Window::new(0, &mut bytes));
        to.tag(TOKEN).unwrap().map(2).unwrap().item(PLATFORM).unwrap().bytes(platform).unwrap();
        to.item(REALM).unwrap().bytes(realm).unwrap();
        let used = to.into_writer().used();
        bytes.truncate(used);
        bytes
    };
    let (now, key) = token(platform::LIFECYCLE_TEST, false);
    let (platform_now, realm_now) = split(&now).unwrap();
    assert!(verify(&join(platform_now, realm_now), &key).is_ok());
    for other in [
        token(platform::LIFECYCLE_SECURED, false).0,
        token(platform::LIFECYCLE_TEST, true).0,
        token(platform::LIFECYCLE_SECURED, true).0,
    ] {
        let (platform, realm) = split(&other).unwrap();
        assert!(verify(&join(platform, realm), &key).is_ok());
        assert_eq!(verify(&join(platform, realm_now), &key), Err(TokenError::Binding));
        assert_eq!(verify(&join(platform_now, realm), &key), Err(TokenError::Binding));
    }
}

/// An implementation of COSE that has nothing to do with this one reads both parts, and agrees on what is signed.
#[test]
fn another_implementation_reads_it() {
    let (bytes, key) = token();
    let (platform, realm) = split(&bytes).unwrap();
    let guest = verify(&bytes, &key).unwrap().realm.key;
    for (part, key) in [(platform, key), (realm, guest)] {
        let sign1 = coset::CoseSign1::from_tagged_slice(part).unwrap();
        let es384 = coset::Algorithm::Assigned(coset::iana::Algorithm::ES384);
        assert_eq!(sign1.protected.header.alg, Some(es384));
        let verified = sign1.verify_signature(b"", |signature, signed| {
            let signature: &Signature = signature.try_into().unwrap();
            key.has_signed(&sha2::Sha384::digest(signed).into(), signature).then_some(()).ok_or(())
        });
        assert!(verified.is_ok());
    }
    let value = coset::cbor::Value::from_slice(&bytes).unwrap();
    let coset::cbor::Value::Tag(399, map) = value else { panic!("{value:?}") };
    assert_eq!(map.into_map().unwrap().len(), 2);
    let mut encoded = [0; 128];
    let mut to = Encoder::new(Window::new(0, &mut encoded));
    crate::keys::CoseKey(&guest).encode(&mut to).unwrap();
    let used = to.into_writer().used();
    let cose_key = coset::CoseKey::from_slice(&encoded[..used]).unwrap();
    assert_eq!(cose_key.kty, coset::KeyType::Assigned(coset::iana::KeyType::EC2));
    assert!(cose_key.to_cbor_value().is_ok());
}

#[test]
fn each_link_between_the_parts_is_checked() {
    let (bytes, key) = token();
    let other_machine = public(&PrivateKey::from_bytes(&[5; 48]).unwrap());
    assert_eq!(verify(&bytes, &other_machine), Err(TokenError::PlatformSignature));

    let of = |platform: &dyn Fn(&mut PlatformClaims<'_>), realm: &dyn Fn(&mut RealmClaims<'_>)| {
        let (bytes, key) = token_with(HashAlgorithm::Sha256, platform, realm);
        verify(&bytes, &key).map(|_| ())
    };
    assert_eq!(of(&|p| p.instance = &[1; 33], &|_| {}), Err(TokenError::Instance));
    assert_eq!(of(&|p| p.challenge = &[1; 32], &|_| {}), Err(TokenError::Binding));
    // The guest's part with a key of somebody else's: the platform has not bound it.
    assert_eq!(of(&|_| {}, &|r| r.key = other_machine), Err(TokenError::Binding));
    // Bound, but it is another key that has signed.
    let binding = other_machine.binding();
    let (bytes, key) = {
        let machine = PrivateKey::development();
        let instance = key.instance();
        let platform = platform_claims(&binding, &instance);
        let realm = realm_claims(other_machine, HashAlgorithm::Sha256);
        let token = Token {
            platform: &platform,
            platform_signature: &sign(&machine, platform_digest(&platform)),
            realm: &realm,
            realm_signature: &sign(&machine.realm_key(&platform), realm_digest(&realm)),
        };
        let mut bytes = vec![0; token.size()];
        token.write(0, &mut bytes);
        (bytes, key)
    };
    assert_eq!(verify(&bytes, &key), Err(TokenError::RealmSignature));
    // Parts of two tokens.
    let wrong = ClaimError::Value("initial measurement");
    assert_eq!(of(&|_| {}, &|r| r.initial = &[1; 31]), Err(TokenError::Realm(wrong)));
    let wrong = ClaimError::Value("extensible measurements");
    assert_eq!(of(&|_| {}, &|r| r.extensible[3] = &[1; 33]), Err(TokenError::Realm(wrong)));
    let wrong = ClaimError::Value("implementation ID");
    assert_eq!(of(&|p| p.implementation = &[0; 32], &|_| {}), Err(TokenError::Platform(wrong)));
}

#[test]
fn a_token_with_one_bit_flipped_is_none() {
    let (bytes, key) = token();
    // All bytes, each place in a byte in turn: each flip costs two verifications.
    for bit in (0..8 * bytes.len()).step_by(3) {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(verify(&flipped, &key).is_err(), "bit {bit} of {}", 8 * bytes.len());
    }
}

#[test]
fn a_token_that_is_cut_off_or_goes_on_is_none() {
    let (mut bytes, key) = token();
    for size in 0..bytes.len() {
        assert!(verify(&bytes[..size], &key).is_err(), "{size} bytes");
    }
    bytes.push(0);
    assert_eq!(verify(&bytes, &key), Err(TokenError::Trailing));
}

/// Lengths that no file has, and values in values: an error at once, whatever they claim.
#[test]
fn huge_lengths_and_deep_nesting_are_errors() {
    let (bytes, key) = token();
    let huge: [&[u8]; 4] = [
        &[0x9B, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF],
        &[0xBB, 0x7F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF],
        &[0x5B, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF],
        &[0x7B, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF],
    ];
    for at in 0..bytes.len() {
        for head in huge {
            let mut changed = bytes[..at].to_vec();
            changed.extend_from_slice(head);
            changed.extend_from_slice(&bytes[at..]);
            assert!(verify(&changed, &key).is_err());
        }
    }
    for nest in [0x81_u8, 0xA1, 0x9F, 0xBF, 0xC1, 0xD2, 0x5F] {
        let deep = vec![nest; 1 << 20];
        assert!(verify(&deep, &key).is_err());
        // As the value of a claim that nobody knows.
        let claims = [&[0xA1, 0x19, 0x7F, 0xFF][..], &deep].concat();
        assert!(RealmClaims::decode(&claims).is_err());
        assert!(PlatformClaims::decode(&claims).is_err());
    }
}

/// A claim that nobody here knows is passed over, one that is there twice is refused.
#[test]
fn claims_are_a_set() {
    let (bytes, _) = token();
    let (platform, realm) = split(&bytes).unwrap();
    for (part, is_realm) in [(platform, false), (realm, true)] {
        let claims = Sign1::decode(part).unwrap().payload;
        let decode = |claims: &[u8]| match is_realm {
            true => RealmClaims::decode(claims).map(|_| ()),
            false => PlatformClaims::decode(claims).map(|_| ()),
        };
        assert_eq!(decode(claims), Ok(()));
        let with = |more: &[u8]| {
            let mut longer = [claims, more].concat();
            assert_eq!(longer[0], 0xA8);
            longer[0] = 0xA9;
            longer
        };
        // 32767: [1, {2: h'03'}], and one with a text as its key.
        assert_eq!(decode(&with(&[0x19, 0x7F, 0xFF, 0x82, 1, 0xA1, 2, 0x41, 3])), Ok(()));
        assert_eq!(decode(&with(&[0x61, b'a', 0xF6])), Ok(()));
        let twice = [&[0x0A, 0x58, 64][..], &[0; 64]].concat();
        assert_eq!(decode(&with(&twice)), Err(ClaimError::Twice(10)));
        assert_eq!(decode(&[claims, &[0]].concat()), Err(ClaimError::Trailing));
        assert!(matches!(decode(&[0xA0]), Err(ClaimError::Missing(_))));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn anything_is_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let key = PublicKey { x: [0; 48], y: [0; 48] };
        prop_assert!(verify(&bytes, &key).is_err());
        prop_assert!(RealmClaims::decode(&bytes).is_err());
        prop_assert!(PlatformClaims::decode(&bytes).is_err());
        prop_assert!(crate::keys::CoseKey::decode(&bytes).is_none());
        prop_assert!(PublicKey::from_point(&bytes).is_none());
    }

    /// Claims in which a few bytes are others: what is inside is reached, whatever the signature says.
    #[test]
    fn claims_with_other_bytes_are_read_without_a_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let instance = [1; 33];
        let platform = platform_claims(&IMAGE, &instance);
        let guest = PublicKey { x: [3; 48], y: [4; 48] };
        let realm = realm_claims(guest, HashAlgorithm::Sha256);
        let mut encoded = [vec![0; Encode::size(&platform)], vec![0; Encode::size(&realm)]];
        let mut to = Encoder::new(Window::new(0, &mut encoded[0]));
        platform.encode(&mut to).unwrap();
        let mut to = Encoder::new(Window::new(0, &mut encoded[1]));
        realm.encode(&mut to).unwrap();
        for claims in &mut encoded {
            for (index, byte) in &changes {
                let at = index.index(claims.len());
                claims[at] = *byte;
            }
        }
        // Some changes are of no consequence, such as those in a measurement.
        let _ = PlatformClaims::decode(&encoded[0]);
        prop_assert!(RealmClaims::decode(&encoded[1]).is_err());
    }
}

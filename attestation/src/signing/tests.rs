// SPDX-License-Identifier: MIT OR Apache-2.0

use std::format;
use std::vec::Vec;

use p384::ecdsa::SigningKey;
use p384::ecdsa::signature::hazmat::PrehashSigner;
use p384::elliptic_curve::group::Group;
use p384::elliptic_curve::sec1::ToSec1Point;
use proptest::prelude::*;
use sha2::Digest;

use super::*;

/// The coordinates of the comb's points, as they are defined.
fn points() -> Vec<[u64; 12]> {
    let mut teeth = [ProjectivePoint::GENERATOR; TEETH];
    for n in 1..TEETH {
        teeth[n] = (0..COLUMNS).fold(teeth[n - 1], |point, _| Group::double(&point));
    }
    let choices = 1..=CHOICES;
    let sum = |choice: usize| {
        (0..TEETH).filter(|n| choice >> n & 1 != 0).map(|n| teeth[n]).sum::<ProjectivePoint>()
    };
    let words = |point: ProjectivePoint| {
        let point = point.to_affine().to_sec1_point(false);
        let mut words = [0; 12];
        for (word, bytes) in words.iter_mut().zip(point.as_bytes()[1..].chunks_exact(8)) {
            *word = u64::from_be_bytes(bytes.try_into().unwrap());
        }
        words
    };
    choices.map(|choice| words(sum(choice))).collect()
}

#[test]
fn the_combs_points_are_what_they_are_said_to_be() {
    let wanted = points();
    let text: Vec<_> = wanted.iter().map(|words| format!("    {words:#018x?},\n")).collect();
    assert!(POINTS[..] == wanted[..], "they should be:\n{}", text.concat());
}

fn sign(key: &PrivateKey, hash: [u8; 48], columns: usize) -> (Signature, usize) {
    let comb = Comb::new();
    let mut signing = Signing::new(key, hash, &[]);
    let mut calls = 1;
    loop {
        match signing.go_on(key, &comb, Columns(columns)) {
            Some(signature) => return (signature, calls),
            None => calls += 1,
        }
    }
}

fn publish(key: &PrivateKey, columns: usize) -> PublicKey {
    let comb = Comb::new();
    let mut publishing = Publishing::new(key);
    loop {
        if let Some(key) = publishing.go_on(&comb, Columns(columns)) {
            return key;
        }
    }
}

/// RFC 6979, A.2.6: curve P-384, SHA-384, message "sample".
#[test]
fn the_rfcs_sample_comes_out() {
    fn bytes<const N: usize>(hex: &str) -> [u8; N] {
        core::array::from_fn(|n| u8::from_str_radix(&hex[2 * n..2 * n + 2], 16).unwrap())
    }
    let key = PrivateKey::from_bytes(&bytes(
        "6B9D3DAD2E1B8C1C05B19875B6659F4DE23C3B667BF297BA9AA47740787137D8\
         96D5724E4C70A825F872C9EA60D2EDF5",
    ))
    .unwrap();
    let public = publish(&key, 7);
    assert_eq!(
        public.x,
        bytes(
            "EC3A4E415B4E19A4568618029F427FA5DA9A8BC4AE92E02E06AAE5286B300C64\
             DEF8F0EA9055866064A254515480BC13"
        )
    );
    assert_eq!(
        public.y,
        bytes(
            "8015D9B72D7D57244EA8EF9AC0C621896708A59367F9DFB9F54CA84B3F1C9DB1\
             288B231C3AE0D4FE7344FD2533264720"
        )
    );
    let (signature, calls) = sign(&key, Sha384::digest(b"sample").into(), 7);
    assert_eq!(
        signature,
        bytes(
            "94EDBB92A5ECB8AAD4736E56C691916B3F88140666CE9FA73D64C4EA95AD133C\
             81A648152E44ACF96E36DD1E80FABE46\
             99EF4AEB15F178CEA1FE40DB2603138F130E740A19624526203B6351D0A3A94F\
             A329C145786E679E7B82C71A38628AC8"
        )
    );
    assert_eq!(calls, 96_usize.div_ceil(7) + 2);
}

#[test]
fn the_group_is_what_the_comb_thinks() {
    let one = PrivateKey::from_bytes(&core::array::from_fn(|n| u8::from(n == 47))).unwrap();
    let generator = ProjectivePoint::generator().to_affine().to_sec1_point(false);
    assert_eq!(publish(&one, 96).to_point()[..], *generator.as_bytes());
    assert!(PrivateKey::from_bytes(&[0; 48]).is_none());
    assert!(PrivateKey::from_bytes(&[0xFF; 48]).is_none());
}

/// A fault in one of two signatures of the same hash tells the key if both have the same secret number.
#[test]
fn two_signatures_of_one_hash_do_not_share_their_number() {
    let key = PrivateKey::from_bytes(&[0x42; 48]).unwrap();
    let (comb, hash) = (Comb::new(), [0x77; 48]);
    let signatures = [&b""[..], b"1", b"2", b"1"].map(|fresh| {
        let mut signing = Signing::new(&key, hash, fresh);
        let steps = core::iter::from_fn(|| Some(signing.go_on(&key, &comb, Columns(96))));
        steps.flatten().next().unwrap()
    });
    let public = publish(&key, 96);
    assert!(signatures.iter().all(|signature| public.has_signed(&hash, signature)));
    let r = signatures.map(|signature| <[u8; 48]>::try_from(&signature[..48]).unwrap());
    assert!(r[0] != r[1] && r[1] != r[2] && r[0] != r[2]);
    assert_eq!(signatures[1], signatures[3]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// In steps of any size the same comes out as of the crate's own way, which knows no steps.
    #[test]
    fn steps_make_no_difference(
        secret in prop::array::uniform32(any::<u8>()),
        hash in prop::array::uniform32(any::<u8>()),
        columns in 1_usize..120,
    ) {
        let bytes: [u8; 48] = Sha384::digest(secret).into();
        let hash: [u8; 48] = Sha384::digest(hash).into();
        let key = PrivateKey::from_bytes(&bytes).unwrap();
        let other = SigningKey::from_slice(&bytes).unwrap();
        let wanted: p384::ecdsa::Signature = other.sign_prehash(&hash).unwrap();
        let (signature, _) = sign(&key, hash, columns);
        prop_assert_eq!(&signature[..], &wanted.to_bytes()[..]);
        let public = publish(&key, columns);
        let wanted = other.verifying_key().to_sec1_point(false);
        prop_assert_eq!(&public.to_point()[..], wanted.as_bytes());
        prop_assert!(public.has_signed(&hash, &signature));
    }
}

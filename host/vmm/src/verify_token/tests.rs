// SPDX-License-Identifier: MIT OR Apache-2.0

use std::fs;

use clap::Parser;
use escrow_attestation::HashAlgorithm;
use escrow_attestation::cose::{Signature, platform_digest, realm_digest};
use escrow_attestation::platform::{
    Component, Components, Config, IMPLEMENTATION, LIFECYCLE_SECURED, LIFECYCLE_TEST,
    PlatformClaims,
};
use escrow_attestation::realm::RealmClaims;
use escrow_attestation::signing::Signing;
use escrow_attestation::token::Token;
use p384::pkcs8::EncodePublicKey as _;
use tempfile::TempDir;

use super::*;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    arguments: Arguments,
}

fn arguments(words: &[&str]) -> Arguments {
    Cli::try_parse_from([&["verify-token", "token"], words].concat()).ok().unwrap().arguments
}

const OWN: [u8; 48] = [0x42; 48];
const IMAGE: [u8; 32] = [0xEE; 32];

fn public(key: &PrivateKey) -> PublicKey {
    let mut publishing = Publishing::new(key);
    let comb = Comb::new();
    std::iter::repeat_with(|| publishing.go_on(&comb, Columns(96))).flatten().next().unwrap()
}

fn sign(key: &PrivateKey, hash: [u8; 48]) -> Signature {
    let mut signing = Signing::new(key, hash, &[]);
    let comb = Comb::new();
    std::iter::repeat_with(|| signing.go_on(key, &comb, Columns(96))).flatten().next().unwrap()
}

/// A token of a machine with that key.
fn token(machine: &PrivateKey, development_key: bool, lifecycle: u16) -> Vec<u8> {
    token_with(machine, Config { dma_confined: true, development_key }, lifecycle)
}

fn token_with(machine: &PrivateKey, config: Config, lifecycle: u16) -> Vec<u8> {
    let instance = public(machine).instance();
    let mut platform = PlatformClaims {
        challenge: &[],
        implementation: &IMPLEMENTATION,
        instance: &instance,
        config,
        lifecycle,
        components: Components::one(Component {
            kind: EL2,
            measurement: &IMAGE,
            version: "0.1.0\x1b",
            signer: &[0; 32],
            algorithm: None,
        }),
        algorithm: HashAlgorithm::Sha256,
    };
    let guest = machine.realm_key(&platform);
    let key = public(&guest);
    let challenge = key.binding();
    platform.challenge = &challenge;
    let mut own_challenge = [0; 64];
    own_challenge[..4].copy_from_slice(&[0xC0, 0xFF, 0xEE, 1]);
    let realm = RealmClaims {
        challenge: &own_challenge,
        personalization: &[0; 64],
        algorithm: HashAlgorithm::Sha256,
        initial: &[0xAB; 32],
        extensible: [&[0; 32]; 4],
        key,
        key_algorithm: HashAlgorithm::Sha256,
    };
    let token = Token {
        platform: &platform,
        platform_signature: &sign(machine, platform_digest(&platform)),
        realm: &realm,
        realm_signature: &sign(&guest, realm_digest(&realm)),
    };
    let mut bytes = vec![0; token.size()];
    token.write(0, &mut bytes);
    bytes
}

/// 64 bytes that begin like that, as an argument.
fn challenge(start: &str) -> String {
    format!("{start:0<128}")
}

fn own() -> PrivateKey {
    PrivateKey::from_bytes(&OWN).unwrap()
}

fn failures(token: &[u8], key: &PublicKey, words: &[&str]) -> Vec<String> {
    appraise(token, key, &arguments(words)).err().unwrap_or_default()
}

#[test]
fn what_is_expected_is_compared() {
    let (token, key) = (token(&own(), false, LIFECYCLE_SECURED), public(&own()));
    let (measurement, image) = ("ab".repeat(32), "ee".repeat(32));
    assert!(failures(&token, &key, &[]).is_empty());
    let (right, wrong) = (challenge("C0ffee01"), challenge("c0ffee02"));
    let all = ["--challenge", &right, "--measurement", &measurement, "--image", &image];
    assert!(failures(&token, &key, &all).is_empty());
    for (option, value, words) in [
        ("--challenge", wrong.as_str(), "the challenge is c0ffee01"),
        ("--challenge", "c0ffee01", "a challenge has 64 bytes"),
        ("--challenge", &right[..126], "a challenge has 64 bytes"),
        ("--measurement", "abab", "the initial measurement is abab"),
        ("--image", "00", "the measurement of EL2's image is eeee"),
    ] {
        let found = failures(&token, &key, &[option, value]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with(words), "{found:?}");
    }
    // A line for each failure.
    let wrong = ["--challenge", "00", "--measurement", "00", "--image", "00"];
    assert_eq!(failures(&token, &key, &wrong).len(), 3);
    assert!(!failures(&token, &key, &["--challenge", &"00".repeat(65)]).is_empty());
    for wrong in ["", "1", "xy", "é"] {
        assert!(wrong.parse::<Hex>().is_err(), "{wrong}");
    }
}

#[test]
fn a_token_of_a_machine_for_development_is_taken_only_if_asked_for() {
    let (machine, other) = (PrivateKey::development(), PrivateKey::from_bytes(&[7; 48]).unwrap());
    let allowed = ["--allow-development-key"];
    for (development, lifecycle, words) in
        [(true, LIFECYCLE_TEST, "development key"), (false, LIFECYCLE_TEST, "0x1000")]
    {
        let machine = if development { &machine } else { &other };
        let token = token(machine, development, lifecycle);
        let key = public(machine);
        let found = failures(&token, &key, &[]);
        assert!(found.len() == 1 && found[0].contains(words), "{found:?}");
        assert!(failures(&token, &key, &allowed).is_empty());
        // Whoever knows the machine's key does not take the other one.
        let found = failures(&token, &public(&own()), &allowed);
        assert_eq!(found, ["the platform's part is not signed by the platform's key"]);
    }
}

/// Whoever has the development key can deny it in a token; the key itself cannot.
#[test]
fn what_a_token_says_of_its_key_is_not_believed() {
    let allowed = ["--allow-development-key"];
    let (machine, key) = (PrivateKey::development(), development_key());
    let lie = token(&machine, false, LIFECYCLE_SECURED);
    let denies = "it is signed with the development key, and denies it";
    let public_key = "it is signed with the development key, which is public";
    assert_eq!(failures(&lie, &key, &[]), [denies, public_key]);
    assert_eq!(failures(&lie, &key, &allowed), [denies]);
    let lie = token(&own(), true, LIFECYCLE_SECURED);
    let claims = "it claims to be signed with the development key, and is not";
    assert!(failures(&lie, &public(&own()), &[]).contains(&claims.to_owned()));
    assert_eq!(failures(&lie, &public(&own()), &allowed), [claims]);
    let honest = token(&machine, true, LIFECYCLE_SECURED);
    assert_eq!(failures(&honest, &key, &[]), [public_key]);
    let report = appraise(&honest, &key, &arguments(&allowed)).ok().unwrap();
    assert!(report.platform.development_key);
    assert!(report.table().contains("development: public, this proves nothing"));
}

#[test]
fn open_dma_is_taken_only_if_asked_for() {
    let key = public(&own());
    let config = Config { dma_confined: false, development_key: false };
    let token = token_with(&own(), config, LIFECYCLE_SECURED);
    let found = failures(&token, &key, &[]);
    assert_eq!(found, ["DMA is not confined: the machine's devices can reach the guest"]);
    let report = appraise(&token, &key, &arguments(&["--allow-open-dma"])).ok().unwrap();
    assert!(report.table().contains("DMA confined            no"));
}

#[test]
fn the_machines_key_is_to_be_said() {
    assert!(platform_key(&arguments(&[])).is_err());
    assert!(platform_key(&arguments(&["--allow-development-key"])).unwrap() == development_key());
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("key");
    let option = ["--platform-key", file.to_str().unwrap(), "--allow-development-key"];
    let own = public(&own());
    let pem = p384::PublicKey::from_sec1_bytes(&own.to_point()).unwrap();
    let pem = pem.to_public_key_pem(p384::pkcs8::LineEnding::LF).unwrap();
    fs::write(&file, &pem).unwrap();
    assert!(platform_key(&arguments(&option)).unwrap() == own);
    fs::write(&file, own.to_point()).unwrap();
    assert!(platform_key(&arguments(&option)).unwrap() == own);
    for wrong in [&b"key"[..], &pem.as_bytes()[..100], &[4; 97]] {
        fs::write(&file, wrong).unwrap();
        assert!(platform_key(&arguments(&option)).is_err());
    }
    fs::write(&file, vec![0; 65 << 10]).unwrap();
    assert!(read(&file).is_err());
}

#[test]
fn the_claims_are_printed() {
    let key = public(&own());
    let token = token(&own(), false, LIFECYCLE_SECURED);
    let report =
        appraise(&token, &key, &arguments(&["--challenge", &challenge("c0ffee01")])).ok().unwrap();
    let table = report.table();
    let measurement = format!("initial measurement     {} (not compared)\n", "ab".repeat(32));
    assert!(table.contains(&measurement), "{table}");
    assert!(!table.contains("00 (not compared)") && !table.contains('\x1b'), "{table}");
    assert!(table.contains("DMA confined            yes"), "{table}");
    let image = "ee".repeat(32);
    assert!(table.contains(&format!("{image} (not compared)\n")), "{table}");
    let with_image = appraise(&token, &key, &arguments(&["--image", &image])).ok().unwrap();
    assert!(with_image.table().contains(&format!("{image}\n")));
    assert!(with_image.platform.image_expected);
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["guest"]["initial_measurement"], "ab".repeat(32));
    assert_eq!(json["guest"]["challenge_expected"], true);
    assert_eq!(json["platform"]["development_key"], false);
    assert_eq!(json["platform"]["image_expected"], false);
    assert_eq!(json["platform"]["components"][0]["measurement"], "ee".repeat(32));
}

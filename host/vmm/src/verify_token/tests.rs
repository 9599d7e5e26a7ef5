// SPDX-License-Identifier: MIT OR Apache-2.0

use std::fs;

use clap::Parser;
use escrow_attestation::HashAlgorithm;
use escrow_attestation::cose::{Signature, platform_digest, realm_digest};
use escrow_attestation::platform::{
    Component, Components, Config, EL2, IMPLEMENTATION, LIFECYCLE_SECURED, LIFECYCLE_TEST,
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
    let mut signing = Signing::new(key, hash);
    let comb = Comb::new();
    std::iter::repeat_with(|| signing.go_on(key, &comb, Columns(96))).flatten().next().unwrap()
}

/// A token of a machine with that key.
fn token(machine: &PrivateKey, development_key: bool, lifecycle: u16) -> Vec<u8> {
    let guest = machine.realm_key(&IMAGE);
    let key = public(&guest);
    let (challenge, instance) = (key.binding(), public(machine).instance());
    let platform = PlatformClaims {
        challenge: &challenge,
        implementation: &IMPLEMENTATION,
        instance: &instance,
        config: Config { dma_confined: false, development_key },
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
    let all = ["--challenge", "C0ffee01", "--measurement", &measurement, "--image", &image];
    assert!(failures(&token, &key, &all).is_empty());
    for (option, value, words) in [
        ("--challenge", "c0ffee02", "the challenge is c0ffee01"),
        ("--challenge", "c0ffee", "the challenge is c0ffee01"),
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
    let machine = PrivateKey::development();
    let allowed = ["--allow-development-key"];
    for (development, lifecycle, words) in
        [(true, LIFECYCLE_TEST, "development key"), (false, LIFECYCLE_TEST, "0x1000")]
    {
        let token = token(&machine, development, lifecycle);
        let key = development_key();
        let found = failures(&token, &key, &[]);
        assert!(found.len() == 1 && found[0].contains(words), "{found:?}");
        assert!(failures(&token, &key, &allowed).is_empty());
        // Whoever knows the machine's key does not take the other one.
        let found = failures(&token, &public(&own()), &allowed);
        assert_eq!(found, ["the platform's part is not signed by the platform's key"]);
    }
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
    let report = appraise(&token, &key, &arguments(&["--challenge", "c0ffee01"])).ok().unwrap();
    let table = report.table();
    let measurement = format!("initial measurement     {} (not compared)\n", "ab".repeat(32));
    assert!(table.contains(&measurement), "{table}");
    assert!(!table.contains("00 (not compared)") && !table.contains('\x1b'), "{table}");
    assert!(table.contains("DMA confined            no"), "{table}");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["guest"]["initial_measurement"], "ab".repeat(32));
    assert_eq!(json["guest"]["challenge_expected"], true);
    assert_eq!(json["platform"]["development_key"], false);
    assert_eq!(json["platform"]["components"][0]["measurement"], "ee".repeat(32));
}

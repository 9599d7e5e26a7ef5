// SPDX-License-Identifier: MIT OR Apache-2.0

//! `escrow verify-token`: whether a guest's attestation token is to be relied on. This runs on any machine, without
//! Escrow (`docs/protected.md`).

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, Result, bail};
use escrow_attestation::keys::{PrivateKey, PublicKey};
use escrow_attestation::platform::EL2;
use escrow_attestation::realm::CHALLENGE_SIZE;
use escrow_attestation::signing::{Columns, Comb, Publishing};
use escrow_attestation::token::{Claims, verify};
use p384::elliptic_curve::sec1::ToSec1Point as _;
use p384::pkcs8::DecodePublicKey as _;
use serde::Serialize;

/// Files that are larger are neither tokens nor keys.
const MAX_FILE: u64 = 64 << 10;

/// What is verified, and what is expected of it.
#[derive(clap::Args)]
pub struct Arguments {
    /// The token, as the guest got it
    file: PathBuf,
    /// The challenge that the guest was to put into it, as hexadecimal digits: all 64 bytes
    #[arg(long, value_name = "HEX")]
    challenge: Option<Hex>,
    /// The initial measurement that the guest is to have: as many bytes as the token's hash algorithm has
    #[arg(long, value_name = "HEX")]
    measurement: Option<Hex>,
    /// The measurement that EL2's image is to have
    #[arg(long, value_name = "HEX")]
    image: Option<Hex>,
    /// The public key of the machine: PEM, or the 97 bytes of the point
    #[arg(long, value_name = "FILE")]
    platform_key: Option<PathBuf>,
    /// Take a token of a machine that signs with the development key, or is none in production. Such a token
    /// proves nothing: the key is public
    #[arg(long)]
    allow_development_key: bool,
    /// Take a token of a machine whose devices can reach the guest's memory by DMA. Such a token proves nothing
    /// if the machine's host is hostile
    #[arg(long)]
    allow_open_dma: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Bytes, as hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hex(Vec<u8>);

impl FromStr for Hex {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.as_bytes();
        if digits.is_empty() || !digits.len().is_multiple_of(2) {
            return Err("an even number of hexadecimal digits is needed");
        }
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let bytes = digits.chunks_exact(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?));
        let bytes = bytes.map(|byte| byte.and_then(|byte| u8::try_from(byte).ok()));
        bytes.collect::<Option<_>>().map(Self).ok_or("these are no hexadecimal digits")
    }
}

/// Verifies the token and prints what it claims. Whether it is what was expected; else a line on standard error
/// says what is not, for each such thing.
pub fn verify_token(arguments: &Arguments) -> Result<bool> {
    let key = platform_key(arguments)?;
    let token = read(&arguments.file)?;
    let report = match appraise(&token, &key, arguments) {
        Ok(report) => report,
        Err(failures) => {
            for failure in failures {
                eprintln!("escrow: {}: {failure}", arguments.file.display());
            }
            return Ok(false);
        }
    };
    let text = match arguments.json {
        true => serde_json::to_string_pretty(&report)? + "\n",
        false => report.table(),
    };
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(true)
}

/// The key that the machine is to have.
fn platform_key(arguments: &Arguments) -> Result<PublicKey> {
    match &arguments.platform_key {
        Some(file) => {
            let bytes = read(file)?;
            let key = public_key(&bytes);
            key.with_context(|| format!("{} is no public key of the curve P-384", file.display()))
        }
        None if arguments.allow_development_key => Ok(development_key()),
        None => bail!("which machine is to have signed the token? Say --platform-key FILE"),
    }
}

fn public_key(bytes: &[u8]) -> Option<PublicKey> {
    PublicKey::from_point(bytes).or_else(|| {
        let pem = std::str::from_utf8(bytes).ok()?;
        let key = p384::PublicKey::from_public_key_pem(pem.trim()).ok()?;
        PublicKey::from_point(key.to_sec1_point(false).as_bytes())
    })
}

fn development_key() -> PublicKey {
    let comb = Comb::new();
    let mut publishing = Publishing::new(&PrivateKey::development());
    loop {
        if let Some(key) = publishing.go_on(&comb, Columns(usize::MAX)) {
            return key;
        }
    }
}

fn read(file: &Path) -> Result<Vec<u8>> {
    let reading = || format!("reading {}", file.display());
    let mut bytes = Vec::new();
    let opened = File::open(file).with_context(reading)?;
    opened.take(MAX_FILE + 1).read_to_end(&mut bytes).with_context(reading)?;
    if bytes.len() as u64 > MAX_FILE {
        bail!(
            "{} is larger than {} KiB: this is neither a token nor a key",
            file.display(),
            MAX_FILE >> 10
        );
    }
    Ok(bytes)
}

/// What a token claims, once it has been verified and is what was expected; else all that is wrong.
fn appraise(token: &[u8], key: &PublicKey, expected: &Arguments) -> Result<Report, Vec<String>> {
    let claims = verify(token, key).map_err(|error| vec![error.to_string()])?;
    let mut failures = Vec::new();
    // Whoever has the development key can say in a token what he wants to: what counts is the key itself.
    let is_development_key = *key == development_key();
    if claims.platform.config.development_key != is_development_key {
        failures.push(match is_development_key {
            true => "it is signed with the development key, and denies it".into(),
            false => "it claims to be signed with the development key, and is not".into(),
        });
    }
    let is_for_development = is_development_key || claims.platform.is_for_development();
    if is_for_development && !expected.allow_development_key {
        failures.push(match is_development_key {
            true => "it is signed with the development key, which is public".into(),
            false => format!(
                "the machine is none in production: its lifecycle is {:#06x}",
                claims.platform.lifecycle
            ),
        });
    }
    if !claims.platform.config.dma_confined && !expected.allow_open_dma {
        failures.push("DMA is not confined: the machine's devices can reach the guest".into());
    }
    if let Some(Hex(challenge)) = &expected.challenge {
        // One that can be guessed says nothing of the token's age.
        match challenge.len() == CHALLENGE_SIZE {
            true => compare(&mut failures, "challenge", claims.realm.challenge, challenge),
            false => failures.push(format!(
                "a challenge has {CHALLENGE_SIZE} bytes, and --challenge has {}",
                challenge.len()
            )),
        }
    }
    if let Some(Hex(measurement)) = &expected.measurement {
        compare(&mut failures, "initial measurement", claims.realm.initial, measurement);
    }
    if let Some(Hex(wanted)) = &expected.image {
        let images = claims.platform.components.iter();
        let mut images = images.filter(|part| part.kind == EL2);
        match (images.next(), images.next()) {
            (Some(image), None) => {
                compare(&mut failures, "measurement of EL2's image", image.measurement, wanted);
            }
            _ => failures.push("there is not one EL2 among its software components".into()),
        }
    }
    if failures.is_empty() {
        Ok(Report::of(&claims, is_development_key, expected))
    } else {
        Err(failures)
    }
}

/// Notes if what is claimed is not what is wanted.
fn compare(failures: &mut Vec<String>, what: &str, claimed: &[u8], wanted: &[u8]) {
    if claimed != wanted {
        failures.push(format!("the {what} is {}, not {}", hex(claimed), hex(wanted)));
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a token claims.
#[derive(Serialize)]
struct Report {
    guest: Guest,
    platform: Platform,
}

#[derive(Serialize)]
struct Guest {
    challenge: String,
    challenge_expected: bool,
    initial_measurement: String,
    initial_measurement_expected: bool,
    extensible_measurements: Vec<String>,
    hash_algorithm: &'static str,
    personalization: String,
}

#[derive(Serialize)]
struct Platform {
    development_key: bool,
    lifecycle: u16,
    dma_confined: bool,
    instance: String,
    image_expected: bool,
    components: Vec<Part>,
}

#[derive(Serialize)]
struct Part {
    name: String,
    version: String,
    measurement: String,
    signer: String,
}

impl Report {
    fn of(claims: &Claims<'_>, development_key: bool, expected: &Arguments) -> Self {
        let parts = claims.platform.components.iter();
        Self {
            guest: Guest {
                challenge: hex(claims.realm.challenge),
                challenge_expected: expected.challenge.is_some(),
                initial_measurement: hex(claims.realm.initial),
                initial_measurement_expected: expected.measurement.is_some(),
                extensible_measurements: claims.realm.extensible.map(hex).into(),
                hash_algorithm: claims.realm.algorithm.name(),
                personalization: hex(claims.realm.personalization),
            },
            platform: Platform {
                development_key,
                lifecycle: claims.platform.lifecycle,
                dma_confined: claims.platform.config.dma_confined,
                instance: hex(claims.platform.instance),
                image_expected: expected.image.is_some(),
                components: parts
                    .map(|part| Part {
                        name: part.kind.to_owned(),
                        version: part.version.to_owned(),
                        measurement: hex(part.measurement),
                        signer: hex(part.signer),
                    })
                    .collect(),
            },
        }
    }

    fn table(&self) -> String {
        use std::fmt::Write;
        let mut text = String::new();
        let mut line = |name: &str, value: &str| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{name:<24}{value}");
        };
        let compared = |value: &str, expected| match expected {
            true => value.to_owned(),
            false => format!("{value} (not compared)"),
        };
        let (guest, platform) = (&self.guest, &self.platform);
        line("challenge", &compared(&guest.challenge, guest.challenge_expected));
        let measurement = compared(&guest.initial_measurement, guest.initial_measurement_expected);
        line("initial measurement", &measurement);
        for (n, measurement) in (1..).zip(&guest.extensible_measurements) {
            line(&format!("extended measurement {n}"), measurement);
        }
        line("hash algorithm", guest.hash_algorithm);
        line("personalization", &guest.personalization);
        let key = match platform.development_key {
            true => "development: public, this proves nothing",
            false => "the machine's own",
        };
        line("key", key);
        line("lifecycle", &format!("{:#06x}", platform.lifecycle));
        let dma = if platform.dma_confined { "yes" } else { "no: devices can reach the guest" };
        line("DMA confined", dma);
        line("instance", &platform.instance);
        for part in &platform.components {
            // What a token says is for a terminal: no control characters.
            let name = format!("{} {}", part.name.escape_debug(), part.version.escape_debug());
            // --image is about EL2 alone.
            let is_compared = platform.image_expected && part.name == EL2;
            line(&name, &compared(&part.measurement, is_compared));
        }
        text
    }
}

#[cfg(test)]
mod tests;

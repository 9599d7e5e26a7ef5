// SPDX-License-Identifier: MIT OR Apache-2.0

//! The claims about the machine and EL2: `cca-platform-token`.

use core::convert::Infallible;

use cbor4ii::core::enc::Write;

use crate::cbor::{Decoder, Encoded, Encoder};
use crate::claims::{self, CHALLENGE, ClaimError, HashAlgorithm, PROFILE, exactly, put};
use crate::writers::Encode;

/// The profile that the claims follow.
pub const PROFILE_NAME: &str = "tag:arm.com,2023:cca_platform#1.0.0";

/// The implementation: this hypervisor, on whatever machine.
pub const IMPLEMENTATION: [u8; 32] = *b"Escrow hypervisor\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// The type of the software component that is EL2's image.
pub const EL2: &str = "EL2";

/// The machine is in production: the claims hold if its key is trusted.
pub const LIFECYCLE_SECURED: u16 = 0x3000;
/// The machine is being put together or tested: whoever wants to can sign in its name.
pub const LIFECYCLE_TEST: u16 = 0x1000;

const INSTANCE: u32 = 256;
const LIFECYCLE: u32 = 2395;
const IMPLEMENTATION_ID: u32 = 2396;
const COMPONENTS: u32 = 2399;
const SERVICE: u32 = 2400;
const CONFIG: u32 = 2401;
const HASH_ALGORITHM: u32 = 2402;

const COMPONENT_TYPE: u32 = 1;
const COMPONENT_MEASUREMENT: u32 = 2;
const COMPONENT_VERSION: u32 = 4;
const COMPONENT_SIGNER: u32 = 5;
const COMPONENT_ALGORITHM: u32 = 6;

/// Software components that a token names at the most.
pub const MAX_COMPONENTS: usize = 8;

/// Choices that the implementation leaves open: `cca-platform-config`, of which the format is the
/// implementation's. It has 32 bits, the lowest byte first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// No device reaches a protected guest's memory by DMA.
    pub dma_confined: bool,
    /// The key that signs is the development key, which is public.
    pub development_key: bool,
}

impl Config {
    const DMA_CONFINED: u32 = 1;
    const DEVELOPMENT_KEY: u32 = 2;

    fn encode(self) -> [u8; 4] {
        let mut bits = 0;
        if self.dma_confined {
            bits |= Self::DMA_CONFINED;
        }
        if self.development_key {
            bits |= Self::DEVELOPMENT_KEY;
        }
        u32::to_le_bytes(bits)
    }

    /// `None` if a bit is set that has no meaning here.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let bits = u32::from_le_bytes(bytes.try_into().ok()?);
        let config = Self {
            dma_confined: bits & Self::DMA_CONFINED != 0,
            development_key: bits & Self::DEVELOPMENT_KEY != 0,
        };
        (config.encode() == bytes).then_some(config)
    }
}

/// A part of the software that guests rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Component<'a> {
    /// Which part it is.
    pub kind: &'a str,
    /// Its hash.
    pub measurement: &'a [u8],
    /// Its version.
    pub version: &'a str,
    /// The hash of the key that has signed it; zeros if none has.
    pub signer: &'a [u8],
    /// The algorithm of its hash, if it says so; else it is that of the whole token.
    pub algorithm: Option<HashAlgorithm>,
}

/// All parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Components<'a> {
    list: [Option<Component<'a>>; MAX_COMPONENTS],
}

impl<'a> Components<'a> {
    /// One part.
    #[must_use]
    pub const fn one(component: Component<'a>) -> Self {
        let mut list = [None; MAX_COMPONENTS];
        list[0] = Some(component);
        Self { list }
    }

    /// The parts, one by one.
    pub fn iter(&self) -> impl Iterator<Item = &Component<'a>> {
        self.list.iter().flatten()
    }
}

/// What a token says of the machine and EL2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlatformClaims<'a> {
    /// The hash of the key that signs the guest's claims.
    pub challenge: &'a [u8],
    /// Which implementation this is.
    pub implementation: &'a [u8; 32],
    /// Which machine it is: 1, and the SHA-256 of its public key.
    pub instance: &'a [u8; 33],
    /// Its choices.
    pub config: Config,
    /// The state of the machine's security: one of the `LIFECYCLE_*`, bits 15 to 8.
    pub lifecycle: u16,
    /// The software that guests rely on.
    pub components: Components<'a>,
    /// The algorithm of the components' measurements.
    pub algorithm: HashAlgorithm,
}

impl Encode for PlatformClaims<'_> {
    fn encode<W: Write<Error = Infallible>>(&self, to: &mut Encoder<W>) -> Encoded {
        to.map(8)?.item(CHALLENGE)?.bytes(self.challenge)?;
        to.item(INSTANCE)?.bytes(self.instance)?;
        to.item(PROFILE)?.item(PROFILE_NAME)?;
        to.item(LIFECYCLE)?.item(self.lifecycle)?;
        to.item(IMPLEMENTATION_ID)?.bytes(self.implementation)?;
        to.item(COMPONENTS)?.array(self.components.iter().count())?;
        for component in self.components.iter() {
            let entries = 4 + usize::from(component.algorithm.is_some());
            to.map(entries)?.item(COMPONENT_TYPE)?.item(component.kind)?;
            to.item(COMPONENT_MEASUREMENT)?.bytes(component.measurement)?;
            to.item(COMPONENT_VERSION)?.item(component.version)?;
            to.item(COMPONENT_SIGNER)?.bytes(component.signer)?;
            if let Some(algorithm) = component.algorithm {
                to.item(COMPONENT_ALGORITHM)?.item(algorithm.name())?;
            }
        }
        to.item(CONFIG)?.bytes(&self.config.encode())?;
        to.item(HASH_ALGORITHM)?.item(self.algorithm.name())?.ok()
    }
}

impl<'a> PlatformClaims<'a> {
    /// Reads the claims.
    ///
    /// # Errors
    ///
    /// [`ClaimError`]
    pub fn decode(bytes: &'a [u8]) -> Result<Self, ClaimError> {
        let (mut challenge, mut instance, mut profile) = (None, None, None);
        let (mut lifecycle, mut implementation, mut list) = (None, None, None);
        let (mut service, mut config, mut algorithm) = (None, None, None);
        claims::read_map(bytes, |from, n| {
            match u32::try_from(n) {
                Ok(CHALLENGE) => put(&mut challenge, n, from.bytes()?)?,
                Ok(INSTANCE) => put(&mut instance, n, exactly(from, "instance ID")?)?,
                Ok(PROFILE) => put(&mut profile, n, from.item::<&str>()?)?,
                Ok(LIFECYCLE) => put(&mut lifecycle, n, from.item::<u16>()?)?,
                Ok(IMPLEMENTATION_ID) => {
                    put(&mut implementation, n, exactly(from, "implementation ID")?)?;
                }
                Ok(COMPONENTS) => put(&mut list, n, components(from)?)?,
                // A hint, which nobody follows here.
                Ok(SERVICE) => put(&mut service, n, from.item::<&str>()?)?,
                Ok(CONFIG) => put(&mut config, n, from.bytes()?)?,
                Ok(HASH_ALGORITHM) => {
                    put(&mut algorithm, n, claims::algorithm(from, "hash algorithm")?)?;
                }
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        if profile.ok_or(ClaimError::Missing("profile"))? != PROFILE_NAME {
            return Err(ClaimError::Value("profile"));
        }
        let implementation = implementation.ok_or(ClaimError::Missing("implementation ID"))?;
        // What the configuration's bits mean, this one says.
        if *implementation != IMPLEMENTATION {
            return Err(ClaimError::Value("implementation ID"));
        }
        let config = config.ok_or(ClaimError::Missing("configuration"))?;
        let claims = Self {
            challenge: challenge.ok_or(ClaimError::Missing("challenge"))?,
            implementation,
            instance: instance.ok_or(ClaimError::Missing("instance ID"))?,
            config: Config::decode(config).ok_or(ClaimError::Value("configuration"))?,
            lifecycle: lifecycle.ok_or(ClaimError::Missing("lifecycle"))?,
            components: list.ok_or(ClaimError::Missing("software components"))?,
            algorithm: algorithm.ok_or(ClaimError::Missing("hash algorithm"))?,
        };
        let is_wrong = |component: &Component<'_>| {
            let algorithm = component.algorithm.unwrap_or(claims.algorithm);
            component.measurement.len() != algorithm.size()
        };
        if claims.components.iter().any(is_wrong) {
            return Err(ClaimError::Value("software components"));
        }
        Ok(claims)
    }

    /// Whether whoever wants to can sign such claims: the key that has signed them is no secret, or
    /// the machine is none that keeps it.
    #[must_use]
    pub const fn is_for_development(&self) -> bool {
        self.config.development_key || self.lifecycle >> 8 != LIFECYCLE_SECURED >> 8
    }
}

fn components<'a>(from: &mut Decoder<'a>) -> Result<Components<'a>, ClaimError> {
    const WRONG: ClaimError = ClaimError::Value("software components");
    let count = from.array()?.ok_or(WRONG)?;
    let mut list = [None; MAX_COMPONENTS];
    if count == 0 {
        return Err(WRONG);
    }
    for place in list.get_mut(..count).ok_or(WRONG)? {
        *place = Some(component(from)?);
    }
    Ok(Components { list })
}

fn component<'a>(from: &mut Decoder<'a>) -> Result<Component<'a>, ClaimError> {
    const WRONG: ClaimError = ClaimError::Value("software components");
    let (mut kind, mut measurement, mut version) = (None, None, None);
    let (mut signer, mut algorithm) = (None, None);
    for _ in 0..from.map()?.filter(|n| *n <= 5).ok_or(WRONG)? {
        let n = from.item::<u32>()?;
        match n {
            COMPONENT_TYPE => put(&mut kind, n.into(), from.item::<&str>()?)?,
            COMPONENT_MEASUREMENT => put(&mut measurement, n.into(), from.bytes()?)?,
            COMPONENT_VERSION => put(&mut version, n.into(), from.item::<&str>()?)?,
            COMPONENT_SIGNER => put(&mut signer, n.into(), from.bytes()?)?,
            COMPONENT_ALGORITHM => {
                put(&mut algorithm, n.into(), claims::algorithm(from, "software components")?)?;
            }
            _ => return Err(WRONG),
        }
    }
    Ok(Component {
        kind: kind.unwrap_or(""),
        measurement: measurement.ok_or(WRONG)?,
        version: version.unwrap_or(""),
        signer: signer.ok_or(WRONG)?,
        algorithm,
    })
}

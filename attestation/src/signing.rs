// SPDX-License-Identifier: MIT OR Apache-2.0

//! Signatures and public keys in steps: EL2 computes with interrupts masked, and does not do all of it at a time.
//!
//! The bulk is the multiplication of the curve's generator by a secret number. It goes by the comb of Lim and Lee,
//! "More flexible exponentiation with precomputation" (CRYPTO '94), with four teeth: bits `i`, `i + 96`, `i + 192`
//! and `i + 288` of the number choose one of 16 points that are known beforehand. So a multiplication is 96
//! times a doubling and an addition. The curve's formulas are complete, and the choice reads all of the points: neither
//! time nor addresses depend on the number.

use p384::elliptic_curve::bigint::ArrayEncoding;
use p384::elliptic_curve::ops::{Double, Reduce};
use p384::elliptic_curve::point::AffineCoordinates;
use p384::elliptic_curve::subtle::{ConditionallySelectable, ConstantTimeEq};
use p384::elliptic_curve::{Curve, PrimeField};
use p384::{AffinePoint, FieldBytes, NistP384, ProjectivePoint, Scalar, U384};
use rfc6979::KGenerator;
use sha2::Sha384;
use zeroize::{Zeroize, Zeroizing};

use crate::cose::Signature;
use crate::keys::{COORDINATE, PrivateKey, PublicKey};

/// Teeth of the comb.
const TEETH: usize = 4;
/// Points of which one is added at a time; none at all is one more choice.
const CHOICES: usize = (1 << TEETH) - 1;
/// Doublings, and additions.
const COLUMNS: usize = 8 * COORDINATE / TEETH;

/// The comb's points: that of number `n` is the sum of `2^(96 j)` times the generator, over the bits `j` of
/// `n` + 1. They are the same for all multiplications.
pub struct Comb([AffinePoint; CHOICES]);

impl Comb {
    /// The points. This takes as long as a few columns of a multiplication.
    #[must_use]
    pub fn new() -> Self {
        let point = |words: &[u64; 12]| {
            let mut bytes = [0; 2 * COORDINATE];
            for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
                place.copy_from_slice(&word.to_be_bytes());
            }
            let mut coordinates = [FieldBytes::default(); 2];
            coordinates[0].copy_from_slice(&bytes[..COORDINATE]);
            coordinates[1].copy_from_slice(&bytes[COORDINATE..]);
            let [x, y] = coordinates;
            AffinePoint::from_coordinates(&x, &y).unwrap_or(AffinePoint::IDENTITY)
        };
        Self(core::array::from_fn(|n| point(&POINTS[n])))
    }

    /// The point for a choice of teeth; all of them are read.
    fn choose(&self, teeth: u8) -> AffinePoint {
        let mut chosen = AffinePoint::IDENTITY;
        for (n, point) in (1..).zip(&self.0) {
            chosen.conditional_assign(point, teeth.ct_eq(&n));
        }
        chosen
    }
}

impl Default for Comb {
    fn default() -> Self {
        Self::new()
    }
}

/// How much of a multiplication is done at a time, in columns.
#[derive(Clone, Copy, Debug)]
pub struct Columns(pub usize);

/// A multiplication of the generator by a secret number.
struct Multiplication {
    /// The lowest byte first.
    number: [u8; COORDINATE],
    /// Columns that are yet to be added.
    left: usize,
    sum: ProjectivePoint,
}

impl Multiplication {
    fn new(number: &Scalar) -> Self {
        let mut bytes = number.to_repr();
        let mut number: [u8; COORDINATE] = bytes.into();
        number.reverse();
        bytes.zeroize();
        Self { number, left: COLUMNS, sum: ProjectivePoint::IDENTITY }
    }

    fn number(&self) -> Scalar {
        let mut bytes = FieldBytes::from(self.number);
        bytes.reverse();
        // It is below the order.
        let number = reduce(&bytes);
        bytes.zeroize();
        number
    }

    /// Goes on. The result comes with the call after the last column: the division that it takes is as long
    /// as many columns.
    fn go_on(&mut self, comb: &Comb, columns: Columns) -> Option<AffinePoint> {
        if self.left == 0 {
            return Some(self.sum.to_affine());
        }
        for _ in 0..columns.0 {
            let Some(column) = self.left.checked_sub(1) else { break };
            let mut teeth = 0;
            for tooth in (0..TEETH).rev() {
                let bit = column + tooth * COLUMNS;
                teeth = teeth << 1 | self.number[bit / 8] >> (bit % 8) & 1;
            }
            self.sum = self.sum.double() + comb.choose(teeth);
            self.left = column;
        }
        None
    }
}

impl Drop for Multiplication {
    fn drop(&mut self) {
        self.number.zeroize();
        self.sum.zeroize();
    }
}

/// A signature that is being made: ECDSA with SHA-384, its secret number derived from key and hash (RFC 6979).
pub struct Signing {
    hash: [u8; COORDINATE],
    multiplication: Multiplication,
    /// What the multiplication came to.
    point: Option<AffinePoint>,
}

impl Signing {
    /// Begins to sign a SHA-384. `fresh` goes into the derivation of the secret number (RFC 6979, 3.6): it is to be
    /// another one each time that a key signs. Else two signatures of the same hash share their number, and a fault
    /// in the computation of one of them tells the key. Where no faults are feared it may be empty.
    #[must_use]
    pub fn new(key: &PrivateKey, hash: [u8; COORDINATE], fresh: &[u8]) -> Self {
        let number = ephemeral(key, &hash, fresh);
        let multiplication = Multiplication::new(&number);
        Self { hash, multiplication, point: None }
    }

    /// Goes on, with the same key and comb each time. The signature, when it is done.
    pub fn go_on(&mut self, key: &PrivateKey, comb: &Comb, columns: Columns) -> Option<Signature> {
        let Some(point) = &self.point else {
            // The end has a division of its own: not in the same call either.
            self.point = self.multiplication.go_on(comb, columns);
            return None;
        };
        let r = reduce(&point.x());
        // With the signature, each of these tells the key.
        let number = Zeroizing::new(self.multiplication.number());
        let secret = Zeroizing::new(*key.secret().to_nonzero_scalar());
        // Neither is 0: one number in 2^384 has that come out.
        let inverse = Zeroizing::new(number.invert().unwrap_or(Scalar::ZERO));
        let product = Zeroizing::new(r * *secret);
        let sum = Zeroizing::new(reduce(&self.hash.into()) + *product);
        let s = *inverse * *sum;
        let mut signature = [0; 2 * COORDINATE];
        let (first, second) = signature.split_at_mut(COORDINATE);
        first.copy_from_slice(&r.to_repr());
        second.copy_from_slice(&s.to_repr());
        Some(signature)
    }
}

/// A public key that is being computed.
pub struct Publishing(Multiplication);

impl Publishing {
    /// Begins with the public key of `key`.
    #[must_use]
    pub fn new(key: &PrivateKey) -> Self {
        let secret = Zeroizing::new(*key.secret().to_nonzero_scalar());
        Self(Multiplication::new(&secret))
    }

    /// Goes on, with the same comb each time. The key, when it is done.
    pub fn go_on(&mut self, comb: &Comb, columns: Columns) -> Option<PublicKey> {
        let point = self.0.go_on(comb, columns)?;
        Some(PublicKey { x: point.x().into(), y: point.y().into() })
    }
}

/// The secret number of one signature.
fn ephemeral(key: &PrivateKey, hash: &[u8; COORDINATE], fresh: &[u8]) -> Zeroizing<Scalar> {
    let mut secret = key.secret().to_bytes();
    let mut numbers = KGenerator::<Sha384, U384>::new(&secret, hash, fresh, &NistP384::ORDER);
    secret.zeroize();
    let mut bytes = FieldBytes::default();
    numbers.fill_next_k(&mut bytes);
    // It is below the order.
    let number = Zeroizing::new(reduce(&bytes));
    bytes.zeroize();
    number
}

/// 384 bits, modulo the order.
fn reduce(bytes: &FieldBytes) -> Scalar {
    Scalar::reduce(&U384::from_be_byte_array(*bytes))
}

/// The coordinates of the comb's points, the highest word first.
#[rustfmt::skip]
const POINTS: [[u64; 12]; CHOICES] = [
    [
        0xAA87_CA22_BE8B_0537, 0x8EB1_C71E_F320_AD74, 0x6E1D_3B62_8BA7_9B98,
        0x59F7_41E0_8254_2A38, 0x5502_F25D_BF55_296C, 0x3A54_5E38_7276_0AB7,
        0x3617_DE4A_9626_2C6F, 0x5D9E_98BF_9292_DC29, 0xF8F4_1DBD_289A_147C,
        0xE9DA_3113_B5F0_B8C0, 0x0A60_B1CE_1D7E_819D, 0x7A43_1D7C_90EA_0E5F,
    ],
    [
        0xF532_389A_060C_BD1B, 0xD6E9_8B0D_37CA_7ABC, 0x4360_3909_1814_1B1A,
        0x4B58_808B_3F86_86A9, 0x2C3E_0C91_5587_17DB, 0x39C1_B328_D8EE_21C9,
        0xB9D2_852C_C3B3_8E69, 0x6F04_CAA2_DE3A_82BA, 0xBD22_CFB2_A212_4163,
        0xBC40_CE5A_BE64_3603, 0x31EA_31B1_085A_4E9A, 0x7A7E_1839_23D8_6ECD,
    ],
    [
        0x528E_F167_0A5F_2CAB, 0xC3DE_CD0C_86F0_6145, 0xBBBC_4FD0_17A3_1B22,
        0xDA9D_5483_5FAE_FA4F, 0xF8F4_BE11_32CD_F03C, 0x264E_5246_EB09_A0E5,
        0x7B9B_1FBE_7BCC_F56C, 0x5803_EAA1_1A1D_CF14, 0xF8B7_6FDD_631D_058D,
        0xBD60_CAB4_C87F_ED22, 0x5505_38A8_09CB_7524, 0x8A1E_9858_C14F_0DD6,
    ],
    [
        0xC19E_0B4C_8001_19C4, 0x40F7_F9E7_0642_1279, 0xB42A_31AF_8A3E_297D,
        0xDB29_8789_4D10_DDEA, 0xBA06_5458_A4F5_2D78, 0xA628_B09A_AA03_BD53,
        0x16F3_FDBF_0356_B301, 0xE5A0_191D_1F5B_77F6, 0x577A_30EA_E356_7AF9,
        0xC1C7_CAD1_35F6_EBF2, 0xAF68_AA6D_E639_D858, 0x822D_0FC5_E6C8_8C41,
    ],
    [
        0xAAB8_BB9F_0FDC_3088, 0x567A_6233_CD6C_E3A3, 0x9BB1_83B2_70B3_75DD,
        0xD37D_E424_B860_FAE6, 0x9097_DBB1_C6CB_0017, 0x3099_1560_AA13_3909,
        0x4894_2F81_314F_6D28, 0xF0AF_01D1_2820_50B5, 0xF600_5FC8_15EB_04AC,
        0x6D95_5BB3_C974_7BF3, 0xEBDF_73F2_D62F_AA44, 0x16C5_B981_600A_D5A6,
    ],
    [
        0x7334_A936_A9A6_A052, 0x7022_F802_CB36_7444, 0xCE0F_BA30_77C0_F03F,
        0x54BA_4599_567D_6342, 0x2347_D2C8_9EF2_81C8, 0x2022_1121_7716_605E,
        0x7FFC_EFF7_F632_C926, 0x1F7C_5C36_7CBD_4CCD, 0x8E5D_9B89_7D0E_017A,
        0x9E2E_EE8F_697A_9280, 0x0A64_D519_C2BD_0EFA, 0xB546_1F68_D658_A01A,
    ],
    [
        0xDC91_6C17_960E_090E, 0xFAFC_E26E_0381_EF13, 0xBF88_DE7F_4862_B954,
        0x2565_1D10_5052_DD32, 0x451C_707A_371A_2CA5, 0x300A_E2E6_0E75_8344,
        0x266E_8A40_D69E_CA0A, 0xB3D9_2EA4_701C_2952, 0x52D1_54B8_0BA0_4A35,
        0x4089_6478_CC16_0697, 0x95C0_1FF1_9B42_441B, 0xED17_CC44_026B_0889,
    ],
    [
        0xB2D1_0558_17CB_AA12, 0x2119_0503_5F49_72D7, 0x097D_A395_A230_9686,
        0x3D8B_29DB_D088_48C2, 0xF33A_450A_D156_F761, 0xE4BF_C2C0_4905_CA71,
        0x354C_D872_C3C6_CBD2, 0x237C_0DBA_3CFD_056B, 0xF82B_E8F5_2E62_36C0,
        0x9B47_5D74_4ECF_1A68, 0xE87A_B07C_6924_666F, 0xDDCE_BB55_753E_E324,
    ],
    [
        0x00B1_9AC8_FDFE_BFEC, 0x30B0_A9E8_611E_F638, 0x103D_F785_5C20_1558,
        0x47FC_87FA_F071_2210, 0x197D_6958_819C_F043, 0x8D10_4D24_708D_4CEE,
        0xA72F_9105_9EE3_6031, 0x1418_FE25_E9F6_EDC4, 0xCDBB_3CD2_E754_220D,
        0x6881_0282_6361_64C5, 0xBB7C_969C_2228_FF5F, 0xD40E_8D6F_D201_E03E,
    ],
    [
        0x3F95_61E0_8BF0_B27E, 0x136D_F36B_7520_3A36, 0x17E9_411F_685E_926D,
        0xC3B6_AC4B_E86C_46BD, 0x2CC0_2451_97D5_3FFD, 0x64D2_C273_B769_737A,
        0x0B06_F006_3962_9587, 0x4B1A_5A20_412A_B641, 0xCFCE_D664_6F52_E4CB,
        0xEA08_8747_8554_E014, 0xC34B_E586_F986_7A60, 0xDD6F_F8D5_27E9_90A7,
    ],
    [
        0x9FD7_B010_DF0F_66D7, 0x1527_4E5B_8980_F137, 0x539F_94AD_522C_2931,
        0xB83A_1861_88E9_5532, 0x325C_51E7_785D_3EF7, 0x044C_0DD2_8565_1F82,
        0x321A_A9A3_B926_0225, 0x795F_6FA3_C973_9246, 0x9292_26BD_1490_33DE,
        0x0A80_6B54_BE8A_04E3, 0xD44E_BA45_25D7_D211, 0xE4A7_B94A_4064_E4C0,
    ],
    [
        0x36A5_43EE_A87A_68F7, 0x2CAE_BBD3_16EE_3E13, 0xEBD1_CFF8_4C6A_9964,
        0x2E4C_2956_7D49_C780, 0x2901_B519_1D92_8983, 0x49BC_C2F5_8B70_7B8E,
        0xF277_BACD_A50E_E41C, 0xD349_AB03_78A6_7847, 0x58EA_FF04_8FBD_85D1,
        0x9123_5072_D4B3_394D, 0x1510_E7D4_3EF2_267E, 0x75B4_1C29_B569_946D,
    ],
    [
        0x026E_0DC2_E8CB_7AEB, 0xE2B0_67CA_A08B_6A51, 0x3AFC_BD79_6D01_A5A8,
        0xEBB3_1209_DC7C_421D, 0xE92C_DC5A_B483_283D, 0x10B0_5658_5F86_3BBD,
        0xAE88_66BA_D8EF_24E1, 0x4BE2_5637_8C74_61A5, 0xD68D_1FFC_1F34_43D8,
        0x17EA_2701_1078_1E45, 0x64C1_5FAC_D8C6_CF36, 0xD8C3_5029_02DD_E18A,
    ],
    [
        0xB03D_FA54_C52A_FA2D, 0x14DA_FC39_81A7_3DC7, 0xDF45_9EA1_C42B_F748,
        0xEF98_FDDE_8FD8_D817, 0x1A29_F8EF_6C8F_83D3, 0xAC3A_78D0_D265_A91C,
        0x2CE2_885A_0E6D_85F2, 0xAAFD_1FCF_CE6D_908A, 0xF5F8_A2D1_8ACC_F229,
        0xEF5D_9006_78F6_02DD, 0xCD12_0B2B_41FD_72CA, 0xCC40_6F6E_6C0D_2CE7,
    ],
    [
        0x1264_CB33_5766_C96A, 0x59CF_CA71_5597_7D23, 0x4BC2_FDCF_F983_AC6C,
        0xA820_6169_C48B_5AB0, 0xC8C1_2E75_7FFC_D01E, 0x8910_9A0E_C626_66DE,
        0x119E_BEEE_A1A1_A376, 0xD94A_D8FA_C53B_4F69, 0xB667_17A0_65A5_F248,
        0xCBF7_190C_FFB1_9758, 0x31D2_8707_E448_3EC5, 0x6B69_1381_2E01_4B4B,
    ],
];

#[cfg(test)]
mod tests;

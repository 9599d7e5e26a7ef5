// SPDX-License-Identifier: MIT OR Apache-2.0

//! The fields of the identification registers, up to Armv9.6 (DDI 0487,
//! "AArch64 System Register Descriptions", and the register descriptions that Arm
//! publishes as data).
//!
//! A field that is not here is unknown to Escrow, and shown to no VM.

#![allow(missing_docs)] // The names are the architecture's.

use super::ids::{Field, Kind, Other, Register};

macro_rules! fields {
    ($($name:ident = $space:ident($($place:tt)*), $text:literal, $shift:literal, $width:literal,
       $kind:ident, $absent:literal, $newest:literal;)*) => {
        $(pub const $name: Field = Field {
            register: Register::$space($($place)*),
            name: $text,
            shift: $shift,
            width: $width,
            kind: Kind::$kind,
            absent: $absent,
            newest: $newest,
        };)*

        /// All of them.
        pub const ALL: &[Field] = &[$($name),*];
    };
}

// Register, lowest bit, width, order, the value of absence, the newest value.
fields! {
    // ID_AA64PFR0_EL1.
    PFR0_EL0 = Space(4, 0), "PFR0.EL0", 0, 4, Unsigned, 0x0, 0x2;
    PFR0_EL1 = Space(4, 0), "PFR0.EL1", 4, 4, Unsigned, 0x0, 0x2;
    PFR0_EL2 = Space(4, 0), "PFR0.EL2", 8, 4, Unsigned, 0x0, 0x2;
    PFR0_EL3 = Space(4, 0), "PFR0.EL3", 12, 4, Unsigned, 0x0, 0x2;
    PFR0_FP = Space(4, 0), "PFR0.FP", 16, 4, Signed, 0xf, 0x1;
    PFR0_ADVSIMD = Space(4, 0), "PFR0.AdvSIMD", 20, 4, Signed, 0xf, 0x1;
    PFR0_GIC = Space(4, 0), "PFR0.GIC", 24, 4, Unsigned, 0x0, 0x3;
    PFR0_RAS = Space(4, 0), "PFR0.RAS", 28, 4, Unsigned, 0x0, 0x3;
    PFR0_SVE = Space(4, 0), "PFR0.SVE", 32, 4, Unsigned, 0x0, 0x1;
    PFR0_SEL2 = Space(4, 0), "PFR0.SEL2", 36, 4, Unsigned, 0x0, 0x1;
    PFR0_MPAM = Space(4, 0), "PFR0.MPAM", 40, 4, Unsigned, 0x0, 0x1;
    PFR0_AMU = Space(4, 0), "PFR0.AMU", 44, 4, Unsigned, 0x0, 0x2;
    PFR0_DIT = Space(4, 0), "PFR0.DIT", 48, 4, Unsigned, 0x0, 0x1;
    PFR0_RME = Space(4, 0), "PFR0.RME", 52, 4, Unsigned, 0x0, 0x1;
    PFR0_CSV2 = Space(4, 0), "PFR0.CSV2", 56, 4, Unsigned, 0x0, 0x3;
    PFR0_CSV3 = Space(4, 0), "PFR0.CSV3", 60, 4, Unsigned, 0x0, 0x1;
    // ID_AA64PFR1_EL1.
    PFR1_BT = Space(4, 1), "PFR1.BT", 0, 4, Unsigned, 0x0, 0x1;
    PFR1_SSBS = Space(4, 1), "PFR1.SSBS", 4, 4, Unsigned, 0x0, 0x2;
    PFR1_MTE = Space(4, 1), "PFR1.MTE", 8, 4, Unsigned, 0x0, 0x3;
    PFR1_RAS_FRAC = Space(4, 1), "PFR1.RAS_frac", 12, 4, Unsigned, 0x0, 0x1;
    PFR1_MPAM_FRAC = Space(4, 1), "PFR1.MPAM_frac", 16, 4, Unsigned, 0x0, 0x1;
    PFR1_SME = Space(4, 1), "PFR1.SME", 24, 4, Unsigned, 0x0, 0x2;
    PFR1_RNDR_TRAP = Space(4, 1), "PFR1.RNDR_trap", 28, 4, Unsigned, 0x0, 0x1;
    PFR1_CSV2_FRAC = Space(4, 1), "PFR1.CSV2_frac", 32, 4, Unsigned, 0x0, 0x2;
    PFR1_NMI = Space(4, 1), "PFR1.NMI", 36, 4, Unsigned, 0x0, 0x1;
    PFR1_MTE_FRAC = Space(4, 1), "PFR1.MTE_frac", 40, 4, Signed, 0x0, 0x0;
    PFR1_GCS = Space(4, 1), "PFR1.GCS", 44, 4, Unsigned, 0x0, 0x1;
    PFR1_THE = Space(4, 1), "PFR1.THE", 48, 4, Unsigned, 0x0, 0x1;
    PFR1_MTEX = Space(4, 1), "PFR1.MTEX", 52, 4, Unsigned, 0x0, 0x1;
    PFR1_DF2 = Space(4, 1), "PFR1.DF2", 56, 4, Unsigned, 0x0, 0x1;
    PFR1_PFAR = Space(4, 1), "PFR1.PFAR", 60, 4, Unsigned, 0x0, 0x1;
    // ID_AA64PFR2_EL1.
    PFR2_MTEPERM = Space(4, 2), "PFR2.MTEPERM", 0, 4, Unsigned, 0x0, 0x1;
    PFR2_MTESTOREONLY = Space(4, 2), "PFR2.MTESTOREONLY", 4, 4, Unsigned, 0x0, 0x1;
    PFR2_MTEFAR = Space(4, 2), "PFR2.MTEFAR", 8, 4, Unsigned, 0x0, 0x1;
    PFR2_GCIE = Space(4, 2), "PFR2.GCIE", 12, 4, Unsigned, 0x0, 0x1;
    PFR2_UINJ = Space(4, 2), "PFR2.UINJ", 16, 4, Unsigned, 0x0, 0x1;
    PFR2_FPMR = Space(4, 2), "PFR2.FPMR", 32, 4, Unsigned, 0x0, 0x1;
    // ID_AA64ZFR0_EL1.
    ZFR0_SVEVER = Space(4, 4), "ZFR0.SVEver", 0, 4, Unsigned, 0x0, 0x4;
    ZFR0_AES = Space(4, 4), "ZFR0.AES", 4, 4, Unsigned, 0x0, 0x3;
    ZFR0_ELTPERM = Space(4, 4), "ZFR0.EltPerm", 12, 4, Unsigned, 0x0, 0x1;
    ZFR0_BITPERM = Space(4, 4), "ZFR0.BitPerm", 16, 4, Unsigned, 0x0, 0x1;
    ZFR0_BF16 = Space(4, 4), "ZFR0.BF16", 20, 4, Unsigned, 0x0, 0x2;
    ZFR0_B16B16 = Space(4, 4), "ZFR0.B16B16", 24, 4, Unsigned, 0x0, 0x3;
    ZFR0_SHA3 = Space(4, 4), "ZFR0.SHA3", 32, 4, Unsigned, 0x0, 0x1;
    ZFR0_SM4 = Space(4, 4), "ZFR0.SM4", 40, 4, Unsigned, 0x0, 0x1;
    ZFR0_I8MM = Space(4, 4), "ZFR0.I8MM", 44, 4, Unsigned, 0x0, 0x1;
    ZFR0_F16MM = Space(4, 4), "ZFR0.F16MM", 48, 4, Unsigned, 0x0, 0x1;
    ZFR0_F32MM = Space(4, 4), "ZFR0.F32MM", 52, 4, Unsigned, 0x0, 0x1;
    ZFR0_F64MM = Space(4, 4), "ZFR0.F64MM", 56, 4, Unsigned, 0x0, 0x1;
    // ID_AA64SMFR0_EL1.
    SMFR0_SMOP4 = Space(4, 5), "SMFR0.SMOP4", 0, 1, Unsigned, 0x0, 0x1;
    SMFR0_STMOP = Space(4, 5), "SMFR0.STMOP", 16, 1, Unsigned, 0x0, 0x1;
    SMFR0_SFEXPA = Space(4, 5), "SMFR0.SFEXPA", 23, 1, Unsigned, 0x0, 0x1;
    SMFR0_AES = Space(4, 5), "SMFR0.AES", 24, 1, Unsigned, 0x0, 0x1;
    SMFR0_SBITPERM = Space(4, 5), "SMFR0.SBitPerm", 25, 1, Unsigned, 0x0, 0x1;
    SMFR0_SF8DP2 = Space(4, 5), "SMFR0.SF8DP2", 28, 1, Unsigned, 0x0, 0x1;
    SMFR0_SF8DP4 = Space(4, 5), "SMFR0.SF8DP4", 29, 1, Unsigned, 0x0, 0x1;
    SMFR0_SF8FMA = Space(4, 5), "SMFR0.SF8FMA", 30, 1, Unsigned, 0x0, 0x1;
    SMFR0_F32F32 = Space(4, 5), "SMFR0.F32F32", 32, 1, Unsigned, 0x0, 0x1;
    SMFR0_BI32I32 = Space(4, 5), "SMFR0.BI32I32", 33, 1, Unsigned, 0x0, 0x1;
    SMFR0_B16F32 = Space(4, 5), "SMFR0.B16F32", 34, 1, Unsigned, 0x0, 0x1;
    SMFR0_F16F32 = Space(4, 5), "SMFR0.F16F32", 35, 1, Unsigned, 0x0, 0x1;
    SMFR0_I8I32 = Space(4, 5), "SMFR0.I8I32", 36, 4, Unsigned, 0x0, 0xf;
    SMFR0_F8F32 = Space(4, 5), "SMFR0.F8F32", 40, 1, Unsigned, 0x0, 0x1;
    SMFR0_F8F16 = Space(4, 5), "SMFR0.F8F16", 41, 1, Unsigned, 0x0, 0x1;
    SMFR0_F16F16 = Space(4, 5), "SMFR0.F16F16", 42, 1, Unsigned, 0x0, 0x1;
    SMFR0_B16B16 = Space(4, 5), "SMFR0.B16B16", 43, 1, Unsigned, 0x0, 0x1;
    SMFR0_I16I32 = Space(4, 5), "SMFR0.I16I32", 44, 4, Unsigned, 0x0, 0x5;
    SMFR0_F64F64 = Space(4, 5), "SMFR0.F64F64", 48, 1, Unsigned, 0x0, 0x1;
    SMFR0_I16I64 = Space(4, 5), "SMFR0.I16I64", 52, 4, Unsigned, 0x0, 0xf;
    SMFR0_SMEVER = Space(4, 5), "SMFR0.SMEver", 56, 4, Unsigned, 0x0, 0x4;
    SMFR0_LUTV2 = Space(4, 5), "SMFR0.LUTv2", 60, 1, Unsigned, 0x0, 0x1;
    SMFR0_LUT6 = Space(4, 5), "SMFR0.LUT6", 61, 1, Unsigned, 0x0, 0x1;
    SMFR0_FA64 = Space(4, 5), "SMFR0.FA64", 63, 1, Unsigned, 0x0, 0x1;
    // ID_AA64FPFR0_EL1.
    FPFR0_F8E5M2 = Space(4, 7), "FPFR0.F8E5M2", 0, 1, Unsigned, 0x0, 0x1;
    FPFR0_F8E4M3 = Space(4, 7), "FPFR0.F8E4M3", 1, 1, Unsigned, 0x0, 0x1;
    FPFR0_F16MM2 = Space(4, 7), "FPFR0.F16MM2", 15, 1, Unsigned, 0x0, 0x1;
    FPFR0_F8MM4 = Space(4, 7), "FPFR0.F8MM4", 26, 1, Unsigned, 0x0, 0x1;
    FPFR0_F8MM8 = Space(4, 7), "FPFR0.F8MM8", 27, 1, Unsigned, 0x0, 0x1;
    FPFR0_F8DP2 = Space(4, 7), "FPFR0.F8DP2", 28, 1, Unsigned, 0x0, 0x1;
    FPFR0_F8DP4 = Space(4, 7), "FPFR0.F8DP4", 29, 1, Unsigned, 0x0, 0x1;
    FPFR0_F8FMA = Space(4, 7), "FPFR0.F8FMA", 30, 1, Unsigned, 0x0, 0x1;
    FPFR0_F8CVT = Space(4, 7), "FPFR0.F8CVT", 31, 1, Unsigned, 0x0, 0x1;
    // ID_AA64DFR0_EL1.
    DFR0_DEBUGVER = Space(5, 0), "DFR0.DebugVer", 0, 4, Unsigned, 0x0, 0xb;
    DFR0_TRACEVER = Space(5, 0), "DFR0.TraceVer", 4, 4, Unsigned, 0x0, 0x1;
    DFR0_PMUVER = Space(5, 0), "DFR0.PMUVer", 8, 4, Version, 0x0, 0x9;
    DFR0_BRPS = Space(5, 0), "DFR0.BRPs", 12, 4, Unsigned, 0x0, 0xf;
    DFR0_PMSS = Space(5, 0), "DFR0.PMSS", 16, 4, Unsigned, 0x0, 0x1;
    DFR0_WRPS = Space(5, 0), "DFR0.WRPs", 20, 4, Unsigned, 0x0, 0xf;
    DFR0_SEBEP = Space(5, 0), "DFR0.SEBEP", 24, 4, Unsigned, 0x0, 0x1;
    DFR0_CTX_CMPS = Space(5, 0), "DFR0.CTX_CMPs", 28, 4, Unsigned, 0x0, 0xf;
    DFR0_PMSVER = Space(5, 0), "DFR0.PMSVer", 32, 4, Unsigned, 0x0, 0x6;
    DFR0_DOUBLELOCK = Space(5, 0), "DFR0.DoubleLock", 36, 4, Signed, 0xf, 0x0;
    DFR0_TRACEFILT = Space(5, 0), "DFR0.TraceFilt", 40, 4, Unsigned, 0x0, 0x1;
    DFR0_TRACEBUFFER = Space(5, 0), "DFR0.TraceBuffer", 44, 4, Unsigned, 0x0, 0x2;
    DFR0_MTPMU = Space(5, 0), "DFR0.MTPMU", 48, 4, Signed, 0x0, 0x1;
    DFR0_BRBE = Space(5, 0), "DFR0.BRBE", 52, 4, Unsigned, 0x0, 0x2;
    DFR0_EXTTRCBUFF = Space(5, 0), "DFR0.ExtTrcBuff", 56, 4, Unsigned, 0x0, 0x1;
    DFR0_HPMN0 = Space(5, 0), "DFR0.HPMN0", 60, 4, Unsigned, 0x0, 0x1;
    // ID_AA64DFR1_EL1.
    DFR1_SYSPMUID = Space(5, 1), "DFR1.SYSPMUID", 0, 8, Unsigned, 0x0, 0xff;
    DFR1_BRPS = Space(5, 1), "DFR1.BRPs", 8, 8, Unsigned, 0x0, 0xff;
    DFR1_WRPS = Space(5, 1), "DFR1.WRPs", 16, 8, Unsigned, 0x0, 0xff;
    DFR1_CTX_CMPS = Space(5, 1), "DFR1.CTX_CMPs", 24, 8, Unsigned, 0x0, 0xff;
    DFR1_SPMU = Space(5, 1), "DFR1.SPMU", 32, 4, Unsigned, 0x0, 0x2;
    DFR1_PMICNTR = Space(5, 1), "DFR1.PMICNTR", 36, 4, Unsigned, 0x0, 0x1;
    DFR1_ABLE = Space(5, 1), "DFR1.ABLE", 40, 4, Unsigned, 0x0, 0x1;
    DFR1_ITE = Space(5, 1), "DFR1.ITE", 44, 4, Unsigned, 0x0, 0x1;
    DFR1_EBEP = Space(5, 1), "DFR1.EBEP", 48, 4, Unsigned, 0x0, 0x1;
    DFR1_DPFZS = Space(5, 1), "DFR1.DPFZS", 52, 4, Unsigned, 0x0, 0x1;
    DFR1_ABL_CMPS = Space(5, 1), "DFR1.ABL_CMPs", 56, 8, Unsigned, 0x0, 0xff;
    // ID_AA64DFR2_EL1.
    DFR2_STEP = Space(5, 2), "DFR2.STEP", 0, 4, Unsigned, 0x0, 0x1;
    DFR2_BWE = Space(5, 2), "DFR2.BWE", 4, 4, Unsigned, 0x0, 0x2;
    DFR2_SPE_EXC = Space(5, 2), "DFR2.SPE_EXC", 16, 4, Unsigned, 0x0, 0x1;
    DFR2_SPE_NVM = Space(5, 2), "DFR2.SPE_nVM", 20, 4, Unsigned, 0x0, 0x1;
    DFR2_TRBE_EXC = Space(5, 2), "DFR2.TRBE_EXC", 24, 4, Unsigned, 0x0, 0x1;
    // ID_AA64AFR0_EL1: the implementer's own.
    AFR0_ALL = Space(5, 4), "AFR0", 0, 32, Exact, 0x0, 0xffff_ffff;
    // ID_AA64ISAR0_EL1.
    ISAR0_AES = Space(6, 0), "ISAR0.AES", 4, 4, Unsigned, 0x0, 0x2;
    ISAR0_SHA1 = Space(6, 0), "ISAR0.SHA1", 8, 4, Unsigned, 0x0, 0x1;
    ISAR0_SHA2 = Space(6, 0), "ISAR0.SHA2", 12, 4, Unsigned, 0x0, 0x2;
    ISAR0_CRC32 = Space(6, 0), "ISAR0.CRC32", 16, 4, Unsigned, 0x0, 0x1;
    ISAR0_ATOMIC = Space(6, 0), "ISAR0.Atomic", 20, 4, Unsigned, 0x0, 0x3;
    ISAR0_RDM = Space(6, 0), "ISAR0.RDM", 28, 4, Unsigned, 0x0, 0x1;
    ISAR0_SHA3 = Space(6, 0), "ISAR0.SHA3", 32, 4, Unsigned, 0x0, 0x1;
    ISAR0_SM3 = Space(6, 0), "ISAR0.SM3", 36, 4, Unsigned, 0x0, 0x1;
    ISAR0_SM4 = Space(6, 0), "ISAR0.SM4", 40, 4, Unsigned, 0x0, 0x1;
    ISAR0_DP = Space(6, 0), "ISAR0.DP", 44, 4, Unsigned, 0x0, 0x1;
    ISAR0_FHM = Space(6, 0), "ISAR0.FHM", 48, 4, Unsigned, 0x0, 0x3;
    ISAR0_TS = Space(6, 0), "ISAR0.TS", 52, 4, Unsigned, 0x0, 0x2;
    ISAR0_TLB = Space(6, 0), "ISAR0.TLB", 56, 4, Unsigned, 0x0, 0x2;
    ISAR0_RNDR = Space(6, 0), "ISAR0.RNDR", 60, 4, Unsigned, 0x0, 0x1;
    // ID_AA64ISAR1_EL1.
    ISAR1_DPB = Space(6, 1), "ISAR1.DPB", 0, 4, Unsigned, 0x0, 0x2;
    ISAR1_APA = Space(6, 1), "ISAR1.APA", 4, 4, Exact, 0x0, 0x6;
    ISAR1_API = Space(6, 1), "ISAR1.API", 8, 4, Exact, 0x0, 0x6;
    ISAR1_JSCVT = Space(6, 1), "ISAR1.JSCVT", 12, 4, Unsigned, 0x0, 0x1;
    ISAR1_FCMA = Space(6, 1), "ISAR1.FCMA", 16, 4, Unsigned, 0x0, 0x1;
    ISAR1_LRCPC = Space(6, 1), "ISAR1.LRCPC", 20, 4, Unsigned, 0x0, 0x3;
    ISAR1_GPA = Space(6, 1), "ISAR1.GPA", 24, 4, Unsigned, 0x0, 0x1;
    ISAR1_GPI = Space(6, 1), "ISAR1.GPI", 28, 4, Unsigned, 0x0, 0x1;
    ISAR1_FRINTTS = Space(6, 1), "ISAR1.FRINTTS", 32, 4, Unsigned, 0x0, 0x1;
    ISAR1_SB = Space(6, 1), "ISAR1.SB", 36, 4, Unsigned, 0x0, 0x1;
    ISAR1_SPECRES = Space(6, 1), "ISAR1.SPECRES", 40, 4, Unsigned, 0x0, 0x2;
    ISAR1_BF16 = Space(6, 1), "ISAR1.BF16", 44, 4, Unsigned, 0x0, 0x2;
    ISAR1_DGH = Space(6, 1), "ISAR1.DGH", 48, 4, Unsigned, 0x0, 0x1;
    ISAR1_I8MM = Space(6, 1), "ISAR1.I8MM", 52, 4, Unsigned, 0x0, 0x1;
    ISAR1_XS = Space(6, 1), "ISAR1.XS", 56, 4, Unsigned, 0x0, 0x1;
    ISAR1_LS64 = Space(6, 1), "ISAR1.LS64", 60, 4, Unsigned, 0x0, 0x4;
    // ID_AA64ISAR2_EL1.
    ISAR2_WFXT = Space(6, 2), "ISAR2.WFxT", 0, 4, Unsigned, 0x0, 0x2;
    ISAR2_RPRES = Space(6, 2), "ISAR2.RPRES", 4, 4, Unsigned, 0x0, 0x1;
    ISAR2_GPA3 = Space(6, 2), "ISAR2.GPA3", 8, 4, Unsigned, 0x0, 0x1;
    ISAR2_APA3 = Space(6, 2), "ISAR2.APA3", 12, 4, Exact, 0x0, 0x6;
    ISAR2_MOPS = Space(6, 2), "ISAR2.MOPS", 16, 4, Unsigned, 0x0, 0x1;
    ISAR2_BC = Space(6, 2), "ISAR2.BC", 20, 4, Unsigned, 0x0, 0x1;
    ISAR2_PAC_FRAC = Space(6, 2), "ISAR2.PAC_frac", 24, 4, Unsigned, 0x0, 0x1;
    ISAR2_CLRBHB = Space(6, 2), "ISAR2.CLRBHB", 28, 4, Unsigned, 0x0, 0x1;
    ISAR2_SYSREG_128 = Space(6, 2), "ISAR2.SYSREG_128", 32, 4, Unsigned, 0x0, 0x1;
    ISAR2_SYSINSTR_128 = Space(6, 2), "ISAR2.SYSINSTR_128", 36, 4, Unsigned, 0x0, 0x1;
    ISAR2_PRFMSLC = Space(6, 2), "ISAR2.PRFMSLC", 40, 4, Unsigned, 0x0, 0x1;
    ISAR2_PCDPHINT = Space(6, 2), "ISAR2.PCDPHINT", 44, 4, Unsigned, 0x0, 0x1;
    ISAR2_RPRFM = Space(6, 2), "ISAR2.RPRFM", 48, 4, Unsigned, 0x0, 0x1;
    ISAR2_CSSC = Space(6, 2), "ISAR2.CSSC", 52, 4, Unsigned, 0x0, 0x2;
    ISAR2_LUT = Space(6, 2), "ISAR2.LUT", 56, 4, Unsigned, 0x0, 0x2;
    ISAR2_ATS1A = Space(6, 2), "ISAR2.ATS1A", 60, 4, Unsigned, 0x0, 0x1;
    // ID_AA64ISAR3_EL1.
    ISAR3_CPA = Space(6, 3), "ISAR3.CPA", 0, 4, Unsigned, 0x0, 0x2;
    ISAR3_FAMINMAX = Space(6, 3), "ISAR3.FAMINMAX", 4, 4, Unsigned, 0x0, 0x1;
    ISAR3_TLBIW = Space(6, 3), "ISAR3.TLBIW", 8, 4, Unsigned, 0x0, 0x1;
    ISAR3_PACM = Space(6, 3), "ISAR3.PACM", 12, 4, Unsigned, 0x0, 0x2;
    ISAR3_LSFE = Space(6, 3), "ISAR3.LSFE", 16, 4, Unsigned, 0x0, 0x1;
    ISAR3_OCCMO = Space(6, 3), "ISAR3.OCCMO", 20, 4, Unsigned, 0x0, 0x1;
    ISAR3_LSUI = Space(6, 3), "ISAR3.LSUI", 24, 4, Unsigned, 0x0, 0x1;
    ISAR3_FPRCVT = Space(6, 3), "ISAR3.FPRCVT", 28, 4, Unsigned, 0x0, 0x1;
    // ID_AA64MMFR0_EL1.
    MMFR0_PARANGE = Space(7, 0), "MMFR0.PARange", 0, 4, Unsigned, 0x0, 0x7;
    MMFR0_ASIDBITS = Space(7, 0), "MMFR0.ASIDBits", 4, 4, Unsigned, 0x0, 0x2;
    MMFR0_BIGEND = Space(7, 0), "MMFR0.BigEnd", 8, 4, Unsigned, 0x0, 0x1;
    MMFR0_SNSMEM = Space(7, 0), "MMFR0.SNSMem", 12, 4, Unsigned, 0x0, 0x1;
    MMFR0_BIGENDEL0 = Space(7, 0), "MMFR0.BigEndEL0", 16, 4, Unsigned, 0x0, 0x1;
    MMFR0_TGRAN16 = Space(7, 0), "MMFR0.TGran16", 20, 4, Unsigned, 0x0, 0x2;
    MMFR0_TGRAN64 = Space(7, 0), "MMFR0.TGran64", 24, 4, Signed, 0xf, 0x0;
    MMFR0_TGRAN4 = Space(7, 0), "MMFR0.TGran4", 28, 4, Signed, 0xf, 0x1;
    MMFR0_TGRAN16_2 = Space(7, 0), "MMFR0.TGran16_2", 32, 4, Unsigned, 0x0, 0x3;
    MMFR0_TGRAN64_2 = Space(7, 0), "MMFR0.TGran64_2", 36, 4, Unsigned, 0x0, 0x2;
    MMFR0_TGRAN4_2 = Space(7, 0), "MMFR0.TGran4_2", 40, 4, Unsigned, 0x0, 0x3;
    MMFR0_EXS = Space(7, 0), "MMFR0.ExS", 44, 4, Unsigned, 0x0, 0x1;
    MMFR0_FGT = Space(7, 0), "MMFR0.FGT", 56, 4, Unsigned, 0x0, 0x2;
    MMFR0_ECV = Space(7, 0), "MMFR0.ECV", 60, 4, Unsigned, 0x0, 0x2;
    // ID_AA64MMFR1_EL1.
    MMFR1_HAFDBS = Space(7, 1), "MMFR1.HAFDBS", 0, 4, Unsigned, 0x0, 0x4;
    MMFR1_VMIDBITS = Space(7, 1), "MMFR1.VMIDBits", 4, 4, Unsigned, 0x0, 0x2;
    MMFR1_VH = Space(7, 1), "MMFR1.VH", 8, 4, Unsigned, 0x0, 0x1;
    MMFR1_HPDS = Space(7, 1), "MMFR1.HPDS", 12, 4, Unsigned, 0x0, 0x2;
    MMFR1_LO = Space(7, 1), "MMFR1.LO", 16, 4, Unsigned, 0x0, 0x1;
    MMFR1_PAN = Space(7, 1), "MMFR1.PAN", 20, 4, Unsigned, 0x0, 0x3;
    MMFR1_SPECSEI = Space(7, 1), "MMFR1.SpecSEI", 24, 4, Unsigned, 0x0, 0x1;
    MMFR1_XNX = Space(7, 1), "MMFR1.XNX", 28, 4, Unsigned, 0x0, 0x1;
    MMFR1_TWED = Space(7, 1), "MMFR1.TWED", 32, 4, Unsigned, 0x0, 0x1;
    MMFR1_ETS = Space(7, 1), "MMFR1.ETS", 36, 4, Unsigned, 0x0, 0x3;
    MMFR1_HCX = Space(7, 1), "MMFR1.HCX", 40, 4, Unsigned, 0x0, 0x1;
    MMFR1_AFP = Space(7, 1), "MMFR1.AFP", 44, 4, Unsigned, 0x0, 0x1;
    MMFR1_NTLBPA = Space(7, 1), "MMFR1.nTLBPA", 48, 4, Unsigned, 0x0, 0x1;
    MMFR1_TIDCP1 = Space(7, 1), "MMFR1.TIDCP1", 52, 4, Unsigned, 0x0, 0x1;
    MMFR1_CMOW = Space(7, 1), "MMFR1.CMOW", 56, 4, Unsigned, 0x0, 0x1;
    MMFR1_ECBHB = Space(7, 1), "MMFR1.ECBHB", 60, 4, Unsigned, 0x0, 0x1;
    // ID_AA64MMFR2_EL1.
    MMFR2_CNP = Space(7, 2), "MMFR2.CnP", 0, 4, Unsigned, 0x0, 0x1;
    MMFR2_UAO = Space(7, 2), "MMFR2.UAO", 4, 4, Unsigned, 0x0, 0x1;
    MMFR2_LSM = Space(7, 2), "MMFR2.LSM", 8, 4, Unsigned, 0x0, 0x1;
    MMFR2_IESB = Space(7, 2), "MMFR2.IESB", 12, 4, Unsigned, 0x0, 0x1;
    MMFR2_VARANGE = Space(7, 2), "MMFR2.VARange", 16, 4, Unsigned, 0x0, 0x1;
    MMFR2_CCIDX = Space(7, 2), "MMFR2.CCIDX", 20, 4, Unsigned, 0x0, 0x1;
    MMFR2_NV = Space(7, 2), "MMFR2.NV", 24, 4, Unsigned, 0x0, 0x2;
    MMFR2_ST = Space(7, 2), "MMFR2.ST", 28, 4, Unsigned, 0x0, 0x1;
    MMFR2_AT = Space(7, 2), "MMFR2.AT", 32, 4, Unsigned, 0x0, 0x1;
    MMFR2_IDS = Space(7, 2), "MMFR2.IDS", 36, 4, Unsigned, 0x0, 0x2;
    MMFR2_FWB = Space(7, 2), "MMFR2.FWB", 40, 4, Unsigned, 0x0, 0x1;
    MMFR2_TTL = Space(7, 2), "MMFR2.TTL", 48, 4, Unsigned, 0x0, 0x1;
    MMFR2_BBM = Space(7, 2), "MMFR2.BBM", 52, 4, Unsigned, 0x0, 0x3;
    MMFR2_EVT = Space(7, 2), "MMFR2.EVT", 56, 4, Unsigned, 0x0, 0x2;
    MMFR2_E0PD = Space(7, 2), "MMFR2.E0PD", 60, 4, Unsigned, 0x0, 0x1;
    // ID_AA64MMFR3_EL1.
    MMFR3_TCRX = Space(7, 3), "MMFR3.TCRX", 0, 4, Unsigned, 0x0, 0x1;
    MMFR3_SCTLRX = Space(7, 3), "MMFR3.SCTLRX", 4, 4, Unsigned, 0x0, 0x1;
    MMFR3_S1PIE = Space(7, 3), "MMFR3.S1PIE", 8, 4, Unsigned, 0x0, 0x1;
    MMFR3_S2PIE = Space(7, 3), "MMFR3.S2PIE", 12, 4, Unsigned, 0x0, 0x1;
    MMFR3_S1POE = Space(7, 3), "MMFR3.S1POE", 16, 4, Unsigned, 0x0, 0x1;
    MMFR3_S2POE = Space(7, 3), "MMFR3.S2POE", 20, 4, Unsigned, 0x0, 0x1;
    MMFR3_AIE = Space(7, 3), "MMFR3.AIE", 24, 4, Unsigned, 0x0, 0x1;
    MMFR3_MEC = Space(7, 3), "MMFR3.MEC", 28, 4, Unsigned, 0x0, 0x1;
    MMFR3_D128 = Space(7, 3), "MMFR3.D128", 32, 4, Unsigned, 0x0, 0x1;
    MMFR3_D128_2 = Space(7, 3), "MMFR3.D128_2", 36, 4, Unsigned, 0x0, 0x1;
    MMFR3_SNERR = Space(7, 3), "MMFR3.SNERR", 40, 4, Unsigned, 0x0, 0x3;
    MMFR3_ANERR = Space(7, 3), "MMFR3.ANERR", 44, 4, Unsigned, 0x0, 0x3;
    MMFR3_SDERR = Space(7, 3), "MMFR3.SDERR", 52, 4, Unsigned, 0x0, 0x3;
    MMFR3_ADERR = Space(7, 3), "MMFR3.ADERR", 56, 4, Unsigned, 0x0, 0x3;
    MMFR3_SPEC_FPACC = Space(7, 3), "MMFR3.Spec_FPACC", 60, 4, Unsigned, 0x0, 0x1;
    // ID_AA64MMFR4_EL1.
    MMFR4_POPS = Space(7, 4), "MMFR4.PoPS", 0, 4, Unsigned, 0x0, 0x1;
    MMFR4_EIESB = Space(7, 4), "MMFR4.EIESB", 4, 4, Unsigned, 0x0, 0xf;
    MMFR4_ASID2 = Space(7, 4), "MMFR4.ASID2", 8, 4, Unsigned, 0x0, 0x1;
    MMFR4_HACDBS = Space(7, 4), "MMFR4.HACDBS", 12, 4, Unsigned, 0x0, 0x1;
    MMFR4_FGWTE3 = Space(7, 4), "MMFR4.FGWTE3", 16, 4, Unsigned, 0x0, 0x1;
    MMFR4_NV_FRAC = Space(7, 4), "MMFR4.NV_frac", 20, 4, Unsigned, 0x0, 0x3;
    MMFR4_E2H0 = Space(7, 4), "MMFR4.E2H0", 24, 4, Signed, 0x0, 0x0;
    MMFR4_RMEGDI = Space(7, 4), "MMFR4.RMEGDI", 28, 4, Unsigned, 0x0, 0x1;
    MMFR4_EAESR = Space(7, 4), "MMFR4.EAESR", 32, 4, Unsigned, 0x0, 0x1;
    MMFR4_E3DSE = Space(7, 4), "MMFR4.E3DSE", 36, 4, Unsigned, 0x0, 0x1;
    MMFR4_SRMASK = Space(7, 4), "MMFR4.SRMASK", 44, 4, Unsigned, 0x0, 0x2;
    // Outside the ID space.
    PMSIDR_FDS = Other(Other::Pmsidr), "PMSIDR_EL1.FDS", 7, 1, Unsigned, 0, 0x1;
    TRBIDR_MPAM = Other(Other::Trbidr), "TRBIDR_EL1.MPAM", 12, 4, Unsigned, 0, 0xf;
}

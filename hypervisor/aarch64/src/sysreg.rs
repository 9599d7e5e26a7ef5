// SPDX-License-Identifier: MIT OR Apache-2.0

//! System registers, by name or, where assemblers may not know the name yet,
//! by encoding.
//!
//! Reads and writes are single `MRS` and `MSR` instructions that the compiler
//! neither drops nor reorders among each other. They are no barriers for
//! memory accesses, and have none of the context synchronization that some
//! writes need (DDI 0487, "Synchronization requirements for AArch64 System
//! registers"): whoever needs it says so with an ISB of its own, or by the
//! ERET that follows.

macro_rules! registers {
    ($($name:ident = $encoding:literal;)*) => {$(
        #[doc = concat!("`", stringify!($name), "`.")]
        #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
        pub(crate) struct $name;

        #[allow(dead_code)]
        impl $name {
            /// Reads the register.
            #[inline(always)]
            pub fn read() -> u64 {
                let value;
                // SAFETY: reading a register of this list changes nothing.
                // Where the register exists only with some feature, the
                // callers look at the feature first.
                unsafe {
                    core::arch::asm!(
                        concat!("mrs {}, ", $encoding),
                        out(reg) value,
                        options(nomem, nostack, preserves_flags),
                    );
                }
                value
            }

            /// Writes the register.
            #[inline(always)]
            pub fn write(value: u64) {
                // SAFETY: none of these registers takes part in EL2's own
                // translation, so no write to one of them changes what a Rust
                // reference at EL2 means; those that do (`SCTLR_EL2`,
                // `TTBR0_EL2`, …) are not in the list.
                unsafe {
                    core::arch::asm!(
                        concat!("msr ", $encoding, ", {}"),
                        in(reg) value,
                        options(nomem, nostack, preserves_flags),
                    );
                }
            }
        }
    )*};
}

impl VDISR_EL2 {
    /// Writes 0, from no register that would have to be set first.
    #[inline(always)]
    pub fn clear() {
        // SAFETY: as for `write`.
        unsafe {
            core::arch::asm!("msr s3_4_c12_c1_1, xzr", options(nomem, nostack, preserves_flags));
        }
    }
}

// Identification.
registers! {
    ID_AA64PFR0_EL1 = "id_aa64pfr0_el1";
    MIDR_EL1 = "midr_el1";
    REVIDR_EL1 = "revidr_el1";
    MPIDR_EL1 = "mpidr_el1";
    CTR_EL0 = "ctr_el0";
    DCZID_EL0 = "dczid_el0";
    SMIDR_EL1 = "s3_1_c0_c0_6";
    MPAMIDR_EL1 = "s3_0_c10_c4_4";
    PMBIDR_EL1 = "s3_0_c9_c10_7";
    PMSIDR_EL1 = "s3_0_c9_c9_7";
    TRBIDR_EL1 = "s3_0_c9_c11_7";
}

// EL2's control over EL1 and EL0.
registers! {
    HCR_EL2 = "hcr_el2";
    DISR_EL1 = "s3_0_c12_c1_1";
    VDISR_EL2 = "s3_4_c12_c1_1";
    HCRX_EL2 = "s3_4_c1_c2_2";
    CPTR_EL2 = "cptr_el2";
    MDCR_EL2 = "mdcr_el2";
    HSTR_EL2 = "hstr_el2";
    HACR_EL2 = "hacr_el2";
    ACTLR_EL2 = "actlr_el2";
    VPIDR_EL2 = "vpidr_el2";
    VMPIDR_EL2 = "vmpidr_el2";
    VTTBR_EL2 = "vttbr_el2";
    VTCR_EL2 = "vtcr_el2";
    HFGRTR_EL2 = "s3_4_c1_c1_4";
    HFGWTR_EL2 = "s3_4_c1_c1_5";
    HFGITR_EL2 = "s3_4_c1_c1_6";
    HDFGRTR_EL2 = "s3_4_c3_c1_4";
    HDFGWTR_EL2 = "s3_4_c3_c1_5";
    HAFGRTR_EL2 = "s3_4_c3_c1_6";
    HDFGRTR2_EL2 = "s3_4_c3_c1_0";
    HDFGWTR2_EL2 = "s3_4_c3_c1_1";
    HFGRTR2_EL2 = "s3_4_c3_c1_2";
    HFGWTR2_EL2 = "s3_4_c3_c1_3";
    HFGITR2_EL2 = "s3_4_c3_c1_7";
    ICH_HFGRTR_EL2 = "s3_4_c12_c9_4";
    ICH_HFGWTR_EL2 = "s3_4_c12_c9_6";
    ICH_HFGITR_EL2 = "s3_4_c12_c9_7";
    ZCR_EL2 = "s3_4_c1_c2_0";
    SMCR_EL2 = "s3_4_c1_c2_6";
    SMPRIMAP_EL2 = "s3_4_c1_c2_5";
    SVCR = "s3_3_c4_c2_2";
    FPMR = "s3_3_c4_c4_2";
    MPAM2_EL2 = "s3_4_c10_c5_0";
    MPAMHCR_EL2 = "s3_4_c10_c4_0";
    ICC_SRE_EL2 = "s3_4_c12_c9_5";
    ICH_HCR_EL2 = "s3_4_c12_c11_0";
    CNTHCTL_EL2 = "cnthctl_el2";
    CNTVOFF_EL2 = "cntvoff_el2";
    CNTHP_CTL_EL2 = "cnthp_ctl_el2";
    CNTHP_CVAL_EL2 = "cnthp_cval_el2";
    TRFCR_EL2 = "s3_4_c1_c2_1";
    PMSCR_EL2 = "s3_4_c9_c9_0";
    BRBCR_EL2 = "s2_4_c9_c0_0";
}

// The virtual CPU interface, and EL2's use of the physical one.
registers! {
    ICH_VTR_EL2 = "s3_4_c12_c11_1";
    ICH_MISR_EL2 = "s3_4_c12_c11_2";
    ICH_VMCR_EL2 = "s3_4_c12_c11_7";
    ICH_AP0R0_EL2 = "s3_4_c12_c8_0";
    ICH_AP0R1_EL2 = "s3_4_c12_c8_1";
    ICH_AP0R2_EL2 = "s3_4_c12_c8_2";
    ICH_AP0R3_EL2 = "s3_4_c12_c8_3";
    ICH_AP1R0_EL2 = "s3_4_c12_c9_0";
    ICH_AP1R1_EL2 = "s3_4_c12_c9_1";
    ICH_AP1R2_EL2 = "s3_4_c12_c9_2";
    ICH_AP1R3_EL2 = "s3_4_c12_c9_3";
    ICH_LR0_EL2 = "s3_4_c12_c12_0";
    ICH_LR1_EL2 = "s3_4_c12_c12_1";
    ICH_LR2_EL2 = "s3_4_c12_c12_2";
    ICH_LR3_EL2 = "s3_4_c12_c12_3";
    ICH_LR4_EL2 = "s3_4_c12_c12_4";
    ICH_LR5_EL2 = "s3_4_c12_c12_5";
    ICH_LR6_EL2 = "s3_4_c12_c12_6";
    ICH_LR7_EL2 = "s3_4_c12_c12_7";
    ICH_LR8_EL2 = "s3_4_c12_c13_0";
    ICH_LR9_EL2 = "s3_4_c12_c13_1";
    ICH_LR10_EL2 = "s3_4_c12_c13_2";
    ICH_LR11_EL2 = "s3_4_c12_c13_3";
    ICH_LR12_EL2 = "s3_4_c12_c13_4";
    ICH_LR13_EL2 = "s3_4_c12_c13_5";
    ICH_LR14_EL2 = "s3_4_c12_c13_6";
    ICH_LR15_EL2 = "s3_4_c12_c13_7";
    ICC_HPPIR1_EL1 = "s3_0_c12_c12_2";
    ICC_IAR1_EL1 = "s3_0_c12_c12_0";
    ICC_EOIR1_EL1 = "s3_0_c12_c12_1";
    ICC_DIR_EL1 = "s3_0_c12_c11_1";
    ICC_CTLR_EL1 = "s3_0_c12_c12_4";
    ICC_SGI1R_EL1 = "s3_0_c12_c11_5";
}

// Exceptions taken to EL2, and EL2's own.
registers! {
    ESR_EL2 = "esr_el2";
    FAR_EL2 = "far_el2";
    HPFAR_EL2 = "hpfar_el2";
    ISR_EL1 = "isr_el1";
    ELR_EL2 = "elr_el2";
    SPSR_EL2 = "spsr_el2";
    VBAR_EL2 = "vbar_el2";
    TPIDR_EL2 = "tpidr_el2";
}

// EL1's and EL0's own.
registers! {
    SCTLR_EL1 = "sctlr_el1";
    CPACR_EL1 = "cpacr_el1";
    TTBR0_EL1 = "ttbr0_el1";
    TTBR1_EL1 = "ttbr1_el1";
    TCR_EL1 = "tcr_el1";
    VBAR_EL1 = "vbar_el1";
    ELR_EL1 = "elr_el1";
    SPSR_EL1 = "spsr_el1";
    ESR_EL1 = "esr_el1";
    FAR_EL1 = "far_el1";
    AFSR0_EL1 = "afsr0_el1";
    AFSR1_EL1 = "afsr1_el1";
    AMAIR_EL1 = "amair_el1";
    PAR_EL1 = "par_el1";
    ICC_SRE_EL1 = "s3_0_c12_c12_5";
    CONTEXTIDR_EL1 = "contextidr_el1";
    CNTKCTL_EL1 = "cntkctl_el1";
    MDSCR_EL1 = "mdscr_el1";
    OSLSR_EL1 = "oslsr_el1";
    OSLAR_EL1 = "s2_0_c1_c0_4";
    CNTV_CTL_EL0 = "cntv_ctl_el0";
    CNTV_CVAL_EL0 = "cntv_cval_el0";
    CNTPCT_EL0 = "cntpct_el0";
    CNTFRQ_EL0 = "cntfrq_el0";
    PMCR_EL0 = "pmcr_el0";
    LORC_EL1 = "s3_0_c10_c4_3";
    PMSCR_EL1 = "s3_0_c9_c9_0";
    PMBLIMITR_EL1 = "s3_0_c9_c10_0";
    TRFCR_EL1 = "s3_0_c1_c2_1";
    TRBLIMITR_EL1 = "s3_0_c9_c11_0";
    BRBCR_EL1 = "s2_1_c9_c0_0";
    GCSCR_EL1 = "s3_0_c2_c5_0";
    GCSCRE0_EL1 = "s3_0_c2_c5_2";
}

/// The unsigned four-bit field of an identification register at bit `shift`.
pub(crate) const fn id_field(register: u64, shift: u32) -> u8 {
    (register >> shift & 0xf) as u8
}

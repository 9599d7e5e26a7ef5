// SPDX-License-Identifier: MIT OR Apache-2.0

//! What Escrow says about the machine's CPUs: their errata, and how EL2 is
//! hardened against their speculation.

/// Numbers the bits of a word, with a name for people.
macro_rules! bits {
    ($(#[$doc:meta])* $type:ident { $($(#[$variant_doc:meta])* $name:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum $type { $($(#[$variant_doc])* $name,)* }

        impl $type {
            /// All, in the order of their bits.
            pub const ALL: &'static [$type] = &[$($type::$name),*];

            /// What it is called.
            pub const fn name(self) -> &'static str {
                match self { $($type::$name => $text,)* }
            }

            /// Its bit.
            pub const fn bit(self) -> u64 {
                1 << self as u8
            }

            /// Those whose bits are set in a word.
            pub fn in_word(word: u64) -> impl Iterator<Item = $type> {
                Self::ALL.iter().copied().filter(move |one| word & one.bit() != 0)
            }
        }
    };
}

bits! {
    /// An erratum of a CPU that bears on what Escrow promises. The discriminant is
    /// its bit in what [`INFO_ERRATA`](crate::call::INFO_ERRATA) answers.
    Erratum {
        /// A `TLBI` is done before the stores that it should have waited for: EL2
        /// repeats it.
        RepeatTlbi = "TLBI-completion (TLBI is repeated)",
        /// A speculative `AT` mixes the registers of two VMs: walks are held off while
        /// EL2 changes them.
        SpeculativeAt = "speculative-AT (walks are held off)",
        /// The trace buffer is not flushed by one `TSB CSYNC`: EL2 executes two.
        TsbFlush = "trace-flush (TSB CSYNC is repeated)",
        /// The trace buffer does not stop: it is hidden.
        TraceBuffer = "trace-buffer (hidden)",
        /// The matrix unit's stores outlast a `TLBI`: it is hidden.
        SmeCompletion = "SME-completion (SME is hidden)",
        /// Merged pages may go around stage 2: the firmware's to mend.
        PageAggregation = "CVE-2024-5660 (up to the firmware)",
        /// Reads of `PAR_EL1` may hang the CPU: the firmware's to mend.
        ParDeadlock = "1508412 (up to the firmware)",
        /// Writes of `HCR_EL2` corrupt translations: the CPU is not used.
        HcrWrite = "AC04_CPU_23 (the CPU is not used)",
        /// Broadcast `TLBI` corrupts instruction caches: the CPU is not used.
        TlbiCorrupts = "27456 (the CPU is not used)",
    }
}

/// The bits of [`Hardening`] that say that something is open.
pub const OPEN: u64 = Hardening::OpenTargets.bit() | Hardening::OpenHistory.bit();

bits! {
    /// How an entry to EL2 is kept from speculating where a VM wants it to. The
    /// discriminant is its bit in what
    /// [`INFO_HARDENING`](crate::call::INFO_HARDENING) answers: there is a CPU
    /// that does it so.
    Hardening {
        /// The CPU says, or is known, to need nothing.
        NotNeeded = "not needed",
        /// `CLRBHB` on each entry.
        ClearHistory = "CLRBHB",
        /// A loop of branches on each entry, as long as the CPU's branch history.
        Loop = "loop of branches",
        /// A call to the firmware on each entry (SMCCC_ARCH_WORKAROUND_1 or 3).
        Firmware = "firmware call",
        /// The CPU needs the firmware's help against trained branch targets
        /// (CVE-2017-5715), and the firmware has none.
        OpenTargets = "branch targets: the firmware has no call",
        /// The same for branch history (CVE-2022-23960).
        OpenHistory = "branch history: the firmware has no call",
    }
}

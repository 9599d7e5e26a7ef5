// SPDX-License-Identifier: MIT OR Apache-2.0

//! What is wrong with a trace, for programs and for people.

use std::fmt;

/// The rules of the Arm Architecture Reference Manual (DDI 0487) that a trace
/// is held against, and the checks of the trace itself.
///
/// The identifiers in brackets are the manual's. They stay the same from issue
/// to issue; the numbers of its sections do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rule {
    /// A valid descriptor is overwritten by one that is valid and differs in
    /// memory type, shareability, cacheability, output address, block size, or in
    /// being a table (R_WHZWS).
    BreakBeforeMake,
    /// A valid descriptor is written while the invalidation of what was there
    /// before is not complete (R_DDMVT).
    EarlyMake,
    /// Memory is zeroed, mapped elsewhere or used as a table while a TLB may
    /// still translate to it (R_LXHLD).
    EarlyReuse,
    /// A table page is written, zeroed, mapped or linked anew while walkers may
    /// still read it, from tables or from what TLBs hold of them (R_RVJDB).
    TableReuse,
    /// A table is linked before what was written to it is ordered before the
    /// link (R_TGRMW, R_SPVBD).
    UnpublishedTable,
    /// A call returns before what it changed has taken effect: a new descriptor
    /// without DSB (R_SPVBD), an invalidation that is not complete (R_GPPYH), or
    /// a completed one without context synchronization (R_BLDZX).
    Return,
    /// A VMID is in use twice or too early (R_NWYRD), or TLB maintenance is
    /// issued while the write of its VMID to `VTTBR_EL2` is not synchronized.
    Vmid,
    /// On a CPU that executes `AT` speculatively, `VTTBR_EL2` changes while walks
    /// of EL1&0 are not held off, or they are held off or resumed in another
    /// order than the erratum asks for.
    Walks,
    /// A VM has a translation to memory that the ledger says it cannot reach.
    Access,
    /// The trace contradicts itself: it misses an event.
    Replay,
}

impl Rule {
    /// All, in the order of their descriptions.
    pub const ALL: [Rule; 10] = [
        Rule::BreakBeforeMake,
        Rule::EarlyMake,
        Rule::EarlyReuse,
        Rule::TableReuse,
        Rule::UnpublishedTable,
        Rule::Return,
        Rule::Vmid,
        Rule::Walks,
        Rule::Access,
        Rule::Replay,
    ];
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Rule::BreakBeforeMake => "break-before-make",
            Rule::EarlyMake => "early-make",
            Rule::EarlyReuse => "early-reuse",
            Rule::TableReuse => "table-reuse",
            Rule::UnpublishedTable => "unpublished-table",
            Rule::Return => "return",
            Rule::Vmid => "vmid",
            Rule::Walks => "walks",
            Rule::Access => "access",
            Rule::Replay => "replay",
        })
    }
}

/// The first step that an invalidation lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Missing {
    /// The DSB by the writer that makes the invalid descriptor visible.
    VisibleBreak,
    /// TLB maintenance of stage 2 that covers it.
    Stage2,
    /// The DSB that completes it.
    Stage2Dsb,
    /// TLB maintenance of what combines both stages.
    Combined,
    /// The DSB that completes it.
    CombinedDsb,
    /// Another TLBI, where CPUs have an erratum, and its DSB.
    Repetition,
    /// The context synchronization event after that.
    Synchronization,
    /// The DSB that makes a new valid descriptor visible.
    VisibleMake,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Missing::VisibleBreak => "no DSB of its CPU has made the change visible to walkers",
            Missing::Stage2 => "no TLBI has removed it from stage-2 TLB entries",
            Missing::Stage2Dsb => "no DSB ISH of the issuing CPU has completed its stage-2 TLBI",
            Missing::Combined => {
                "no TLBI VMALLE1IS has removed it from TLB entries that combine both stages"
            }
            Missing::CombinedDsb => "no DSB ISH of the issuing CPU has completed its TLBI",
            Missing::Repetition => {
                "no further TLBI with a DSB ISH has waited for the stores that it translated, as \
                 the erratum of these CPUs asks for"
            }
            Missing::Synchronization => "no ISB follows the DSB that completed the invalidation",
            Missing::VisibleMake => "no DSB of its CPU has made the new descriptor visible",
        })
    }
}

/// Something wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The rule that is broken.
    pub rule: Rule,
    /// The line on which it is broken.
    pub line: usize,
    /// The line on which it began: where the old translation went, mostly.
    pub since: Option<usize>,
    /// What had to come in between.
    pub missing: Option<Missing>,
    /// The same for people, without the lines.
    pub text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}: {}", self.line, self.rule, self.text)?;
        if let Some(since) = self.since {
            write!(f, " (since line {since})")?;
        }
        self.missing.map_or(Ok(()), |missing| write!(f, ": {missing}"))
    }
}

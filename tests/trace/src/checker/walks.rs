// SPDX-License-Identifier: MIT OR Apache-2.0

//! The order in which a CPU that executes `AT` speculatively goes from one VM to
//! another.

use super::{At, Checker};
use crate::finding::Rule;

/// `TCR_EL1.EPD0` and `EPD1`: no walk from either base.
const EPD: u64 = 1 << 7 | 1 << 23;
/// `SCTLR_EL1.M`: stage 1 is on.
const M: u64 = 1 << 0;

/// Something that a CPU wrote to a register of EL1&0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Bit {
    #[default]
    Clear,
    /// Set, on this line, without an ISB since.
    Pending(usize),
    Set,
}

impl Bit {
    /// Writing what is set already has no effect that is to be waited for.
    fn write(&mut self, set: bool, line: usize) {
        *self = match (set, *self) {
            (false, _) => Bit::Clear,
            (true, Bit::Clear) => Bit::Pending(line),
            (true, before) => before,
        }
    }

    fn synchronize(&mut self) {
        if let Bit::Pending(_) = self {
            *self = Bit::Set;
        }
    }

    fn since(self) -> Option<usize> {
        if let Bit::Pending(line) = self { Some(line) } else { None }
    }
}

/// What holds off the walks of a CPU.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Walks {
    /// `EPD0` and `EPD1` together.
    epd: Bit,
    m: Bit,
    /// The line of a write of `SCTLR_EL1` that may not have taken effect.
    sctlr: Option<usize>,
    /// The same of `VTTBR_EL2`.
    vttbr: Option<usize>,
}

impl Walks {
    pub(super) fn synchronize(&mut self) {
        self.epd.synchronize();
        self.m.synchronize();
        self.sctlr = None;
        self.vttbr = None;
    }
}

impl Checker {
    pub(super) fn tcr(&mut self, at: At, value: u64) {
        let cpu = self.cpu(at.cpu);
        let (speculates, walks) = (cpu.speculates, cpu.walks);
        cpu.walks.epd.write(value & EPD == EPD, at.line);
        if !speculates || walks.epd == Bit::Clear || value & EPD == EPD {
            return;
        }
        if let Some(since) = walks.vttbr {
            let text = "walks go on while the write of VTTBR_EL2 may not have taken effect";
            self.find(Rule::Walks, at, Some(since), text.into());
        } else if let Some(since) = walks.sctlr {
            let text = "walks go on while the write of SCTLR_EL1 may not have taken effect";
            self.find(Rule::Walks, at, Some(since), text.into());
        }
    }

    pub(super) fn sctlr(&mut self, at: At, value: u64) {
        let cpu = self.cpu(at.cpu);
        let (speculates, walks) = (cpu.speculates, cpu.walks);
        cpu.walks.m.write(value & M != 0, at.line);
        cpu.walks.sctlr = Some(at.line);
        if !speculates {
            return;
        }
        if walks.epd != Bit::Set && value & M != 0 && walks.m == Bit::Clear {
            let text = "stage 1 is switched on while it may be walked: TCR_EL1.EPD0 and EPD1 are \
                        not set, or there is no ISB in between";
            self.find(Rule::Walks, at, walks.epd.since(), text.into());
        } else if let (Some(since), true) = (walks.vttbr, value & M == 0) {
            let text = "stage 1 is switched off while the write of VTTBR_EL2 may not have taken \
                        effect";
            self.find(Rule::Walks, at, Some(since), text.into());
        }
    }

    /// `VTTBR_EL2` is written.
    pub(super) fn switches(&mut self, at: At) {
        let cpu = self.cpu(at.cpu);
        let (speculates, walks) = (cpu.speculates, cpu.walks);
        cpu.walks.vttbr = Some(at.line);
        if !speculates {
            return;
        }
        if walks.epd == Bit::Set && walks.m == Bit::Set {
            self.report.counts.held_off += 1;
        } else {
            let text = "VTTBR_EL2 changes and a speculative AT may walk: TCR_EL1.EPD0, EPD1 and \
                        SCTLR_EL1.M are not set, or there is no ISB in between";
            self.find(Rule::Walks, at, walks.epd.since().or(walks.m.since()), text.into());
        }
    }
}

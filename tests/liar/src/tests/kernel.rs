// SPDX-License-Identifier: MIT OR Apache-2.0

//! Accesses of the kernel's own that may fail, and that say so.

use anyhow::{Context as _, Result, ensure};
use escrow_shim_tests::runner::same;

use super::{middle_home, middle_lent};
use crate::borrower::Borrower;
use crate::device::{Liar, Way};
use crate::kcore::Kcore;
use crate::region::{PAGE, Region, load};

const EFAULT: i64 = -(libc::EFAULT as i64);

/// `copy_from_kernel_nofault` and `get_kernel_nofault`: by them look tracers,
/// kgdb and `/proc/kcore` at memory.
pub fn nofault() -> Result<()> {
    let (liar, region) = (Liar::open()?, Region::private(3)?);
    let linear = liar.hold(region.page(1))?.linear as usize;
    let expected = load(region.page(1));
    for way in [Way::NoFault, Way::GetNoFault] {
        same(liar.probe(way, linear, 0, 0)?, (expected, 0))?;
    }
    let (borrower, _) = middle_lent(&liar, &region)?;
    for way in [Way::NoFault, Way::GetNoFault] {
        for offset in [0, 8, PAGE - 8] {
            let seen = liar.probe(way, linear + offset, 0, 0)?.1;
            same(seen, EFAULT).with_context(|| format!("{way:?}"))?;
        }
    }
    middle_home(borrower, &region)
}

/// `/proc/kcore`: zeros, where nothing can be read.
pub fn kcore() -> Result<()> {
    let (liar, region) = (Liar::open()?, Region::private(3)?);
    let kcore = Kcore::open()?;
    let frames = [0, 1, 2].map(|page| liar.hold(region.page(page)).map(|page| page.frame));
    let mut pages = Vec::new();
    for (page, frame) in frames.into_iter().enumerate() {
        let frame = frame?;
        let mine = kcore.read(frame, PAGE)?;
        same(&mine[..8], &load(region.page(page)).to_le_bytes())?;
        pages.push((frame, mine));
    }
    let (borrower, _) = middle_lent(&liar, &region)?;
    for (page, (frame, mine)) in pages.iter().enumerate() {
        let seen = kcore.read(*frame, PAGE)?;
        if page == 1 {
            ensure!(seen.iter().all(|&byte| byte == 0), "something of the page shows");
        } else {
            ensure!(seen == *mine, "a neighbour shows something else");
        }
    }
    middle_home(borrower, &region)
}

/// A word that begins before the edge: the kernel reads names that way, and
/// takes zeros for what it does not get.
pub fn words_over_the_edge() -> Result<()> {
    let liar = Liar::open()?;
    let page = liar.pair()?;
    let edge = page.linear as usize;
    let word = u64::from_le_bytes(*b"abcdefgh");
    liar.probe(Way::Store, edge - 8, 0, word)?;
    // The name's hash where nothing is lent.
    let hash = |length| liar.probe(Way::Hash, edge - length as usize, length, 0);
    let hashes = (1..=8).map(hash).collect::<Result<Vec<_>>>()?;
    let mut borrower = Borrower::new(&liar)?;
    borrower.lend(page.frame)?;
    for length in 1..=8_u32 {
        let left = 64 - 8 * length;
        let (seen, _) = liar.probe(Way::ZeroPad, edge - length as usize, 0, 0)?;
        same(seen, word.checked_shr(left).unwrap_or(0))
            .with_context(|| format!("{length} bytes"))?;
        same(hash(length)?, hashes[length as usize - 1])?;
    }
    borrower.home()?;
    same(liar.probe(Way::Load, edge, 0, 0)?.0, 0)?;
    same(liar.probe(Way::Load, edge - 8, 0, 0)?.0, word)
}

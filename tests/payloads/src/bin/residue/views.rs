// SPDX-License-Identifier: MIT OR Apache-2.0

//! Ways to look at memory: through the cache, past it by two kinds of mapping, and
//! with the MMU off.

use escrow_abi::{BLOCK_SIZE, PAGE_SIZE};
use escrow_payloads::host::{fill, peek, poke};
use escrow_payloads::{Host, Outcome, check_eq, mmu};

/// GiB of the payload's own map that are walked through tables, for the views past
/// the cache.
const UNCACHED: u64 = 300;
const DEVICE: u64 = 301;

/// Somebody who looks at memory in all ways.
pub struct Views {
    tables: [u64; 2],
}

/// What a look at memory shows: all words or-ed, and exclusive-or-ed.
pub type Digest = [u64; 2];

/// Memory that is all zeros.
pub const ZEROS: Digest = [0, 0];

fn digest(at: u64, size: u64) -> Digest {
    let words = (at..at + size).step_by(8).map(peek);
    words.fold(ZEROS, |[or, xor], word| [or | word, xor ^ word])
}

impl Views {
    pub fn new(host: &mut Host) -> Views {
        let tables = [host.page(), host.page()];
        for table in tables {
            for n in 0..512 {
                poke(table + n * 8, 0);
            }
        }
        Views { tables }
    }

    /// The names of the views, and what each shows. All of the range is in one block.
    pub fn look(&self, at: u64, size: u64) -> [(&'static str, Digest); 4] {
        let block = at & !(BLOCK_SIZE - 1);
        let [uncached, device] = self.tables;
        poke(uncached, mmu::uncached_block_entry(block));
        poke(device, mmu::device_block_entry(block));
        mmu::set_table(UNCACHED as usize, uncached);
        mmu::set_table(DEVICE as usize, device);
        let seen = [
            ("past the cache", digest(UNCACHED * mmu::GIB + at % BLOCK_SIZE, size)),
            ("as a device", digest(DEVICE * mmu::GIB + at % BLOCK_SIZE, size)),
            ("with the MMU off", mmu::digest_without_mmu(at, size)),
            // Last, so that it brings nothing into the cache for the others.
            ("through the cache", digest(at, size)),
        ];
        mmu::clear_table(UNCACHED as usize);
        mmu::clear_table(DEVICE as usize);
        seen
    }

    /// Fills pages with a pattern that every view shows.
    ///
    /// # Errors
    /// One does not.
    pub fn fill(&self, at: u64, size: u64, salt: u64) -> Outcome<Digest> {
        for page in (at..at + size).step_by(PAGE_SIZE as usize) {
            fill(page, salt);
        }
        // This host's own caches are its own affair.
        mmu::clean(at, size);
        let pattern = digest(at, size);
        self.shows(at, size, pattern)?;
        Ok(pattern)
    }

    /// Checks what every view shows.
    ///
    /// # Errors
    /// One shows something else.
    pub fn shows(&self, at: u64, size: u64, expected: Digest) -> Outcome {
        for (name, seen) in self.look(at, size) {
            check_eq!(seen, expected, "{at:#x}, {size:#x} bytes {name}");
        }
        Ok(())
    }
}

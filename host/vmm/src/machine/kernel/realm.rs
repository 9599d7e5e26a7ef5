// SPDX-License-Identifier: MIT OR Apache-2.0

//! Whether a kernel can be the guest of a protected VM: whether it calls Arm's Realm Services
//! Interface.
//!
//! A kernel does not say that in its header. One that can has the code for it built in, as the
//! options of distributions for confidential guests do (ARM64's `arch/arm64/kernel/rsi.c` has no
//! option of its own), and with the code what it prints.

use memchr::memmem;

/// What a kernel prints when it has found the interface (Linux, `arm64_rsi_init`).
const PRINTED: &[u8] = b"RME: Using RSI version ";

/// A search in what is read piece by piece.
#[derive(Default)]
pub struct Search {
    found: bool,
    /// The end of what was read: what is searched for may begin in it.
    end: Vec<u8>,
}

impl Search {
    /// Whether it was found in what was read so far.
    pub fn found(&self) -> bool {
        self.found
    }

    /// Goes on with what follows.
    pub fn look_at(&mut self, bytes: &[u8]) {
        if self.found {
            return;
        }
        let most = PRINTED.len() - 1;
        // What begins before these bytes and ends in them.
        self.end.extend(&bytes[..bytes.len().min(most)]);
        self.found =
            memmem::find(&self.end, PRINTED).is_some() || memmem::find(bytes, PRINTED).is_some();
        if bytes.len() > most {
            self.end.clear();
            self.end.extend(&bytes[bytes.len() - most..]);
        }
        self.end.drain(..self.end.len().saturating_sub(most));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(bytes: &[u8], piece: usize) -> bool {
        let mut search = Search::default();
        bytes.chunks(piece).for_each(|bytes| search.look_at(bytes));
        search.found()
    }

    #[test]
    fn it_is_found_in_pieces_of_any_size() {
        let with = [&[b'R'; 100][..], PRINTED, b"%lu.%lu", &[0; 50]].concat();
        let without = [&[b'R'; 100][..], &PRINTED[..PRINTED.len() - 1], &[0; 50]].concat();
        for piece in 1..200 {
            assert!(found(&with, piece), "{piece}");
            assert!(!found(&without, piece), "{piece}");
        }
        assert!(!found(b"", 1));
    }
}

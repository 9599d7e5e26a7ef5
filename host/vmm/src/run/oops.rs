// SPDX-License-Identifier: MIT OR Apache-2.0

//! Whether a guest's kernel has panicked, by what it says on its console.
//!
//! With `panic=-1` a kernel that panics asks for a reset, as one that reboots
//! does; only its last words tell which. A guest may say them without cause. Then
//! its own exit status is wrong, and nothing else.

/// What Linux says (kernel/panic.c).
const LAST_WORDS: &[u8] = b"Kernel panic - not syncing";

/// Looks for the last words in a stream.
#[derive(Debug, Default)]
pub struct Listener {
    /// How many of them were the latest bytes.
    matched: usize,
    heard: bool,
}

impl Listener {
    /// The console's next bytes.
    pub fn hear(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte != LAST_WORDS[self.matched] {
                // The words' first letter is nowhere else in them, so that a
                // match that fails can only begin anew.
                self.matched = 0;
            }
            if byte == LAST_WORDS[self.matched] {
                self.matched += 1;
            }
            if self.matched == LAST_WORDS.len() {
                self.heard = true;
                self.matched = 0;
            }
        }
    }

    /// Whether they have been said.
    pub fn heard(&self) -> bool {
        self.heard
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(pieces: &[&str]) -> bool {
        let mut listener = Listener::default();
        pieces.iter().for_each(|piece| listener.hear(piece.as_bytes()));
        listener.heard()
    }

    #[test]
    fn the_words_are_heard_in_any_pieces() {
        assert!(!LAST_WORDS[1..].contains(&LAST_WORDS[0]));
        let line = "[    1.2] Kernel panic - not syncing: VFS: Unable to mount root fs\r\n";
        assert!(heard(&[line]));
        for at in 0..line.len() {
            assert!(heard(&[&line[..at], &line[at..]]), "{at}");
        }
        assert!(heard(&["Kernel paKernel panic - not syncing"]));
        assert!(heard(&["KKernel panic - not syncing"]));
        assert!(!heard(&["Kernel panic - not synciKernel", " panic - not"]));
        assert!(!heard(&["Kernel panic - ", "x", "not syncing"]));
    }
}

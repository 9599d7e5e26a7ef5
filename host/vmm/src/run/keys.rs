// SPDX-License-Identifier: MIT OR Apache-2.0

//! The escape key of a console at a terminal: what is typed goes to the guest,
//! but for Ctrl-] and the key after it.

/// Ctrl-].
const ESCAPE: u8 = 0x1d;

/// What the key after Ctrl-] asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Leave: a guest of this program ends, another's goes on.
    Quit,
    /// Explain the keys.
    Help,
}

/// What was typed so far, as far as it matters.
#[derive(Debug, Default)]
pub struct Keys {
    escaped: bool,
}

impl Keys {
    /// Takes what was typed: what the guest gets, and what else is asked for.
    ///
    /// What follows [`Command::Quit`] goes nowhere.
    pub fn typed(&mut self, bytes: &[u8]) -> (Vec<u8>, Option<Command>) {
        let mut guest = Vec::with_capacity(bytes.len());
        let mut command = None;
        for &byte in bytes {
            if !std::mem::take(&mut self.escaped) {
                match byte {
                    ESCAPE => self.escaped = true,
                    _ => guest.push(byte),
                }
                continue;
            }
            match byte {
                b'q' | b'Q' => return (guest, Some(Command::Quit)),
                b'?' | b'h' => command = Some(Command::Help),
                ESCAPE => guest.push(ESCAPE),
                // No command: the guest gets both bytes.
                _ => guest.extend([ESCAPE, byte]),
            }
        }
        (guest, command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_goes_to_the_guest() {
        let mut keys = Keys::default();
        assert_eq!(keys.typed(b"ls\r\x03\x04\x1a"), (b"ls\r\x03\x04\x1a".to_vec(), None));
        assert_eq!(keys.typed(b"a\x1d"), (b"a".to_vec(), None));
        assert_eq!(keys.typed(b"\x1db"), (b"\x1db".to_vec(), None));
        assert_eq!(keys.typed(b"\x1dxq"), (b"\x1dxq".to_vec(), None));
    }

    #[test]
    fn the_escape_key_works_in_two_reads_too() {
        let mut keys = Keys::default();
        assert_eq!(keys.typed(b"a\x1dqrest"), (b"a".to_vec(), Some(Command::Quit)));
        assert_eq!(keys.typed(b"\x1d"), (vec![], None));
        assert_eq!(keys.typed(b"?b"), (b"b".to_vec(), Some(Command::Help)));
        assert_eq!(keys.typed(b"q"), (b"q".to_vec(), None));
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! How a run ended, as an exit status and in words.

use nix::sys::signal::Signal;

use crate::machine::Ending;

/// Who ended a guest that did not end by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Killer {
    /// `escrow kill`, or the escape key at the terminal.
    Command,
    /// A signal to this program.
    Signal(Signal),
}

/// The exit status for options that cannot be followed, which is also that of the command line's
/// parser.
pub const WRONG_OPTIONS: u8 = 2;

/// The exit statuses, for the help text. 1 and 2 are every program's.
pub const HELP: &str = "\
Exit status:
  0      the guest powered off
  1      the guest could not be started, or not be run any further
  2      the command line, or the file of --config, is wrong
  3      the guest asked for a reset, and there was no --reboot
  4      the guest's kernel panicked
  5      Escrow ended the guest, because it did what no guest may do
  6      the guest was ended by `escrow kill`, or by Ctrl-] q
  128+N  signal N ended this program, and with it the guest";

/// The exit status of an ending. `panicked` says that the guest's kernel did.
pub fn code(ending: &Ending, killer: Option<Killer>, panicked: bool) -> u8 {
    match (ending, killer) {
        (Ending::Failed(_), _) => 1,
        (Ending::Crashed, _) => 5,
        (Ending::PowerOff | Ending::Reset, _) if panicked => 4,
        (Ending::PowerOff, _) => 0,
        (Ending::Reset, _) => 3,
        (Ending::Stopped, Some(Killer::Signal(signal))) => 128 + signal as u8,
        (Ending::Stopped, _) => 6,
    }
}

/// What to say about an ending that is none of the guest's own wish.
pub fn message(ending: &Ending, panicked: bool) -> Option<String> {
    match ending {
        Ending::Failed(error) => Some(format!("{error:#}")),
        Ending::Crashed => Some("Escrow has ended the guest; `escrow log` may tell why".to_owned()),
        Ending::PowerOff | Ending::Reset if panicked => {
            Some("the guest's kernel has panicked".to_owned())
        }
        Ending::PowerOff | Ending::Reset | Ending::Stopped => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_ending_has_a_status_of_its_own() {
        let failed = || Ending::Failed(anyhow::anyhow!("x"));
        let term = Some(Killer::Signal(Signal::SIGTERM));
        let codes = [
            code(&Ending::PowerOff, None, false),
            code(&failed(), None, false),
            code(&Ending::Reset, None, false),
            code(&Ending::Reset, None, true),
            code(&Ending::Crashed, None, false),
            code(&Ending::Stopped, Some(Killer::Command), false),
            code(&Ending::Stopped, term, false),
        ];
        assert_eq!(codes, [0, 1, 3, 4, 5, 6, 143]);
        // A guest that ended by itself was not killed, whoever tried.
        assert_eq!(code(&Ending::PowerOff, term, false), 0);
        for code in &codes[..6] {
            assert!(HELP.contains(&format!("\n  {code} ")), "{code}");
        }
    }
}

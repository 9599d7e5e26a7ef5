// SPDX-License-Identifier: MIT OR Apache-2.0

//! Escrow's own command line: words of the form `name=value`.
//!
//! | option | meaning |
//! | --- | --- |
//! | `guests=` | how many guests there may be at a time |
//! | `log=` | `ring`, as it is without: once the host runs, lines go to memory alone, where the host reads them; `uart`: also to the console, as long as that has room |
//! | `loglevel=` | `off`, `error`, `warn`, `info`, `debug` or `trace`; how much is logged |

use core::num::NonZeroU16;
use core::str::FromStr;

use log::LevelFilter;

/// What the command line asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How much is logged.
    pub log_level: LevelFilter,
    /// How many guests there may be at a time, at least one.
    pub guests: NonZeroU16,
    /// Whether the console gets lines also once the host runs. For debugging: the
    /// console is the host's then, and may keep EL2 waiting, if not for ever.
    pub log_to_uart: bool,
}

/// Guests that there may be at a time, if nothing else is asked for. Their slots take
/// about 5 KiB each.
const GUESTS: NonZeroU16 = NonZeroU16::new(63).unwrap();

impl Default for Options {
    fn default() -> Self {
        Options { log_level: LevelFilter::Info, log_to_uart: false, guests: GUESTS }
    }
}

impl Options {
    /// Reads a command line; what it does not know goes to `unknown`, and
    /// changes nothing.
    pub fn parse(line: &[u8], mut unknown: impl FnMut(&[u8])) -> Options {
        let mut options = Options::default();
        for word in line.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty()) {
            if let Some(level) = word.strip_prefix(b"loglevel=").and_then(parse) {
                options.log_level = level;
            } else if let Some(guests) = word.strip_prefix(b"guests=").and_then(parse) {
                options.guests = guests;
            } else if let b"log=ring" | b"log=uart" = word {
                options.log_to_uart = word == b"log=uart";
            } else {
                unknown(word);
            }
        }
        options
    }
}

fn parse<T: FromStr>(value: &[u8]) -> Option<T> {
    core::str::from_utf8(value).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_level_counts_and_the_rest_is_named() {
        let mut unknown = Vec::new();
        let options = Options::parse(b" loglevel=warn  x=1 loglevel=DEBUG\tloglevel=7 ", |word| {
            unknown.push(word.to_vec());
        });
        assert_eq!(options.log_level, LevelFilter::Debug);
        assert_eq!(unknown, [b"x=1".to_vec(), b"loglevel=7".to_vec()]);
        assert_eq!(Options::parse(b"", |_| panic!()), Options::default());
    }

    #[test]
    fn the_number_of_guests_is_one_or_more() {
        let parse = |line: &[u8], unknown: usize| {
            let mut seen = 0;
            let options = Options::parse(line, |_| seen += 1);
            assert_eq!(seen, unknown);
            options.guests.get()
        };
        assert_eq!(parse(b"guests=255 loglevel=off", 0), 255);
        assert_eq!(parse(b"guests=1 guests=4095", 0), 4095);
        assert_eq!(parse(b"guests=0 guests=-1 guests= guests=65536 guests=9x", 5), 63);
    }

    #[test]
    fn the_log_stays_off_the_console_unless_asked() {
        let parse = |line: &[u8]| Options::parse(line, |_| panic!()).log_to_uart;
        assert!(!parse(b"loglevel=debug"));
        assert!(parse(b"log=uart loglevel=debug"));
        assert!(!parse(b"log=uart log=ring"));
    }
}

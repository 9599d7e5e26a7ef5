// SPDX-License-Identifier: MIT OR Apache-2.0

//! Escrow's own command line: words of the form `name=value`.
//!
//! | option | meaning |
//! | --- | --- |
//! | `loglevel=` | `off`, `error`, `warn`, `info`, `debug` or `trace`; how much goes to the console |

use core::str::FromStr;

use log::LevelFilter;

/// What the command line asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How much goes to the console.
    pub log_level: LevelFilter,
}

impl Default for Options {
    fn default() -> Self {
        Options { log_level: LevelFilter::Info }
    }
}

impl Options {
    /// Reads a command line; what it does not know goes to `unknown`, and
    /// changes nothing.
    pub fn parse(line: &[u8], mut unknown: impl FnMut(&[u8])) -> Options {
        let mut options = Options::default();
        for word in line.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty()) {
            match word.strip_prefix(b"loglevel=").and_then(level) {
                Some(level) => options.log_level = level,
                None => unknown(word),
            }
        }
        options
    }
}

fn level(value: &[u8]) -> Option<LevelFilter> {
    LevelFilter::from_str(core::str::from_utf8(value).ok()?).ok()
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
}

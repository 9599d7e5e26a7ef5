// SPDX-License-Identifier: MIT OR Apache-2.0

use std::fmt::{Debug, Display};

use serde::Serialize;

/// One thing that a step looks at.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// What it is.
    pub what: String,
    /// What it should be.
    pub expected: String,
    /// What it is.
    pub seen: String,
    /// Whether that is good.
    pub ok: bool,
}

/// What a step looks at, in order.
#[derive(Debug, Default)]
pub struct Checks(Vec<Check>);

impl Checks {
    /// Notes something that must look the same as expected.
    pub fn equal(&mut self, what: &str, expected: impl Display, seen: impl Display) {
        let (expected, seen) = (expected.to_string(), seen.to_string());
        let ok = expected == seen;
        self.0.push(Check { what: what.to_owned(), expected, seen, ok });
    }

    /// All of them.
    pub fn into_list(self) -> Vec<Check> {
        self.0
    }
}

/// How a call ended, in a word: `done`, or the error's name.
pub fn outcome<T, E: Debug>(result: &Result<T, E>) -> String {
    match result {
        Ok(_) => "done".to_owned(),
        Err(error) => format!("{error:?}"),
    }
}

/// What is in some bytes, in a word: `zeros`, one of the given names, or the
/// first few of them.
pub fn contents(bytes: &[u8], known: &[(&str, &[u8])]) -> String {
    if bytes.iter().all(|&byte| byte == 0) {
        return "zeros".to_owned();
    }
    for (name, pattern) in known {
        // The first 8 bytes are enough: a part of a secret must not leak either.
        let piece = &pattern[..pattern.len().min(8)];
        if !piece.is_empty() && bytes.windows(piece.len()).any(|window| window == piece) {
            return (*name).to_owned();
        }
    }
    format!("{:02x?}…", &bytes[..bytes.len().min(8)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_named() {
        let known: &[(&str, &[u8])] = &[("the secret", b"s3cr3t!!")];
        assert_eq!(contents(&[0; 16], known), "zeros");
        assert_eq!(contents(b"...s3cr3t!!...", known), "the secret");
        assert_eq!(contents(&[0, 1], known), "[00, 01]…");
    }

    #[test]
    fn checks_compare() {
        let mut checks = Checks::default();
        checks.equal("a", 1, "1");
        checks.equal("b", 1, 2);
        let list = checks.into_list();
        assert!(list[0].ok && !list[1].ok);
        assert_eq!(outcome::<(), _>(&Err(nix::errno::Errno::EAGAIN)), "EAGAIN");
    }
}

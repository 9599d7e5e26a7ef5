// SPDX-License-Identifier: MIT OR Apache-2.0

use std::fmt;

use anyhow::{Context, Result};

/// The kernel's own record of what has happened to it:
/// `/proc/sys/kernel/tainted`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taint(u64);

/// Bits that mean that the kernel was hurt, of those in the kernel's
/// `Documentation/admin-guide/tainted-kernels.rst`.
const HURT: [(u32, &str); 4] = [(4, "machine check"), (5, "bad page"), (7, "oops"), (9, "warning")];

impl Taint {
    /// Asks the kernel.
    pub fn read() -> Result<Taint> {
        let path = "/proc/sys/kernel/tainted";
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
        let bits = text.trim().parse().with_context(|| format!("{path} says {text:?}"))?;
        Ok(Taint(bits))
    }

    /// What has happened to the kernel since `earlier`.
    pub fn since(self, earlier: Taint) -> Harm {
        Harm(self.0 & !earlier.0)
    }
}

/// What has happened to a kernel in a stretch of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Harm(u64);

impl Harm {
    /// Nothing bad: no oops, no warning, no bad page.
    pub fn is_none(self) -> bool {
        HURT.iter().all(|(bit, _)| self.0 >> bit & 1 == 0)
    }
}

impl fmt::Display for Harm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_none() {
            return f.write_str("unharmed");
        }
        let names = HURT.iter().filter(|(bit, _)| self.0 >> bit & 1 != 0).map(|(_, name)| *name);
        f.write_str(&names.collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_new_harm_counts() {
        let loaded = Taint(1 << 12 | 1 << 13);
        assert!(loaded.since(Taint(0)).is_none());
        assert!(Taint(1 << 9).since(Taint(1 << 9)).is_none());
        let hurt = Taint(1 << 12 | 1 << 7 | 1 << 9).since(loaded);
        assert!(!hurt.is_none());
        assert_eq!(hurt.to_string(), "oops, warning");
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

use std::fmt;

use escrow_vmcore::uapi::fdinfo;

/// What a guest memory says of the last lend that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Offset of the page in the memory, in bytes.
    pub offset: u64,
    /// References to it that nobody accounts for.
    pub excess: i64,
}

impl Refusal {
    /// Finds it in the text of `/proc/PID/fdinfo/FD`. `None` if there was no
    /// refusal, or the text does not say.
    pub fn parse(text: &str) -> Option<Refusal> {
        let value = text.lines().find_map(|line| {
            line.strip_prefix(fdinfo::LAST_REFUSAL)?.strip_prefix(':').map(str::trim)
        })?;
        let field = |name: &str| {
            value.split_whitespace().find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
        };
        let offset = u64::from_str_radix(field("offset")?.strip_prefix("0x")?, 16).ok()?;
        let excess = field("excess")?.parse().ok()?;
        Some(Refusal { offset, excess })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "offset {:#x}, excess {}", self.offset, self.excess)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_found() {
        let text = "pos:\t0\nflags:\t02000002\nsize:\t65536\nlent:\t0\n\
                    last_refusal:\toffset=0x10000 excess=1 accessible=0\n";
        assert_eq!(Refusal::parse(text), Some(Refusal { offset: 0x10000, excess: 1 }));
        let negative = "last_refusal:\toffset=0x0 excess=-1 accessible=0\n";
        assert_eq!(Refusal::parse(negative), Some(Refusal { offset: 0, excess: -1 }));
    }

    #[test]
    fn no_refusal_is_none() {
        for text in [
            "",
            "pos:\t0\n",
            "last_refusal:\tnone\n",
            "last_refusal:\toffset=16 excess=1\n",
            "last_refusal:\toffset=0x10\n",
            "last_refusal_of_all:\toffset=0x10 excess=1\n",
        ] {
            assert_eq!(Refusal::parse(text), None, "{text:?}");
        }
    }
}

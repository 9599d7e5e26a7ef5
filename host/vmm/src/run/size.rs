// SPDX-License-Identifier: MIT OR Apache-2.0

//! Sizes of memory, as people write them.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

use crate::machine::layout::MIB;

/// A number of bytes, a multiple of 2 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Size(pub u64);

/// What a size is a multiple of: so a guest's RAM is whole 2 MiB folios.
const GRANULE: u64 = 2 * MIB;

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = match &*text[digits.len()..].to_ascii_uppercase() {
            "" | "M" | "MB" | "MIB" => MIB,
            "G" | "GB" | "GIB" => 1024 * MIB,
            unit => return Err(format!("{unit} is no unit of memory: M (MiB) or G (GiB)")),
        };
        let number: u64 =
            digits.parse().map_err(|_| "a size is a number with M or G: 512M, 2G".to_owned())?;
        let bytes = number.checked_mul(unit).ok_or("that is more than any machine has")?;
        if bytes == 0 || !bytes.is_multiple_of(GRANULE) {
            return Err("the size must be a multiple of 2 MiB, and not 0".to_owned());
        }
        Ok(Size(bytes))
    }
}

impl TryFrom<String> for Size {
    type Error = String;

    fn try_from(text: String) -> Result<Size, String> {
        text.parse()
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_multiple_of(1024 * MIB) {
            write!(f, "{}G", self.0 / (1024 * MIB))
        } else {
            write!(f, "{}M", self.0 / MIB)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in
            [("512M", 512 * MIB), ("64", 64 * MIB), ("2g", 2048 * MIB), ("4GiB", 4096 * MIB)]
        {
            assert_eq!(text.parse(), Ok(Size(bytes)));
        }
        for bad in ["", "M", "0", "3M", "1K", "-2M", "1.5G", "99999999999999999999", "x"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
        assert!("18446744073709551614G".parse::<Size>().unwrap_err().contains("any machine"));
    }

    #[test]
    fn a_size_is_written_as_it_is_read() {
        for text in ["512M", "2G", "1026M"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
    }
}

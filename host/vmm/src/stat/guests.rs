// SPDX-License-Identifier: MIT OR Apache-2.0

//! The guests of `escrow run`: what their programs say of them, and which pages
//! they have. That is told to whoever may look into these programs: root, and
//! their own user.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::Result;
use escrow_vmcore::uapi::fdinfo;
use serde::Serialize;

use crate::run::{self, Name, Status};

/// A guest. Pages are of 4 KiB.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Guest {
    /// What `escrow ls` shows.
    #[serde(flatten)]
    pub status: Status,
    /// Pages of its RAM; `None` if another user's program has them.
    pub pages: Option<Pages>,
}

/// The pages of a guest's RAM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pages {
    /// That are there, and that the host has for itself.
    pub present: u64,
    /// Lent to the guest.
    pub lent: u64,
    /// Shared with it.
    pub shared: u64,
}

/// All guests.
pub fn read() -> Vec<Guest> {
    run::guests().into_iter().map(Guest::of).collect()
}

/// The one of that name.
pub fn read_one(name: &Name) -> Result<Guest> {
    run::guest(name).map(Guest::of)
}

impl Guest {
    fn of(status: Status) -> Guest {
        let pages = pages(&Path::new("/proc").join(status.pid.to_string()).join("fdinfo"));
        Guest { status, pages }
    }
}

/// The pages of all memories that a process has files of.
fn pages(folder: &Path) -> Option<Pages> {
    let mut seen = BTreeSet::new();
    let mut sum = Pages::default();
    for entry in fs::read_dir(folder).ok()?.flatten() {
        let Ok(text) = fs::read_to_string(entry.path()) else { continue };
        let facts: BTreeMap<_, _> =
            text.lines().filter_map(|line| line.split_once(":\t")).collect();
        let number = |name| facts.get(name)?.trim().parse::<u64>().ok();
        // Nothing else has all three.
        let (Some(present), Some(lent), Some(shared)) =
            (number(fdinfo::PRESENT), number(fdinfo::LENT), number(fdinfo::SHARED))
        else {
            continue;
        };
        // Two descriptors of one memory tell of the same pages.
        if seen.insert(number("ino")) {
            sum.present += present;
            sum.lent += lent;
            sum.shared += shared;
        }
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_those_of_memories_each_counted_once() {
        let folder = tempfile::tempdir().unwrap();
        let memory = |ino: u32, lent: u32| {
            format!(
                "pos:\t0\nflags:\t02\nino:\t{ino}\nsize:\t4096\npresent:\t3\nlent:\t{lent}\n\
                 shared:\t2\nlast_refusal:\tnone\n"
            )
        };
        for (fd, text) in [
            ("0", "pos:\t0\nflags:\t02\nino:\t7\n".to_owned()),
            ("3", memory(41, 100)),
            ("4", memory(41, 100)),
            ("5", memory(42, 10)),
            ("6", "ino:\t9\nwaiting:\t1\nlost:\t0\nunread:\t0\n".to_owned()),
        ] {
            fs::write(folder.path().join(fd), text).unwrap();
        }
        let expected = Pages { present: 6, lent: 110, shared: 4 };
        assert_eq!(pages(folder.path()), Some(expected));
        assert_eq!(pages(&folder.path().join("nobody")), None);
    }
}

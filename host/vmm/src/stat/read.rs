// SPDX-License-Identifier: MIT OR Apache-2.0

//! Where the numbers come from: sysfs, which everybody may read, and debugfs,
//! which may be absent, locked, or root's alone.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use escrow_vmcore::uapi;
use serde::Serialize;

use super::guests::{self, Guest};
use crate::host::Facts;

/// What there is to tell at one moment. The names of its fields are those of
/// the JSON (`docs/shim.md`): they stay, others may join them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Milliseconds since 1970.
    pub time_ms: u64,
    /// What Escrow says.
    pub escrow: Facts,
    /// What the shim says.
    pub shim: Shim,
    /// The memories; `None` where [`Self::lists_missing`] says why.
    pub memories: Option<Vec<Memory>>,
    /// The VMs, likewise.
    pub vms: Option<Vec<Vm>>,
    /// Who in the kernel has safe references to memories, likewise.
    pub holders: Option<Vec<Holder>>,
    /// Of each memory, the last lend that somebody was in the way of, likewise.
    pub refused: Option<Vec<Refused>>,
    /// Why there are no lists.
    pub lists_missing: Option<String>,
    /// The guests of `escrow run`.
    pub guests: Vec<Guest>,
}

/// Declares [`Shim`] and how it is read: one file for each field.
macro_rules! shim {
    ($($(#[$meta:meta])* $name:ident),* $(,)?) => {
        /// The shim's counts. Pages are of 4 KiB.
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
        pub struct Shim {
            $($(#[$meta])* pub $name: u64,)*
        }

        impl Shim {
            fn read_from(folder: &Path) -> Result<Shim> {
                Ok(Shim { $($name: number(&folder.join(stringify!($name)))?,)* })
            }
        }
    };
}

shim! {
    /// Guest memories that are open.
    memories,
    /// Their pages that the host has for itself.
    present,
    /// Their pages lent to guests.
    lent,
    /// Their pages shared with guests.
    shared,
    /// Their pages that Escrow should have given back.
    quarantined,
    /// Their pages whose memory is broken.
    poisoned,
    /// VMs of which something is left.
    vms,
    /// Pages that Escrow keeps VMs in.
    metadata,
    /// VMs that nobody has a file of, some of whose pages do not come home.
    zombies,
    /// Pages lent since the module was loaded.
    lends,
    /// Pages shared since then.
    shares,
    /// Pages not lent since then, because somebody used them.
    refusals,
    /// Waits for users of pages since then.
    retries,
    /// Pages that came home since then.
    reclaims,
    /// Of these, pages that a guest unlocked which lived on.
    unlocks,
    /// Pages asked back in vain since then.
    kept,
}

/// A guest memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Its inode.
    pub inode: u64,
    /// Its size in bytes.
    pub size: u64,
    /// 4 KiB pages that the host has for itself.
    pub present: u64,
    /// Pages lent to guests.
    pub lent: u64,
    /// Pages shared with guests.
    pub shared: u64,
    /// Pages that Escrow should have given back.
    pub quarantined: u64,
    /// Pages whose memory is broken.
    pub poisoned: u64,
    /// Pages not lent, because somebody used them.
    pub refusals: u64,
    /// Waits for users of pages.
    pub retries: u64,
    /// Process that created it.
    pub creator: u32,
    /// That process's name then.
    pub name: String,
}

/// A VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Vm {
    /// Escrow's handle, as debugfs has it (`0x…`): JSON's numbers may not hold
    /// all of it.
    pub handle: String,
    /// `created`, `started`, `down`, `ended` or `zombie`.
    pub state: String,
    /// vCPUs that have a file.
    pub vcpus: u64,
    /// 4 KiB pages that the guest reaches.
    pub mapped: u64,
    /// Pages that Escrow keeps it in.
    pub metadata: u64,
    /// Those of them that are free.
    pub free: u64,
    /// Pages that a protected VM's guest has opened to the host.
    pub opened: u64,
    /// Those of them that are the guest's alone again.
    pub taken_back: u64,
    /// Process that created it.
    pub creator: u32,
    /// That process's name then.
    pub name: String,
}

/// Somebody in the kernel who has safe references.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Holder {
    /// The memory's inode.
    pub inode: u64,
    /// Where in the memory they begin, in bytes.
    pub offset: u64,
    /// Of how many bytes they are.
    pub size: u64,
    /// How many they are: one for each folio.
    pub references: u64,
    /// How many of these folios are being accessed.
    pub accesses: u64,
    /// The holder's name.
    pub name: String,
}

/// A lend that somebody was in the way of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// The memory's inode.
    pub inode: u64,
    /// Where in the memory the page or block is, in bytes.
    pub offset: u64,
    /// References that nobody accounts for.
    pub excess: i64,
    /// Users in the kernel that needed it.
    pub accessible: u64,
    /// Who: names of holders, `a mapping`, or `a pin`.
    pub by: String,
}

/// What debugfs lists.
struct Lists {
    memories: Vec<Memory>,
    vms: Vec<Vm>,
    holders: Vec<Holder>,
    refused: Vec<Refused>,
}

/// The files.
pub struct Sources {
    sysfs: PathBuf,
    debugfs: PathBuf,
}

impl Default for Sources {
    fn default() -> Self {
        Sources { sysfs: uapi::SHIM_SYSFS_DIR.into(), debugfs: uapi::DEBUGFS_DIR.into() }
    }
}

impl Sources {
    /// Reads them all.
    pub fn read(&self) -> Result<Report> {
        let escrow = Facts::read()?;
        if !self.sysfs.is_dir() {
            bail!(
                "{} is missing: Escrow's module is older than this program",
                self.sysfs.display()
            );
        }
        let (lists, lists_missing) = match self.lists() {
            Ok(lists) => (Some(lists), None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        let (memories, vms, holders, refused) = match lists {
            Some(lists) => {
                (Some(lists.memories), Some(lists.vms), Some(lists.holders), Some(lists.refused))
            }
            None => (None, None, None, None),
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Report {
            time_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            escrow,
            shim: Shim::read_from(&self.sysfs)?,
            memories,
            vms,
            holders,
            refused,
            lists_missing,
            guests: guests::read(),
        })
    }

    fn lists(&self) -> Result<Lists> {
        let read = |name: &str| {
            let path = self.debugfs.join(name);
            // The name of a process need not be UTF-8.
            match fs::read(&path) {
                Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
                Err(error) => Err(explain(&path, &error)),
            }
        };
        Ok(Lists {
            memories: parse(&read("memories")?, Memory::from_row)?,
            vms: parse(&read("vms")?, Vm::from_row)?,
            holders: parse(&read("holders")?, Holder::from_row)?,
            refused: parse(&read("refusals")?, Refused::from_row)?,
        })
    }
}

/// Why a file of debugfs cannot be read, and what to do about it.
fn explain(path: &Path, error: &io::Error) -> anyhow::Error {
    let why = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "only root may read it, and nobody on a kernel that is locked down"
        }
        io::ErrorKind::NotFound => "debugfs is not mounted",
        _ => return anyhow::anyhow!("{}: {error}", path.display()),
    };
    anyhow::anyhow!("{}: {why}", path.display())
}

fn number(path: &Path) -> Result<u64> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("reading {} (needs root)", path.display()))?;
    text.trim().parse().with_context(|| format!("{} says {text:?}: no number", path.display()))
}

/// A line of a list: values by the names that the first line gives them, so
/// that columns may be added.
struct Row<'a>(BTreeMap<&'a str, &'a str>);

impl Row<'_> {
    fn text(&self, name: &str) -> Result<String> {
        let text = self.0.get(name).with_context(|| format!("there is no {name}"))?;
        Ok(unescape(text))
    }

    fn number<T>(&self, name: &str) -> Result<T>
    where
        T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>,
    {
        let text = self.text(name)?;
        text.parse().with_context(|| format!("{name} is {text:?}"))
    }
}

fn parse<T>(text: &str, from_row: impl Fn(&Row<'_>) -> Result<T>) -> Result<Vec<T>> {
    let mut lines = text.lines();
    let names: Vec<_> = lines.next().context("the list is empty")?.split(' ').collect();
    let rows = lines.map(|line| {
        let values: Vec<_> = line.split(' ').collect();
        if values.len() != names.len() {
            bail!("the line {line:?} has {} values for {} names", values.len(), names.len());
        }
        let row = Row(names.iter().copied().zip(values).collect());
        from_row(&row).with_context(|| format!("the line {line:?}"))
    });
    rows.collect()
}

impl Memory {
    fn from_row(row: &Row<'_>) -> Result<Memory> {
        Ok(Memory {
            inode: row.number("inode")?,
            size: row.number("size")?,
            present: row.number("present")?,
            lent: row.number("lent")?,
            shared: row.number("shared")?,
            quarantined: row.number("quarantined")?,
            poisoned: row.number("poisoned")?,
            refusals: row.number("refusals")?,
            retries: row.number("retries")?,
            creator: row.number("creator")?,
            name: row.text("name")?,
        })
    }
}

impl Vm {
    fn from_row(row: &Row<'_>) -> Result<Vm> {
        Ok(Vm {
            handle: row.text("handle")?,
            state: row.text("state")?,
            vcpus: row.number("vcpus")?,
            mapped: row.number("mapped")?,
            metadata: row.number("metadata")?,
            free: row.number("free")?,
            opened: row.number("opened")?,
            taken_back: row.number("taken_back")?,
            creator: row.number("creator")?,
            name: row.text("name")?,
        })
    }
}

impl Holder {
    fn from_row(row: &Row<'_>) -> Result<Holder> {
        Ok(Holder {
            inode: row.number("inode")?,
            offset: row.number("offset")?,
            size: row.number("size")?,
            references: row.number("references")?,
            accesses: row.number("accesses")?,
            name: row.text("name")?,
        })
    }
}

impl Refused {
    fn from_row(row: &Row<'_>) -> Result<Refused> {
        Ok(Refused {
            inode: row.number("inode")?,
            offset: row.number("offset")?,
            excess: row.number("excess")?,
            accessible: row.number("accessible")?,
            by: row.text("by")?,
        })
    }
}

/// Undoes the kernel's `seq_escape`: a backslash and three octal digits stand
/// for a byte.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let code = match (first, tail.get(..3)) {
            (b'\\', Some(digits)) if digits.iter().all(|digit| (b'0'..=b'7').contains(digit)) => {
                digits.iter().fold(0, |code, digit| code * 8 + u32::from(digit - b'0'))
            }
            _ => u32::MAX,
        };
        if let Ok(byte) = u8::try_from(code) {
            bytes.push(byte);
            rest = tail.get(3..).unwrap_or_default();
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub const MEMORIES: &str = "inode size present lent shared quarantined poisoned refusals retries creator name\n\
                                41 1048576 3 2 1 0 0 5 6 77 shim-tests\n\
                                42 4096 0 0 0 0 0 0 0 78 odd\\040na\\134me\n";
    const VMS: &str = "handle state vcpus mapped metadata free opened taken_back creator name\n\
                       0x1234 started 2 3 20 4 9 8 77 shim-tests\n";

    #[test]
    fn lists_are_read_by_the_names_of_their_columns() {
        let memories = parse(MEMORIES, Memory::from_row).unwrap();
        assert_eq!(memories.len(), 2);
        assert_eq!((memories[0].inode, memories[0].size, memories[0].refusals), (41, 1 << 20, 5));
        assert_eq!(memories[1].name, "odd na\\me");
        let vms = parse(VMS, Vm::from_row).unwrap();
        assert_eq!((vms[0].handle.as_str(), vms[0].mapped, vms[0].free), ("0x1234", 3, 4));
        assert_eq!((vms[0].opened, vms[0].taken_back), (9, 8));

        let holders = "inode offset size references accesses name\n41 4096 8192 2 1 dma-buf:vgem\n";
        let holder = &parse(holders, Holder::from_row).unwrap()[0];
        assert_eq!((holder.offset, holder.accesses, &*holder.name), (4096, 1, "dma-buf:vgem"));
        let refused = "inode offset excess accessible by\n41 4096 -1 0 a\\040pin\n";
        let refused = &parse(refused, Refused::from_row).unwrap()[0];
        assert_eq!((refused.excess, &*refused.by), (-1, "a pin"));

        // A later version of the module may have more columns.
        let more = "new handle state vcpus mapped metadata free opened taken_back creator name\nx 0x1 created 0 0 0 0 0 0 1 a\n";
        assert_eq!(parse(more, Vm::from_row).unwrap()[0].state, "created");
        assert_eq!(parse("handle state vcpus\n", Vm::from_row).unwrap(), []);
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for text in [
            "",
            "inode size\n41\n",
            "inode size\n41 2 3\n",
            &MEMORIES.replace("1048576", "-1"),
            &MEMORIES.replace("1048576", "much"),
            &MEMORIES.replace("size", "extent"),
            &MEMORIES.replace("shim-tests", "shim tests"),
        ] {
            assert!(parse(text, Memory::from_row).is_err(), "{text:?}");
        }
    }

    #[test]
    fn names_are_unescaped() {
        for (escaped, name) in [
            ("", ""),
            ("plain", "plain"),
            ("a\\040b", "a b"),
            ("\\134", "\\"),
            ("\\", "\\"),
            ("\\01", "\\01"),
            ("\\777", "\\777"),
            ("\\303\\244", "ä"),
            ("\\377", "\u{fffd}"),
        ] {
            assert_eq!(unescape(escaped), name, "{escaped:?}");
        }
    }

    #[test]
    fn counts_are_files() {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "memories",
            "present",
            "lent",
            "shared",
            "quarantined",
            "poisoned",
            "vms",
            "metadata",
            "zombies",
            "lends",
            "shares",
            "refusals",
            "retries",
            "reclaims",
            "unlocks",
        ] {
            fs::write(folder.path().join(name), "7\n").unwrap();
        }
        let error = Shim::read_from(folder.path()).unwrap_err();
        assert!(format!("{error:#}").contains("kept"), "{error:#}");
        fs::write(folder.path().join("kept"), "some\n").unwrap();
        assert!(Shim::read_from(folder.path()).is_err());
        fs::write(folder.path().join("kept"), "18446744073709551615\n").unwrap();
        let shim = Shim::read_from(folder.path()).unwrap();
        assert_eq!((shim.lent, shim.kept), (7, u64::MAX));
    }

    #[test]
    fn a_list_that_cannot_be_read_says_why() {
        let path = Path::new("/nowhere/vms");
        let text = |kind| explain(path, &io::Error::from(kind)).to_string();
        assert!(text(io::ErrorKind::PermissionDenied).contains("root"));
        assert!(text(io::ErrorKind::NotFound).contains("mounted"));
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use escrow_abi::FrameState;
use escrow_abi::errata::{Erratum, Hardening};
use escrow_vmcore::uapi;
use serde::Serialize;

/// What Escrow says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Facts {
    /// Version, `major.minor.patch`.
    pub version: String,
    /// CPUs that Escrow runs on.
    pub cpus: u64,
    /// VMs that exist, the host not counted.
    pub vms: u64,
    /// Errata of the CPUs that Escrow has met, in words.
    pub errata: Vec<&'static str>,
    /// How entries to EL2 are hardened against what VMs teach branch predictors.
    pub hardening: Vec<&'static str>,
    /// 4 KiB pages of RAM in each state of the ledger, by the state's name.
    pub pages: BTreeMap<&'static str, u64>,
}

impl Facts {
    /// Asks Escrow, by way of the shim.
    pub fn read() -> Result<Facts> {
        Self::read_from(Path::new(uapi::SYSFS_DIR))
    }

    fn read_from(folder: &Path) -> Result<Facts> {
        if !folder.is_dir() {
            bail!(
                "{} is missing: Escrow's module is not loaded, or this machine does not run under \
                 Escrow",
                folder.display()
            );
        }
        let file = |name: &str| {
            let path = folder.join(name);
            std::fs::read_to_string(&path)
                .with_context(|| format!("reading {} (needs root)", path.display()))
        };
        let number = |name: &str| -> Result<u64> {
            let text = file(name)?;
            text.trim().parse().with_context(|| format!("`{name}` says {text:?}: no number"))
        };
        let bits = |name: &str| -> Result<u64> {
            let text = file(name)?;
            let digits = text.trim().trim_start_matches("0x");
            u64::from_str_radix(digits, 16)
                .with_context(|| format!("`{name}` says {text:?}: no number"))
        };
        Ok(Facts {
            version: file("version")?.trim().to_owned(),
            cpus: number("cpus")?,
            vms: number("vms")?,
            errata: Erratum::in_word(bits("errata")?).map(Erratum::name).collect(),
            hardening: Hardening::in_word(bits("hardening")?).map(Hardening::name).collect(),
            pages: parse_pages(&file("pages")?)?,
        })
    }

    /// Pages in a state.
    pub fn pages_in(&self, state: FrameState) -> u64 {
        self.pages.get(state.name()).copied().unwrap_or(0)
    }

    /// Where `self` and `later` differ, for people; `None` if nowhere.
    pub fn difference(&self, later: &Facts) -> Option<String> {
        let mut changes = Vec::new();
        if self.vms != later.vms {
            changes.push(format!("VMs {} → {}", self.vms, later.vms));
        }
        for state in FrameState::ALL {
            let (before, after) = (self.pages_in(state), later.pages_in(state));
            if before != after {
                changes.push(format!("pages {} {before} → {after}", state.name()));
            }
        }
        if changes.is_empty() { None } else { Some(changes.join(", ")) }
    }
}

/// The name that the shim's `pages` file has for a state.
fn file_name(state: FrameState) -> String {
    state.name().replace(' ', "-").replace(',', "")
}

fn parse_pages(text: &str) -> Result<BTreeMap<&'static str, u64>> {
    let mut pages = BTreeMap::new();
    for line in text.lines() {
        let malformed = || anyhow!("`pages` has the line {line:?}");
        let (name, count) = line.split_once(char::is_whitespace).ok_or_else(malformed)?;
        let count = count.trim().parse().ok().with_context(malformed)?;
        let state = FrameState::ALL
            .into_iter()
            .find(|state| file_name(*state) == name)
            .with_context(|| format!("`pages` names the unknown state {name:?}"))?;
        if pages.insert(state.name(), count).is_some() {
            bail!("`pages` names the state {name:?} twice");
        }
    }
    if let Some(state) = FrameState::ALL.into_iter().find(|state| !pages.contains_key(state.name()))
    {
        bail!("`pages` does not name the state {:?}", file_name(state));
    }
    Ok(pages)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGES: &str = "owned 1000\nhypervisor 20\nshared 0\nlent 3\nunlocked-zeroed 4\n\
                         unlocked-with-contents 5\nVM-metadata 6\npinned 7\npoisoned 0\nshared-back 0\n\
                         donated 0\n";

    fn facts(pages: &str, vms: u64) -> Facts {
        Facts {
            version: "0.1.0".into(),
            cpus: 2,
            vms,
            errata: Vec::new(),
            hardening: Vec::new(),
            pages: parse_pages(pages).unwrap(),
        }
    }

    #[test]
    fn pages_are_read_by_name() {
        let facts = facts(PAGES, 0);
        assert_eq!(facts.pages_in(FrameState::Owned), 1000);
        assert_eq!(facts.pages_in(FrameState::UnlockedZeroed), 4);
        assert_eq!(facts.pages_in(FrameState::Pinned), 7);
    }

    #[test]
    fn malformed_counts_are_refused() {
        for text in [
            "",
            "owned 1000\n",
            "owned\n",
            "owned many\n",
            "odd 3\n",
            &format!("{PAGES}owned 1\n"),
            &PAGES.replace("poisoned 0\n", ""),
        ] {
            assert!(parse_pages(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn differences_are_named() {
        let before = facts(PAGES, 0);
        assert_eq!(before.difference(&before.clone()), None);
        let after = facts(&PAGES.replace("lent 3", "lent 4").replace("1000", "999"), 1);
        assert_eq!(
            before.difference(&after).as_deref(),
            Some("VMs 0 → 1, pages owned 1000 → 999, pages lent 3 → 4")
        );
    }
}

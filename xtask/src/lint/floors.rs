// SPDX-License-Identifier: MIT OR Apache-2.0

//! The shim's floors, and its seam. A C file includes headers of its own floor
//! and of those below it. What C and Rust assert of the structures and numbers
//! that they share is the same on both sides.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::kernel::c_files;

/// The shim's C.
const MODULE: &str = "host/module";
/// Folders, from the lowest floor up.
const FLOORS: [&str; 6] = ["arch", "folio", "mem", "vm", "fn", "dev"];
/// Made by the build, for `dev`.
const GENERATED: [&str; 1] = ["escrow_version.h"];
/// C's side of the seam, and Rust's.
const SEAM: [&str; 2] = ["arch/rust.h", "src/layout.rs"];

/// No file includes a header of a floor above its own.
pub fn includes(root: &Path) -> Result<()> {
    let module = root.join(MODULE);
    let mut findings = Vec::new();
    let mut seen = 0;
    for file in c_files(&module)? {
        let text = fs::read_to_string(&file)?;
        let name = file.strip_prefix(&module)?.to_string_lossy().into_owned();
        seen += 1;
        findings.extend(upward(&name, &text));
    }
    if seen == 0 {
        bail!("no C files in {MODULE}");
    }
    verdict(findings)
}

/// What is wrong with the includes of a file.
fn upward(name: &str, text: &str) -> Vec<String> {
    let Some(own) = floor(name) else {
        return vec![format!("{name}: is on no floor")];
    };
    let included = text.lines().filter_map(|line| {
        let rest = line.trim_start().strip_prefix('#')?.trim_start().strip_prefix("include")?;
        rest.trim_start().strip_prefix('"')?.split('"').next()
    });
    let wrong = included.filter(|header| match floor(header) {
        Some(floor) => floor > own,
        None => !GENERATED.contains(header),
    });
    wrong.map(|header| format!("{name}: includes {header}, of no floor below")).collect()
}

/// Which floor a path in the module is on.
fn floor(path: &str) -> Option<usize> {
    let (folder, file) = path.split_once('/')?;
    let at = FLOORS.iter().position(|floor| *floor == folder)?;
    (!file.contains('/')).then_some(at)
}

/// C and Rust assert the same sizes, offsets and numbers.
pub fn seam(root: &Path) -> Result<()> {
    let read = |name: &str| {
        let path = root.join(MODULE).join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let [header, rust] = SEAM;
    verdict(differences(&read(header)?, &read(rust)?))
}

fn differences(header: &str, rust: &str) -> Vec<String> {
    let (c, r) = (c_facts(header), rust_facts(rust));
    if r.is_empty() {
        return vec![format!("{}: nothing is asserted", SEAM[1])];
    }
    let only = |what: &BTreeSet<_>, other: &BTreeSet<_>, who: &str| {
        what.difference(other).map(|fact| format!("only in {who}: {fact}")).collect::<Vec<_>>()
    };
    [only(&c, &r, SEAM[0]), only(&r, &c, SEAM[1])].concat()
}

/// `sizeof` and `offsetof` that C asserts, and enumerators with their values.
fn c_facts(header: &str) -> BTreeSet<String> {
    let mut facts = BTreeSet::new();
    let mut indexes = false;
    for line in header.lines().map(str::trim) {
        if let Some(assertion) = line.strip_prefix("static_assert(") {
            let words: Vec<_> = words(assertion).collect();
            match words.as_slice() {
                ["sizeof", _, name, size] => facts.insert(format!("{name} {size}")),
                ["offsetof", _, name, field, at] => facts.insert(format!("{name}.{field} {at}")),
                _ => facts.insert(format!("unknown: {line}")),
            };
        } else if line.starts_with("enum ") {
            // Indexes of an array, whose length is the fact.
            indexes = line.starts_with("enum escrow_count ");
        } else if let Some((name, value)) = line.split_once(" = ")
            && name.starts_with("ESCROW_")
            && (!indexes || name == "ESCROW_COUNTS")
        {
            let value = words(value).next().unwrap_or_default();
            facts.insert(format!("{name} {value}"));
        }
    }
    facts
}

/// What `layout!` and `numbers!` have.
fn rust_facts(text: &str) -> BTreeSet<String> {
    let mut facts = BTreeSet::new();
    if let Some((_, layouts)) = text.split_once("\nlayout! {\n") {
        let layouts = layouts.split("\n}\n").next().unwrap_or_default();
        for structure in layouts.split_inclusive('}') {
            let Some((head, fields)) = structure.split_once('{') else { continue };
            let head: Vec<_> = words(head).collect();
            let [_, name, size] = head.as_slice() else { continue };
            facts.insert(format!("{name} {size}"));
            let fields: Vec<_> = words(fields).collect();
            for pair in fields.chunks(2) {
                facts.insert(format!("{name}.{}", pair.join(" ")));
            }
        }
    }
    if let Some((_, numbers)) = text.split_once("\nnumbers! {\n") {
        let numbers = numbers.split("\n}\n").next().unwrap_or_default();
        for number in numbers.split(';') {
            if let [name, value, ..] = words(number).collect::<Vec<_>>().as_slice() {
                facts.insert(format!("{name} {value}"));
            }
        }
    }
    facts
}

/// Names and numbers of a line.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

fn verdict(findings: Vec<String>) -> Result<()> {
    if findings.is_empty() {
        return Ok(());
    }
    bail!("{} findings:\n{}", findings.len(), findings.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_includes_its_own_floor_and_those_below() {
        let text = "#include <linux/mm.h>\n#include \"arch/arch.h\"\n#include \"mem/mem.h\"\n";
        assert!(upward("mem/lend.c", text).is_empty());
        assert!(upward("dev/main.c", "#include \"escrow_version.h\"").is_empty());
    }

    #[test]
    fn an_include_of_a_floor_above_is_found() {
        assert_eq!(upward("mem/lend.c", "  # include \"vm/vm.h\"\n").len(), 1);
        assert_eq!(upward("arch/glue.c", "#include \"folio/folio.h\"\n").len(), 1);
    }

    #[test]
    fn what_is_on_no_floor_is_found() {
        assert_eq!(upward("lend.c", "").len(), 1);
        assert_eq!(upward("loft/lend.c", "").len(), 1);
        // By a path that does not say where it is.
        assert_eq!(upward("mem/lend.c", "#include \"mem.h\"").len(), 1);
        assert_eq!(upward("mem/lend.c", "#include \"../vm/vm.h\"").len(), 1);
    }

    #[test]
    fn the_shim_is_in_order() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        includes(root).unwrap();
        seam(root).unwrap();
    }

    const HEADER: &str = "enum x {\n\tESCROW_A = 1, /* first */\n};\n\
        static_assert(sizeof(struct s) == 16);\nstatic_assert(offsetof(struct s, b) == 8);\n";
    const RUST: &str = "\nlayout! {\n    S = s, 16 { b 8 }\n}\n\nnumbers! {\n    \
        ESCROW_A = 1, A::First;\n}\n";

    #[test]
    fn the_same_on_both_sides() {
        assert_eq!(differences(HEADER, RUST), Vec::<String>::new());
    }

    #[test]
    fn a_side_that_changes_alone_is_found() {
        for (from, to) in [("b) == 8", "b) == 4"), ("s) == 16", "s) == 24"), ("A = 1", "A = 2")] {
            assert_eq!(differences(&HEADER.replace(from, to), RUST).len(), 2, "{from}");
        }
        assert_eq!(differences(&HEADER.replace("ESCROW_A = 1", ""), RUST).len(), 1);
        assert_eq!(differences(HEADER, &RUST.replace(" b 8 ", "")).len(), 1);
        assert_eq!(differences(HEADER, "").len(), 1);
    }
}

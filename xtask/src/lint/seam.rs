// SPDX-License-Identifier: MIT OR Apache-2.0

//! The shim's seam: what its C and its Rust must agree on. Each side asserts
//! sizes, offsets and numbers for itself, and declares the other's functions;
//! here the two are compared.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::floors::{MODULE, verdict};

/// C's side.
const HEADER: &str = "arch/rust.h";
/// What Rust asserts.
const LAYOUT: &str = "src/layout.rs";
/// The functions of C's that Rust calls, and the headers that declare them.
const IMPORTS: &str = "src/kernel.rs";
const GLUE: [&str; 2] = ["arch/arch.h", "mem/mem.h"];
/// How the names of Rust's functions begin.
const PREFIX: &str = "escrow_rs_";

/// C and Rust assert the same sizes, offsets and numbers, and each function is
/// declared as it is defined.
pub fn agreed(root: &Path) -> Result<()> {
    let read = |name: &str| {
        let path = root.join(MODULE).join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let mut findings = differences(&read(HEADER)?, &read(LAYOUT)?);
    let mut offered = BTreeSet::new();
    for entry in fs::read_dir(root.join(MODULE).join("src"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "rs") {
            offered.extend(rust_functions(&fs::read_to_string(path)?, "extern \"C\" fn "));
        }
    }
    findings.extend(unlike(&c_functions(&read(HEADER)?, PREFIX), &offered));
    let wanted = rust_functions(&read(IMPORTS)?, "    fn ");
    let wanted = wanted.into_iter().chain(rust_functions(&read(IMPORTS)?, "pub(crate) fn "));
    let wanted = wanted.filter(|it| it.starts_with("escrow_")).collect::<BTreeSet<_>>();
    let mut given = BTreeSet::new();
    for header in GLUE {
        given.extend(c_functions(&read(header)?, "escrow_"));
    }
    // Headers have more than Rust calls.
    findings.extend(wanted.difference(&given).map(|it| format!("only in {IMPORTS}: {it}")));
    verdict(findings)
}

/// What is in one of the sets alone.
fn unlike(header: &BTreeSet<String>, rust: &BTreeSet<String>) -> Vec<String> {
    let only = |a: &BTreeSet<String>, b: &BTreeSet<_>, who| {
        a.difference(b).map(|it| format!("only in {who}: {it}")).collect::<Vec<_>>()
    };
    [only(header, rust, "C"), only(rust, header, "Rust")].concat()
}

/// Functions that a header declares: `name(TYPES) TYPE`.
fn c_functions(header: &str, prefix: &str) -> BTreeSet<String> {
    let mut text = String::new();
    for part in header.split("/*") {
        text.push_str(part.split_once("*/").map_or(part, |(_, rest)| rest));
    }
    let text: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let text = text.join(" ");
    let mut found = BTreeSet::new();
    for statement in text.split([';', '}']) {
        let Some((head, parameters)) = statement.split_once('(') else { continue };
        let Some((parameters, "")) = parameters.rsplit_once(')') else { continue };
        let Some(at) = head.rfind(|c: char| !c.is_alphanumeric() && c != '_') else { continue };
        let (result, name) = head.split_at(at + 1);
        if name.starts_with(prefix) {
            let parameters = parameters.split(',').filter(|it| it.trim() != "void").map(c_type);
            let parameters = parameters.collect::<Vec<_>>().join(", ");
            found.insert(format!("{name}({parameters}) {}", c_type(result)));
        }
    }
    found
}

/// How a type of C's is passed.
fn c_type(text: &str) -> &'static str {
    if text.contains(['*', '[']) {
        return "pointer";
    }
    for word in words(text) {
        match word {
            "u64" => return "u64",
            "u32" => return "u32",
            "u8" => return "u8",
            "int" | "s32" => return "i32",
            "s64" => return "i64",
            "bool" => return "bool",
            "size_t" => return "usize",
            "void" | "__noreturn" => return "nothing",
            _ => {}
        }
    }
    "unknown to C"
}

/// Functions of a Rust file, each after `before`: `name(TYPES) TYPE`.
fn rust_functions(text: &str, before: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for function in text.split(before).skip(1) {
        let Some((name, rest)) = function.split_once('(') else { continue };
        let Some((parameters, after)) = rest.split_once(')') else { continue };
        let result = after
            .trim_start()
            .strip_prefix("->")
            .map_or("nothing", |rest| rust_type(rest.split(['{', ';']).next().unwrap_or_default()));
        let parameters = parameters.split(": ").skip(1).map(rust_type).collect::<Vec<_>>();
        found.insert(format!("{name}({}) {result}", parameters.join(", ")));
    }
    found
}

/// How a type of Rust's is passed. What follows it is ignored.
fn rust_type(text: &str) -> &'static str {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_alphanumeric()).unwrap_or(text.len());
    match text.get(..end).unwrap_or_default() {
        "u64" => "u64",
        "u32" => "u32",
        "u8" => "u8",
        "i32" => "i32",
        "i64" => "i64",
        "bool" => "bool",
        "usize" => "usize",
        "" if text.starts_with('!') => "nothing",
        // References, boxes, and what is transparent around a pointer.
        _ => "pointer",
    }
}

/// What C asserts of sizes, offsets and numbers, and Rust does not; or the reverse.
fn differences(header: &str, rust: &str) -> Vec<String> {
    let (c, r) = (c_facts(header), rust_facts(rust));
    if r.is_empty() {
        return vec![format!("{LAYOUT}: nothing is asserted")];
    }
    unlike(&c, &r)
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

#[cfg(test)]
mod tests {
    use super::*;

    const C: &str = "enum x {\n\tESCROW_A = 1, /* first */\n};\n\
        static_assert(sizeof(struct s) == 16);\nstatic_assert(offsetof(struct s, b) == 8);\n";
    const RUST: &str = "\nlayout! {\n    S = s, 16 { b 8 }\n}\n\nnumbers! {\n    \
        ESCROW_A = 1, A::First;\n}\n";

    #[test]
    fn the_same_on_both_sides() {
        assert_eq!(differences(C, RUST), Vec::<String>::new());
    }

    #[test]
    fn a_side_that_changes_alone_is_found() {
        for (from, to) in [("b) == 8", "b) == 4"), ("s) == 16", "s) == 24"), ("A = 1", "A = 2")] {
            assert_eq!(differences(&C.replace(from, to), RUST).len(), 2, "{from}");
        }
        assert_eq!(differences(&C.replace("ESCROW_A = 1", ""), RUST).len(), 1);
        assert_eq!(differences(C, &RUST.replace(" b 8 ", "")).len(), 1);
        assert_eq!(differences(C, "").len(), 1);
    }

    #[test]
    fn the_shim_s_two_halves_agree() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        agreed(root).unwrap();
    }

    #[test]
    fn functions_are_compared_by_how_they_pass() {
        let c = c_functions(
            "/* a, b */\nint escrow_rs_a(const struct x *x, u64 size,\n\t\tu64 out[4]); /* ; */\n\
             void escrow_rs_b(void);\n",
            PREFIX,
        );
        let rust = "pub extern \"C\" fn escrow_rs_a(\n    x: &X,\n    size: u64,\n    \
            out: &mut [u64; 4],\n) -> i32 {\n}\npub extern \"C\" fn escrow_rs_b() {\n}\n";
        assert_eq!(unlike(&c, &rust_functions(rust, "extern \"C\" fn ")), Vec::<String>::new());
        assert_eq!(c.len(), 2);
        let narrow = rust_functions(&rust.replace("size: u64", "size: u32"), "extern \"C\" fn ");
        assert_eq!(unlike(&c, &narrow).len(), 2);
        let gone = rust_functions(&rust.replace("escrow_rs_b", "other"), "extern \"C\" fn ");
        assert!(!unlike(&c, &gone).is_empty());
    }
}

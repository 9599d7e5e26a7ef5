// SPDX-License-Identifier: MIT OR Apache-2.0

//! The machine code of the module's Rust half: whether it bears with every way
//! in which a kernel can have been built.
//!
//! One object serves all kernels, so the strictest rules of any of them hold:
//!
//! - `SHADOW_CALL_STACK`: x18 points to the stack of return addresses. Nobody
//!   reads or writes it.
//! - `ARM64_BTI_KERNEL`: what a branch to a register can reach begins with an
//!   instruction that says so. That is each function that C calls (a module far
//!   from the kernel is called through a veneer, which branches to x16), and
//!   each whose address is taken; behind a jump table, each case.
//! - `ARM64_PTR_AUTH_KERNEL`: a return address is signed before it is stored.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, RelocationFlags, elf};

use crate::build::{self, Workspace};
use crate::setup::Setup;
use crate::shell::output_of;

const DISASSEMBLER: &str = "aarch64-linux-gnu-objdump";

/// An instruction as the disassembler writes it.
#[derive(Debug)]
struct Instruction<'a> {
    at: u64,
    name: &'a str,
    operands: &'a str,
}

impl Instruction<'_> {
    /// Whether an operand is, or has in it, one of these registers.
    fn names(&self, registers: &[&str]) -> bool {
        let words = self.operands.split(|c: char| !c.is_ascii_alphanumeric());
        words.into_iter().any(|word| registers.contains(&word))
    }

    /// Whether a call, or a branch to x16 or x17, may end here (Arm ARM,
    /// "Branch Target Identification": PACIASP is a `BTI C`, too).
    fn takes_calls(&self) -> bool {
        self.name == "paciasp" || self.name == "bti" && matches!(self.operands, "c" | "jc")
    }

    fn takes_jumps(&self) -> bool {
        self.name == "bti" && matches!(self.operands, "j" | "jc")
    }

    fn stores_return_address(&self) -> bool {
        self.name.starts_with("st") && self.names(&["x30"])
    }
}

/// A function and its instructions.
#[derive(Debug)]
struct Function<'a> {
    name: &'a str,
    code: Vec<Instruction<'a>>,
}

/// Checks the Rust half that the package has in it.
pub fn rust_half(workspace: &Workspace, setup: &Setup) -> Result<()> {
    let object = build::rust_half(workspace, setup)?;
    let text = output_of(
        Command::new(DISASSEMBLER).args(["--disassemble", "--no-show-raw-insn"]).arg(&object),
    )?;
    let functions = functions(&text);
    let targets = targets(&object).context("what does the Rust half call?")?;
    // An empty one would pass.
    if functions.is_empty() || targets.is_empty() {
        bail!("{} has no code that anybody calls", object.display());
    }
    let findings = judge(&functions, &targets);
    if !findings.is_empty() {
        bail!("{} findings:\n{}", findings.len(), findings.join("\n"));
    }
    Ok(())
}

/// The functions of a disassembly.
fn functions(text: &str) -> Vec<Function<'_>> {
    let mut functions: Vec<Function<'_>> = Vec::new();
    for line in text.lines() {
        // 0000000000000060 <name>:
        if let Some((_, name)) = line.strip_suffix(">:").and_then(|line| line.split_once(" <")) {
            functions.push(Function { name, code: Vec::new() });
        } else if let Some(function) = functions.last_mut() {
            function.code.extend(instruction(line));
        }
    }
    functions
}

// "      60:", a tab, "cmp", a tab, "w0, #0x1ff"
fn instruction(line: &str) -> Option<Instruction<'_>> {
    let (at, rest) = line.trim_start().split_once(":\t")?;
    let (name, operands) = rest.split_once('\t').unwrap_or((rest, ""));
    // What a number means, and the name of what is branched to.
    let operands = operands.split(['<', '/']).next().unwrap_or_default().trim();
    Some(Instruction { at: u64::from_str_radix(at, 16).ok()?, name: name.trim(), operands })
}

/// What a branch to a register can reach, with who says so: functions that
/// others can call, and what a relocation other than a branch's is about.
fn targets(object: &Path) -> Result<BTreeMap<u64, &'static str>> {
    let bytes = fs::read(object).with_context(|| format!("cannot read {}", object.display()))?;
    let file = object::File::parse(&*bytes)?;
    let text = file.section_by_name(".text").context("there is no code")?;
    let mut targets = BTreeMap::new();
    for symbol in file.symbols() {
        if symbol.is_global() && symbol.section_index() == Some(text.index()) {
            targets.insert(symbol.address(), "others call it");
        }
    }
    for section in file.sections() {
        for (_, relocation) in section.relocations() {
            let RelocationFlags::Elf { r_type } = relocation.flags() else { continue };
            let object::RelocationTarget::Symbol(symbol) = relocation.target() else { continue };
            let symbol = file.symbol_by_index(symbol)?;
            let is_branch = matches!(r_type, elf::R_AARCH64_CALL26 | elf::R_AARCH64_JUMP26);
            if !is_branch && symbol.section_index() == Some(text.index()) {
                let at = symbol.address().wrapping_add_signed(relocation.addend());
                targets.entry(at).or_insert("its address is taken");
            }
        }
    }
    Ok(targets)
}

fn judge(functions: &[Function<'_>], targets: &BTreeMap<u64, &str>) -> Vec<String> {
    let mut findings = Vec::new();
    let mut seen = BTreeSet::new();
    for Function { name, code } in functions {
        let has_cases = code.iter().any(Instruction::takes_jumps);
        let mut is_signed = false;
        for it in code {
            // Not always first: the way to an early return may have no frame.
            is_signed |= it.name == "paciasp";
            let mut find = |what: &str| {
                let Instruction { at, name: word, operands } = it;
                findings.push(format!("{name}, {at:#x}: {word} {operands}: {what}"));
            };
            if it.names(&["x18", "w18"]) {
                find("x18 is the shadow call stack's");
            }
            if let Some(why) = targets.get(&it.at) {
                seen.insert(it.at);
                if !it.takes_calls() {
                    find(&format!("{why}, and it does not begin with BTI C or PACIASP"));
                }
            }
            if it.name == "br" && !it.names(&["x16", "x17"]) && !has_cases {
                find("no case of the jump begins with BTI J");
            }
            if it.stores_return_address() && !is_signed {
                find("the return address is not signed");
            }
        }
    }
    let unseen = targets.iter().filter(|(at, _)| !seen.contains(at));
    findings.extend(unseen.map(|(at, why)| format!("{at:#x}: {why}, and there is no code")));
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "
escrow_rust.o:     file format elf64-littleaarch64

Disassembly of section .text:

0000000000000000 <escrow_rs_a>:
       0:\tpaciasp
       4:\tstp\tx29, x30, [sp, #-16]!
       8:\tadr\tx10, 14 <escrow_rs_a+0x14>
       c:\tbr\tx10
      10:\tbti\tj
      14:\tautiasp
      18:\tret

000000000000001c <escrow_rs_b>:
      1c:\tbti\tc
      20:\tmov\tw0, #0x18                  \t// #24
      24:\tret
";

    fn findings(text: &str) -> Vec<String> {
        let targets = BTreeMap::from([(0, "others call it"), (0x1c, "its address is taken")]);
        judge(&functions(text), &targets)
    }

    #[test]
    fn good_code_is_let_through() {
        assert_eq!(findings(GOOD), Vec::<String>::new());
    }

    #[test]
    fn each_rule_is_looked_at() {
        for (from, to, what) in [
            ("w0, #0x18 ", "w18, #0x18 ", "shadow call stack"),
            ("mov\tw0, #0x18", "ldr\tx0, [x18, #8]!", "shadow call stack"),
            ("bti\tc", "bti\tj", "does not begin with BTI C"),
            ("bti\tc", "nop", "does not begin with BTI C"),
            ("bti\tj", "nop", "BTI J"),
            ("paciasp", "bti\tc", "not signed"),
            ("      1c:\tbti\tc\n", "", "there is no code"),
        ] {
            let bad = GOOD.replace(from, to);
            assert_ne!(bad, GOOD);
            let found = findings(&bad);
            assert!(found.len() == 1 && found[0].contains(what), "{from:?} {to:?}: {found:?}");
        }
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! The machine code of EL2: that of the image as it boots.
//!
//! - An indirect branch goes where the CPU predicts, and a VM may have trained the
//!   predictor (Spectre variant 2, branch history injection). Entries to EL2 are hardened
//!   against that (docs/errata.md); what has no indirect branch needs no hardening. So there
//!   is none but in the functions of [`INDIRECT`].
//! - Cortex-A53 up to r0p4 may compute a wrong result of a 64-bit multiply-accumulate
//!   right behind a load or store (erratum 835769): there is no such pair, in compiled code
//!   or in assembly.

use std::process::Command;

use anyhow::{Result, bail};

use crate::build::{self, What, Workspace};
use crate::setup::Setup;
use crate::shell::output_of;

const DISASSEMBLER: &str = "aarch64-linux-gnu-objdump";

/// Functions that may have indirect branches, by a part of their names, and why they may.
const INDIRECT: &[(&str, &str)] = &[
    ("as core::fmt::", "text of the log"),
    ("core::fmt::Formatter>::", "text of the log"),
    ("core::fmt::write", "text of the log"),
    ("log::__private_api::log_impl", "the log's way to its ring or UART"),
    ("escrow_aarch64::errata::describe", "logs, once for each kind of CPU"),
    ("escrow_aarch64::host::report", "logs, a few times for each CPU"),
    ("escrow_boot::smp::Cpus>::refuse", "logs, when a CPU arrives"),
    ("escrow_boot::smp::Cpus>::end", "logs, at the end of the machine"),
    ("escrow_aarch64::fault::backtrace_from", "EL2 has failed"),
    ("escrow_el2_fault", "EL2 has failed"),
    ("rust_begin_unwind", "EL2 has failed"),
    ("boot_main", "no VM runs yet"),
    ("escrow_platform::fdt::node::Ancestry>::descend", "no VM runs yet"),
    ("escrow_host_sync", "the host's calls of the firmware, which the boot code serves"),
];

/// An instruction, with its word.
#[derive(Clone, Copy, Debug)]
struct Instruction<'a> {
    function: &'a str,
    at: u64,
    word: u32,
    text: &'a str,
}

/// Checks the hypervisor's image.
pub fn el2(workspace: &Workspace, setup: &Setup) -> Result<()> {
    build::build(workspace, setup, &[What::Hypervisor])?;
    let elf = workspace.paths().elf();
    let text = output_of(Command::new(DISASSEMBLER).args(["--disassemble", "-C"]).arg(&elf))?;
    let code = instructions(&text);
    // An empty one would pass.
    if code.len() < 10_000 {
        bail!("{} has hardly any code", elf.display());
    }
    let mut findings = indirect(&code);
    findings.extend(multiplications(&code));
    if !findings.is_empty() {
        bail!("{} findings:\n{}", findings.len(), findings.join("\n"));
    }
    Ok(())
}

/// The instructions of a disassembly. What is data there has another name.
fn instructions(text: &str) -> Vec<Instruction<'_>> {
    let mut function = "";
    let mut code = Vec::new();
    for line in text.lines() {
        // 0000000000000060 <name>:
        if let Some((_, name)) = line.strip_suffix(">:").and_then(|line| line.split_once(" <")) {
            function = name;
        } else {
            code.extend(instruction(function, line));
        }
    }
    code
}

// "    40200060:", a tab, "d63f0100 ", a tab, "blr", a tab, "x8"
fn instruction<'a>(function: &'a str, line: &'a str) -> Option<Instruction<'a>> {
    let (at, rest) = line.trim_start().split_once(":\t")?;
    let (word, text) = rest.split_once('\t')?;
    let at = u64::from_str_radix(at, 16).ok()?;
    let word = u32::from_str_radix(word.trim(), 16).ok()?;
    (!text.starts_with(".word")).then_some(Instruction { function, at, word, text })
}

/// Indirect branches in other functions than those that may have them, and functions that
/// may have some and do not.
fn indirect(code: &[Instruction<'_>]) -> Vec<String> {
    let mut needed = vec![false; INDIRECT.len()];
    let mut findings = Vec::new();
    for it in code.iter().filter(|it| is_indirect(it.word)) {
        let mut allowed = false;
        for (needed, (name, _)) in needed.iter_mut().zip(INDIRECT) {
            let this = it.function.contains(name);
            *needed |= this;
            allowed |= this;
        }
        if !allowed {
            findings.push(it.found("an indirect branch"));
        }
    }
    let unneeded = needed.iter().zip(INDIRECT).filter(|(needed, _)| !**needed);
    findings.extend(unneeded.map(|(_, (name, why))| {
        format!("{name} ({why}) may have indirect branches, and no such function has any")
    }));
    findings
}

/// BR, BLR, and the same with authentication (Arm ARM, "Unconditional branch (register)");
/// RET is predicted by the return stack.
const fn is_indirect(word: u32) -> bool {
    word >> 25 == 0b110_1011 && matches!(word >> 21 & 0b111, 0b000 | 0b001)
}

/// Pairs of the erratum.
fn multiplications(code: &[Instruction<'_>]) -> Vec<String> {
    let pairs = code.windows(2).filter_map(|pair| match pair {
        [first, second] if first.at + 4 == second.at => Some((first, second)),
        _ => None,
    });
    let bad = pairs.filter(|(first, second)| {
        let Some((loads, registers)) = memory_access(first.word) else { return false };
        let multiply = second.word;
        // 64-bit MADD and MSUB, and those with 32-bit factors; not MUL and the like.
        let accumulates = multiply >> 24 == 0x9b
            && matches!(multiply >> 21 & 0b111, 0b000 | 0b001 | 0b101)
            && register(multiply, 10) != 31;
        let sources = [5, 10, 16].map(|bit| register(multiply, bit));
        let waits = loads && registers.iter().flatten().any(|loaded| sources.contains(loaded));
        accumulates && !waits
    });
    bad.map(|(first, second)| second.found(&format!("erratum 835769, behind {}", first.text)))
        .collect()
}

/// Whether a load or store loads, and the general registers that it is about (Arm ARM,
/// "Loads and Stores"). What is not told apart here counts as a store: nothing waits for it.
fn memory_access(word: u32) -> Option<(bool, [Option<u32>; 2])> {
    // Bits 27 and 25.
    if word >> 27 & 1 == 0 || word >> 25 & 1 != 0 {
        return None;
    }
    let is_vector = word >> 26 & 1 != 0;
    let is_pair = word >> 27 & 0b111 == 0b101;
    let is_register = word >> 27 & 0b111 == 0b111;
    let loads = match (is_vector, is_pair, is_register) {
        (true, ..) => false,
        (_, true, _) => word >> 22 & 1 != 0,
        // Opcode 0 is a store; PRFM, which loads nothing, is opcode 2 of the largest size.
        (.., true) => {
            let opcode = word >> 22 & 0b11;
            opcode != 0 && !(word >> 30 == 0b11 && opcode == 0b10)
        }
        _ => false,
    };
    let second = is_pair.then(|| register(word, 10));
    Some((loads, [Some(register(word, 0)), second]))
}

const fn register(word: u32, bit: u32) -> u32 {
    word >> bit & 0b1_1111
}

impl Instruction<'_> {
    fn found(&self, what: &str) -> String {
        format!("{}, {:#x}: {}: {what}", self.function, self.at, self.text.replace('\t', " "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The words of a function, one behind the other.
    fn code(function: &'static str, words: &[u32]) -> Vec<Instruction<'static>> {
        let places = (0x1000..).step_by(4).zip(words);
        places.map(|(at, &word)| Instruction { function, at, word, text: "" }).collect()
    }

    #[test]
    fn a_disassembly_is_read() {
        let text = "\
0000000040200000 <primary_entry>:
    40200000:\tfa405a4d \tccmp\tx18, #0x0, #0xd, pl
    40200004:\td63f0100 \tblr\tx8
    40200008:\t00000000 \t.word\t0x00000000

0000000040200010 <<a::B as c::D>::e>:
    40200010:\td65f03c0 \tret
";
        let found: Vec<_> =
            instructions(text).iter().map(|it| (it.function, it.at, it.word)).collect();
        assert_eq!(
            found,
            [
                ("primary_entry", 0x4020_0000, 0xfa40_5a4d),
                ("primary_entry", 0x4020_0004, 0xd63f_0100),
                ("<a::B as c::D>::e", 0x4020_0010, 0xd65f_03c0),
            ]
        );
    }

    #[test]
    fn indirect_branches_are_found() {
        let all: Vec<_> =
            INDIRECT.iter().flat_map(|(name, _)| code(name, &[0xd63f_0100])).collect();
        assert_eq!(indirect(&all), Vec::<String>::new());
        // br x3, blr x8, braaz x0, blraa x1, x2.
        for word in [0xd61f_0060, 0xd63f_0100, 0xd61f_081f, 0xd73f_0822] {
            let more: Vec<_> = all.iter().copied().chain(code("serve", &[word])).collect();
            let found = indirect(&more);
            assert!(found.len() == 1 && found[0].contains("indirect"), "{word:#x}: {found:?}");
        }
        // ret, eret, b, bl, cbz x0.
        for word in [0xd65f_03c0, 0xd69f_03e0, 0x1400_0001, 0x9400_0001, 0xb400_0020] {
            let more: Vec<_> = all.iter().copied().chain(code("serve", &[word])).collect();
            assert_eq!(indirect(&more), Vec::<String>::new(), "{word:#x}");
        }
        let found = indirect(&all[1..]);
        assert!(found.len() == 1 && found[0].contains("no such function"), "{found:?}");
    }

    const MADD: u32 = 0x9b13_6d1a; // madd x26, x8, x19, x27
    const NOP: u32 = 0xd503_201f;

    #[test]
    fn pairs_of_the_erratum_are_found() {
        for (first, second, what) in [
            (0xf940_01eb, MADD, "ldr x11, [x15]"),
            (0xb901_93ea, MADD, "str w10, [sp, #400]"),
            (0xf900_03fb, MADD, "str x27, [sp]: a store loads nothing"),
            (0xa944_2ffa, MADD, "ldp x26, x11, [sp, #64]: only the result"),
            (0xf980_0008, MADD, "prfm: x8 is no register there"),
            (0xf940_01eb, 0x9bab_650a, "umaddl x10, w8, w11, x25 with ldr x11 before; w11 waits"),
            (0x3dc0_0008, MADD, "ldr q8, [x0]"),
        ] {
            let found = multiplications(&code("f", &[NOP, first, second, NOP])).len();
            let waits = what.ends_with("waits");
            assert_eq!(found, usize::from(!waits), "{what}");
        }
        for (first, second, what) in [
            (0xf940_01fb, MADD, "ldr x27, [x15]"),
            (0xa944_6e88, MADD, "ldp x8, x27, [x20, #64]"),
            (0xa944_23eb, MADD, "ldp x11, x8, [sp, #64]"),
            (0xf940_01eb, 0x9b13_7d1a, "mul x26, x8, x19"),
            (0xf940_01eb, 0x1b13_6d1a, "madd w26, w8, w19, w27"),
            (0x8b0b_0000, MADD, "add x0, x0, x11"),
        ] {
            let found = multiplications(&code("f", &[NOP, first, second, NOP]));
            assert_eq!(found, Vec::<String>::new(), "{what}");
        }
        assert!(multiplications(&code("f", &[0xf940_01eb, NOP, MADD])).is_empty());
    }
}

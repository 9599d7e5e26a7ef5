// SPDX-License-Identifier: MIT OR Apache-2.0

//! The shim's floors: a C file includes headers of its own floor and of those
//! below it. The header for other modules includes none of them.

use std::fs;
use std::path::Path;

use anyhow::{Result, bail};

use super::kernel::c_files;

/// The shim's C.
pub const MODULE: &str = "host/module";
/// Folders, from the lowest floor up.
const FLOORS: [&str; 6] = ["arch", "folio", "mem", "vm", "fn", "dev"];
/// For other modules, which have no floors.
const EXPORTED: &str = "include/";
/// Made by the build, for `dev`.
const GENERATED: [&str; 1] = ["escrow_version.h"];

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
    let own = floor(name);
    if own.is_none() && !name.starts_with(EXPORTED) {
        return vec![format!("{name}: is on no floor")];
    }
    let included = text.lines().filter_map(|line| {
        let rest = line.trim_start().strip_prefix('#')?.trim_start().strip_prefix("include")?;
        rest.trim_start().strip_prefix('"')?.split('"').next()
    });
    let wrong = included.filter(|header| match floor(header) {
        Some(floor) => own.is_none_or(|own| floor > own),
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

/// Fails with the findings, if there are any.
pub fn verdict(findings: Vec<String>) -> Result<()> {
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
    fn the_header_for_other_modules_includes_no_floor() {
        assert!(upward("include/linux/escrow.h", "#include <linux/types.h>\n").is_empty());
        assert_eq!(upward("include/linux/escrow.h", "#include \"arch/arch.h\"\n").len(), 1);
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
    }
}

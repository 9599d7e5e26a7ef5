// SPDX-License-Identifier: MIT OR Apache-2.0

//! `docs/cpu.md` says what the table of features says. To write it again:
//! `UPDATE_DOCS=1 cargo test -p escrow-core --test document`.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use escrow_core::controls::fields::ALL;
use escrow_core::controls::ids::{Field, Register};
use escrow_core::controls::table::{Control, Feature};
use escrow_core::controls::{FEATURES, Treatment};

const INTRODUCTION: &str = "\
# What the host and guests get of the CPU

This page is made from `hypervisor/core/src/controls/table.rs` (`UPDATE_DOCS=1 cargo test -p escrow-core --test document`);
a test fails when it is not what the table says. The same table makes EL2's control registers, and the ID registers that the host
and guests see, so what is closed to a party is hidden from it by the same word.

| word | EL1 and EL0 can use it | ID registers show it | its registers |
| --- | --- | --- | --- |
| open | yes | yes | it has none, or none that the other party reaches |
| switched | yes | yes | put aside whenever the other party runs |
| on demand | from the first use on | yes | the same, from the first use on |
| trapped | no: undefined | no | the other party's, or nobody's |
| emulated | EL2 answers, as if it held nothing | yes | as for trapped |
| hidden | there is nothing to trap | no | it has none, or they are EL2's or EL3's |

**A value that is newer than the table** is shown as the newest one that the table knows, and a field that is not in it as 0, to both. The
registers behind it stay closed: bits that trap when they are clear are set for rows of this table only. The host's reads of ID registers are trapped
(`HCR_EL2.TID3`) on CPUs where there is something to hide, and only there.

**CPUs that differ**: at boot EL2 has every CPU of the device tree come, say what it has and go again. The host and guests see what all have. What
a CPU has beyond that is closed on it. One that does not come in a second is left alone; if the host starts it later and it lacks what was
promised, it is refused, and the log says for which field.

**Not in the table**, as no feature decides about it: the host's SMCs are trapped; a guest's interrupts, waits and identification are
EL2's (`HCR_EL2.IMO`, `FMO`, `AMO`, `TWI`, `TID1`, `TID3`); its TLB and cache maintenance reaches all CPUs (`FB`, `BSU`); `HSTR_EL2`, `HACR_EL2` and
`ACTLR_EL2` are 0 for both. What of the host's must not watch a guest is `hypervisor/core/src/observers.rs`. Of the GIC, EL2 needs the CPU
interface's system registers, to trap them while a guest runs: it sets `ICC_SRE_EL2.SRE`, and a CPU where that does not hold is
refused. The distributor is the host's, and EL2 never looks at it.

";

fn treatment(treatment: Treatment) -> &'static str {
    match treatment {
        Treatment::Open => "open",
        Treatment::Switched => "switched",
        Treatment::OnDemand => "on demand",
        Treatment::Trapped => "trapped",
        Treatment::Emulated => "emulated",
        Treatment::Hidden => "hidden",
    }
}

fn shown(feature: &Feature) -> String {
    let one = |(field, from): &(Field, u64)| match field.rank(*from) {
        ..=1 => field.name.to_owned(),
        _ => format!("{} ≥ {from}", field.name),
    };
    match feature.shown {
        [] => "every CPU has it".to_owned(),
        fields => fields.iter().map(one).collect::<Vec<_>>().join(", "),
    }
}

fn control(control: &Control) -> String {
    let bits: Vec<u32> = (0..64).filter(|bit| control.mask >> bit & 1 != 0).collect();
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for bit in bits {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == bit => *last = bit,
            _ => ranges.push((bit, bit)),
        }
    }
    let range = |&(first, last): &(u32, u32)| {
        if first == last { format!("{first}") } else { format!("{last}:{first}") }
    };
    let ranges = ranges.iter().map(range).collect::<Vec<_>>().join(",");
    let value = |value: u64| {
        if value == 0 {
            "0".to_owned()
        } else if value == control.mask {
            "1".to_owned()
        } else {
            format!("{:#b}", value >> control.mask.trailing_zeros())
        }
    };
    let (open, closed) = (value(control.open), value(control.closed));
    format!("{}[{ranges}] {open}/{closed}", control.register.name())
}

fn page() -> String {
    let mut page = INTRODUCTION.to_owned();
    page += "## The table\n\nFields are those of `ID_AA64*_EL1`; controls are bits with their value when open/closed.\n\n";
    page += "| feature | shown by | host | guest | controls | why |\n| --- | --- | --- | --- | --- | --- |\n";
    for feature in FEATURES {
        let controls: Vec<String> = feature.controls.iter().map(control).collect();
        let _ = writeln!(
            page,
            "| {} | {} | {} | {} | {} | {} |",
            feature.name,
            shown(feature),
            treatment(feature.host),
            treatment(feature.guest),
            controls.join("; "),
            feature.why,
        );
    }
    page += "\n## The newest values that the table knows\n\n| register | fields |\n| --- | --- |\n";
    for crm in 4..8 {
        for op2 in 0..8 {
            let fields: Vec<&Field> =
                ALL.iter().filter(|field| field.register == Register::Space(crm, op2)).collect();
            let Some(first) = fields.first() else { continue };
            let register = first.name.split('.').next().unwrap_or_default();
            let names: Vec<String> = fields
                .iter()
                .map(|field| {
                    let name = field.name.split('.').nth(1).unwrap_or("all");
                    format!("{name} {:#x}", field.newest)
                })
                .collect();
            let _ = writeln!(page, "| {register} (S3_0_C0_C{crm}_{op2}) | {} |", names.join(", "));
        }
    }
    page
}

#[test]
fn cpu_md_is_what_the_table_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/cpu.md");
    if env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, page()).expect("docs can be written");
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(written == page(), "docs/cpu.md is stale: UPDATE_DOCS=1 writes it again");
}

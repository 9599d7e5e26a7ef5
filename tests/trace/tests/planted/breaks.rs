// SPDX-License-Identifier: MIT OR Apache-2.0

//! Break-before-make, and each of its steps.

use escrow_trace::{Finding, Missing, Rule, check, parse};

use crate::{BEFORE, findings, numbered, planted, sound};

#[test]
fn another_output_address_takes_a_break() {
    planted(
        Rule::BreakBeforeMake,
        None,
        "- 0 release 0x102000 0x800007ff 0
         - 0 dsb ishst
         - 0 tlbi ipas2e1is 7 0 0x1000
         - 0 dsb ish
         - 0 tlbi vmalle1is 7
         - 0 dsb ish
         - 0 isb
         - 0 release 0x102000 0 0x800057ff
         + 0 release 0x102000 0x800007ff 0x800057ff # here
           0 dsb ishst",
    );
}

#[test]
fn another_memory_type_takes_a_break() {
    planted(
        Rule::BreakBeforeMake,
        None,
        "- 0 release 0x102000 0x800007ff 0
         - 0 dsb ishst
         - 0 tlbi vmalls12e1is 7
         - 0 dsb ish
         - 0 isb
         - 0 release 0x102000 0 0x800007c7
         + 0 release 0x102000 0x800007ff 0x800007c7 # here
           0 dsb ishst",
    );
}

/// VM 0's block at 2 MiB becomes a table of the same pages.
const SPLIT: &str = "
      0 release 0x103000 0 0x802007ff
      0 release 0x103008 0 0x802017ff
    - 0 release 0x101008 0x802007fd 0
    - 0 dsb ishst
    - 0 tlbi ipas2e1is 7 0x200000 0x1000
    - 0 dsb ish
    - 0 tlbi vmalle1is 7
    - 0 dsb ish
    - 0 isb
    - 0 release 0x101008 0 0x103003
    + 0 release 0x101008 0x802007fd 0x103003 # here
      0 dsb ishst";

#[test]
fn a_table_for_a_block_takes_a_break() {
    planted(Rule::BreakBeforeMake, None, SPLIT);
}

#[test]
fn a_block_for_a_table_takes_a_break() {
    planted(
        Rule::BreakBeforeMake,
        None,
        "- 0 release 0x101000 0x102003 0
         - 0 dsb ishst
         - 0 tlbi ipas2e1is 7 0 0x200000
         - 0 dsb ish
         - 0 tlbi vmalle1is 7
         - 0 dsb ish
         - 0 isb
         - 0 release 0x101000 0 0x800007fd
         + 0 release 0x101000 0x102003 0x800007fd # here
           0 dsb ishst",
    );
}

#[test]
fn permissions_may_change_without_a_break() {
    let lines = "
        0 begin grant
        0 release 0x102000 0x800007ff 0x8000077f
        0 dsb ishst
        0 tlbi ipas2e1is 7 0 0x1000
        0 dsb ish
        0 tlbi vmalle1is 7
        0 dsb ish
        0 isb
        0 release 0x102000 0x8000077f 0x800007ff
        0 dsb ishst
        0 end 0";
    let records = parse(&numbered(lines, '+').text).unwrap();
    let report = check(&records);
    assert_eq!(report.findings, []);
    let line =
        |event: &str| records.iter().find(|r| r.event.to_string().starts_with(event)).unwrap().line;
    let changes = ["release 0x102000 0x800007ff", "release 0x102000 0x8000077f"].map(line);
    assert_eq!(report.permission_changes, changes);
}

/// A page of VM 0 is replaced by another, without one step.
fn without(step: &str) -> (Vec<Finding>, Vec<String>) {
    let steps = [
        "0 release 0x102000 0x800007ff 0",
        "0 dsb ishst",
        "0 tlbi ipas2e1is 7 0 0x1000",
        "0 dsb ish # stage 2",
        "0 tlbi vmalle1is 7",
        "0 dsb ish # combined",
        "0 isb",
        "0 release 0x102000 0 0x800057ff",
        "0 dsb ishst # make",
    ];
    let left: Vec<_> = steps.into_iter().filter(|&s| s != step).map(str::to_owned).collect();
    assert_eq!(left.len(), steps.len() - usize::from(!step.is_empty()));
    (findings(&numbered(&left.join("\n"), '+').text), left)
}

#[test]
fn every_step_of_a_break_is_needed() {
    assert_eq!(without("").0, []);
    for (step, rule, missing) in [
        ("0 dsb ishst", Rule::EarlyMake, Missing::Stage2),
        ("0 tlbi ipas2e1is 7 0 0x1000", Rule::EarlyMake, Missing::Stage2),
        ("0 dsb ish # stage 2", Rule::EarlyMake, Missing::Combined),
        ("0 tlbi vmalle1is 7", Rule::EarlyMake, Missing::Combined),
        ("0 dsb ish # combined", Rule::EarlyMake, Missing::CombinedDsb),
        ("0 isb", Rule::Return, Missing::Synchronization),
        ("0 dsb ishst # make", Rule::Return, Missing::VisibleMake),
    ] {
        let (found, left) = without(step);
        let [finding] = &found[..] else { panic!("without {step}: {found:#?}") };
        assert_eq!((finding.rule, finding.missing), (rule, Some(missing)), "without {step}");
        let before = BEFORE.lines().filter(|line| !line.trim().is_empty()).count() + 2;
        let line_of = |text: &str| left.iter().position(|l| l == text).map(|n| n + before);
        let (line, since) = match missing {
            Missing::Synchronization => {
                (Some(before + left.len() - 1), line_of("0 dsb ish # combined"))
            }
            Missing::VisibleMake => {
                let make = line_of("0 release 0x102000 0 0x800057ff");
                (Some(before + left.len() - 1), make)
            }
            _ => (
                line_of("0 release 0x102000 0 0x800057ff"),
                line_of("0 release 0x102000 0x800007ff 0"),
            ),
        };
        assert_eq!((Some(finding.line), finding.since), (line, since), "without {step}: {finding}");
    }
}

#[test]
fn a_tlbi_before_the_dsb_of_the_break_does_not_count() {
    let text = planted(
        Rule::EarlyMake,
        Some(Missing::Stage2),
        "  0 release 0x102000 0x800007ff 0 # since
         + 0 tlbi ipas2e1is 7 0 0x1000
           0 dsb ishst
         - 0 tlbi ipas2e1is 7 0 0x1000
           0 dsb ish
           0 tlbi vmalle1is 7
           0 dsb ish
           0 isb
           0 release 0x102000 0 0x800057ff # here
           0 dsb ishst",
    );
    assert!(text.contains("line 14 came before the DSB that makes the change visible"), "{text}");
}

#[test]
fn combined_entries_go_after_those_of_stage_2() {
    let text = planted(
        Rule::EarlyMake,
        Some(Missing::Combined),
        "  0 release 0x102000 0x800007ff 0 # since
           0 dsb ishst
           0 tlbi ipas2e1is 7 0 0x1000
         - 0 dsb ish
           0 tlbi vmalle1is 7
           0 dsb ish
           0 isb
           0 release 0x102000 0 0x800057ff # here
           0 dsb ishst",
    );
    assert!(text.contains("line 16 came before the DSB that completes stage 2"), "{text}");
}

#[test]
fn a_dsb_for_stores_completes_no_tlbi() {
    planted(
        Rule::EarlyMake,
        Some(Missing::CombinedDsb),
        "  0 release 0x102000 0x800007ff 0 # since
           0 dsb ishst
           0 tlbi ipas2e1is 7 0 0x1000
           0 dsb ish
           0 tlbi vmalle1is 7
         - 0 dsb ish
         + 0 dsb ishst
           0 isb
           0 release 0x102000 0 0x800057ff # here
           0 dsb ishst",
    );
}

#[test]
fn a_dsb_completes_the_tlbis_of_its_own_cpu() {
    planted(
        Rule::EarlyMake,
        Some(Missing::Stage2Dsb),
        "  0 release 0x102000 0x800007ff 0 # since
           0 dsb ishst
           0 tlbi vmalls12e1is 7
         - 0 dsb ish
         - 0 isb
         + 1 dsb ish
         + 1 isb
           0 release 0x102000 0 0x800057ff # here
           0 dsb ishst",
    );
}

#[test]
fn a_dsb_makes_the_writes_of_its_own_cpu_visible() {
    planted(
        Rule::EarlyMake,
        Some(Missing::VisibleBreak),
        "  0 release 0x102000 0x800007ff 0 # since
         - 0 dsb ishst
         + 1 dsb ishst
           1 tlbi vmalls12e1is 7
           1 dsb ish
           1 isb
           1 release 0x102000 0 0x800057ff # here
           1 dsb ishst
           0 dsb ishst",
    );
}

#[test]
fn the_vmid_must_be_the_right_one() {
    let text = planted(
        Rule::EarlyMake,
        Some(Missing::Stage2),
        "  0 release 0x102000 0x800007ff 0 # since
           0 dsb ishst
         - 0 tlbi ipas2e1is 7 0 0x1000
         + 0 tlbi ipas2e1is 8 0 0x1000
           0 dsb ish
         - 0 tlbi vmalle1is 7
         + 0 tlbi vmalle1is 8
           0 dsb ish
           0 isb
           0 release 0x102000 0 0x800057ff # here
           0 dsb ishst",
    );
    assert!(text.contains("the TLBI on line 15 is of VMID 8, not 7"), "{text}");
}

#[test]
fn pages_under_a_table_go_with_it() {
    planted(
        Rule::EarlyMake,
        Some(Missing::Stage2),
        "  0 release 0x101000 0x102003 0 # since
           0 dsb ishst
         - 0 tlbi ipas2e1is 7 0 0x200000
         + 0 tlbi ipas2e1is 7 0 0x1000
           0 dsb ish
           0 tlbi vmalle1is 7
           0 dsb ish
           0 isb
           0 release 0x101000 0 0x800007fd # here
           0 dsb ishst",
    );
}

#[test]
fn an_entry_may_come_back_as_it_was() {
    planted(
        Rule::EarlyMake,
        Some(Missing::Stage2),
        "  0 release 0x102000 0x800007ff 0 # since
           0 dsb ishst
         - 0 release 0x102000 0 0x800007ff
         + 0 release 0x102000 0 0x800057ff # here
           0 dsb ishst",
    );
}

#[test]
fn cpus_may_share_the_work() {
    // CPU 0 breaks, CPU 1 invalidates under the same lock, CPU 0 makes.
    sound(
        "0 release 0x102000 0x800007ff 0
         0 dsb ishst
         1 tlbi ipas2e1is 7 0 0x1000
         1 dsb ish
         1 tlbi vmalle1is 7
         1 dsb ish
         1 isb
         0 release 0x102000 0 0x800057ff
         0 dsb ishst",
    );
}

#[test]
fn lines_may_be_in_any_order() {
    let in_order = numbered(SPLIT, '+').text;
    let mut lines: Vec<_> = in_order.lines().collect();
    let last = lines.len() - 1;
    lines[1..last].reverse();
    let found = findings(&lines.join("\n"));
    assert_eq!(found, []);
}

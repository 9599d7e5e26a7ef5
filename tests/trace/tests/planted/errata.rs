// SPDX-License-Identifier: MIT OR Apache-2.0

//! CPUs on which an invalidation is complete only when a further TLBI is, and those
//! that execute `AT` speculatively.

use escrow_trace::{Missing, Rule};

use crate::{planted, sound};

/// A CPU has the first erratum. A page has left a VM's map in a call, and is invalidated once.
const INVALIDATED: &str = "
    0 erratum repeat-tlbi
    0 begin reclaim
    0 release 0x102000 0x800007ff 0 # since
    0 dsb ishst
    0 tlbi vmalls12e1is 7
";

#[test]
fn a_page_becomes_a_table_when_no_store_is_on_its_way() {
    planted(
        Rule::EarlyReuse,
        Some(Missing::Repetition),
        "  1 erratum repeat-tlbi
           0 release 0x102000 0x800007ff 0 # since
           0 dsb ishst
           0 tlbi ipas2e1is 7 0 0x1000
           0 dsb ish
           0 tlbi vmalle1is 7
           0 dsb ish
         - 0 tlbi vae2is
         - 0 dsb ish
           0 zero 0x80000000 0x1000 # here
         + 0 tlbi vae2is
           0 dsb ish
           0 isb",
    );
}

#[test]
fn a_page_goes_to_another_when_no_store_is_on_its_way() {
    planted(
        Rule::EarlyReuse,
        Some(Missing::Repetition),
        "  1 erratum repeat-tlbi
           0 release 0x102000 0x800007ff 0 # since
           0 dsb ishst
           0 tlbi vmalls12e1is 7
           0 dsb ish
           0 tlbi vmalle1is 8
         - 0 dsb ish
           0 release 0x106000 0 0x800007ff # here
           0 dsb ish
           0 isb",
    );
}

#[test]
fn a_call_waits_for_the_repetition() {
    planted(
        Rule::Return,
        Some(Missing::Repetition),
        &format!(
            "{INVALIDATED}
               0 dsb ish
             - 0 tlbi vae2is
             - 0 dsb ish
               0 isb
               0 end 0 # here"
        ),
    );
}

/// The maintenance that removes it is not the one that waits: two in a row
/// before one DSB are one.
#[test]
fn the_repetition_comes_after_the_dsb() {
    planted(
        Rule::Return,
        Some(Missing::Repetition),
        &format!(
            "{INVALIDATED}
             - 0 dsb ish
               0 tlbi vae2is
               0 dsb ish
               0 isb
               0 end 0 # here"
        ),
    );
}

#[test]
fn the_end_of_a_vm_waits_too() {
    planted(
        Rule::Vmid,
        Some(Missing::Repetition),
        "  1 erratum repeat-tlbi
           0 drop 1 # since
           0 tlbi vmalls12e1is 8
           0 dsb ish
         - 0 tlbi vae2is
         - 0 dsb ish
           0 isb
           0 root 2 8 0x107000 1 1 39 # here
         + 0 tlbi vae2is
         + 0 dsb ish
         + 0 isb",
    );
}

/// A CPU that comes when walkers see the change has never seen what was there
/// before.
#[test]
fn a_cpu_that_comes_later_needs_none() {
    sound(
        "  0 release 0x102000 0x800007ff 0
           0 dsb ishst
           1 erratum repeat-tlbi
           0 tlbi vmalls12e1is 7
           0 dsb ish
           0 isb
           0 zero 0x80000000 0x1000
           0 dsb ish",
    );
    planted(
        Rule::Return,
        Some(Missing::Repetition),
        "  0 begin reclaim
           0 release 0x102000 0x800007ff 0 # since
         - 0 dsb ishst
           1 erratum repeat-tlbi
         + 0 dsb ishst
           0 tlbi vmalls12e1is 7
           0 dsb ish
           0 isb
           0 end 0 # here",
    );
}

/// A CPU executes `AT` speculatively, and has held off walks of EL1&0.
const HELD: &str = "
    0 erratum speculative-at
    0 tcr 0x800080
    0 isb
    0 sctlr 0x1
    0 isb
";

/// From one VM to another on such a CPU: walks are held off before, and go on after.
const SWITCH: [&str; 9] = [
    "tcr 0x800080",
    "isb",
    "sctlr 0x1",
    "isb",
    "vttbr 0x8000000104000",
    "isb",
    "sctlr 0x0",
    "isb",
    "tcr 0x0",
];

/// The first `count` steps of it, without those that are left out; the last one is
/// the one that is found.
fn switch(count: usize, left_out: &[usize], since: Option<usize>) -> String {
    let mut lines = String::from("0 erratum speculative-at\n");
    for (n, step) in SWITCH[..count].iter().enumerate() {
        let sign = if left_out.contains(&n) { "- " } else { "" };
        let mark = match n {
            n if Some(n) == since => " # since",
            n if n == count - 1 => " # here",
            _ => "",
        };
        lines += &format!("{sign}0 {step}{mark}\n");
    }
    lines
}

#[test]
fn the_stage_2_changes_with_walks_held_off() {
    // Not at all; by half; and not yet in force.
    planted(Rule::Walks, None, &switch(5, &[0, 1, 2, 3], None));
    planted(Rule::Walks, None, &switch(5, &[2, 3], None));
    planted(Rule::Walks, None, &switch(5, &[3], Some(2)));
}

#[test]
fn one_base_alone_does_not_hold_them_off() {
    for half in ["0x80", "0x800000"] {
        planted(
            Rule::Walks,
            None,
            &format!("{HELD}\n+ 0 tcr {half}\n0 vttbr 0x8000000104000 # here"),
        );
    }
}

/// What a VM left in its table bases while its stage 1 is off is not walked.
#[test]
fn stage_1_is_switched_on_with_walks_held_off() {
    planted(Rule::Walks, None, &switch(3, &[1], Some(0)));
    planted(
        Rule::Walks,
        None,
        "  0 erratum speculative-at
         + 0 sctlr 0x1 # here
           0 tcr 0x800080
           0 isb
         - 0 sctlr 0x1
           0 isb
           0 vttbr 0x8000000104000",
    );
}

#[test]
fn walks_go_on_when_all_has_taken_effect() {
    // VTTBR_EL2 before SCTLR_EL1, and SCTLR_EL1 before TCR_EL1.
    planted(Rule::Walks, None, &switch(7, &[5], Some(4)));
    planted(Rule::Walks, None, &switch(9, &[7], Some(6)));
    planted(
        Rule::Walks,
        None,
        &format!(
            "{HELD}
               0 vttbr 0x8000000104000 # since
             - 0 isb
               0 tcr 0x0 # here"
        ),
    );
}

/// What is loaded in between holds them off as well.
#[test]
fn the_registers_that_are_loaded_hold_them_off() {
    planted(
        Rule::Walks,
        None,
        &format!(
            "{HELD}
             - 0 tcr 0x803590
             + 0 tcr 0x3510
               0 sctlr 0x1
               0 vttbr 0x8000000104000 # here"
        ),
    );
}

/// It is each CPU's own affair, and one of every switch.
#[test]
fn every_switch_of_such_a_cpu_has_its_order() {
    sound("1 erratum speculative-at\n0 vttbr 0x8000000104000\n0 isb\n0 sctlr 0x1\n0 tcr 0x0");
    planted(
        Rule::Walks,
        None,
        &format!(
            "{HELD}
               0 vttbr 0x8000000104000
               0 isb
               0 sctlr 0x1
               0 isb
               0 tcr 0x0
               0 isb
             + 0 vttbr 0x7000000100000 # here"
        ),
    );
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! Memory, tables and VMIDs that are used again.

use escrow_trace::{Missing, Rule};

use crate::{planted, sound};

#[test]
fn a_page_is_zeroed_when_nobody_reaches_it() {
    planted(
        Rule::EarlyReuse,
        Some(Missing::Combined),
        "  0 release 0x102000 0x800007ff 0 # since
           0 dsb ishst
           0 tlbi ipas2e1is 7 0 0x1000
           0 dsb ish
         - 0 tlbi vmalle1is 7
         - 0 dsb ish
           0 zero 0x80000000 0x1000 # here
         + 0 tlbi vmalle1is 7
           0 dsb ish
           0 isb",
    );
}

#[test]
fn a_page_goes_to_another_when_nobody_reaches_it() {
    planted(
        Rule::EarlyReuse,
        Some(Missing::Stage2),
        "  0 release 0x102000 0x800007ff 0 # since
           0 dsb ishst
         - 0 tlbi vmalls12e1is 7
         - 0 dsb ish
           0 release 0x106000 0 0x800007ff # here
           0 dsb ishst
         + 0 tlbi vmalls12e1is 7
         + 0 dsb ish
           0 isb",
    );
}

#[test]
fn a_page_becomes_a_table_when_nobody_reaches_it() {
    planted(
        Rule::EarlyReuse,
        Some(Missing::CombinedDsb),
        "  0 table 0x90000000 0x1000
           0 release 0x102000 0x800007ff 0
           0 dsb ishst
           0 tlbi vmalls12e1is 7
           0 dsb ish
           0 release 0x102000 0 0x900007ff
           0 dsb ishst
           0 release 0x102000 0x900007ff 0 # since
           0 dsb ishst
           0 tlbi ipas2e1is 7 0 0x1000
           0 dsb ish
           0 tlbi vmalle1is 7
         - 0 dsb ish
         - 0 zero 0x90000000 0x1000
           0 table 0x90000000 0x1000
           0 release 0x105008 0 0x90000003 # here
           0 dsb ish
           0 isb",
    );
}

#[test]
fn a_table_is_zeroed_when_no_walker_knows_it() {
    planted(
        Rule::TableReuse,
        Some(Missing::Stage2),
        "  0 release 0x105000 0x106003 0 # since
           0 dsb ishst
         - 0 tlbi vmalls12e1is 8
         - 0 dsb ish
           0 zero 0x106000 0x1000 # here
         + 0 tlbi vmalls12e1is 8
           0 dsb ish
           0 isb",
    );
}

#[test]
fn a_table_is_written_when_no_walker_knows_it() {
    planted(
        Rule::TableReuse,
        Some(Missing::Stage2),
        "  0 release 0x105000 0x106003 0 # since
           0 dsb ishst
         - 0 tlbi vmalls12e1is 8
         - 0 dsb ish
           0 release 0x106010 0 0x800107ff # here
         + 0 tlbi vmalls12e1is 8
           0 dsb ish
           0 isb",
    );
}

#[test]
fn a_table_moves_when_no_walker_knows_it() {
    planted(
        Rule::TableReuse,
        Some(Missing::Stage2),
        "  0 release 0x105000 0x106003 0 # since
           0 dsb ishst
         - 0 tlbi vmalls12e1is 8
         - 0 dsb ish
           0 release 0x101010 0 0x106003 # here
         + 0 tlbi vmalls12e1is 8
           0 dsb ish
           0 isb",
    );
}

#[test]
fn a_table_stands_in_one_place() {
    planted(
        Rule::TableReuse,
        None,
        "- 0 release 0x101010 0 0x103003
         + 0 release 0x101010 0 0x106003 # here
           0 dsb ishst",
    );
}

#[test]
fn a_table_is_zeroed_after_it_was_unlinked() {
    planted(
        Rule::TableReuse,
        None,
        "- 0 release 0x105000 0x106003 0
         - 0 dsb ishst
         - 0 tlbi vmalls12e1is 8
         - 0 dsb ish
           0 zero 0x106000 0x1000 # here
           0 dsb ishst
           0 isb",
    );
}

#[test]
fn a_table_is_not_mapped() {
    planted(
        Rule::TableReuse,
        None,
        "- 0 release 0x106000 0 0x801007ff
         + 0 release 0x106000 0 0x1017ff # here
           0 dsb ishst",
    );
    planted(
        Rule::TableReuse,
        None,
        "  0 table 0x800000000 0x2000
           0 release 0x106000 0 0x8000007ff
           0 dsb ishst
         - 0 release 0x101010 0 0x800001003
         + 0 table 0x800000000 0x1000
         + 0 release 0x101010 0 0x800000003 # here
           0 dsb ishst",
    );
}

#[test]
fn a_table_is_filled_before_it_is_linked() {
    planted(
        Rule::UnpublishedTable,
        None,
        "  0 write 0x103000 0 0x804007ff # since
         - 0 dsb ishst
           0 write 0x101010 0 0x103003 # here
           0 dsb ishst",
    );
    // A release store orders as well.
    sound(
        "0 write 0x103000 0 0x804007ff
         0 release 0x101010 0 0x103003
         0 dsb ishst",
    );
    planted(
        Rule::UnpublishedTable,
        None,
        "  0 zero 0x103000 0x1000 # since
         - 0 dsb sy
           0 write 0x101010 0 0x103003 # here
           0 dsb ishst",
    );
    planted(
        Rule::UnpublishedTable,
        None,
        "  0 release 0x107000 0 0x804007fd # since
         - 0 dsb ishst
           0 root 2 9 0x107000 1 1 39 # here
           0 dsb ishst",
    );
}

#[test]
fn a_vmid_is_one_vm_s() {
    planted(
        Rule::Vmid,
        None,
        "- 0 root 2 9 0x107000 1 1 39
         + 0 root 2 7 0x107000 1 1 39 # here",
    );
}

#[test]
fn a_vmid_is_used_again_when_nothing_of_it_lives() {
    // The drop is announced first: what TLBs hold may be held until the flush.
    planted(
        Rule::Vmid,
        Some(Missing::Stage2),
        "  0 drop 1 # since
         - 0 tlbi vmalls12e1is 8
         - 0 dsb ish
         - 0 isb
           0 root 2 8 0x107000 1 1 39 # here
         + 0 tlbi alle1is
         + 0 dsb ish
         + 0 isb",
    );
}

#[test]
fn vmids_may_roll_over() {
    sound(
        "0 drop 0
         0 drop 1
         0 tlbi alle1is
         0 dsb ish
         0 isb
         0 root 0 8 0x100000 1 1 39
         0 root 1 9 0x104000 1 1 39
         0 release 0x102000 0x800007ff 0
         0 dsb ishst
         0 tlbi vmalls12e1is 8
         0 dsb ish
         0 isb",
    );
}

#[test]
fn the_vmid_is_in_force_before_a_tlbi() {
    planted(
        Rule::Vmid,
        None,
        "  0 release 0x102000 0x800007ff 0
           0 dsb ishst
           0 vttbr 0x0007000000100000 # since
         - 0 isb
           0 tlbi vmalls12e1is 7 # here
           0 dsb ish
           0 isb",
    );
    planted(
        Rule::Vmid,
        None,
        "  0 release 0x102000 0x800007ff 0
           0 dsb ishst
         - 0 vttbr 0x0007000000100000
         + 0 vttbr 0x0008000000104000
           0 isb
           0 tlbi vmalls12e1is 7 # here
           0 dsb ish
           0 isb",
    );
}

#[test]
fn a_dead_vm_s_memory_is_used_when_nothing_of_it_lives() {
    planted(
        Rule::EarlyReuse,
        Some(Missing::Stage2),
        "  0 drop 0 # since
         - 0 tlbi vmalls12e1is 7
         - 0 dsb ish
           0 zero 0x80200000 0x1000 # here
         + 0 tlbi vmalls12e1is 7
         + 0 dsb ish
           0 isb",
    );
    planted(
        Rule::TableReuse,
        Some(Missing::Stage2),
        "  0 drop 1 # since
         - 0 tlbi vmalls12e1is 8
         + 0 tlbi ipas2e1is 8 0 0x8000000000
           0 dsb ish
           0 zero 0x104000 0x1000 # here
         + 0 tlbi vmalls12e1is 8
         + 0 dsb ish
           0 isb",
    );
}

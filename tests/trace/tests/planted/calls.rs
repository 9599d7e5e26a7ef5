// SPDX-License-Identifier: MIT OR Apache-2.0

//! What must be done when a call returns, and traces that miss an event.

use escrow_trace::{Missing, Rule};

use crate::{planted, sound};

#[test]
fn permissions_that_are_taken_leave_the_tlbs() {
    planted(
        Rule::Return,
        Some(Missing::Stage2),
        "  0 begin protect
           0 release 0x102000 0x800007ff 0x8000077f # since
           0 dsb ishst
         - 0 tlbi ipas2e1is 7 0 0x1000
         - 0 dsb ish
         - 0 tlbi vmalle1is 7
         - 0 dsb ish
         - 0 isb
           0 end 0 # here",
    );
}

#[test]
fn the_range_must_cover_all_that_went() {
    let text = planted(
        Rule::Return,
        Some(Missing::Stage2),
        "  0 begin unmap
           0 release 0x102000 0x800007ff 0
           0 release 0x102008 0x800017ff 0 # since
           0 dsb ishst
         - 0 tlbi ipas2e1is 7 0 0x2000
         + 0 tlbi ipas2e1is 7 0 0x1000
           0 dsb ish
           0 tlbi vmalle1is 7
           0 dsb ish
           0 isb
           0 end 0 # here",
    );
    assert!(text.contains("line 17 is of other addresses"), "{text}");
}

#[test]
fn a_call_publishes_before_it_returns() {
    planted(
        Rule::Return,
        Some(Missing::VisibleMake),
        "  0 begin map
           0 release 0x102010 0 0x800027ff # since
         - 0 dsb ishst
           0 end 0 # here
           0 dsb ishst",
    );
}

#[test]
fn a_call_invalidates_before_it_returns() {
    planted(
        Rule::Return,
        Some(Missing::Stage2Dsb),
        "  0 begin unmap
           0 release 0x102000 0x800007ff 0 # since
           0 dsb ishst
           0 tlbi vmalls12e1is 7
         - 0 dsb ish
         - 0 isb
           0 end 0 # here
         + 0 dsb ish
         + 0 isb",
    );
}

#[test]
fn tables_and_ledger_agree_when_a_call_returns() {
    planted(
        Rule::Access,
        None,
        "  0 begin lend
         - 0 release 0x102000 0x800007ff 0
         - 0 dsb ishst
         - 0 tlbi vmalls12e1is 7
         - 0 dsb ish
         - 0 isb
           0 state 0x80000000 0x1000 1
           0 release 0x106000 0 0x800007ff
           0 dsb ishst
           0 end 0 # here",
    );
    planted(
        Rule::Access,
        None,
        "  0 begin share
         - 0 state 0x80000000 0x1000 0 1
         + 0 state 0x80000000 0x1000 -
         + 0 release 0x102000 0x800007ff 0
         + 0 dsb ishst
         + 0 tlbi vmalls12e1is 7
         + 0 dsb ish
         + 0 isb
           0 release 0x106000 0 0x800007ff
           0 dsb ishst
           0 end 0 # here",
    );
}

#[test]
fn a_trace_does_not_contradict_itself() {
    planted(
        Rule::Replay,
        None,
        "- 0 release 0x102010 0 0x800027ff
         + 0 release 0x102010 0x42 0x800027ff # here
           0 dsb ishst",
    );
    planted(
        Rule::Replay,
        None,
        "- 0 release 0x103000 0 0x800027ff
         + 0 release 0x110000 0 0x800027ff # here
           0 dsb ishst",
    );
    planted(
        Rule::Replay,
        None,
        "- 0 release 0x101010 0 0x103003
         + 0 release 0x101010 0 0x110003 # here
           0 dsb ishst",
    );
    // A table with anything in it is written to from one end to the other.
    planted(
        Rule::Replay,
        None,
        "  0 raw 0x110000 0x1000
         - 0 fill 0x110000 1 0x5555 0 0 0
           0 fill 0x110008 1 0x1234 0 0x804007ff 0
           0 fill 0x110010 510 0xabcd 3 0 0
           0 release 0x101010 0 0x110003 # here
           0 dsb ishst",
    );
}

#[test]
fn a_call_does_not_answer_for_another_cpu_s() {
    // CPU 1's call returns while CPU 0 is in the middle of taking the same page
    // away, and what CPU 1 said of it is being changed.
    sound(
        "1 begin share
         1 state 0x80000000 0x1000 0 1
         1 release 0x106000 0 0x800007ff
         1 dsb ishst
         0 begin unshare
         0 release 0x106000 0x800007ff 0
         0 state 0x80000000 0x1000 0
         1 end 0
         0 dsb ishst
         0 tlbi vmalls12e1is 8
         0 dsb ish
         0 isb
         0 end 0",
    );
}

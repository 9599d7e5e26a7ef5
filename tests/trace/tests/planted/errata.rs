// SPDX-License-Identifier: MIT OR Apache-2.0

//! CPUs on which an invalidation is complete only when a further TLBI is.

use escrow_trace::{Missing, Rule};

use crate::{planted, sound};

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
        "  0 erratum repeat-tlbi
           0 begin reclaim
           0 release 0x102000 0x800007ff 0 # since
           0 dsb ishst
           0 tlbi vmalls12e1is 7
           0 dsb ish
         - 0 tlbi vae2is
         - 0 dsb ish
           0 isb
           0 end 0 # here",
    );
}

/// The maintenance that removes it is not the one that waits: two in a row
/// before one DSB are one.
#[test]
fn the_repetition_comes_after_the_dsb() {
    planted(
        Rule::Return,
        Some(Missing::Repetition),
        "  0 erratum repeat-tlbi
           0 begin reclaim
           0 release 0x102000 0x800007ff 0 # since
           0 dsb ishst
           0 tlbi vmalls12e1is 7
         - 0 dsb ish
           0 tlbi vae2is
           0 dsb ish
           0 isb
           0 end 0 # here",
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

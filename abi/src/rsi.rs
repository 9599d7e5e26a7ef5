// SPDX-License-Identifier: MIT OR Apache-2.0

//! Arm's Realm Services Interface, as a guest of a protected VM calls it (Arm DEN0137, "Realm
//! Management Monitor specification", version 1.0, chapter B5).
//!
//! Guests make these calls by `SMC #0`. The comment of each call lists its arguments (`x1`…) and
//! its results after `→` (`x1`…); `x0` is one of the `STATUS_*`.
//!
//! The guest's addresses have two halves of the same size. In the lower one, the *protected* half,
//! each page has a state, its RIPAS ("Realm IPA state"). The upper half is the *shared* one: what the host
//! shares with the guest is there. The offset of a page is the same in both.

const fn standard(n: u32) -> u32 {
    0xC400_0000 | n
}

/// The first function identifier of the interface.
pub const FIRST: u32 = standard(0x190);
/// The last function identifier of the interface.
pub const LAST: u32 = standard(0x1AF);

/// wanted version → lowest, highest implemented version: [`VERSION_1_0`] both
pub const VERSION: u32 = standard(0x190);
/// index of a register of features → its value, which is 0 for all of them
pub const FEATURES: u32 = standard(0x191);
/// address of a page in protected RAM, which is filled with the configuration
pub const REALM_CONFIG: u32 = standard(0x196);
/// base, top (guest addresses, page-aligned, in the protected half), RIPAS ([`EMPTY`] or [`RAM`]),
/// flags ([`CHANGE_DESTROYED`] or 0) → the address up to which this is done; [`ACCEPT`] or [`REJECT`]
///
/// The guest calls again with that address as the base until it is `top`. Rejected are: [`RAM`] where there is none
/// and the host has declared no memory ([`call::VM_CONFIGURE`](crate::call::VM_CONFIGURE)), [`RAM`] where the
/// guest has opened a page by [`call::MEM_SHARE_BACK`](crate::call::MEM_SHARE_BACK), and [`EMPTY`] of what it has in
/// another way than lent.
pub const IPA_STATE_SET: u32 = standard(0x197);
/// base, top (as above) → an address up to which all pages have the RIPAS of the first one, at most
/// `top`; that RIPAS
pub const IPA_STATE_GET: u32 = standard(0x198);

/// Version 1.0: major version in bits 30:16, minor in bits 15:0.
pub const VERSION_1_0: u64 = 1 << 16;

/// The call is done.
pub const STATUS_SUCCESS: u64 = 0;
/// An argument is none that the call takes.
pub const STATUS_ERROR_INPUT: u64 = 1;

/// RIPAS: no memory of the guest's. An access ends in an external abort.
pub const EMPTY: u64 = 0;
/// RIPAS: memory that the guest alone reaches.
pub const RAM: u64 = 1;
/// RIPAS: memory that has broken. An access ends in an external abort.
pub const DESTROYED: u64 = 2;
/// RIPAS: registers that EL2 answers, or a page that EL2 alone writes.
pub const DEV: u64 = 3;

/// Flag of [`IPA_STATE_SET`]: pages that are [`DESTROYED`] may change as well. Here they never do.
pub const CHANGE_DESTROYED: u64 = 1;

/// The request of [`IPA_STATE_SET`] was accepted.
pub const ACCEPT: u64 = 0;
/// It was rejected.
pub const REJECT: u64 = 1;

/// [`REALM_CONFIG`]: offset of the number of bits of guest address, 64 bits. The highest of them
/// is 1 in the shared half.
pub const CONFIG_IPA_BITS: u64 = 0;
/// [`REALM_CONFIG`]: offset of the algorithm of measurements, 64 bits: 0 is SHA-256.
pub const CONFIG_HASH_ALGORITHM: u64 = 8;

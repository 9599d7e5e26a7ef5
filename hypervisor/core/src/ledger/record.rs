// SPDX-License-Identifier: MIT OR Apache-2.0

//! The record of a frame: its state, its owner, its borrower, and where the
//! borrower sees it, in one 64-bit word.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use escrow_abi::FrameState;

use crate::addr::{Ipa, PAGE_SIZE, PAGES_PER_BLOCK};

/// A VM in the ledger. 0 is the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VmId(u16);

impl VmId {
    /// The host.
    pub const HOST: VmId = VmId(0);
    /// The largest number.
    pub const MAX: u16 = (1 << 12) - 1;

    /// The VM with this number; the number is cut to 12 bits.
    pub const fn new(number: u16) -> VmId {
        VmId(number & Self::MAX)
    }

    /// The number.
    pub const fn get(self) -> u16 {
        self.0
    }
}

/// What the ledger knows of a frame.
///
/// | bits | meaning |
/// | --- | --- |
/// | 63:60 | kind: a [`FrameState`], [`Record::NO_RAM`] or a split block |
/// | 59:48 | owner |
/// | 47:36 | borrower; for metadata the VM that it serves |
/// | 35:0 | the borrower's address of it, in pages; of a donated frame the owner's |
///
/// All zeros is a frame that is the host's alone, so zeroed memory is the
/// ledger of a machine whose RAM is the host's.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Record(u64);

const KIND_SHIFT: u32 = 60;
const OWNER_SHIFT: u32 = 48;
const BORROWER_SHIFT: u32 = 36;
const GUEST_MASK: u64 = (1 << BORROWER_SHIFT) - 1;
const KIND_NO_RAM: u64 = 0xE;
const KIND_SPLIT: u64 = 0xF;

impl Record {
    /// The host's alone: where every frame of the host begins and ends.
    pub const HOME: Record = Record(0);
    /// Not RAM: the rest of a block at the edge of a RAM range.
    pub const NO_RAM: Record = Record(KIND_NO_RAM << KIND_SHIFT);
    /// Escrow's own.
    pub const HYPERVISOR: Record = Record((FrameState::Hypervisor as u64) << KIND_SHIFT);
    /// The host's, and kept where it is.
    pub const PINNED: Record = Record((FrameState::Pinned as u64) << KIND_SHIFT);

    /// Broken, and out of use.
    pub const POISONED: Record = Record((FrameState::Poisoned as u64) << KIND_SHIFT);

    /// A frame that a guest owns and has to itself.
    pub const fn donated(owner: VmId, guest: Ipa) -> Record {
        Record::borrowed(FrameState::Donated, owner, VmId::HOST, guest)
    }

    /// A frame that `owner` lets `borrower` use.
    pub const fn borrowed(state: FrameState, owner: VmId, borrower: VmId, guest: Ipa) -> Record {
        Record(
            (state as u64) << KIND_SHIFT
                | (owner.0 as u64) << OWNER_SHIFT
                | (borrower.0 as u64) << BORROWER_SHIFT
                | ((guest.0 / PAGE_SIZE) & GUEST_MASK),
        )
    }

    /// The record of a block whose frames have records of their own, `away`
    /// of which (0 to 512) are not [`Record::HOME`].
    pub(super) const fn split(away: u64) -> Record {
        Record(KIND_SPLIT << KIND_SHIFT | away)
    }

    /// How many frames of a split block are away; `None` for other records.
    pub(super) const fn split_away(self) -> Option<u64> {
        if self.0 >> KIND_SHIFT == KIND_SPLIT { Some(self.0 & GUEST_MASK) } else { None }
    }

    /// Whether each frame of the block has a record of its own.
    #[inline(always)]
    pub const fn is_split(self) -> bool {
        self.0 >> KIND_SHIFT == KIND_SPLIT
    }

    /// The record of a split block of which one frame more is away, as long as one is still at home.
    #[inline(always)]
    pub const fn next_away(self) -> Option<Record> {
        let next = self.0 + 1;
        if next & GUEST_MASK < PAGES_PER_BLOCK as u64 { Some(Record(next)) } else { None }
    }

    /// Whether a frame's own record says that it is at home.
    #[inline(always)]
    pub fn is_home(frame: &AtomicU64) -> bool {
        frame.load(Ordering::Relaxed) == Record::HOME.0
    }

    /// Makes it a frame's own record.
    #[inline(always)]
    pub fn store(self, frame: &AtomicU64) {
        frame.store(self.0, Ordering::Relaxed);
    }

    pub(super) const fn from_bits(bits: u64) -> Record {
        Record(bits)
    }

    pub(super) const fn bits(self) -> u64 {
        self.0
    }

    /// The state; `None` for what is not RAM.
    pub const fn state(self) -> Option<FrameState> {
        FrameState::from_number(self.0 >> KIND_SHIFT)
    }

    /// Whether the state is this one.
    pub const fn is(self, state: FrameState) -> bool {
        self.0 >> KIND_SHIFT == state as u64
    }

    /// Who owns the frame.
    pub const fn owner(self) -> VmId {
        VmId::new((self.0 >> OWNER_SHIFT) as u16)
    }

    /// Who borrows it. Meaningless for states without a borrower.
    pub const fn borrower(self) -> VmId {
        VmId::new((self.0 >> BORROWER_SHIFT) as u16)
    }

    /// Where the borrower sees it.
    pub const fn guest(self) -> Ipa {
        Ipa((self.0 & GUEST_MASK) * PAGE_SIZE)
    }

    /// The VM that counts the frame among its own: the borrower, or the owner of what is
    /// donated. `None` for what no guest has.
    pub const fn holder(self) -> Option<VmId> {
        match self.state() {
            Some(FrameState::Donated) => Some(self.owner()),
            Some(
                FrameState::Shared
                | FrameState::Lent
                | FrameState::UnlockedZeroed
                | FrameState::UnlockedContents
                | FrameState::SharedBack
                | FrameState::Metadata,
            ) => Some(self.borrower()),
            _ => None,
        }
    }

    /// The same record in another state.
    pub const fn with_state(self, state: FrameState) -> Record {
        Record((self.0 & !(0xF << KIND_SHIFT)) | (state as u64) << KIND_SHIFT)
    }

    /// The record of the frame `pages` further on in the same block.
    #[inline]
    pub const fn nth(self, pages: u64) -> Record {
        if self.has_guest_address() { Record(self.0 + pages) } else { self }
    }

    /// The VMs whose address spaces may hold the frame.
    pub fn reached_by(self) -> impl Iterator<Item = VmId> {
        use FrameState::{
            Donated, Lent, Owned, Pinned, Shared, SharedBack, UnlockedContents, UnlockedZeroed,
        };
        let state = self.state();
        let owner = matches!(state, Some(Owned | Pinned | Donated | Shared | SharedBack));
        let borrower =
            matches!(state, Some(Shared | SharedBack | Lent | UnlockedContents | UnlockedZeroed));
        let owner = owner.then_some(self.owner());
        owner.into_iter().chain(borrower.then_some(self.borrower()))
    }

    /// Whether the host's address space holds the frame.
    pub const fn host_reaches(self) -> bool {
        self.owner().0 == 0
            && matches!(
                self.state(),
                Some(
                    FrameState::Owned
                        | FrameState::Shared
                        | FrameState::SharedBack
                        | FrameState::Pinned
                )
            )
    }

    /// Whether a guest sees the frame at [`Self::guest`].
    #[inline]
    pub const fn has_guest_address(self) -> bool {
        const WITH: u64 = 1 << FrameState::Shared as u64
            | 1 << FrameState::Lent as u64
            | 1 << FrameState::UnlockedZeroed as u64
            | 1 << FrameState::UnlockedContents as u64
            | 1 << FrameState::SharedBack as u64
            | 1 << FrameState::Donated as u64;
        WITH >> (self.0 >> KIND_SHIFT) & 1 != 0
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.state(), self.split_away()) {
            (Some(state), _) => write!(
                f,
                "{state:?}(owner {}, borrower {}, at {})",
                self.owner().0,
                self.borrower().0,
                self.guest()
            ),
            (None, Some(away)) => write!(f, "Split({away} away)"),
            (None, None) => f.write_str("NoRam"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_back() {
        let record = Record::borrowed(
            FrameState::Lent,
            VmId::new(0xabc),
            VmId::new(7),
            Ipa(0xffff_ffff_f000),
        );
        assert!(record.is(FrameState::Lent));
        assert_eq!(record.owner(), VmId::new(0xabc));
        assert_eq!(record.borrower(), VmId::new(7));
        assert_eq!(record.guest(), Ipa(0xffff_ffff_f000));
        let unlocked = record.with_state(FrameState::UnlockedContents);
        assert!(unlocked.is(FrameState::UnlockedContents));
        assert_eq!(unlocked.with_state(FrameState::Lent), record);
    }

    #[test]
    fn zero_is_home() {
        assert!(Record::from_bits(0).is(FrameState::Owned));
        assert_eq!(Record::from_bits(0).owner(), VmId::HOST);
        assert!(Record::HOME.host_reaches());
    }

    #[test]
    fn the_host_reaches_its_own_and_what_is_open_to_it() {
        use FrameState::{Owned, Pinned, Shared, SharedBack};
        for state in FrameState::ALL {
            let record = Record::borrowed(state, VmId::HOST, VmId::new(1), Ipa(0));
            let reached = matches!(state, Owned | Shared | SharedBack | Pinned);
            assert_eq!(record.host_reaches(), reached, "{state:?}");
            let of_guest = Record::borrowed(state, VmId::new(2), VmId::new(1), Ipa(0));
            assert!(!of_guest.host_reaches(), "{state:?}");
        }
        assert!(!Record::NO_RAM.host_reaches());
        assert!(!Record::split(3).host_reaches());
    }

    #[test]
    fn nth_counts_guest_pages_only_where_there_are_any() {
        let lent = Record::borrowed(FrameState::Lent, VmId::HOST, VmId::new(1), Ipa(0x20_0000));
        assert_eq!(lent.nth(3).guest(), Ipa(0x20_3000));
        assert_eq!(Record::HOME.nth(3), Record::HOME);
    }
}

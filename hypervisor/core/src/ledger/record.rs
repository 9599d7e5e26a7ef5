// SPDX-License-Identifier: MIT OR Apache-2.0

//! The record of a frame: its state, its owner, its borrower, and the borrower's IPA of it,
//! in one 64-bit word.

use core::fmt;
use core::num::NonZeroU16;
use core::sync::atomic::{AtomicU64, Ordering};

use escrow_abi::FrameState;

use crate::addr::{Ipa, PAGE_SIZE, PAGES_PER_BLOCK};

/// A guest in the ledger: the number of its slot, from 1, and its VMID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestId(NonZeroU16);

impl GuestId {
    /// The largest number: what a record has room for.
    pub const MAX: u16 = (1 << 12) - 1;

    /// The guest with this number; `None` for 0, and beyond [`Self::MAX`].
    #[inline(always)]
    pub const fn new(number: u16) -> Option<GuestId> {
        match NonZeroU16::new(number) {
            Some(id) if number <= Self::MAX => Some(GuestId(id)),
            _ => None,
        }
    }

    /// The number.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        self.0.get()
    }
}

/// A VM in the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VmId {
    /// The host.
    Host,
    /// A guest.
    Guest(GuestId),
}

impl VmId {
    /// The VMID: the host's is 0.
    #[inline(always)]
    pub const fn vmid(self) -> u16 {
        match self {
            VmId::Host => 0,
            VmId::Guest(id) => id.get(),
        }
    }

    /// The guest that it is, if any.
    #[inline(always)]
    pub const fn guest(self) -> Option<GuestId> {
        match self {
            VmId::Host => None,
            VmId::Guest(id) => Some(id),
        }
    }

    /// The VM with a VMID, of which the upper bits are cut off.
    #[inline(always)]
    const fn of_vmid(vmid: u64) -> VmId {
        match GuestId::new(vmid as u16 & GuestId::MAX) {
            Some(id) => VmId::Guest(id),
            None => VmId::Host,
        }
    }
}

impl From<GuestId> for VmId {
    fn from(id: GuestId) -> VmId {
        VmId::Guest(id)
    }
}

/// The ledger's record of a frame.
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
    /// Owned by the host, and not lent or shared: a frame that is *at home*. All RAM of the host starts
    /// and ends in this state.
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
    pub const fn donated(owner: GuestId, guest: Ipa) -> Record {
        Record::new(FrameState::Donated, VmId::Guest(owner), None, guest)
    }

    /// A frame that `owner` lets `borrower` use.
    pub const fn borrowed(state: FrameState, owner: VmId, borrower: GuestId, guest: Ipa) -> Record {
        Record::new(state, owner, Some(borrower), guest)
    }

    const fn new(state: FrameState, owner: VmId, borrower: Option<GuestId>, guest: Ipa) -> Record {
        let borrower = match borrower {
            Some(id) => id.get(),
            None => 0,
        };
        Record(
            (state as u64) << KIND_SHIFT
                | (owner.vmid() as u64) << OWNER_SHIFT
                | (borrower as u64) << BORROWER_SHIFT
                | ((guest.0 / PAGE_SIZE) & GUEST_MASK),
        )
    }

    /// The record of a block whose frames have records of their own, `away`
    /// of which (0 to 512) are not [`Record::HOME`].
    pub(super) const fn split(away: u64) -> Record {
        Record(KIND_SPLIT << KIND_SHIFT | away)
    }

    /// How many frames of a split block are away; `None` for other records.
    pub(crate) const fn split_away(self) -> Option<u64> {
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
        VmId::of_vmid(self.0 >> OWNER_SHIFT)
    }

    /// Who borrows it; for metadata the VM that it serves. `None` for states without a
    /// borrower.
    pub const fn borrower(self) -> Option<GuestId> {
        VmId::of_vmid(self.0 >> BORROWER_SHIFT).guest()
    }

    /// Where the borrower sees it.
    pub const fn guest(self) -> Ipa {
        Ipa((self.0 & GUEST_MASK) * PAGE_SIZE)
    }

    /// The VM that counts the frame among its own: the borrower, or the owner of what is
    /// donated. `None` for what no guest has.
    pub const fn holder(self) -> Option<GuestId> {
        match self.state() {
            Some(FrameState::Donated) => self.owner().guest(),
            Some(
                FrameState::Shared
                | FrameState::Lent
                | FrameState::UnlockedZeroed
                | FrameState::UnlockedContents
                | FrameState::SharedBack
                | FrameState::Metadata,
            ) => self.borrower(),
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

    /// The VMs whose stage 2 may map the frame.
    pub fn reached_by(self) -> impl Iterator<Item = VmId> {
        use FrameState::{
            Donated, Lent, Owned, Pinned, Shared, SharedBack, UnlockedContents, UnlockedZeroed,
        };
        let state = self.state();
        let owner = matches!(state, Some(Owned | Pinned | Donated | Shared | SharedBack));
        let borrower =
            matches!(state, Some(Shared | SharedBack | Lent | UnlockedContents | UnlockedZeroed));
        let owner = owner.then_some(self.owner());
        let borrower = self.borrower().filter(|_| borrower).map(VmId::Guest);
        owner.into_iter().chain(borrower)
    }

    /// Whether the host's stage 2 maps the frame.
    pub const fn host_reaches(self) -> bool {
        matches!(self.owner(), VmId::Host)
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

    /// Whether a guest owns the frame and has given it to another, for a time.
    pub fn is_lent_on(self) -> bool {
        self.has_guest_address() && !self.is(FrameState::Donated) && self.owner() != VmId::Host
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
                self.owner().vmid(),
                self.borrower().map_or(0, GuestId::get),
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

    fn guest(number: u16) -> GuestId {
        GuestId::new(number).unwrap()
    }

    #[test]
    fn the_host_is_no_guest() {
        assert_eq!(GuestId::new(0), None);
        assert_eq!(GuestId::new(GuestId::MAX + 1), None);
        assert_eq!(guest(GuestId::MAX).get(), 0xfff);
        assert_eq!(VmId::of_vmid(0), VmId::Host);
        assert_eq!(Record::HOME.borrower(), None);
        assert_eq!(Record::donated(guest(3), Ipa(0)).borrower(), None);
        assert_eq!(size_of::<VmId>(), 2);
    }

    #[test]
    fn fields_come_back() {
        let record = Record::borrowed(
            FrameState::Lent,
            VmId::Guest(guest(0xabc)),
            guest(7),
            Ipa(0xffff_ffff_f000),
        );
        assert!(record.is(FrameState::Lent));
        assert_eq!(record.owner(), VmId::Guest(guest(0xabc)));
        assert_eq!(record.borrower(), Some(guest(7)));
        assert_eq!(record.guest(), Ipa(0xffff_ffff_f000));
        let unlocked = record.with_state(FrameState::UnlockedContents);
        assert!(unlocked.is(FrameState::UnlockedContents));
        assert_eq!(unlocked.with_state(FrameState::Lent), record);
    }

    #[test]
    fn zero_is_home() {
        assert!(Record::from_bits(0).is(FrameState::Owned));
        assert_eq!(Record::from_bits(0).owner(), VmId::Host);
        assert!(Record::HOME.host_reaches());
    }

    #[test]
    fn the_host_reaches_its_own_and_what_is_open_to_it() {
        use FrameState::{Owned, Pinned, Shared, SharedBack};
        for state in FrameState::ALL {
            let record = Record::borrowed(state, VmId::Host, guest(1), Ipa(0));
            let reached = matches!(state, Owned | Shared | SharedBack | Pinned);
            assert_eq!(record.host_reaches(), reached, "{state:?}");
            let of_guest = Record::borrowed(state, VmId::Guest(guest(2)), guest(1), Ipa(0));
            assert!(!of_guest.host_reaches(), "{state:?}");
        }
        assert!(!Record::NO_RAM.host_reaches());
        assert!(!Record::split(3).host_reaches());
    }

    #[test]
    fn nth_counts_guest_pages_only_where_there_are_any() {
        let lent = Record::borrowed(FrameState::Lent, VmId::Host, guest(1), Ipa(0x20_0000));
        assert_eq!(lent.nth(3).guest(), Ipa(0x20_3000));
        assert_eq!(Record::HOME.nth(3), Record::HOME);
    }
}

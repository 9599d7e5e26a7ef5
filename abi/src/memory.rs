// SPDX-License-Identifier: MIT OR Apache-2.0

/// Bytes in a page, the smallest thing that changes hands.
pub const PAGE_SIZE: u64 = 4096;
/// Bytes in a block: 512 pages that move as one.
pub const BLOCK_SIZE: u64 = 2 << 20;
/// Order of a page, as [`MemEntry::new`] takes it.
pub const ORDER_PAGE: u32 = 0;
/// Order of a 2 MiB block.
pub const ORDER_BLOCK: u32 = 9;
/// Entries that the list of one call has at the most.
pub const LIST_MAX: usize = 512;

/// Blocks that the pages of one [`VM_CREATE`](crate::call::VM_CREATE) lie in at the most.
pub const CREATE_BLOCKS_MAX: usize = 64;
/// Bytes that one `MODIFY_PAGES` of a guest covers at the most.
pub const MODIFY_MAX: u64 = 64 << 20;

/// What a guest may do with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rights(u8);

impl Rights {
    /// Nothing: for lists that name no guest address.
    pub const NONE: Rights = Rights(0);
    /// Read.
    pub const READ: Rights = Rights(1);
    /// Read and write.
    pub const READ_WRITE: Rights = Rights(3);
    /// Read and execute.
    pub const READ_EXECUTE: Rights = Rights(5);
    /// Read, write and execute.
    pub const ALL: Rights = Rights(7);

    /// From bits: 0 read, 1 write, 2 execute. `None` for any other bit.
    pub const fn from_bits(bits: u64) -> Option<Rights> {
        if bits <= 7 { Some(Rights(bits as u8)) } else { None }
    }

    /// As bits.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// May read.
    pub const fn read(self) -> bool {
        self.0 & 1 != 0
    }

    /// May write.
    pub const fn write(self) -> bool {
        self.0 & 2 != 0
    }

    /// May execute.
    pub const fn execute(self) -> bool {
        self.0 & 4 != 0
    }
}

/// One folio in a list, with its owner's report of who uses it. 32 bytes,
/// little-endian.
///
/// The report is the owner's word and protects the owner: EL2 refuses the call
/// unless `refcount == safe` and `accessible == 0`. What protects everybody
/// else, EL2 looks up itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct MemEntry {
    /// The caller's address of the folio (for the host the physical address), and
    /// the order in bits 11:0.
    pub frame: u64,
    /// Address in the VM that gets the folio, and [`Rights`] in bits 2:0; bits 11:3
    /// are zero.
    pub guest: u64,
    /// The folio's reference count.
    pub refcount: u32,
    /// References whose holders know that the folio may leave at any time.
    pub safe: u32,
    /// Kernel users that need to reach the folio.
    pub accessible: u32,
    /// Zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<MemEntry>() == 32);

impl MemEntry {
    /// An entry whose report shows no user.
    pub const fn new(frame: u64, order: u32, guest: u64, rights: Rights) -> MemEntry {
        MemEntry {
            frame: frame | order as u64,
            guest: guest | rights.0 as u64,
            refcount: 0,
            safe: 0,
            accessible: 0,
            reserved: 0,
        }
    }

    /// The same entry with a report.
    pub const fn with_report(mut self, refcount: u32, safe: u32, accessible: u32) -> MemEntry {
        self.refcount = refcount;
        self.safe = safe;
        self.accessible = accessible;
        self
    }

    /// Its four words, as they are in memory, or in the registers of
    /// [`call::MEM_LEND_ONE`](crate::call::MEM_LEND_ONE).
    pub const fn words(&self) -> [u64; 4] {
        [
            self.frame,
            self.guest,
            self.refcount as u64 | (self.safe as u64) << 32,
            self.accessible as u64 | (self.reserved as u64) << 32,
        ]
    }

    /// References that no safe holder accounts for.
    pub const fn excess(&self) -> i64 {
        self.refcount as i64 - self.safe as i64
    }
}

/// The state of a frame of RAM in the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameState {
    /// The host's alone.
    Owned = 0,
    /// Escrow's own; no VM reaches it.
    Hypervisor = 1,
    /// Reached by its owner and by one borrower.
    Shared = 2,
    /// Reached by its borrower alone.
    Lent = 3,
    /// As `Lent`, and the borrower has given it up: its owner may fetch it,
    /// and finds it zeroed.
    UnlockedZeroed = 4,
    /// As `Lent`, and the borrower has given it up with its contents.
    UnlockedContents = 5,
    /// Donated to EL2 for one VM's tables and vCPUs.
    Metadata = 6,
    /// Its owner's, and kept where it is: firmware or a device uses it.
    Pinned = 7,
    /// Out of use for good: broken memory.
    Poisoned = 8,
    /// Lent, and opened to its owner again by the borrower.
    SharedBack = 9,
    /// Donated to a guest, which owns it and has it to itself.
    Donated = 10,
}

impl FrameState {
    /// All states, for tables and tests.
    pub const ALL: [FrameState; 11] = [
        FrameState::Owned,
        FrameState::Hypervisor,
        FrameState::Shared,
        FrameState::Lent,
        FrameState::UnlockedZeroed,
        FrameState::UnlockedContents,
        FrameState::Metadata,
        FrameState::Pinned,
        FrameState::Poisoned,
        FrameState::SharedBack,
        FrameState::Donated,
    ];

    /// The state with this number.
    pub const fn from_number(number: u64) -> Option<FrameState> {
        if number < Self::ALL.len() as u64 { Some(Self::ALL[number as usize]) } else { None }
    }

    /// A short name for people.
    pub const fn name(self) -> &'static str {
        match self {
            FrameState::Owned => "owned",
            FrameState::Hypervisor => "hypervisor",
            FrameState::Shared => "shared",
            FrameState::Lent => "lent",
            FrameState::UnlockedZeroed => "unlocked, zeroed",
            FrameState::UnlockedContents => "unlocked with contents",
            FrameState::Metadata => "VM metadata",
            FrameState::Pinned => "pinned",
            FrameState::Poisoned => "poisoned",
            FrameState::SharedBack => "shared back",
            FrameState::Donated => "donated",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_numbered_in_order() {
        for (number, state) in FrameState::ALL.iter().enumerate() {
            assert_eq!(*state as usize, number);
            assert_eq!(FrameState::from_number(number as u64), Some(*state));
        }
        assert_eq!(FrameState::from_number(11), None);
    }

    #[test]
    fn excess_is_signed() {
        let entry = MemEntry::new(0, ORDER_PAGE, 0, Rights::ALL);
        assert_eq!(entry.with_report(1025, 1, 0).excess(), 1024);
        assert_eq!(entry.with_report(1, 2, 0).excess(), -1);
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! Function identifiers.
//!
//! Calls that Gunyah has keep its number and meaning; Escrow's own begin at
//! `n = 0x100` of the vendor-specific hypervisor range. The comment of each
//! call lists its arguments (`x1`…) and its results after `→` (`x1`…; `x0` is
//! the error everywhere).
//!
//! Calls are made by the host, by guests, or by both, as each says.
//!
//! # Lists
//!
//! A call that takes a list (`list`, `count`) reads `count` (1 to
//! [`LIST_MAX`](crate::LIST_MAX)) entries of [`MemEntry`](crate::MemEntry)
//! from `list`, a page-aligned address of memory that the caller reaches; the
//! list may run on over adjacent pages. Such a call happens for all of its
//! entries or for none, unless it takes long (below). On an error that concerns one
//! entry, `x1` is that entry's index in the list, and `x2` a detail that the error
//! explains.
//!
//! An entry's `frame` is the caller's own address of the page: for the host the
//! physical address, for a guest its guest address. A guest still names pages that it
//! owns and has lent by the address at which it had them. A block
//! ([`ORDER_BLOCK`](crate::ORDER_BLOCK)) in a guest's list is 2 MiB of the
//! guest's addresses that lead to one whole block of frames.
//!
//! # Calls that take long
//!
//! EL2 masks interrupts. Calls over lists, but for [`VM_CREATE`], and over ranges
//! therefore work on at most 2 MiB of contents, and on at most 16 blocks, before they
//! look for interrupts. If one is pending, the call ends with the caller's PC on the
//! HVC or SMC, its registers as they were, and in `x7` what is done: the caller takes its
//! interrupt and makes the call again, without knowing of it. `x7` must be zero when a
//! caller makes such a call, and is zero when the call returns.
//!
//! The list, or the range, must stay as it is until the call returns, and so must the
//! memory that a list lies in: a call of more than one portion whose list lies in the pages
//! that it names is refused ([`Error::Overlap`](crate::Error::Overlap)). All of it is looked
//! at before anything is done. If other VMs, or other vCPUs of the caller, change the
//! rest of the pages in between, the call can still end with an error. `x3` then says how
//! much was done before: how many entries, from the first, in bits 31:0, and in bits 63:32 how
//! many of their pages turned out to be broken; or how many pages of the range. The call goes
//! on behind these if it is made again with that word in `x7`. It is zero in all other cases.
//!
//! # Broken memory
//!
//! A list that EL2 cannot read refuses its call
//! ([`Error::BrokenMemory`](crate::Error::BrokenMemory)). Pages that turn out to be
//! broken while they change hands are out of use, as after [`MEM_POISON`], and the
//! call is done for all others: it succeeds, and `x2` says how many pages were broken.
//! [`FRAME_INFO`] finds them.
//!
//! # Owners and heirs
//!
//! A page has one owner and at most one borrower. The host owns what it has not
//! donated; a guest owns what was donated to it. When a guest dies,
//! the host is the heir of the pages that it owned: the host makes the owner's calls
//! on them, and each page comes home zeroed.

/// Fast call, 64-bit convention, owner "vendor specific hypervisor service".
const VENDOR_HYP_64: u32 = 0xC600_0000;

const fn vendor(n: u32) -> u32 {
    VENDOR_HYP_64 | 0x8000 | n
}

/// SMCCC version of the calling convention itself. → (in `x0`) 0x10002
pub const SMCCC_VERSION: u32 = 0x8000_0000;
/// SMCCC architecture features. `x1`: function identifier
pub const SMCCC_ARCH_FEATURES: u32 = 0x8000_0001;
/// The UID of the vendor-hypervisor service: `x0`–`x3`, no error number.
pub const VENDOR_HYP_UID: u32 = 0x8600_FF01;

/// The UID that [`VENDOR_HYP_UID`] answers, as `w0`–`w3`.
///
/// It is Gunyah's (19bd54bd-0b37-571b-946f-609b54539de6), because that is how
/// guests written for Gunyah find the calls that Escrow shares with it. The variant
/// in [`HYP_IDENTIFY`] says that the hypervisor is Escrow.
pub const UID: [u32; 4] = [0xbd54_bd19, 0x1b57_370b, 0x9b60_6f94, 0xe69d_5354];

/// Identifies the hypervisor.
/// → (in `x0`) API information, see [`IDENTIFY_INFO`]; `x1`–`x3`: 0
pub const HYP_IDENTIFY: u32 = vendor(0x00);
/// What [`HYP_IDENTIFY`] answers in `x0`: API version 1 (bits 13:0), 64-bit
/// (bit 15), variant (bits 63:56) `'E'` for Escrow.
pub const IDENTIFY_INFO: u64 = (b'E' as u64) << 56 | 1 << 15 | 1;

/// Rings a doorbell. doorbell handle, flags to set, 0 → `x1`: the flags before
///
/// A doorbell has 64 flags and two masks. When flags are set, and one that is set now
/// is enabled, it rings, and those of the ack mask are cleared again. It rings until
/// [`BELL_RECEIVE`] or [`BELL_RESET`] leaves no enabled flag set, or until
/// [`BELL_SET_MASK`] disables what it rings for. Gunyah raises an edge even when no enabled
/// flag is set. Escrow has no interrupt controller that would keep the edge, so such flags
/// wait for a mask that enables them.
///
/// As long as any doorbell of its VM rings, vCPU 0 has a virtual IRQ pending, which
/// PSTATE.I masks, and neither WFI nor CPU_SUSPEND of it waits. That is seen when a run
/// of the vCPU begins, when the guest makes one of these calls and when it waits: so
/// the sender has to wake the host's thread that sleeps for the vCPU, and to
/// interrupt the CPU that is inside its run. A host loses no wake-up if the thread sets a
/// flag before [`VCPU_RUN`], that it is to be woken should the run end in a wait
/// ([`run::EXPECTS_WAKEUP`](crate::run::EXPECTS_WAKEUP)), and the sender reads that flag
/// after this call.
///
/// The host names a doorbell by its handle, the guest that has it by its label, 32 bits
/// ([`Error::HandleNull`](crate::Error::HandleNull) if it has none with that one). The
/// guest makes all of these calls but this one
/// ([`Error::Denied`](crate::Error::Denied)). In a guest's calls about doorbells, the 0 at
/// the end of an argument list below is checked, and the registers behind it are not.
pub const BELL_SEND: u32 = vendor(0x12);
/// Clears flags. doorbell, flags to clear (not 0), 0 → `x1`: the flags before
pub const BELL_RECEIVE: u32 = vendor(0x13);
/// Clears all flags and the ack mask, and enables all flags, as [`BELL_CREATE`] does.
/// doorbell, 0
pub const BELL_RESET: u32 = vendor(0x14);
/// Sets the masks. doorbell, enable mask, ack mask, 0
///
/// If a flag that is set is enabled now, it rings as after [`BELL_SEND`].
pub const BELL_SET_MASK: u32 = vendor(0x15);

/// Runs a vCPU until something needs its host. See [`crate::run`].
/// vCPU handle, three words of resume data, 0 → state, three words of data
pub const VCPU_RUN: u32 = vendor(0x65);
/// Made by a guest: changes what the owner of lent memory may do with it.
/// 0, guest address, size (bytes, both page-aligned), `MODIFY_*` flags
pub const MODIFY_PAGES: u32 = vendor(0x69);

/// [`MODIFY_PAGES`]: the owner may take the pages back whenever it likes.
pub const MODIFY_UNLOCK: u64 = 1 << 0;
/// [`MODIFY_PAGES`]: the pages are zeroed before they are unlocked. Without
/// it, the owner finds what the guest left in them.
pub const MODIFY_SANITIZE: u64 = 1 << 1;
/// [`MODIFY_PAGES`]: the pages' cache lines are cleaned to memory.
pub const MODIFY_FLUSH: u64 = 1 << 2;

/// Creates a VM out of donated pages. list, count → VM handle
///
/// The pages become the VM's metadata: stage-2 tables and vCPUs. At least
/// one is needed, for the root table, and they lie in at most
/// [`CREATE_BLOCKS_MAX`](crate::CREATE_BLOCKS_MAX) blocks
/// ([`Error::InvalidSize`](crate::Error::InvalidSize)). They are donated under the rule of
/// [`MEM_LEND`]'s reports; guest addresses and rights must be zero, orders
/// [`ORDER_PAGE`](crate::ORDER_PAGE).
pub const VM_CREATE: u32 = vendor(0x100);
/// Declares or withdraws a range of guest addresses as memory.
/// VM handle, `CONFIGURE_*` key, guest address, size (bytes, page-aligned)
///
/// A guest access to declared memory that is not there ends in
/// [`run::PAGE_FAULT`](crate::run::PAGE_FAULT), which shows the host an address
/// and nothing else; elsewhere it is an MMIO access, decoded for emulation.
pub const VM_CONFIGURE: u32 = vendor(0x101);
/// Donates more metadata pages to a VM. VM handle, list, count
pub const VM_TOP_UP: u32 = vendor(0x102);
/// Allows a VM's vCPUs to run. VM handle
pub const VM_START: u32 = vendor(0x103);
/// Ends a VM. VM handle
///
/// Its handles are dead at once. Its pages, lent and donated, stay out of reach
/// until [`MEM_RECLAIM`] brings each home. [`Error::Busy`](crate::Error::Busy)
/// while a vCPU is inside `VCPU_RUN` on another CPU: none can enter again, so
/// interrupt that CPU and call again.
pub const VM_DESTROY: u32 = vendor(0x104);
/// Counts of a VM. VM handle → state (0 created, 1 started, 2 ending), pages
/// reachable by the guest (lent, shared, its own), metadata pages, those of them free
pub const VM_INFO: u32 = vendor(0x105);

/// Gives a VM an interrupt controller, a GICv3. Before the start, once.
/// VM handle, guest address of the distributor, of the redistributors, number of SPIs
///
/// The distributor has 64 KiB from its address on, and each vCPU has 128 KiB from the
/// redistributors' address on, in the order of their indices. Both are multiples of 64 KiB. SPIs
/// are the INTIDs from 32 on: a multiple of 32 of them from [`SPIS_MIN`] on, or [`SPIS_MAX`]
/// ([`Error::InvalidSize`](crate::Error::InvalidSize)).
///
/// One metadata page is used for INTIDs up to 511, and a second one if there are more. The vCPUs'
/// part is in the vCPUs' pages. Accesses to these frames never reach the host, whatever
/// [`VM_CONFIGURE`] says of the addresses. The ID registers of its vCPUs say that there is a
/// GICv3, and their virtual timer has PPI 27. A VM without it has no GIC, and a
/// virtual IRQ for its doorbells ([`BELL_SEND`]); with it, doorbells interrupt nobody by
/// themselves: the host sets an SPI for them.
///
/// No memory, and no page of stolen time, comes to the addresses of the distributor, of vCPU 0's
/// redistributor, and of those of all other vCPUs that there are: it would hide the registers, and the guest
/// would take what its host has put there for its GIC. Each call that would map something there is
/// refused as if its address were taken ([`Error::GuestMapped`](crate::Error::GuestMapped)).
///
/// What refuses this call, in this order: [`Error::Denied`](crate::Error::Denied) if the VM was
/// started, or has one; the number of SPIs; the alignment;
/// [`Error::AddressOverflow`](crate::Error::AddressOverflow) if a frame is beyond the guest's
/// space; [`Error::Overlap`](crate::Error::Overlap) if one is in the place of another;
/// [`Error::GuestMapped`](crate::Error::GuestMapped) if something is in the place of one;
/// [`Error::NoMemory`](crate::Error::NoMemory).
pub const VM_VGIC: u32 = vendor(0x106);

/// The fewest SPIs of [`VM_VGIC`].
pub const SPIS_MIN: u64 = 32;
/// The most: INTIDs 32 to 1019.
pub const SPIS_MAX: u64 = 988;

/// Has EL2 tell a VM's vCPUs their stolen time. Before the start, once. VM handle, guest address of a
/// page
///
/// One metadata page, and those for tables that lead to it, are used. The guest can read it and not
/// write it; the host can do neither. A vCPU's time is at 64 bytes times its index, and Arm's calls for
/// paravirtualized time ([`pv_time`](crate::pv_time)) name it. The address is for
/// this alone: no memory is to be declared there.
///
/// What refuses it, in this order: the address; [`Error::Denied`](crate::Error::Denied) if the VM was
/// started, or has such a page; [`Error::GuestMapped`](crate::Error::GuestMapped) if something is there,
/// or the VM's interrupt controller; [`Error::NoMemory`](crate::Error::NoMemory).
pub const VM_PV_TIME: u32 = vendor(0x107);

/// Makes a VM a protected one, whose guest may call Arm's Realm Services Interface
/// ([`rsi`](crate::rsi)). VM handle → the bit of guest addresses that is 1 in the shared half
///
/// The guest's addresses have two halves of the same size. What is shared with it goes into the
/// upper one (the shared half), and what is lent or donated into the lower one (the protected half);
/// the other way round, calls are refused ([`Error::Denied`](crate::Error::Denied)).
///
/// What is declared as memory in the protected half before the start ([`VM_CONFIGURE`]) is RAM until the
/// guest says that it is not. From [`VM_START`] on, memory comes only to addresses that are RAM in this sense, or of
/// which the guest has said so ([`rsi::IPA_STATE_SET`](crate::rsi::IPA_STATE_SET);
/// [`Error::GuestMapped`](crate::Error::GuestMapped) elsewhere), and the guest finds it zeroed. No access
/// in the protected half is an MMIO exit: it is a [`run::PAGE_FAULT`](crate::run::PAGE_FAULT) where
/// there is RAM, and ends in an external abort for the guest elsewhere. An access to an
/// unmapped address of the shared half is a page fault, with the bit in its address, if the host has
/// declared the address without the bit as memory ([`VM_CONFIGURE`]). Otherwise it is an MMIO exit,
/// without the bit in its address.
///
/// Only before anything was mapped for the VM ([`Error::GuestMapped`](crate::Error::GuestMapped)),
/// before memory was declared, before the start, and once ([`Error::Denied`](crate::Error::Denied)). No guest is granted a
/// capability for a protected VM, and one of before is worth nothing
/// ([`Error::Denied`](crate::Error::Denied)). Before the start, a declaration of memory that would
/// look at more than 2,048 entries of the VM's tables is refused
/// ([`Error::InvalidSize`](crate::Error::InvalidSize)): it is to be made in smaller ranges. It may lack pages for
/// tables as well ([`Error::NoMemory`](crate::Error::NoMemory)).
///
/// The answer to a page fault in the protected half is no [`run::ACTION_FAULT`](crate::run::ACTION_FAULT)
/// ([`Error::InvalidArgument`](crate::Error::InvalidArgument)), and there is no such answer to a call of the guest's
/// that waits for memory or tables. Nothing in the shared half can be executed, whatever rights a list names.
pub const VM_PROTECT: u32 = vendor(0x108);

/// Key of [`VM_CONFIGURE`]: declare a range as memory.
pub const CONFIGURE_MEMORY_ADD: u64 = 1;
/// Key of [`VM_CONFIGURE`]: withdraw a range, or a part of one.
pub const CONFIGURE_MEMORY_REMOVE: u64 = 2;

/// Creates a vCPU in one of the VM's free metadata pages.
/// VM handle, index (0 to 31) → vCPU handle
///
/// Before the start, the one with index 0 is switched on. Whichever comes after it is off
/// until a sibling calls CPU_ON.
///
/// If the VM has an interrupt controller ([`VM_VGIC`]), there must be room for the vCPU's
/// redistributor: [`Error::AddressOverflow`](crate::Error::AddressOverflow),
/// [`Error::Overlap`](crate::Error::Overlap) or
/// [`Error::GuestMapped`](crate::Error::GuestMapped) otherwise, as there.
pub const VCPU_CREATE: u32 = vendor(0x110);
/// Sets a register that the vCPU starts with. vCPU handle, `set << 8 | index`
/// (sets: 0 X0–X30, 1 PC, 2 SP), value
///
/// Only before the VM is started.
pub const VCPU_SET_REGISTER: u32 = vendor(0x111);

/// Owner, host or guest: opens pages to a VM as well. VM handle, list, count
///
/// A guest's handle must have [`RIGHT_SHARE`]; for [`MEM_LEND`] it must have
/// [`RIGHT_LEND`], and for [`MEM_DONATE`] [`RIGHT_DONATE`].
pub const MEM_SHARE: u32 = vendor(0x120);
/// Owner: takes shared pages from their borrower. list, count
///
/// All entries of one call name pages of one owner, shared with one VM. What the
/// borrower opened itself ([`MEM_SHARE_BACK`]) is not shared in this sense.
pub const MEM_UNSHARE: u32 = vendor(0x121);
/// Owner, host or guest: gives pages to a VM and loses access to them. VM handle, list, count
///
/// Each entry carries the owner's report of who uses the folio. The first
/// entry, in list order, with an excess or an accessible count refuses the
/// call: [`Error::Excess`](crate::Error::Excess) or
/// [`Error::Accessible`](crate::Error::Accessible), with the number in `x2`.
pub const MEM_LEND: u32 = vendor(0x122);
/// Owner: takes pages home. list, count
///
/// Takes a lent page whose borrower unlocked it or is dead; a page shared either way
/// ([`MEM_SHARE`], [`MEM_SHARE_BACK`]), or metadata, of a dead VM; what a dead VM owned,
/// unless a living VM borrows it. All entries of one call are of one owner and one
/// borrower. Pages come home zeroed, unless their borrower lives and unlocked them with their
/// contents; pages that the owner shared keep what is in them, which it could
/// read all along, unless the owner is dead: an heir finds zeros whatever the
/// page was.
pub const MEM_RECLAIM: u32 = vendor(0x123);
/// Owner, host or guest: gives pages away for good, with their contents. VM handle, list, count
///
/// The VM owns them then. Reports as for [`MEM_LEND`]. A guest gives pages back
/// with [`Handle::HOST`](crate::Handle::HOST) as the handle, which every guest
/// has; guest addresses and rights are zero then.
pub const MEM_DONATE: u32 = vendor(0x124);
/// Borrower, a guest: opens lent pages to their owner as well.
/// guest address, size (bytes, both page-aligned)
///
/// All of the range must be lent to the caller
/// ([`Error::Denied`](crate::Error::Denied)) and not unlocked; at most
/// [`MODIFY_MAX`](crate::MODIFY_MAX) bytes.
pub const MEM_SHARE_BACK: u32 = vendor(0x125);
/// Borrower, a guest: asks the owner to give up its access to pages again.
/// guest address, size (bytes, both page-aligned)
///
/// All of the range must be lent to the caller or opened by it
/// ([`Error::Denied`](crate::Error::Denied)), at most
/// [`MODIFY_MAX`](crate::MODIFY_MAX) bytes. If the owner has access to any of
/// it and is the host, it is asked ([`run::TAKE_BACK`](crate::run::TAKE_BACK)).
/// Succeeds when the owner has access to none of it any more, which EL2 has
/// seen for itself; [`Error::Busy`](crate::Error::Busy) otherwise.
pub const MEM_ASK_BACK: u32 = vendor(0x126);
/// Owner: gives up its access to pages that their borrower had opened. list, count
///
/// Guest addresses and rights are zero; reports as for [`MEM_LEND`]. All
/// entries of one call are of one owner and one borrower. The host does this
/// when the guest has asked for it ([`MEM_ASK_BACK`]); nothing is taken from
/// the guest, so the host may do it at any time.
pub const MEM_TAKE_BACK: u32 = vendor(0x127);
/// Made by the host, for pages of any owner: takes broken memory out of use for good.
/// list, count
///
/// Owned, donated, shared, shared back, lent and unlocked pages, all of one owner and one
/// borrower. No VM reaches them any more, and they never come home. EL2 touches them once
/// more, to zero them before the machine is reset or switched off. A guest that had one,
/// as borrower or as owner, takes a synchronous external abort where it touches it; the
/// guest address stays reserved as long as that guest lives, so nothing else can be mapped
/// there.
pub const MEM_POISON: u32 = vendor(0x128);
/// Made by the host: [`MEM_LEND`] of one page or block, whose entry is in registers.
/// VM handle, the four words of a [`MemEntry`](crate::MemEntry)
///
/// The words are checked as in a list of one entry, and the answers are the same.
/// Nothing is read from the host's memory.
pub const MEM_LEND_ONE: u32 = vendor(0x129);

/// Gives a guest a handle on another. handle of the guest that gets it,
/// handle of the VM that it will name, `RIGHT_*`, window base, window size
/// (bytes, both page-aligned) → the handle, in the guest's own numbering
///
/// The window is the range of the named VM's addresses at which the guest may map
/// pages. The handle is valid for that guest only, and never valid again
/// after [`CAP_REVOKE`], or when the guest or the VM that it names has ended.
pub const CAP_GRANT: u32 = vendor(0x140);
/// Revokes a guest's handle. handle of the guest, the guest's handle
///
/// No call that this handle allowed is in progress when it returns.
pub const CAP_REVOKE: u32 = vendor(0x141);

/// The holder may share pages with the VM.
pub const RIGHT_SHARE: u64 = 1 << 0;
/// The holder may lend pages to the VM.
pub const RIGHT_LEND: u64 = 1 << 1;
/// The holder may donate pages to the VM.
pub const RIGHT_DONATE: u64 = 1 << 2;

/// Gives a VM, created or started, a doorbell. VM handle, label (32 bits) → doorbell handle
///
/// All flags are clear and enabled, and the ack mask is 0. The doorbell lives as
/// long as its VM. [`Error::Denied`](crate::Error::Denied) if the VM has one
/// with that label, [`Error::TableFull`](crate::Error::TableFull) if it has
/// [`DOORBELLS_MAX`] of them.
pub const BELL_CREATE: u32 = vendor(0x150);

/// Doorbells that a VM can have.
pub const DOORBELLS_MAX: usize = 64;

/// Sets the input of one of a VM's SPIs, created or started. VM handle, INTID (from 32 on),
/// `INPUT_*` → vCPUs to run
///
/// This is all that a host can do to a guest's interrupts. Whether, when and where the guest is
/// interrupted follows from what it has set up in its GIC.
///
/// The result has a bit, by index, for each vCPU that waits
/// ([`run::EXPECTS_WAKEUP`](crate::run::EXPECTS_WAKEUP)) and that the host has to run
/// again because of this input. No wake-up is lost if the thread that sleeps for a vCPU notes before
/// [`VCPU_RUN`] that it has to be woken, as for [`BELL_SEND`]. A vCPU that is inside its
/// run is interrupted by EL2: the run ends with [`run::READY`](crate::run::READY).
///
/// Neither this call nor [`SPI_DONE`] waits for a vCPU; they may be made with interrupts off.
/// [`Error::Denied`](crate::Error::Denied) if the VM has no GIC,
/// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for an INTID that it does not have.
pub const SPI_INPUT: u32 = vendor(0x151);
/// Takes one of a VM's SPIs that was set to [`INPUT_HIGH_UNTIL_DONE`] and that the guest is
/// done with. VM handle → its INTID, or 0 if there is none
///
/// [`run::SPI_DONE`](crate::run::SPI_DONE) says when to call this, until it answers 0.
pub const SPI_DONE: u32 = vendor(0x152);

/// Input of [`SPI_INPUT`]: low.
pub const INPUT_LOW: u64 = 0;
/// Input of [`SPI_INPUT`]: high. It stays so.
pub const INPUT_HIGH: u64 = 1;
/// Input of [`SPI_INPUT`]: high until the guest has deactivated the interrupt. EL2 sets it to low
/// then, and [`SPI_DONE`] names it once: the host sets it again if its device still asserts it
/// (a resampling eventfd). For level-sensitive interrupts.
pub const INPUT_HIGH_UNTIL_DONE: u64 = 2;
/// Input of [`SPI_INPUT`]: an edge, as of an edge-triggered interrupt. The level does not change.
pub const INPUT_EDGE: u64 = 3;

/// A counter of the ledger. `INFO_*` selector, a
/// [`FrameState`](crate::FrameState) for `INFO_PAGES` and 0 for the others → value
pub const LEDGER_INFO: u32 = vendor(0x130);
/// The state of a frame that the host owns or is heir to. physical address →
/// [`FrameState`](crate::FrameState), how many pages from this one on are in that state and
/// have the same owner: at least 1, and none behind the end of the block that it lies in
///
/// [`Error::NotOwner`](crate::Error::NotOwner) for any other.
pub const FRAME_INFO: u32 = vendor(0x131);

/// Made by the host: reads Escrow's log. position → the position behind what was
/// read, three words of text
///
/// The log is a stream of lines, each with a line end. A position counts the
/// bytes from boot on; 0 is where to begin. The words are the next
/// [`LOG_CHUNK`] bytes in memory order of a little-endian machine, with zeros
/// behind the last one if there are fewer, and none of them is zero. What is
/// not kept any more is skipped: the answer then begins at a later position
/// than was asked for, with the oldest line that is kept. Nothing of a guest is
/// in the log.
pub const LOG_READ: u32 = vendor(0x132);

/// Bytes that one [`LOG_READ`] answers.
pub const LOG_CHUNK: usize = 24;

/// Selector of [`LEDGER_INFO`]: 4 KiB pages in a state.
pub const INFO_PAGES: u64 = 0;
/// Selector of [`LEDGER_INFO`]: VMs that exist, the host not counted; one
/// that is destroyed counts until its last page is home.
pub const INFO_VMS: u64 = 1;
/// Selector of [`LEDGER_INFO`]: CPUs that Escrow runs on.
pub const INFO_CPUS: u64 = 2;
/// Selector of [`LEDGER_INFO`]: Escrow's version, `major << 32 | minor << 16 | patch`.
pub const INFO_VERSION: u64 = 3;
/// Selector of [`LEDGER_INFO`]: the errata of the CPUs that Escrow has met, a bit for each
/// [`Erratum`](crate::errata::Erratum).
pub const INFO_ERRATA: u64 = 4;
/// Selector of [`LEDGER_INFO`]: how entries to EL2 are hardened, a bit for each
/// [`Hardening`](crate::errata::Hardening) that some CPU uses.
pub const INFO_HARDENING: u64 = 5;

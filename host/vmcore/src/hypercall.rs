// SPDX-License-Identifier: MIT OR Apache-2.0

//! The calls that the shim makes to Escrow.

use escrow_abi::{Error, FrameState, Handle, HandleKind, MemEntry, PAGE_SIZE, call};

use crate::Errno;

/// Whoever executes `hvc #0`.
pub trait Hypervisor {
    /// `x0` to `x7` in, `x0` to `x4` out.
    fn call(&mut self, args: [u64; 8]) -> [u64; 5];
}

/// Whoever can donate metadata pages to the VM that a call is about.
pub trait Donor {
    /// Donates at least so many pages.
    ///
    /// # Errors
    /// Why it could not; the call that asked fails with it.
    fn donate(&mut self, pages: u64) -> Result<(), Errno>;
}

/// A list of folios in the caller's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct List {
    /// Physical address of the first [`escrow_abi::MemEntry`].
    pub address: u64,
    /// How many there are.
    pub count: u32,
}

/// A call that Escrow has refused. Nothing has changed, or, of a long call whose rest has
/// changed meanwhile, no more than it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Why; `None` for a number that is no error of the interface.
    pub error: Option<Error>,
    /// `x1`: the index of the entry at fault, where the error concerns one.
    pub index: u64,
    /// `x2`: a detail that the error explains.
    pub detail: u64,
    /// `x3`, bits 31:0: how many entries, from the first, were done before.
    pub done: u64,
    /// `x3`, bits 63:32: how many of their pages turned out to be broken.
    pub broken: u64,
}

impl Refused {
    /// What goes on behind the entries that are done, in `x7`.
    const fn progress(self) -> u64 {
        self.broken << 32 | self.done
    }
}

impl From<Refused> for Errno {
    fn from(refused: Refused) -> Errno {
        refused.error.map_or(Errno::Io, Errno::from)
    }
}

/// How often a call is repeated after a donation. One is the rule; a second
/// can be needed when another call took the pages.
const MAX_DONATIONS: u32 = 8;

// Inlined, the arguments are where they belong when they are made.
#[inline]
fn call<const N: usize>(
    hv: &mut impl Hypervisor,
    function: u32,
    args: [u64; N],
) -> Result<[u64; 4], Refused> {
    call_from(hv, function, args, 0)
}

/// As [`call`], for the entries of a list behind those that are done
/// ([`Refused::progress`]).
#[inline]
fn call_from<const N: usize>(
    hv: &mut impl Hypervisor,
    function: u32,
    args: [u64; N],
    progress: u64,
) -> Result<[u64; 4], Refused> {
    const { assert!(N < 7, "x1 to x6") };
    let mut registers = [0; 8];
    registers[0] = u64::from(function);
    registers[1..=N].copy_from_slice(&args);
    registers[7] = progress;
    let [x0, x1, x2, x3, x4] = hv.call(registers);
    if x0 == 0 {
        return Ok([x1, x2, x3, x4]);
    }
    let (done, broken) = (u64::from(x3 as u32), x3 >> 32);
    Err(Refused { error: Error::from_register(x0), index: x1, detail: x2, done, broken })
}

/// As [`call`], and donates what the VM lacks.
#[inline]
fn call_with_donor<const N: usize>(
    hv: &mut impl Hypervisor,
    donor: &mut impl Donor,
    function: u32,
    args: [u64; N],
) -> Result<[u64; 4], CallError> {
    let (mut donations, mut progress) = (0, 0);
    loop {
        let refused = match call_from(hv, function, args, progress) {
            Ok(results) => return Ok(results),
            Err(refused) => refused,
        };
        if refused.error != Some(Error::NoMemory) || donations == MAX_DONATIONS {
            return Err(CallError::Refused(refused));
        }
        donations += 1;
        progress = refused.progress();
        let done = refused.done;
        donor.donate(refused.detail.max(1)).map_err(|errno| CallError::Donor { errno, done })?;
    }
}

/// Why a call that may need donations failed. Beyond the donations, nothing
/// has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallError {
    /// Escrow has refused it.
    Refused(Refused),
    /// The pages that it needs could not be donated.
    Donor {
        /// Why.
        errno: Errno,
        /// How many entries of its list were done before.
        done: u64,
    },
}

impl CallError {
    /// How many entries of the call's list, from the first, were done nevertheless.
    pub const fn done(&self) -> u64 {
        match self {
            CallError::Refused(refused) => refused.done,
            CallError::Donor { done, .. } => *done,
        }
    }
}

impl From<CallError> for Errno {
    fn from(error: CallError) -> Errno {
        match error {
            CallError::Refused(refused) => refused.into(),
            CallError::Donor { errno, .. } => errno,
        }
    }
}

/// Whether the one who answers is Escrow, with an interface that this shim
/// speaks.
pub fn identify(hv: &mut impl Hypervisor) -> bool {
    let mut registers = [0; 8];
    registers[0] = u64::from(call::VENDOR_HYP_UID);
    let uid = hv.call(registers);
    if !call::UID.iter().zip(uid).all(|(&want, got)| u64::from(want) == got) {
        return false;
    }
    registers[0] = u64::from(call::HYP_IDENTIFY);
    hv.call(registers)[0] == call::IDENTIFY_INFO
}

/// Creates a VM out of the pages in `list`. → its handle
pub fn vm_create(hv: &mut impl Hypervisor, list: List) -> Result<u64, Refused> {
    let [handle, ..] = call(hv, call::VM_CREATE, [list.address, list.count.into()])?;
    checked_handle(handle, HandleKind::Vm)
}

/// Makes a VM, of which nothing is mapped yet, a protected one. → the bit of guest addresses that is
/// 1 in their shared half
pub fn vm_protect(hv: &mut impl Hypervisor, vm: u64) -> Result<u64, Refused> {
    let [shared, ..] = call(hv, call::VM_PROTECT, [vm])?;
    if shared.is_power_of_two() && shared > PAGE_SIZE {
        Ok(shared)
    } else {
        Err(Refused { error: None, index: shared, detail: 0, done: 0, broken: 0 })
    }
}

/// Donates the pages in `list` to the VM.
pub fn vm_top_up(hv: &mut impl Hypervisor, vm: u64, list: List) -> Result<(), Refused> {
    call(hv, call::VM_TOP_UP, [vm, list.address, list.count.into()]).map(drop)
}

/// Declares guest addresses as memory, or withdraws them.
pub fn vm_configure(
    hv: &mut impl Hypervisor,
    donor: &mut impl Donor,
    vm: u64,
    add: bool,
    guest: u64,
    size: u64,
) -> Result<(), CallError> {
    let key = if add { call::CONFIGURE_MEMORY_ADD } else { call::CONFIGURE_MEMORY_REMOVE };
    call_with_donor(hv, donor, call::VM_CONFIGURE, [vm, key, guest, size]).map(drop)
}

/// Allows the VM's vCPUs to run.
pub fn vm_start(
    hv: &mut impl Hypervisor,
    donor: &mut impl Donor,
    vm: u64,
) -> Result<(), CallError> {
    call_with_donor(hv, donor, call::VM_START, [vm]).map(drop)
}

/// Ends the VM. Its handle being dead already counts as success.
pub fn vm_destroy(hv: &mut impl Hypervisor, vm: u64) -> Result<(), Refused> {
    match call(hv, call::VM_DESTROY, [vm]) {
        Ok(_) => Ok(()),
        Err(Refused { error: Some(Error::HandleRevoked), .. }) => Ok(()),
        Err(refused) => Err(refused),
    }
}

/// Counts of a VM: its state (0 created, 1 started, 2 ending), the pages that
/// its guest reaches, its metadata pages, and those of them that are free.
pub fn vm_info(hv: &mut impl Hypervisor, vm: u64) -> Result<[u64; 4], Refused> {
    call(hv, call::VM_INFO, [vm])
}

/// Creates a vCPU. → its handle
pub fn vcpu_create(
    hv: &mut impl Hypervisor,
    donor: &mut impl Donor,
    vm: u64,
    index: u32,
) -> Result<u64, CallError> {
    let [handle, ..] = call_with_donor(hv, donor, call::VCPU_CREATE, [vm, index.into()])?;
    checked_handle(handle, HandleKind::Vcpu).map_err(CallError::Refused)
}

/// Sets a register that the vCPU starts with; `register` is `set << 8 | index`.
pub fn vcpu_set_register(
    hv: &mut impl Hypervisor,
    vcpu: u64,
    register: u32,
    value: u64,
) -> Result<(), Refused> {
    call(hv, call::VCPU_SET_REGISTER, [vcpu, register.into(), value]).map(drop)
}

/// Gives a VM a doorbell. → its handle
pub fn bell_create(hv: &mut impl Hypervisor, vm: u64, label: u32) -> Result<u64, Refused> {
    let [handle, ..] = call(hv, call::BELL_CREATE, [vm, label.into()])?;
    checked_handle(handle, HandleKind::Doorbell)
}

/// Rings a doorbell.
pub fn bell_send(hv: &mut impl Hypervisor, bell: u64, flags: u64) -> Result<(), Refused> {
    call(hv, call::BELL_SEND, [bell, flags, 0]).map(drop)
}

/// Sets which flags of a doorbell ring it, and which of them that clears.
pub fn bell_set_mask(
    hv: &mut impl Hypervisor,
    bell: u64,
    enabled: u64,
    acknowledged: u64,
) -> Result<(), Refused> {
    call(hv, call::BELL_SET_MASK, [bell, enabled, acknowledged, 0]).map(drop)
}

/// Gives a VM, which has not been started, an interrupt controller: guest addresses of its
/// distributor and redistributors, and how many SPIs it has.
pub fn vm_vgic(
    hv: &mut impl Hypervisor,
    donor: &mut impl Donor,
    vm: u64,
    distributor: u64,
    redistributors: u64,
    spis: u32,
) -> Result<(), CallError> {
    let args = [vm, distributor, redistributors, spis.into()];
    call_with_donor(hv, donor, call::VM_VGIC, args).map(drop)
}

/// Has EL2 tell the vCPUs of a VM, which has not been started, their stolen time, in a page at a
/// guest address.
pub fn vm_pv_time(
    hv: &mut impl Hypervisor,
    donor: &mut impl Donor,
    vm: u64,
    at: u64,
) -> Result<(), CallError> {
    call_with_donor(hv, donor, call::VM_PV_TIME, [vm, at]).map(drop)
}

/// Sets the input of an SPI, a `call::INPUT_*`. → the vCPUs to run, a bit each
pub fn spi_input(
    hv: &mut impl Hypervisor,
    vm: u64,
    intid: u32,
    input: u64,
) -> Result<u64, Refused> {
    call(hv, call::SPI_INPUT, [vm, intid.into(), input]).map(|[vcpus, ..]| vcpus)
}

/// Takes one SPI that the guest is done with; 0 if there is none.
pub fn spi_done(hv: &mut impl Hypervisor, vm: u64) -> Result<u64, Refused> {
    call(hv, call::SPI_DONE, [vm]).map(|[intid, ..]| intid)
}

/// Gives the pages in `list` to the VM.
pub fn mem_lend(
    hv: &mut impl Hypervisor,
    donor: &mut impl Donor,
    vm: u64,
    list: List,
) -> Result<(), CallError> {
    call_with_donor(hv, donor, call::MEM_LEND, [vm, list.address, list.count.into()]).map(drop)
}

/// Gives the page or block of an entry to the VM.
pub fn mem_lend_one(
    hv: &mut impl Hypervisor,
    donor: &mut impl Donor,
    vm: u64,
    entry: &MemEntry,
) -> Result<(), CallError> {
    let [frame, guest, references, users] = entry.words();
    let args = [vm, frame, guest, references, users];
    call_with_donor(hv, donor, call::MEM_LEND_ONE, args).map(drop)
}

/// Opens the pages in `list` to the VM as well.
pub fn mem_share(
    hv: &mut impl Hypervisor,
    donor: &mut impl Donor,
    vm: u64,
    list: List,
) -> Result<(), CallError> {
    call_with_donor(hv, donor, call::MEM_SHARE, [vm, list.address, list.count.into()]).map(drop)
}

/// Takes shared pages of one VM home: from a living one as they are, what it leaves behind
/// otherwise. → whether all are
pub fn mem_unshare(hv: &mut impl Hypervisor, list: List) -> Result<AllHome, Refused> {
    let args = [list.address, list.count.into()];
    let refused = match call(hv, call::MEM_UNSHARE, args) {
        Ok([_, broken, ..]) => return Ok(AllHome(broken == 0)),
        // Shared pages of a living VM: the call succeeds after a top-up.
        Err(refused) if refused.error == Some(Error::NoMemory) => return Err(refused),
        Err(refused) => refused,
    };
    call_from(hv, call::MEM_RECLAIM, args, refused.progress())
        .map(|[_, broken, ..]| AllHome(broken == 0))
        .map_err(|again| Refused {
            done: again.done.max(refused.done),
            broken: again.broken.max(refused.broken),
            ..again
        })
}

/// Takes pages of one VM home. → whether all are
pub fn mem_reclaim(hv: &mut impl Hypervisor, list: List) -> Result<AllHome, Refused> {
    let answer = call(hv, call::MEM_RECLAIM, [list.address, list.count.into()]);
    answer.map(|[_, broken, ..]| AllHome(broken == 0))
}

/// Whether all pages of a call that took them are home. If not, or if it is not known, some
/// may have turned out to be broken: [`is_home`] tells of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllHome(pub bool);

/// Whether a frame of the host's is broken, and out of use.
pub fn is_broken(hv: &mut impl Hypervisor, frame: u64) -> bool {
    let state = call(hv, call::FRAME_INFO, [frame]).map(|[state, ..]| state);
    state.is_ok_and(|state| state == FrameState::Poisoned as u64)
}

/// Whether the host has all pages from a frame on.
pub fn is_home(hv: &mut impl Hypervisor, frame: u64, pages: u64) -> bool {
    let mut done = 0;
    while done < pages {
        match call(hv, call::FRAME_INFO, [frame + done * PAGE_SIZE]) {
            Ok([state, alike, ..]) if state == FrameState::Owned as u64 => done += alike.max(1),
            _ => return false,
        }
    }
    true
}

/// Whether the host reaches a frame, and for how many pages from it on that holds. It does
/// reach what the ledger does not know.
pub fn host_reaches(hv: &mut impl Hypervisor, frame: u64) -> (bool, u64) {
    use FrameState::{Owned, Pinned, Shared, SharedBack};
    match call(hv, call::FRAME_INFO, [frame]) {
        Ok([state, pages, ..]) => {
            let state = FrameState::from_number(state);
            (matches!(state, Some(Owned | Pinned | Shared | SharedBack)), pages.max(1))
        }
        // Other errors mean that the page is a guest's or Escrow's.
        Err(refused) => (refused.error == Some(Error::InvalidAddress), 1),
    }
}

/// Puts broken pages of one borrower out of use for good.
pub fn mem_poison(hv: &mut impl Hypervisor, list: List) -> Result<(), Refused> {
    call(hv, call::MEM_POISON, [list.address, list.count.into()]).map(drop)
}

/// Reads a counter of Escrow's.
pub fn ledger_info(hv: &mut impl Hypervisor, selector: u64, which: u64) -> Result<u64, Refused> {
    call(hv, call::LEDGER_INFO, [selector, which]).map(|[value, ..]| value)
}

/// A part of Escrow's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogChunk {
    /// The position behind it.
    pub next: u64,
    /// The text, with zeros behind it.
    pub text: [u8; call::LOG_CHUNK],
    /// Bytes of text.
    pub size: usize,
}

/// Reads Escrow's log from a position on. Where lines are not kept any more, what
/// comes back begins later.
pub fn log_read(hv: &mut impl Hypervisor, from: u64) -> Result<LogChunk, Refused> {
    let [next, words @ ..] = call(hv, call::LOG_READ, [from])?;
    let mut text = [0; call::LOG_CHUNK];
    for (to, from) in text.iter_mut().zip(words.iter().flat_map(|word| word.to_le_bytes())) {
        *to = from;
    }
    let size = text.iter().position(|&byte| byte == 0).unwrap_or(text.len());
    Ok(LogChunk { next, text, size })
}

fn checked_handle(register: u64, kind: HandleKind) -> Result<u64, Refused> {
    match Handle::from_register(register) {
        Some(handle) if handle.kind == kind => Ok(register),
        _ => Err(Refused { error: None, index: register, detail: 0, done: 0, broken: 0 }),
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec;
    use std::vec::Vec;

    use escrow_abi::Rights;

    use super::*;

    /// Answers from a script and keeps what it was asked.
    struct Script {
        answers: Vec<[u64; 5]>,
        asked: Vec<[u64; 8]>,
    }

    impl Script {
        fn new(answers: &[[u64; 5]]) -> Self {
            Script { answers: answers.iter().rev().copied().collect(), asked: Vec::new() }
        }
    }

    impl Hypervisor for Script {
        fn call(&mut self, args: [u64; 8]) -> [u64; 5] {
            self.asked.push(args);
            self.answers.pop().expect("one call too many")
        }
    }

    struct Purse {
        left: u64,
        given: Vec<u64>,
    }

    impl Donor for Purse {
        fn donate(&mut self, pages: u64) -> Result<(), Errno> {
            self.left = self.left.checked_sub(pages).ok_or(Errno::NoMemory)?;
            self.given.push(pages);
            Ok(())
        }
    }

    const NO_MEMORY: u64 = Error::NoMemory.to_register();
    const VM: u64 = 1 << 24 | 1 << 20;
    const LIST: List = List { address: 0x4000, count: 2 };

    #[test]
    fn arguments_are_where_the_interface_wants_them() {
        let mut hv = Script::new(&[[0; 5]]);
        let mut purse = Purse { left: 0, given: vec![] };
        mem_lend(&mut hv, &mut purse, VM, LIST).unwrap();
        assert_eq!(hv.asked, [[u64::from(call::MEM_LEND), VM, 0x4000, 2, 0, 0, 0, 0]]);
    }

    #[test]
    fn a_controller_s_pages_are_donated() {
        let mut hv =
            Script::new(&[[NO_MEMORY, 0, 2, 0, 0], [0; 5], [0, 5, 0, 0, 0], [0, 40, 0, 0, 0]]);
        let mut purse = Purse { left: 2, given: vec![] };
        vm_vgic(&mut hv, &mut purse, VM, 0x800_0000, 0x80a_0000, 988).unwrap();
        assert_eq!(purse.given, [2]);
        let vgic = [u64::from(call::VM_VGIC), VM, 0x800_0000, 0x80a_0000, 988, 0, 0, 0];
        assert_eq!(spi_input(&mut hv, VM, 40, call::INPUT_EDGE), Ok(5));
        assert_eq!(spi_done(&mut hv, VM), Ok(40));
        let input = [u64::from(call::SPI_INPUT), VM, 40, 3, 0, 0, 0, 0];
        assert_eq!(
            hv.asked,
            [vgic, vgic, input, [u64::from(call::SPI_DONE), VM, 0, 0, 0, 0, 0, 0]]
        );
    }

    #[test]
    fn the_bit_of_the_shared_half_is_one_bit() {
        let mut hv = Script::new(&[[0, 1 << 38, 0, 0, 0]]);
        assert_eq!(vm_protect(&mut hv, VM), Ok(1 << 38));
        assert_eq!(hv.asked, [[u64::from(call::VM_PROTECT), VM, 0, 0, 0, 0, 0, 0]]);
        for nonsense in [0, PAGE_SIZE, 3 << 37, u64::MAX] {
            let refused = vm_protect(&mut Script::new(&[[0, nonsense, 0, 0, 0]]), VM);
            assert_eq!(refused.map_err(Errno::from), Err(Errno::Io));
        }
        let lacks = Script::new(&[[Error::Unimplemented.to_register(), 0, 0, 0, 0]]);
        let refused = vm_protect(&mut { lacks }, VM);
        assert_eq!(refused.map_err(Errno::from), Err(Errno::Unsupported));
    }

    #[test]
    fn the_page_of_stolen_time_is_donated() {
        let mut hv = Script::new(&[[NO_MEMORY, 0, 3, 0, 0], [0; 5]]);
        let mut purse = Purse { left: 3, given: vec![] };
        vm_pv_time(&mut hv, &mut purse, VM, 0xb00_0000).unwrap();
        assert_eq!(purse.given, [3]);
        let call = [u64::from(call::VM_PV_TIME), VM, 0xb00_0000, 0, 0, 0, 0, 0];
        assert_eq!(hv.asked, [call, call]);
    }

    #[test]
    fn an_entry_in_registers_is_that_of_a_list() {
        let mut hv = Script::new(&[[NO_MEMORY, 0, 1, 0, 0], [0; 5]]);
        let mut purse = Purse { left: 1, given: vec![] };
        let entry = MemEntry::new(0x8000_0000, 9, 0x40_0000, Rights::READ_WRITE);
        mem_lend_one(&mut hv, &mut purse, VM, &entry.with_report(3, 2, 5)).unwrap();
        let words = [0x8000_0009, 0x40_0003, 3 | 2 << 32, 5];
        let [frame, guest, references, users] = words;
        let asked = [u64::from(call::MEM_LEND_ONE), VM, frame, guest, references, users, 0, 0];
        assert_eq!(hv.asked, [asked, asked]);
        assert_eq!(purse.given, [1]);
    }

    #[test]
    fn what_a_vm_lacks_is_donated_and_the_call_repeated() {
        let mut hv = Script::new(&[[NO_MEMORY, 0, 3, 0, 0], [0; 5]]);
        let mut purse = Purse { left: 3, given: vec![] };
        mem_share(&mut hv, &mut purse, VM, LIST).unwrap();
        assert_eq!(purse.given, [3]);
        assert_eq!(hv.asked[0], hv.asked[1]);
    }

    #[test]
    fn a_donor_without_pages_fails_the_call() {
        let mut hv = Script::new(&[[NO_MEMORY, 0, 3, 0, 0]]);
        let mut purse = Purse { left: 2, given: vec![] };
        let error = mem_lend(&mut hv, &mut purse, VM, LIST).unwrap_err();
        assert_eq!(error, CallError::Donor { errno: Errno::NoMemory, done: 0 });
    }

    #[test]
    fn a_long_call_goes_on_where_it_lacked_something() {
        let mut hv = Script::new(&[[NO_MEMORY, 0, 1, 1, 0], [NO_MEMORY, 0, 1, 1, 0], [0; 5]]);
        let mut purse = Purse { left: 2, given: vec![] };
        mem_lend(&mut hv, &mut purse, VM, LIST).unwrap();
        assert_eq!(hv.asked.iter().map(|asked| asked[7]).collect::<Vec<_>>(), [0, 1, 1]);
        // If the top-up fails, the first entry stays lent, and is counted as done.
        let mut hv = Script::new(&[[NO_MEMORY, 0, 1, 1, 0]]);
        let error = mem_lend(&mut hv, &mut purse, VM, LIST).unwrap_err();
        assert_eq!((error.done(), Errno::from(error)), (1, Errno::NoMemory));
    }

    #[test]
    fn what_a_vm_leaves_behind_is_reclaimed_from_where_unsharing_ended() {
        let dead = Error::WrongState.to_register();
        // X3 has the place to go on from, and the count of broken pages so far (3) above it.
        for (x3, broken) in [(1, 0), (3 << 32 | 1, 3)] {
            let mut hv = Script::new(&[[dead, 1, 0, x3, 0], [0, 0, broken, 0, 0]]);
            assert_eq!(mem_unshare(&mut hv, LIST), Ok(AllHome(broken == 0)));
            assert_eq!(hv.asked[1][..3], [u64::from(call::MEM_RECLAIM), 0x4000, 2]);
            assert_eq!(hv.asked[1][7], x3);
        }
        let mut hv = Script::new(&[[dead, 1, 0, 2 << 32 | 1, 0], [dead, 1, 0, 0, 0]]);
        let refused = mem_unshare(&mut hv, LIST).unwrap_err();
        assert_eq!((refused.done, refused.broken), (1, 2));
        // NoMemory is returned as it is: MEM_RECLAIM is not tried in its place.
        let mut hv = Script::new(&[[NO_MEMORY, 0, 1, 1, 0]]);
        let refused = mem_unshare(&mut hv, LIST).unwrap_err();
        assert_eq!((refused.done, Errno::from(refused)), (1, Errno::NoMemory));
    }

    #[test]
    fn a_bottomless_vm_is_not_fed_for_ever() {
        let mut hv = Script::new(&[[NO_MEMORY, 0, 1, 0, 0]; 100]);
        let mut purse = Purse { left: 1000, given: vec![] };
        let error = mem_lend(&mut hv, &mut purse, VM, LIST).unwrap_err();
        assert_eq!(Errno::from(error), Errno::NoMemory);
        assert_eq!(purse.given.len() as u32, MAX_DONATIONS);
    }

    #[test]
    fn refusals_keep_index_and_detail() {
        let mut hv = Script::new(&[[Error::Excess.to_register(), 7, 1, 0, 0]]);
        let refused = mem_reclaim(&mut hv, LIST).unwrap_err();
        assert_eq!((refused.index, refused.detail), (7, 1));
        assert_eq!(Errno::from(refused), Errno::Again);
    }

    #[test]
    fn nonsense_is_no_handle_and_no_error() {
        let mut hv = Script::new(&[[0, 0, 0, 0, 0], [0x1234, 0, 0, 0, 0]]);
        assert_eq!(Errno::from(vm_create(&mut hv, LIST).unwrap_err()), Errno::Io);
        assert_eq!(Errno::from(vm_create(&mut hv, LIST).unwrap_err()), Errno::Io);
    }

    #[test]
    fn a_dead_vm_is_as_good_as_destroyed() {
        let mut hv = Script::new(&[[Error::HandleRevoked.to_register(), 0, 0, 0, 0]]);
        assert_eq!(vm_destroy(&mut hv, VM), Ok(()));
    }

    #[test]
    fn what_broke_on_its_way_home_is_not_home() {
        let mut hv = Script::new(&[[0; 5], [0, 0, 1, 0, 0], [0; 5], [0, 0, 1, 0, 0]]);
        assert_eq!(mem_reclaim(&mut hv, LIST), Ok(AllHome(true)));
        assert_eq!(mem_reclaim(&mut hv, LIST), Ok(AllHome(false)));
        assert_eq!(mem_unshare(&mut hv, LIST), Ok(AllHome(true)));
        assert_eq!(mem_unshare(&mut hv, LIST), Ok(AllHome(false)));
        let (owned, broken) = (FrameState::Owned as u64, FrameState::Poisoned as u64);
        let mut hv = Script::new(&[[0, owned, 2, 0, 0], [0, broken, 1, 0, 0]]);
        assert!(!is_home(&mut hv, 0x5000, 3));
        let asked: Vec<_> = hv.asked.iter().map(|asked| asked[1]).collect();
        assert_eq!(asked, [0x5000, 0x7000]);
        assert!(is_home(&mut Script::new(&[[0, owned, 512, 0, 0]]), 0x5000, 3));
        assert!(is_broken(&mut Script::new(&[[0, broken, 1, 0, 0]]), 0x7000));
        assert!(!is_broken(&mut Script::new(&[[0, owned, 512, 0, 0]]), 0x7000));
        let others = Error::NotOwner.to_register();
        assert!(!is_broken(&mut Script::new(&[[others, broken, 1, 0, 0]]), 0x7000));
    }

    #[test]
    fn the_host_reaches_what_nobody_has_alone() {
        let told = |answer| host_reaches(&mut Script::new(&[answer]), 0x5000);
        for state in FrameState::ALL {
            let reaches = match state {
                FrameState::Owned
                | FrameState::Pinned
                | FrameState::Shared
                | FrameState::SharedBack => true,
                FrameState::Lent
                | FrameState::UnlockedZeroed
                | FrameState::UnlockedContents
                | FrameState::Metadata
                | FrameState::Donated
                | FrameState::Hypervisor
                | FrameState::Poisoned => false,
            };
            assert_eq!(told([0, state as u64, 7, 0, 0]), (reaches, 7), "{state:?}");
        }
        let refused = |error: Error| told([error.to_register(), 0, 0, 0, 0]);
        assert_eq!(refused(Error::InvalidAddress), (true, 1));
        // After any other error, the page is not touched.
        assert_eq!(refused(Error::NotOwner), (false, 1));
        assert_eq!(refused(Error::Unimplemented), (false, 1));
        assert_eq!(told([0, 99, 0, 0, 0]), (false, 1));
    }

    #[test]
    fn the_log_comes_in_memory_order() {
        let word = |text: &[u8; 8]| u64::from_le_bytes(*text);
        let mut hv = Script::new(&[
            [0, 124, word(b"escrow: "), word(b"Escrow 1"), word(b".2\n\0\0\0\0\0")],
            [0, 119, 0, 0, 0],
        ]);
        let chunk = log_read(&mut hv, 100).unwrap();
        assert_eq!((chunk.next, chunk.size), (124, 19));
        assert_eq!(&chunk.text[..chunk.size], b"escrow: Escrow 1.2\n");
        assert_eq!(log_read(&mut hv, 119).unwrap().size, 0);
    }

    #[test]
    fn only_escrow_is_identified() {
        let uid = call::UID.map(u64::from);
        let uid = [uid[0], uid[1], uid[2], uid[3], 0];
        assert!(identify(&mut Script::new(&[uid, [call::IDENTIFY_INFO, 0, 0, 0, 0]])));
        // Gunyah has the same UID and another variant.
        assert!(!identify(&mut Script::new(&[uid, [0x4800_0000_0000_8001, 0, 0, 0, 0]])));
        assert!(!identify(&mut Script::new(&[[u64::MAX, 0, 0, 0, 0]])));
    }
}

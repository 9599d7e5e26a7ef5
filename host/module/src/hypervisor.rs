// SPDX-License-Identifier: MIT OR Apache-2.0

//! Calls to Escrow that concern no VM's bindings.

use escrow_abi::{FrameState, call};
use escrow_memfd::How;
use escrow_vmcore::hypercall::{self, AllHome, CallError, List};
use escrow_vmcore::metadata::{INITIAL, Metadata};
use escrow_vmcore::{Errno, uapi};

use crate::kernel::{BorrowerPtr, Hvc, seen_through};
use crate::{status, store};

/// Whether Escrow answers.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_identify() -> bool {
    hypercall::identify(&mut Hvc)
}

/// Creates a VM out of the pages of a list.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_vm_create(list: u64, count: u32, handle: &mut u64) -> i32 {
    let created = hypercall::vm_create(&mut Hvc, List { address: list, count });
    store(created.map_err(Errno::from), handle)
}

/// Donates the pages of a list. On an error, so many as `done` says, from the first, are
/// the VM's all the same.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_vm_top_up(vm: u64, list: u64, count: u32, done: &mut u32) -> i32 {
    let result = hypercall::vm_top_up(&mut Hvc, vm, List { address: list, count });
    *done = done_of(count, result.map_or_else(|refused| refused.done, |()| u64::from(count)));
    status(result.map_err(Errno::from))
}

/// Ends a VM. EBUSY: one of its vCPUs runs.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_vm_destroy(vm: u64) -> i32 {
    status(hypercall::vm_destroy(&mut Hvc, vm).map_err(Errno::from))
}

/// `struct escrow_vm_info`: what Escrow says of a VM.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct CVmInfo {
    pub(crate) started: u64,
    pub(crate) mapped: u64,
    pub(crate) metadata: u64,
    pub(crate) free: u64,
}

/// Counts of a VM: see [`hypercall::vm_info`]. ENODEV: it has ended.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_vm_info(vm: u64, info: &mut CVmInfo) -> i32 {
    let asked = hypercall::vm_info(&mut Hvc, vm).map_err(Errno::from);
    let asked =
        asked.map(|[started, mapped, metadata, free]| CVmInfo { started, mapped, metadata, free });
    store(asked, info)
}

/// Lends or shares the pages of a list. On an error, so many as `done` says, from the
/// first, are given all the same.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_mem_lend(
    donor: BorrowerPtr,
    vm: u64,
    how: u32,
    list: u64,
    count: u32,
    done: &mut u32,
) -> i32 {
    let mut donor = donor;
    let list = List { address: list, count };
    let result = if how == How::Shared as u32 {
        hypercall::mem_share(&mut Hvc, &mut donor, vm, list)
    } else {
        hypercall::mem_lend(&mut Hvc, &mut donor, vm, list)
    };
    if let Err(CallError::Refused(refused)) = result
        && Errno::from(refused) == Errno::Again
        && refused.index < count.into()
    {
        seen_through(refused.index, refused.detail);
    }
    *done = done_of(count, result.as_ref().map_or_else(CallError::done, |()| u64::from(count)));
    status(result.map_err(Errno::from))
}

/// Takes the pages of a list back. EBUSY: the guest has not unlocked one of
/// them.
///
/// Shared pages of a living VM are unshared, which leaves their contents
/// alone; all others are reclaimed. On an error, so many as `done` says, from the
/// first, are back all the same, but for what turned out to be broken: that the host does
/// not reach (`escrow_rs_is_home`). EHWPOISON: such there may be, and nothing else is wrong.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_mem_reclaim(how: u32, list: u64, count: u32, done: &mut u32) -> i32 {
    let list = List { address: list, count };
    let result = if how == How::Shared as u32 {
        hypercall::mem_unshare(&mut Hvc, list)
    } else {
        hypercall::mem_reclaim(&mut Hvc, list)
    };
    *done = done_of(count, result.map_or_else(|refused| refused.done, |_| u64::from(count)));
    let all_home = |AllHome(all)| if all { Ok(()) } else { Err(Errno::Poisoned) };
    status(result.map_err(Errno::from).and_then(all_home))
}

/// Whether the host has all pages from a frame on.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_is_home(frame: u64, pages: u32) -> bool {
    hypercall::is_home(&mut Hvc, frame, pages.into())
}

/// Whether a frame of the host's is broken, and out of use.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_is_broken(frame: u64) -> bool {
    hypercall::is_broken(&mut Hvc, frame)
}

/// Whether the host reaches a frame, and for how many pages from it on that holds.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_host_reaches(frame: u64, pages: &mut u64) -> bool {
    let (reaches, alike) = hypercall::host_reaches(&mut Hvc, frame);
    *pages = alike;
    reaches
}

/// How many entries were done, of as many as there are.
fn done_of(count: u32, done: u64) -> u32 {
    u32::try_from(done).map_or(count, |done| done.min(count))
}

/// Puts the pages of a list, all with one VM, out of use for good.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_mem_poison(list: u64, count: u32) -> i32 {
    status(hypercall::mem_poison(&mut Hvc, List { address: list, count }).map_err(Errno::from))
}

/// Escrow's version: `major << 32 | minor << 16 | patch`.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_info_version(value: &mut u64) -> i32 {
    info(call::INFO_VERSION, 0, value)
}

/// How many CPUs Escrow runs on.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_info_cpus(value: &mut u64) -> i32 {
    info(call::INFO_CPUS, 0, value)
}

/// How many VMs there are.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_info_vms(value: &mut u64) -> i32 {
    info(call::INFO_VMS, 0, value)
}

/// The errata of the machine's CPUs, as [`call::INFO_ERRATA`] has them.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_info_errata(value: &mut u64) -> i32 {
    info(call::INFO_ERRATA, 0, value)
}

/// How entries to EL2 are hardened, as [`call::INFO_HARDENING`] has it.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_info_hardening(value: &mut u64) -> i32 {
    info(call::INFO_HARDENING, 0, value)
}

/// How many pages are in a state, and the state's name, with a zero at its
/// end. ENOENT: no such state.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_info_pages(state: u64, name: &mut [u8; 32], value: &mut u64) -> i32 {
    let Some(frame_state) = FrameState::from_number(state) else {
        return Errno::NotFound.to_return();
    };
    let bytes = uapi::state_name(frame_state);
    *name = [0; 32];
    // The last byte stays zero: C reads a string.
    for (to, from) in name[..31].iter_mut().zip(bytes) {
        *to = from;
    }
    info(call::INFO_PAGES, state, value)
}

fn info(selector: u64, which: u64, value: &mut u64) -> i32 {
    store(hypercall::ledger_info(&mut Hvc, selector, which).map_err(Errno::from), value)
}

/// Reads Escrow's log from a position on, which becomes that of what was read. →
/// bytes of text; the log may have begun later than was asked for.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_log_read(position: &mut u64, text: &mut [u8; call::LOG_CHUNK]) -> i32 {
    match hypercall::log_read(&mut Hvc, *position) {
        Ok(chunk) => {
            *position = chunk.next.wrapping_sub(chunk.size as u64);
            *text = chunk.text;
            chunk.size as i32
        }
        Err(refused) => Errno::from(refused).to_return(),
    }
}

/// How many pages a VM is created with.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_metadata_initial() -> u32 {
    INITIAL as u32
}

/// How many pages to donate when so many are needed. → the number
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_metadata_plan(metadata: &Metadata, needed: u64) -> i32 {
    match metadata.plan(needed) {
        Ok(pages) => pages as i32,
        Err(errno) => errno.to_return(),
    }
}

/// Escrow has taken pages.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_metadata_added(metadata: &mut Metadata, pages: u64) {
    metadata.gave(pages);
}

/// Escrow has given pages back.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_metadata_reclaimed(metadata: &mut Metadata, pages: u64) {
    metadata.got_back(pages);
}

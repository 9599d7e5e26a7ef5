// SPDX-License-Identifier: MIT OR Apache-2.0

//! Accesses to memory whose pages may go away at any time: an access that raises SIGBUS is an
//! error, and the program goes on.
//!
//! The accesses are in one piece of assembly. A handler of SIGBUS looks where the signal came from:
//! if from there, the function that was called returns its failure, as `copy_from_user` does in
//! Linux. Nothing is mapped or remembered, so a page that comes back is accessible again.

use std::arch::global_asm;
use std::sync::Once;
use std::sync::atomic::{Ordering, fence};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use vm_memory::VolatileSlice;

/// The page is not there. What was copied before it was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

// Each function is a leaf without a frame, so that the failure returns to its caller from any
// instruction between the two labels.
#[cfg(target_arch = "aarch64")]
global_asm!(
    ".section .text.escrow_guarded, \"ax\"",
    ".balign 4",
    "escrow_guarded_begin:",
    "escrow_guarded_copy:",
    "1: cmp x2, #16",
    "b.lo 2f",
    "ldp x3, x4, [x1], #16",
    "stp x3, x4, [x0], #16",
    "sub x2, x2, #16",
    "b 1b",
    "2: cbz x2, 3f",
    "ldrb w3, [x1], #1",
    "strb w3, [x0], #1",
    "sub x2, x2, #1",
    "b 2b",
    "3: mov x0, #0",
    "ret",
    "escrow_guarded_load:",
    "ldrh w0, [x0]",
    "ret",
    "escrow_guarded_store:",
    "strh w1, [x0]",
    "mov x0, #0",
    "ret",
    "escrow_guarded_end:",
    "escrow_guarded_failed:",
    "mov x0, #-1",
    "ret",
    ".previous",
);

#[cfg(target_arch = "x86_64")]
global_asm!(
    ".section .text.escrow_guarded, \"ax\"",
    "escrow_guarded_begin:",
    "escrow_guarded_copy:",
    "mov rcx, rdx",
    "rep movsb",
    "xor eax, eax",
    "ret",
    "escrow_guarded_load:",
    "movzx eax, word ptr [rdi]",
    "ret",
    "escrow_guarded_store:",
    "mov word ptr [rdi], si",
    "xor eax, eax",
    "ret",
    "escrow_guarded_end:",
    "escrow_guarded_failed:",
    "mov rax, -1",
    "ret",
    ".previous",
);

unsafe extern "C" {
    fn escrow_guarded_copy(to: *mut u8, from: *const u8, length: usize) -> u64;
    fn escrow_guarded_load(from: *const u8) -> u64;
    fn escrow_guarded_store(to: *mut u8, value: u16) -> u64;
    static escrow_guarded_begin: u8;
    static escrow_guarded_end: u8;
    static escrow_guarded_failed: u8;
}

/// What the functions answer when they fail.
const FAILED: u64 = u64::MAX;

fn outcome(answer: u64) -> Result<u64, Gone> {
    if answer == FAILED { Err(Gone) } else { Ok(answer) }
}

/// Copies all of `from` into `to`, which has the same size.
pub fn read(from: &VolatileSlice, to: &mut [u8]) -> Result<(), Gone> {
    install();
    let length = to.len().min(from.len());
    let place = from.ptr_guard();
    // SAFETY: both are valid for `length` bytes, and do not overlap: one is guest memory, of which no
    // reference exists. A page of it that is not there ends the call with `FAILED`.
    outcome(unsafe { escrow_guarded_copy(to.as_mut_ptr(), place.as_ptr(), length) }).map(drop)
}

/// Copies all of `from` into `to`, which has the same size.
pub fn write(to: &VolatileSlice, from: &[u8]) -> Result<(), Gone> {
    install();
    let length = from.len().min(to.len());
    let place = to.ptr_guard_mut();
    // SAFETY: as in `read`.
    outcome(unsafe { escrow_guarded_copy(place.as_ptr(), from.as_ptr(), length) }).map(drop)
}

/// Loads two bytes at once. What the guest wrote before them is seen by later loads.
///
/// `from` has two bytes, aligned.
pub fn load(from: &VolatileSlice) -> Result<u16, Gone> {
    install();
    debug_assert!(from.len() == 2 && from.ptr_guard().as_ptr().addr().is_multiple_of(2));
    // SAFETY: as in `read`, for two bytes.
    let value = outcome(unsafe { escrow_guarded_load(from.ptr_guard().as_ptr()) });
    fence(Ordering::Acquire);
    value.map(|value| value as u16)
}

/// Stores two bytes at once. The guest that sees them sees earlier stores.
///
/// `to` has two bytes, aligned.
pub fn store(to: &VolatileSlice, value: u16) -> Result<(), Gone> {
    install();
    debug_assert!(to.len() == 2 && to.ptr_guard().as_ptr().addr().is_multiple_of(2));
    fence(Ordering::Release);
    // SAFETY: as in `read`, for two bytes.
    outcome(unsafe { escrow_guarded_store(to.ptr_guard_mut().as_ptr(), value) }).map(drop)
}

fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let handler = SigHandler::SigAction(fail);
        let action = SigAction::new(handler, SaFlags::SA_SIGINFO, SigSet::empty());
        // SAFETY: the handler is async-signal-safe: it touches its arguments, and may call `signal`.
        let installed = unsafe { sigaction(Signal::SIGBUS, &action) };
        debug_assert!(installed.is_ok());
    });
}

/// Has the function that is interrupted return its failure.
extern "C" fn fail(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid pointer.
    let code = unsafe { (*info).si_code };
    // Codes of those that a program sends are 0 or less (sigaction(2)); that of memory which broke
    // without an access to it is the other one that no access raises.
    let by_access = code > 0 && code != libc::BUS_MCEERR_AO;
    // SAFETY: the kernel passes a valid pointer that this handler alone uses.
    let machine = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext };
    #[cfg(target_arch = "aarch64")]
    let pc = &mut machine.pc;
    #[cfg(target_arch = "x86_64")]
    let pc = &mut machine.gregs[libc::REG_RIP as usize];
    let [begin, end, failed] = [
        &raw const escrow_guarded_begin,
        &raw const escrow_guarded_end,
        &raw const escrow_guarded_failed,
    ]
    .map(|label| label.addr());
    if by_access && (begin..end).contains(&(*pc as usize)) {
        *pc = failed as _;
    } else {
        // Somebody else's: let the repeated access, or the signal that comes once more when this
        // handler returns, have its normal end.
        // SAFETY: both are async-signal-safe.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            if !by_access {
                libc::raise(signal);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use nix::sys::wait::WaitStatus;
    use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

    use super::*;
    use crate::host::in_child;

    const PAGE: usize = 4096;

    /// Two pages of a file, and the file: what is beyond its end raises SIGBUS.
    fn two_pages() -> (MmapRegion, File) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(2 * PAGE as u64).unwrap();
        let offset = FileOffset::new(file.try_clone().unwrap(), 0);
        (MmapRegion::from_file(offset, 2 * PAGE).unwrap(), file)
    }

    #[test]
    fn what_is_there_is_copied() {
        let (region, _file) = two_pages();
        // All lengths and alignments that a loop may treat in a way of their own.
        for length in (0..70).chain([PAGE - 33, PAGE]) {
            for start in [0, 1, 7, 8, 33, PAGE - 33] {
                let bytes = (0..length).map(|at| (at * 7 + 1) as u8).collect::<Vec<_>>();
                let all = region.get_slice(0, 2 * PAGE).unwrap();
                write(&all, &[0; 2 * PAGE]).unwrap();
                write(&region.get_slice(start, length).unwrap(), &bytes).unwrap();
                let mut seen = [1; 2 * PAGE];
                read(&all, &mut seen).unwrap();
                assert_eq!(seen[start..start + length], bytes);
                let rest = seen[..start].iter().chain(&seen[start + length..]);
                assert!(rest.into_iter().all(|&byte| byte == 0));
            }
        }
        let word = region.get_slice(6, 2).unwrap();
        store(&word, 0xa55a).unwrap();
        assert_eq!(load(&word), Ok(0xa55a));
        store(&word, u16::MAX).unwrap();
        assert_eq!(load(&word), Ok(u16::MAX));
    }

    #[test]
    fn a_page_that_is_gone_is_an_error_until_it_is_back() {
        let (region, file) = two_pages();
        let both = region.get_slice(PAGE - 20, 40).unwrap();
        let word = region.get_slice(PAGE, 2).unwrap();
        for turn in 1..4 {
            file.set_len(PAGE as u64).unwrap();
            assert_eq!(write(&both, &[turn; 40]), Err(Gone));
            let mut seen = [0; 40];
            assert_eq!(read(&both, &mut seen), Err(Gone));
            assert_eq!((load(&word), store(&word, 1)), (Err(Gone), Err(Gone)));
            // What is before it is not lost.
            read(&region.get_slice(PAGE - 20, 16).unwrap(), &mut seen[..16]).unwrap();
            assert_eq!(seen[..16], [turn; 16]);
            file.set_len(2 * PAGE as u64).unwrap();
            read(&both, &mut seen).unwrap();
            assert_eq!(seen[20..], [0; 20]);
            write(&both, &[turn; 40]).unwrap();
        }
    }

    #[test]
    fn a_signal_of_somebody_else_s_ends_the_program() {
        let status = in_child(|| {
            let (region, file) = two_pages();
            file.set_len(0).unwrap();
            let slice = region.get_slice(0, 2).unwrap();
            if load(&slice) != Err(Gone) {
                return 99;
            }
            // SAFETY: the address is mapped; the access raises SIGBUS.
            unsafe { slice.ptr_guard().as_ptr().read_volatile() }
        });
        assert!(matches!(status, Ok(WaitStatus::Signaled(_, Signal::SIGBUS, _))), "{status:?}");
    }

    #[test]
    fn a_signal_that_is_sent_ends_the_program() {
        let status = in_child(|| {
            let (region, _file) = two_pages();
            if load(&region.get_slice(0, 2).unwrap()) != Ok(0) {
                return 99;
            }
            nix::sys::signal::raise(Signal::SIGBUS).map_or(98, |()| 97)
        });
        assert!(matches!(status, Ok(WaitStatus::Signaled(_, Signal::SIGBUS, _))), "{status:?}");
    }
}

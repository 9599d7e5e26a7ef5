// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the program gives up once it has all that it needs, before the guest
//! runs: the capabilities of root, and all system calls but those that it makes
//! from here on. A guest that takes the program over by a fault in it can open
//! no file, start no program and reach no other process.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::{landlock, terminal};

/// CAP_IPC_LOCK (Linux, include/uapi/linux/capability.h): a guest's RAM counts
/// as locked memory while it comes and goes.
const IPC_LOCK: u32 = 14;
/// The last capability that Linux has a bit for.
const LAST: u32 = 63;

/// System calls that are allowed whatever their arguments.
const FREELY: &[libc::c_long] = &[
    // Descriptors that are there already.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fallocate,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_statx,
    libc::SYS_dup,
    libc::SYS_close,
    libc::SYS_ppoll,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    // The control socket's connections, and those of devices.
    libc::SYS_accept4,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    // The sockets' files go at the end. Which files can be removed, Landlock says.
    libc::SYS_unlinkat,
    // Memory.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_membarrier,
    // Threads, and this process.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    // Signals.
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    // Time and chance.
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_getrandom,
];

/// ioctls of terminals and of all descriptors, and the one that a driver's start
/// makes on a tap device.
const IOCTLS: [u64; 7] = [
    libc::TCGETS,
    libc::TCSETS,
    libc::TCSETSW,
    libc::TCSETSF,
    libc::TIOCGWINSZ,
    libc::FIONBIO,
    libc::TUNSETOFFLOAD,
];
/// What `fcntl` is asked for. Others reach other processes: F_SETOWN and F_SETSIG have the kernel
/// send any signal to anybody, which it allows user 0 without a capability.
const FCNTLS: [libc::c_int; 6] = [
    libc::F_DUPFD,
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
];
/// The name of an anonymous mapping: the C library names its stacks.
const PR_SET_VMA: u64 = 0x5356_4d41;

/// Gives up all capabilities but the one to lock memory, for this thread and
/// those that it starts, and the ways to get them back; and what of files and sockets is
/// outside `folder`, where the guest's sockets are.
pub fn drop_privileges(folder: &Path) -> Result<()> {
    prctl::set_no_new_privs().context("giving up new privileges (PR_SET_NO_NEW_PRIVS)")?;
    landlock::restrict(folder).context("giving up files (Landlock)")?;
    for capability in (0..=LAST).filter(|&capability| capability != IPC_LOCK) {
        // SAFETY: the call takes no pointer.
        let result =
            unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability as libc::c_ulong, 0, 0, 0) };
        match Errno::result(result) {
            // EPERM: without CAP_SETPCAP there is nothing to drop. EINVAL: this kernel
            // does not have that capability.
            Ok(_) | Err(Errno::EPERM | Errno::EINVAL) => {}
            Err(errno) => return Err(errno).context("giving up capabilities (PR_CAPBSET_DROP)"),
        }
    }
    limit_capabilities(1 << IPC_LOCK).context("giving up capabilities (capset)")
}

/// `struct __user_cap_header_struct`.
#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

/// `struct __user_cap_data_struct`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Capabilities {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Leaves this thread at the most the capabilities in `mask`.
fn limit_capabilities(mask: u32) -> Result<(), Errno> {
    /// Two words each.
    const VERSION_3: u32 = 0x2008_0522;
    let mut header = Header { version: VERSION_3, pid: 0 };
    let mut sets = [Capabilities::default(); 2];
    // SAFETY: the kernel reads the header and writes two sets in this version.
    Errno::result(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) })?;
    let low = sets[0];
    sets = [Capabilities::default(); 2];
    sets[0].permitted = low.permitted & mask;
    sets[0].effective = low.effective & mask;
    // SAFETY: the kernel reads both.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, sets.as_ptr()) })?;
    Ok(())
}

/// Allows all threads, and those to come, only the system calls of a program
/// that runs a guest. Any other one ends it. `connects` says that a device
/// connects the guest to Unix sockets.
pub fn filter_system_calls(connects: bool) -> Result<()> {
    install_report();
    let filters = filters(connects).context("making the filter of system calls")?;
    for filter in &filters {
        seccompiler::apply_filter_all_threads(filter)
            .context("applying the filter of system calls (seccomp)")?;
    }
    Ok(())
}

/// Two filters: of what each says to a call, the stricter counts.
fn filters(connects: bool) -> Result<[BpfProgram; 2]> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    // The flags of clone3 are in memory, where a filter cannot read them. With ENOSYS, the
    // C library uses clone.
    let no_clone3 = SeccompFilter::new(
        [(libc::SYS_clone3, Vec::new())].into(),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS as u32),
        arch,
    )?;
    let allowed =
        SeccompFilter::new(rules(connects)?, SeccompAction::Trap, SeccompAction::Allow, arch)?;
    Ok([no_clone3.try_into()?, allowed.try_into()?])
}

fn rules(connects: bool) -> Result<BTreeMap<i64, Vec<SeccompRule>>> {
    let when = |argument, op, value| -> Result<SeccompRule> {
        let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Qword, op, value)?;
        Ok(SeccompRule::new(vec![condition])?)
    };
    let equals = |argument, value| when(argument, SeccompCmpOp::Eq, value);
    let has = |argument, mask, value| when(argument, SeccompCmpOp::MaskedEq(mask), value);

    let mut rules: BTreeMap<_, _> = FREELY.iter().map(|&call| (call, Vec::new())).collect();
    rules.insert(libc::SYS_clone3, Vec::new());
    let thread = libc::CLONE_THREAD as u64;
    rules.insert(libc::SYS_clone, vec![has(0, thread, thread)?]);
    // Signals within this process: to a thread, or to itself.
    let own = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, vec![equals(0, own)?]);
    let names = [libc::PR_SET_NAME as u64, PR_SET_VMA].map(|option| equals(0, option));
    rules.insert(libc::SYS_prctl, names.into_iter().collect::<Result<_>>()?);
    // /dev/gunyah's: all requests of its type.
    let gunyah = u64::from(escrow_vmcore::uapi::IOCTL_TYPE) << 8;
    let mut ioctls = vec![has(1, 0xff00, gunyah)?];
    for request in IOCTLS {
        ioctls.push(equals(1, request)?);
    }
    rules.insert(libc::SYS_ioctl, ioctls);
    // Memory, but none to put instructions into.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![has(2, libc::PROT_EXEC as u64, 0)?]);
    }
    let fcntls = FCNTLS.map(|command| equals(1, command as u64));
    rules.insert(libc::SYS_fcntl, fcntls.into_iter().collect::<Result<_>>()?);
    if connects {
        rules.insert(libc::SYS_socket, vec![equals(0, libc::AF_UNIX as u64)?]);
        rules.insert(libc::SYS_connect, Vec::new());
    }
    Ok(rules)
}

/// Has a call that is not allowed be named before it ends the program.
fn install_report() {
    let action =
        SigAction::new(SigHandler::SigAction(report), SaFlags::SA_SIGINFO, SigSet::empty());
    // SAFETY: the handler is async-signal-safe.
    let installed = unsafe { sigaction(Signal::SIGSYS, &action) };
    debug_assert!(installed.is_ok());
}

extern "C" fn report(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    /// Where `siginfo_t` of SIGSYS has the call's number: after three words and
    /// the call's address (Linux, include/uapi/asm-generic/siginfo.h).
    const NUMBER: usize = 24;
    terminal::restore();
    // SAFETY: the kernel passes a valid structure of 128 bytes.
    let number = unsafe { info.cast::<u8>().add(NUMBER).cast::<u32>().read() };
    let mut message = *b"escrow: system call      is not one that a guest's program makes; ended\n";
    let mut rest = number;
    for at in (20..24).rev() {
        message[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    // SAFETY: write and _exit are async-signal-safe; the buffer is whole.
    unsafe {
        libc::write(libc::STDERR_FILENO, message.as_ptr().cast(), message.len());
        libc::_exit(1);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::num::NonZeroUsize;
    use std::thread;

    use super::*;
    use crate::host::in_child;
    use nix::sys::wait::WaitStatus;

    /// The exit status of a child that does `job` behind the filter.
    fn behind_filter(job: impl FnOnce() -> u8) -> i32 {
        let status = in_child(|| match filter_system_calls(false) {
            Ok(()) => job(),
            Err(_) => 99,
        });
        match status.unwrap() {
            WaitStatus::Exited(_, status) => status,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_a_guest_needs_is_allowed() {
        let status = behind_filter(|| {
            let thread = thread::Builder::new().name("vcpu-0".into()).spawn(|| 40);
            let sum = thread.unwrap().join().unwrap() + vec![1; 1 << 20].len() / (1 << 19);
            (sum == 42).into()
        });
        assert_eq!(status, 1);
    }

    #[test]
    fn what_it_does_not_need_ends_the_program() {
        assert_eq!(behind_filter(|| File::open("/etc/passwd").is_ok().into()), 1);
        assert_eq!(behind_filter(|| nix::unistd::getppid().as_raw() as u8 | 2), 1);
        // SAFETY: the call ends the process, or fails.
        assert_eq!(behind_filter(|| unsafe { libc::fork() } as u8 | 2), 1);
        let other = nix::unistd::Pid::from_raw(1);
        assert_eq!(behind_filter(|| nix::sys::signal::kill(other, None).is_ok() as u8 | 2), 1);
        // With these, the kernel would send a signal for this process.
        const F_SETSIG: libc::c_int = 10;
        for command in [libc::F_SETOWN, F_SETSIG] {
            // SAFETY: the call takes no pointer.
            let set = || unsafe { libc::fcntl(0, command, libc::SIGKILL) as u8 | 2 };
            assert_eq!(behind_filter(set), 1);
        }
    }

    #[test]
    fn instructions_cannot_be_added() {
        use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, mprotect};
        let size = NonZeroUsize::new(1 << 16).unwrap();
        let map = |prot| {
            // SAFETY: a new mapping, of which nobody else knows.
            unsafe { mmap_anonymous(None, size, prot, MapFlags::MAP_PRIVATE) }
        };
        let data = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let code = ProtFlags::PROT_READ | ProtFlags::PROT_EXEC;
        assert_eq!(behind_filter(|| map(code).is_ok() as u8 | 2), 1);
        let change = |prot| {
            // SAFETY: as above.
            map(data).is_ok_and(|at| unsafe { mprotect(at, size.get(), prot) }.is_ok())
        };
        assert_eq!(behind_filter(|| change(ProtFlags::PROT_READ).into()), 1);
        assert_eq!(behind_filter(|| change(code) as u8 | 2), 1);
    }

    #[test]
    fn capabilities_are_gone() {
        let folder = tempfile::tempdir().unwrap();
        let status = in_child(|| {
            if drop_privileges(folder.path()).is_err() {
                return 99;
            }
            let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
            let of = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name));
                line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
            };
            let within = |set: Option<u64>| set.is_some_and(|set| set & !(1 << IPC_LOCK) == 0);
            (within(of("CapEff:")) && within(of("CapPrm:")) && status.contains("NoNewPrivs:\t1"))
                .into()
        });
        assert!(matches!(status, Ok(WaitStatus::Exited(_, 1))), "{status:?}");
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a filter of system calls cannot see, because it is behind a pointer: which files are
//! removed, and which sockets are connected to. Landlock does (Linux,
//! Documentation/userspace-api/landlock.rst); and it keeps signals within this program.

use std::fs::OpenOptions;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::ptr::null;

use anyhow::{Context as _, Result};
use nix::errno::Errno;

// Linux, include/uapi/linux/landlock.h.
const CREATE_RULESET_VERSION: u32 = 1;
const RULE_PATH_BENEATH: u32 = 1;
const ACCESS_FS_REMOVE_DIR: u64 = 1 << 4;
const ACCESS_FS_REMOVE_FILE: u64 = 1 << 5;
const ACCESS_FS_RESOLVE_UNIX: u64 = 1 << 16;
const SCOPE_ABSTRACT_UNIX_SOCKET: u64 = 1 << 0;
const SCOPE_SIGNAL: u64 = 1 << 1;
/// The first version with scopes (Linux 6.12).
const VERSION_SCOPES: i64 = 6;
/// The first version with [`ACCESS_FS_RESOLVE_UNIX`] (Linux 7.1).
const VERSION_RESOLVE_UNIX: i64 = 9;

/// `struct landlock_ruleset_attr`. Earlier versions take it if what they do not know is 0.
#[repr(C)]
struct Ruleset {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct PathBeneath {
    allowed_access: u64,
    parent_fd: i32,
}

/// The version of Landlock; `None` if this kernel has none, or does not let us.
fn version() -> Result<Option<i64>, Errno> {
    let (call, flags) = (libc::SYS_landlock_create_ruleset, CREATE_RULESET_VERSION);
    // SAFETY: with this flag, the call reads no memory.
    match Errno::result(unsafe { libc::syscall(call, null::<Ruleset>(), 0usize, flags) }) {
        Ok(version) => Ok(Some(version)),
        Err(Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::EPERM) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn ruleset(version: i64) -> Ruleset {
    let since = |first, access| if version >= first { access } else { 0 };
    let remove = ACCESS_FS_REMOVE_DIR | ACCESS_FS_REMOVE_FILE;
    Ruleset {
        handled_access_fs: remove | since(VERSION_RESOLVE_UNIX, ACCESS_FS_RESOLVE_UNIX),
        handled_access_net: 0,
        scoped: since(VERSION_SCOPES, SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL),
    }
}

/// This thread, and those that it starts, remove files in `folder` alone from now on. Where the
/// kernel knows how, they signal this program alone, and connect only to sockets in `folder`.
/// Without Landlock, nothing happens.
///
/// The thread must have given up new privileges.
pub fn restrict(folder: &Path) -> Result<()> {
    let Some(version) = version().context("Landlock's version")? else { return Ok(()) };
    let all = ruleset(version);
    // SAFETY: the kernel reads the structure.
    let rules = Errno::result(unsafe {
        let call = libc::SYS_landlock_create_ruleset;
        libc::syscall(call, &raw const all, size_of::<Ruleset>(), 0u32)
    });
    let rules = rules.context("landlock_create_ruleset")?;
    // SAFETY: the descriptor is new, and nobody else's.
    let rules = unsafe { OwnedFd::from_raw_fd(rules as i32) };
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY);
    let opened = options.open(folder).with_context(|| folder.display().to_string())?;
    let allowed_access = all.handled_access_fs & !ACCESS_FS_REMOVE_DIR;
    let beneath = PathBeneath { allowed_access, parent_fd: opened.as_raw_fd() };
    // SAFETY: the kernel reads the structure.
    let added = Errno::result(unsafe {
        let (call, rule) = (libc::SYS_landlock_add_rule, RULE_PATH_BENEATH);
        libc::syscall(call, rules.as_raw_fd(), rule, &raw const beneath, 0u32)
    });
    added.context("landlock_add_rule")?;
    // SAFETY: the call takes no pointer.
    let done = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0u32) };
    Errno::result(done).map(drop).context("landlock_restrict_self")
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::net::{UnixListener, UnixStream};

    use nix::sys::prctl;
    use nix::sys::signal::kill;
    use nix::sys::wait::WaitStatus;
    use nix::unistd::getppid;

    use super::*;
    use crate::host::in_child;

    #[test]
    fn earlier_versions_are_not_asked_for_what_they_lack() {
        let of = |version| {
            let Ruleset { handled_access_fs, handled_access_net, scoped } = ruleset(version);
            (handled_access_fs, handled_access_net, scoped)
        };
        assert_eq!(
            [1, 5, 6, 8, 9].map(of),
            [(0x30, 0, 0), (0x30, 0, 0), (0x30, 0, 3), (0x30, 0, 3), (0x1_0030, 0, 3),]
        );
    }

    #[test]
    fn files_elsewhere_are_not_removed_and_others_not_signalled() {
        let Some(version) = version().unwrap() else { return };
        let (ours, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let file = |folder: &tempfile::TempDir| folder.path().join("file");
        let (here, there) = (file(&ours), file(&others));
        File::create(&here).unwrap();
        File::create(&there).unwrap();
        let folder = others.path().join("folder");
        fs::create_dir(&folder).unwrap();
        let socket = |folder: &tempfile::TempDir| folder.path().join("socket");
        let _near = UnixListener::bind(socket(&ours)).unwrap();
        let _far = UnixListener::bind(socket(&others)).unwrap();
        let status = in_child(|| {
            if prctl::set_no_new_privs().is_err() || restrict(ours.path()).is_err() {
                return 99;
            }
            let refused = |result: std::io::Result<()>| {
                result.is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
            };
            let kept = refused(fs::remove_file(&there)) && refused(fs::remove_dir(&folder));
            let quiet = version < VERSION_SCOPES || kill(getppid(), None) == Err(Errno::EPERM);
            let alone = version < VERSION_RESOLVE_UNIX
                || refused(UnixStream::connect(socket(&others)).map(drop));
            let works = UnixStream::connect(socket(&ours)).is_ok();
            u8::from(kept && quiet && alone && works && fs::remove_file(&here).is_ok())
        });
        assert!(matches!(status, Ok(WaitStatus::Exited(_, 1))), "{status:?}");
        assert!(there.exists() && folder.exists() && !here.exists());
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! The guests that run, by name: each has a socket in a folder that its user
//! alone may use, and a lock that its program holds.
//!
//! The lock says whether a name is taken. A socket without a program that holds
//! the lock is left over from one that was killed.

use std::env;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::geteuid;

/// The folder of root's guests.
const SYSTEM: &str = "/run/escrow";
/// The folder of all users' own run-time folders.
const USERS: &str = "/run/user";
/// The longest name, in bytes: a socket's path has 107.
const NAME_MAX: usize = 40;

/// The name of a guest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(String);

impl Name {
    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = &'static str;

    fn from_str(name: &str) -> Result<Name, Self::Err> {
        let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let starts = name.starts_with(|c: char| c.is_ascii_alphanumeric());
        if !starts || !name.chars().all(fits) || name.len() > NAME_MAX {
            return Err("a name is 1 to 40 letters, digits, dots, dashes and underscores, \
                        and begins with a letter or a digit");
        }
        Ok(Name(name.to_owned()))
    }
}

/// The folder of this user's guests.
fn own_folder() -> Result<PathBuf> {
    if geteuid().is_root() {
        return Ok(SYSTEM.into());
    }
    let folder = env::var_os("XDG_RUNTIME_DIR").filter(|folder| !folder.is_empty());
    let folder = folder.context(
        "XDG_RUNTIME_DIR is not set: there is no folder for the guest's control socket \
         (a login session has one)",
    )?;
    Ok(Path::new(&folder).join("escrow"))
}

/// The folders whose guests this user can reach: root reaches those of all.
fn folders() -> Vec<PathBuf> {
    let mut folders: Vec<_> = own_folder().into_iter().collect();
    if geteuid().is_root() {
        let users = fs::read_dir(USERS).into_iter().flatten().flatten();
        folders.extend(users.map(|user| user.path().join("escrow")));
    }
    folders
}

/// A name that is this program's until it goes.
pub struct Entry {
    name: Name,
    socket: PathBuf,
    lock: PathBuf,
    /// Locked. It is unlocked when it is closed.
    _locked: Flock<File>,
}

impl Entry {
    /// Takes `wanted`, or the first of `guest-1`, `guest-2` … that is free.
    pub fn take(wanted: Option<&Name>) -> Result<(Entry, UnixListener)> {
        Entry::take_in(&own_folder()?, wanted)
    }

    fn take_in(folder: &Path, wanted: Option<&Name>) -> Result<(Entry, UnixListener)> {
        make_folder(folder)?;
        if let Some(name) = wanted {
            let taken = Entry::lock(folder, name)?;
            return match taken {
                Some(entry) => entry.listen(),
                None => bail!("there is a guest {} already (see `escrow ls`)", name.as_str()),
            };
        }
        for number in 1..=u16::MAX {
            let name = Name(format!("guest-{number}"));
            if let Some(entry) = Entry::lock(folder, &name)? {
                return entry.listen();
            }
        }
        bail!("all names are taken; choose one with --name")
    }

    /// Takes a name's lock, unless somebody has it.
    fn lock(folder: &Path, name: &Name) -> Result<Option<Entry>> {
        let lock = folder.join(format!("{}.lock", name.0));
        let failed = || format!("the guest's lock {}", lock.display());
        loop {
            let mut options = OpenOptions::new();
            options.create(true).write(true).truncate(false);
            options.mode(0o600).custom_flags(libc::O_NOFOLLOW);
            let file = options.open(&lock).with_context(failed)?;
            let locked = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(locked) => locked,
                Err((_, nix::errno::Errno::EWOULDBLOCK)) => return Ok(None),
                Err((_, errno)) => return Err(errno).with_context(failed),
            };
            // Its last owner may have removed it between the two calls.
            let now = fs::metadata(&lock).map(|metadata| metadata.ino());
            if now.ok() == Some(locked.metadata()?.ino()) {
                let socket = folder.join(format!("{}.{CONTROL}", name.0));
                return Ok(Some(Entry { name: name.clone(), socket, lock, _locked: locked }));
            }
        }
    }

    /// Makes the socket that the name's owner listens on.
    fn listen(self) -> Result<(Entry, UnixListener)> {
        let failed = || format!("the guest's control socket {}", self.socket.display());
        match fs::remove_file(&self.socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(failed);
            }
            _ => {}
        }
        let listener = UnixListener::bind(&self.socket).with_context(failed)?;
        listener.set_nonblocking(true)?;
        Ok((self, listener))
    }

    /// The place of another file of this guest's, beside its socket.
    pub fn path(&self, extension: &str) -> PathBuf {
        self.socket.with_file_name(format!("{}.{extension}", self.name.0))
    }

    /// The name.
    pub fn name(&self) -> &Name {
        &self.name
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        // In this order: nobody else listens there before the lock is free.
        let _ = fs::remove_file(&self.socket);
        let _ = fs::remove_file(&self.lock);
    }
}

/// Makes a folder that only its user may use.
fn make_folder(folder: &Path) -> Result<()> {
    let failed = || format!("the folder of guests, {}", folder.display());
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        result => result.with_context(failed)?,
    }
    let metadata = fs::symlink_metadata(folder).with_context(failed)?;
    if !metadata.is_dir() || metadata.uid() != geteuid().as_raw() || metadata.mode() & 0o022 != 0 {
        bail!("{}: others may write there", failed());
    }
    Ok(())
}

/// The socket of a guest's that it is controlled by.
pub const CONTROL: &str = "sock";

/// Connects to a socket of a guest's.
pub fn connect(name: &Name, socket: &str) -> Result<UnixStream> {
    connect_in(&folders(), name, socket)
}

fn connect_in(folders: &[PathBuf], name: &Name, socket: &str) -> Result<UnixStream> {
    for folder in folders {
        match UnixStream::connect(folder.join(format!("{}.{socket}", name.0))) {
            Ok(stream) => return Ok(stream),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) => {}
            Err(error) => return Err(error).context(format!("reaching guest {}", name.0)),
        }
    }
    match socket {
        CONTROL => bail!("there is no guest {} (see `escrow ls`)", name.0),
        _ => bail!("there is no guest {} with a {socket} (see `escrow ls`)", name.0),
    }
}

/// The names of all guests that this user can reach, sorted. Some may be gone.
pub fn names() -> Vec<Name> {
    names_in(&folders())
}

fn names_in(folders: &[PathBuf]) -> Vec<Name> {
    let mut names = Vec::new();
    for entry in folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten() {
        let file = entry.file_name();
        let name = file.to_str().and_then(|file| file.strip_suffix(".sock"));
        names.extend(name.and_then(|name| name.parse().ok()));
    }
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn name(name: &str) -> Name {
        name.parse().unwrap()
    }

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
        folder
    }

    #[test]
    fn names_are_file_names() {
        for good in ["a", "web-1", "0.x_Y", &"n".repeat(NAME_MAX)] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "-x", "a/b", "a b", "é", "a\n", &"n".repeat(NAME_MAX + 1)] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_name_has_one_owner() {
        let folder = folder();
        let take = |wanted: Option<&Name>| Entry::take_in(folder.path(), wanted);
        let (first, _listener) = take(Some(&name("web"))).unwrap();
        let error = take(Some(&name("web"))).err().unwrap().to_string();
        assert!(error.contains("web already"), "{error}");
        let (second, _also) = take(None).unwrap();
        let (third, _too) = take(None).unwrap();
        assert_eq!((second.name().as_str(), third.name().as_str()), ("guest-1", "guest-2"));
        let all = [folder.path().to_owned()];
        assert_eq!(names_in(&all), ["guest-1", "guest-2", "web"].map(name));
        connect_in(&all, &name("web"), CONTROL).unwrap();
        drop(first);
        assert!(connect_in(&all, &name("web"), CONTROL).is_err());
        take(Some(&name("web"))).unwrap();
        drop((second, third));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_a_killed_program_left_is_no_guest() {
        let folder = folder();
        let all = [folder.path().to_owned()];
        let (entry, listener) = Entry::take_in(folder.path(), Some(&name("web"))).unwrap();
        let socket = entry.socket.clone();
        let lock = entry.lock.clone();
        // As a kill leaves it: the files are there, the lock is free.
        drop((entry, listener));
        drop(UnixListener::bind(&socket).unwrap());
        File::create(&lock).unwrap();
        assert!(connect_in(&all, &name("web"), CONTROL).is_err());
        let (_entry, _listener) = Entry::take_in(folder.path(), Some(&name("web"))).unwrap();
        connect_in(&all, &name("web"), CONTROL).unwrap();
    }

    #[test]
    fn a_folder_that_others_may_write_is_refused() {
        let folder = folder();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(Entry::take_in(folder.path(), None).is_err());
    }
}

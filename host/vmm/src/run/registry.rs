// SPDX-License-Identifier: MIT OR Apache-2.0

//! The guests that run, by name: each has a socket in a folder that its user
//! alone may use, and a lock that its program holds.
//!
//! The lock says whether a name is taken. A socket without a program that holds
//! the lock is left over from one that was killed.

use std::env;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _,
    PermissionsExt as _,
};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, getsockopt, socket, sockopt};
use nix::unistd::{Uid, geteuid};

/// The folder of root's guests.
const SYSTEM: &str = "/run/escrow";
/// The folder of all users' own run-time folders.
const USERS: &str = "/run/user";
/// The longest name, in bytes: a socket's path has 107.
const NAME_MAX: usize = 40;
/// Guests of one folder that are looked at: a user may have fewer VMs.
const GUESTS_MAX: usize = 64;

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

/// A folder of guests. Root looks into those of other users, who may have put anything there.
#[derive(Debug)]
pub struct Place {
    folder: PathBuf,
    owner: Uid,
}

/// The folders whose guests this user can reach, its own first: root reaches those of all.
pub fn places() -> Vec<Place> {
    let own = own_folder().map(|folder| Place { folder, owner: geteuid() });
    let mut places: Vec<_> = own.into_iter().collect();
    if geteuid().is_root() {
        let users = fs::read_dir(USERS).into_iter().flatten().flatten();
        places.extend(users.filter_map(|user| Place::of_user(&user.path())));
    }
    places
}

/// The path of a file that is open.
fn path_of(file: &impl AsFd) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()).into()
}

impl Place {
    /// That of the user whose run-time folder this is.
    fn of_user(runtime: &Path) -> Option<Place> {
        let owner = runtime.file_name()?.to_str()?.parse().ok()?;
        Some(Place { folder: runtime.join("escrow"), owner: Uid::from_raw(owner) })
    }

    /// Whether it is this user's own.
    fn is_own(&self) -> bool {
        self.owner == geteuid()
    }

    /// Opens a file, no link, which must be its owner's. It is only a place for paths then.
    fn look_at(&self, path: &Path) -> io::Result<File> {
        let mut options = OpenOptions::new();
        let file = options.read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW).open(path)?;
        match file.metadata()?.uid() == self.owner.as_raw() {
            true => Ok(file),
            false => Err(io::Error::new(io::ErrorKind::PermissionDenied, "it is another user's")),
        }
    }

    /// The names of the guests in it, sorted. Some may be gone.
    pub fn names(&self) -> Vec<Name> {
        let folder = self.look_at(&self.folder);
        let entries = folder.and_then(|folder| fs::read_dir(path_of(&folder)));
        let names = entries.into_iter().flatten().flatten().filter_map(|entry| {
            let file = entry.file_name();
            file.to_str()?.strip_suffix(".sock")?.parse().ok()
        });
        let mut names: Vec<_> = names.take(GUESTS_MAX).collect();
        names.sort();
        names
    }

    /// Connects to a socket of a guest's, without waiting for it.
    pub fn connect(&self, name: &Name, kind: &str) -> io::Result<UnixStream> {
        let folder = self.look_at(&self.folder)?;
        let file = self.look_at(&path_of(&folder).join(format!("{}.{kind}", name.0)))?;
        let refused = |why| Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        if !file.metadata()?.file_type().is_socket() {
            return refused("it is no socket");
        }
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let ours: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        nix::sys::socket::connect(ours.as_raw_fd(), &UnixAddr::new(&path_of(&file))?)?;
        // The listener may be another user than the file's owner.
        if getsockopt(&ours, sockopt::PeerCredentials)?.uid() != self.owner.as_raw() {
            return refused("another user listens there");
        }
        let stream = UnixStream::from(ours);
        stream.set_nonblocking(false)?;
        Ok(stream)
    }
}

/// A name that is this program's until it goes.
pub struct Entry {
    name: Name,
    folder: PathBuf,
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
            // The file may have been removed between the open and the lock.
            let now = fs::metadata(&lock).map(|metadata| metadata.ino());
            if now.ok() == Some(locked.metadata()?.ino()) {
                let socket = folder.join(format!("{}.{CONTROL}", name.0));
                let (name, folder) = (name.clone(), folder.to_owned());
                return Ok(Some(Entry { name, folder, socket, lock, _locked: locked }));
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
        // Whatever the umask. Before this, nobody else reaches it: the folder is this user's.
        fs::set_permissions(&self.socket, fs::Permissions::from_mode(0o600))
            .with_context(failed)?;
        listener.set_nonblocking(true)?;
        Ok((self, listener))
    }

    /// The place of another file of this guest's, beside its socket.
    pub fn path(&self, extension: &str) -> PathBuf {
        self.socket.with_file_name(format!("{}.{extension}", self.name.0))
    }

    /// The folder of all files of this guest's.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The name.
    pub fn name(&self) -> &Name {
        &self.name
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        // The socket goes first: the lock keeps others from listening there.
        let _ = fs::remove_file(&self.socket);
        let _ = fs::remove_file(&self.lock);
    }
}

/// Makes a folder that only its user may use, also of one that is there. What others
/// may have written to is not taken.
fn make_folder(folder: &Path) -> Result<()> {
    let failed = || format!("the folder of guests, {}", folder.display());
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        result => result.with_context(failed)?,
    }
    let metadata = fs::symlink_metadata(folder).with_context(failed)?;
    if !metadata.is_dir() || metadata.uid() != geteuid().as_raw() || metadata.mode() & 0o022 != 0 {
        bail!("{}: it must be a folder of this user's that nobody else may write to", failed());
    }
    if metadata.mode() & 0o077 != 0 {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).with_context(failed)?;
    }
    Ok(())
}

/// The socket of a guest's that it is controlled by.
pub const CONTROL: &str = "sock";

/// Connects to a socket of a guest's: one of this user's, or else of the only user who has one.
pub fn connect(name: &Name, socket: &str) -> Result<UnixStream> {
    connect_in(&places(), name, socket)
}

fn connect_in(places: &[Place], name: &Name, socket: &str) -> Result<UnixStream> {
    let mut others = Vec::new();
    for place in places {
        match place.connect(name, socket) {
            Ok(stream) if place.is_own() => return Ok(stream),
            Ok(stream) => others.push((stream, place.owner)),
            Err(error)
                if place.is_own()
                    && !matches!(
                        error.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                    ) =>
            {
                return Err(error).context(format!("reaching guest {}", name.0));
            }
            // A file of another user is no guest.
            Err(_) => {}
        }
    }
    match (others.pop(), others.last()) {
        (Some((stream, owner)), None) => {
            eprintln!("escrow: guest {} is user {owner}'s", name.0);
            Ok(stream)
        }
        (Some((_, one)), Some((_, other))) => {
            bail!("the users {other} and {one} both have a guest {}", name.0)
        }
        (None, _) if socket == CONTROL => bail!("there is no guest {} (see `escrow ls`)", name.0),
        (None, _) => bail!("there is no guest {} with a {socket} (see `escrow ls`)", name.0),
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::wait::WaitStatus;

    use super::*;

    fn name(name: &str) -> Name {
        name.parse().unwrap()
    }

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
        folder
    }

    fn place(folder: &Path) -> Place {
        Place { folder: folder.to_owned(), owner: geteuid() }
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
        let all = [place(folder.path())];
        assert_eq!(all[0].names(), ["guest-1", "guest-2", "web"].map(name));
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
        let all = [place(folder.path())];
        let (entry, listener) = Entry::take_in(folder.path(), Some(&name("web"))).unwrap();
        let socket = entry.socket.clone();
        let lock = entry.lock.clone();
        // The state after a kill: both files exist, and the lock is free.
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

    #[test]
    fn nobody_else_gets_in_whatever_was_there_and_whatever_the_umask() {
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        let folder = folder();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let status = crate::host::in_child(|| {
            nix::sys::stat::umask(nix::sys::stat::Mode::empty());
            let (entry, _listener) = Entry::take_in(folder.path(), None).unwrap();
            let door = crate::virtio::Door::open(&entry.path("hvc0")).unwrap();
            let modes = [folder.path(), &entry.socket, &entry.lock, door.path()].map(mode);
            (modes == [0o700, 0o600, 0o600, 0o600]).into()
        });
        assert!(matches!(status, Ok(WaitStatus::Exited(_, 1))), "{status:?}");
    }

    #[test]
    fn what_another_user_puts_there_is_no_guest() {
        let (folder, elsewhere) = (folder(), folder());
        let target = elsewhere.path().join("target");
        let listener = UnixListener::bind(&target).unwrap();
        listener.set_nonblocking(true).unwrap();
        let nobody_came = || listener.accept().unwrap_err().kind() == io::ErrorKind::WouldBlock;
        let refused = |place: &Place, name: &Name| place.connect(name, CONTROL).unwrap_err();

        // A symbolic link to a socket of root's.
        let (web, here) = (name("web"), place(folder.path()));
        let socket = folder.path().join("web.sock");
        std::os::unix::fs::symlink(&target, &socket).unwrap();
        refused(&here, &web);
        let link = elsewhere.path().join("escrow");
        std::os::unix::fs::symlink(folder.path(), &link).unwrap();
        assert!(place(&link).names().is_empty());
        fs::remove_file(&socket).unwrap();
        File::create(&socket).unwrap();
        refused(&here, &web);
        assert!(nobody_came());

        // The folder belongs to a third user.
        fs::remove_file(&socket).unwrap();
        let _listener = UnixListener::bind(&socket).unwrap();
        assert!(here.connect(&web, CONTROL).is_ok());
        let others = Place { folder: here.folder.clone(), owner: Uid::from_raw(4242) };
        refused(&others, &web);
        assert!(others.names().is_empty());
        // Guests in the other folder are found nevertheless.
        connect_in(&[others, here], &web, CONTROL).unwrap();
    }

    #[test]
    fn who_does_not_accept_is_not_waited_for() {
        let folder = folder();
        let socket = folder.path().join("web.sock");
        let listener = nix::sys::socket::socket(
            AddressFamily::Unix,
            SockType::Stream,
            SockFlag::empty(),
            None,
        )
        .unwrap();
        let address = UnixAddr::new(&socket).unwrap();
        nix::sys::socket::bind(listener.as_raw_fd(), &address).unwrap();
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
        let here = place(folder.path());
        let connect = || here.connect(&name("web"), CONTROL);
        let waiting: Vec<_> = (0..2).map(|_| connect()).collect();
        assert!(waiting[0].is_ok());
        assert_eq!(connect().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_user_s_folder_has_the_user_s_number() {
        let place = Place::of_user(Path::new("/run/user/1000")).unwrap();
        assert_eq!(place.folder, Path::new("/run/user/1000/escrow"));
        assert_eq!(place.owner.as_raw(), 1000);
        assert!(Place::of_user(Path::new("/run/user/x")).is_none());
    }
}

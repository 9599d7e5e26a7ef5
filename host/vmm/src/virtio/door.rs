// SPDX-License-Identifier: MIT OR Apache-2.0

//! The socket at which programs of the host's find a device.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// A Unix socket that listens. Its file is removed when this is dropped.
pub struct Door {
    listener: UnixListener,
    path: PathBuf,
}

impl Door {
    /// Listens at `path`, for programs of this user alone.
    ///
    /// # Errors
    /// `AddrInUse` if there is a file.
    pub fn open(path: &Path) -> io::Result<Door> {
        let listener = UnixListener::bind(path)?;
        let door = Door { listener, path: path.to_owned() };
        // Whatever the umask. Before this, nobody else reaches it: the folder is this user's.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        door.listener.set_nonblocking(true)?;
        Ok(door)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Accepts a connection that waits, without waiting for one. The connection
    /// does not block either.
    pub fn accept(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.listener.accept()?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }
}

impl AsFd for Door {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // Nobody listens there any more.
        let _ = std::fs::remove_file(&self.path);
    }
}

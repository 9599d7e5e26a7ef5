// SPDX-License-Identifier: MIT OR Apache-2.0

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

/// A process that does one thing. It is killed when its owner lets go of it.
pub struct Child {
    pid: Pid,
    waited: bool,
}

impl Child {
    /// Forks a process that runs `job` and exits with what it returns. The
    /// child shares this process's mappings and descriptors, writes nothing to
    /// its standard output, and dies when this process does.
    pub fn spawn(job: impl FnOnce() -> u8) -> Result<Child, Errno> {
        // SAFETY: this program has one thread, so no lock is held by another.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => Ok(Child { pid: child, waited: false }),
            ForkResult::Child => {
                // SAFETY: no pointers; _exit leaves without running what the
                // parent has registered for its own exit.
                unsafe {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong, 0, 0, 0);
                    libc::_exit(job().into())
                }
            }
        }
    }

    /// Its process number.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<(), Errno> {
        kill(self.pid, signal)
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Result<WaitStatus, Errno> {
        loop {
            match waitpid(self.pid, None) {
                Err(Errno::EINTR) => {}
                result => {
                    self.waited = true;
                    return result;
                }
            }
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.waited {
            let _ = kill(self.pid, Signal::SIGKILL);
            let _ = waitpid(self.pid, None);
        }
    }
}

/// Runs `job` in a process of its own. Returns how that ended.
pub fn in_child(job: impl FnOnce() -> u8) -> Result<WaitStatus, Errno> {
    Child::spawn(job)?.wait()
}

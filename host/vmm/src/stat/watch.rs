// SPDX-License-Identifier: MIT OR Apache-2.0

//! Again and again, until somebody has seen enough.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::write;

/// So many bytes fit in a pipe that poll says has room (`PIPE_BUF`).
const CHUNK: usize = 4096;

/// What comes after a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It is time.
    Show,
    /// Ctrl-C, or SIGTERM; or nobody reads any more.
    End,
}

/// A period, and the signals that end it all. They are waited for rather than
/// handled, so that what is being printed is printed whole as long as somebody
/// takes it. A write never blocks: the signals would wait behind it, and a
/// reader that does not read would keep us for ever.
pub struct Pace {
    period: Duration,
    signals: SignalFd,
    start: Instant,
}

impl Pace {
    /// From now on.
    pub fn start(period: Duration) -> Result<Pace> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGINT);
        set.add(Signal::SIGTERM);
        set.thread_block().context("blocking signals")?;
        let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC).context("signalfd")?;
        Ok(Pace { period, signals, start: Instant::now() })
    }

    /// Writes all of `bytes`, unless a signal comes while there is no room.
    ///
    /// # Errors
    /// An [`io::Error`], `BrokenPipe` if nobody reads any more.
    pub fn write(&self, out: BorrowedFd<'_>, bytes: &[u8]) -> Result<Next> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let mut fds = [
                PollFd::new(out, PollFlags::POLLOUT),
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error).context("poll"),
            }
            // There is room, or the reader has gone: the write tells which.
            if fds[0].any() != Some(true) {
                return Ok(Next::End);
            }
            let (chunk, _) = rest.split_at(rest.len().min(CHUNK));
            match write(out, chunk) {
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
        Ok(Next::Show)
    }

    /// Waits for the next multiple of the period since the start, so that the
    /// time which printing takes does not add up; or for a signal, or for `out`
    /// to lose its reader.
    pub fn wait(&self, out: BorrowedFd<'_>) -> Result<Next> {
        let due = until_due(self.start.elapsed(), self.period);
        let end = Instant::now() + due;
        loop {
            // Rounded up: never early.
            let left = end.saturating_duration_since(Instant::now());
            let left = left + Duration::from_micros(999);
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut fds = [
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(out, PollFlags::empty()),
            ];
            match poll(&mut fds, timeout) {
                Ok(0) if Instant::now() >= end => return Ok(Next::Show),
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(Next::End),
                Err(error) => return Err(error).context("poll"),
            }
        }
    }
}

/// How long until the next multiple of a period; a whole period at one.
fn until_due(elapsed: Duration, period: Duration) -> Duration {
    let gone = elapsed.as_nanos() % period.as_nanos().max(1);
    period - Duration::from_nanos(u64::try_from(gone).unwrap_or(0))
}

/// Seconds, also `0.5`: from a tenth to a day.
pub fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is no number of seconds"))?;
    if !(0.1..=86400.0).contains(&seconds) {
        return Err("from 0.1 to 86400 seconds".to_owned());
    }
    Ok(Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds() {
        assert_eq!(parse_seconds("2"), Ok(Duration::from_secs(2)));
        assert_eq!(parse_seconds("0.5"), Ok(Duration::from_millis(500)));
        for wrong in ["", "0", "-1", "nan", "inf", "1e9", "soon"] {
            assert!(parse_seconds(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn time_does_not_add_up() {
        let second = Duration::from_secs(1);
        let due = |ms| until_due(Duration::from_millis(ms), second).as_millis();
        assert_eq!((due(0), due(300), due(1000), due(4999)), (1000, 700, 1000, 1));
    }

    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn a_signal_ends_it() {
        let pace = Pace::start(LONG).unwrap();
        // The signal is for this thread, which blocks it.
        nix::sys::signal::raise(Signal::SIGTERM).unwrap();
        let (_reader, writer) = io::pipe().unwrap();
        assert_eq!(pace.wait(writer.as_fd()).unwrap(), Next::End);
    }

    #[test]
    fn a_signal_ends_a_write_that_nobody_takes() {
        let pace = Pace::start(LONG).unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        let line = [b'x'; 100];
        nix::sys::signal::raise(Signal::SIGINT).unwrap();
        // As long as the pipe has room, whole lines are written.
        assert_eq!(pace.write(writer.as_fd(), &line).unwrap(), Next::Show);
        let more = vec![b'y'; 1 << 20];
        assert_eq!(pace.write(writer.as_fd(), &more).unwrap(), Next::End);
        let mut taken = [0; 101];
        io::Read::read_exact(&mut reader, &mut taken).unwrap();
        assert!(taken.starts_with(&line) && taken.ends_with(b"y"));
    }

    #[test]
    fn a_reader_that_goes_ends_it() {
        let pace = Pace::start(LONG).unwrap();
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        assert_eq!(pace.wait(writer.as_fd()).unwrap(), Next::End);
        let error = pace.write(writer.as_fd(), b"x").unwrap_err();
        let error = error.downcast_ref::<io::Error>().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}

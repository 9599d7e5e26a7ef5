// SPDX-License-Identifier: MIT OR Apache-2.0

//! Again and again, until somebody has seen enough.

use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// What comes after a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It is time.
    Show,
    /// Ctrl-C, or SIGTERM.
    End,
}

/// A period, and the signals that end it all. They are waited for rather than
/// handled, so that whatever is being printed is printed whole.
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

    /// Waits for the next multiple of the period since the start, so that the
    /// time which printing takes does not add up; or for a signal.
    pub fn wait(&self) -> Result<Next> {
        let due = until_due(self.start.elapsed(), self.period);
        let end = Instant::now() + due;
        loop {
            // Rounded up: never early.
            let left = end.saturating_duration_since(Instant::now());
            let left = left + Duration::from_micros(999);
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut fds = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
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

    #[test]
    fn a_signal_ends_it() {
        let pace = Pace::start(Duration::from_secs(3600)).unwrap();
        // To this thread, which has it blocked.
        nix::sys::signal::raise(Signal::SIGTERM).unwrap();
        assert_eq!(pace.wait().unwrap(), Next::End);
    }
}

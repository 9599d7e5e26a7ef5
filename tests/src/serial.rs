// SPDX-License-Identifier: MIT OR Apache-2.0

//! A running machine, and its console.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use xtask::console::{Event, Session};
use xtask::qemu::Machine;

use crate::artefacts;

/// The number of machines that run at a time: with more, each would be too slow for its
/// time limit.
const AT_A_TIME: usize = 2;

/// Lines of a console that a failure repeats: where a log cannot be fetched, they are all there is.
const SHOWN: usize = 40;

static RUNNING: Mutex<usize> = Mutex::new(0);
static ENDED: Condvar = Condvar::new();

/// One of the [`AT_A_TIME`] places.
struct Place;

impl Place {
    fn take() -> Place {
        // A test that panicked with the lock held leaves a valid number, so poisoning is ignored.
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        while *running == AT_A_TIME {
            running = ENDED.wait(running).unwrap_or_else(PoisonError::into_inner);
        }
        *running += 1;
        Place
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        ENDED.notify_one();
    }
}

/// The console of a machine under test.
///
/// When the test fails, the console's output is kept in
/// `target/test-logs/NAME.log`, and the failure names that file.
pub struct Serial {
    name: String,
    command: String,
    lines: Vec<String>,
    session: Option<Session>,
    /// The text of a kernel panic that the test expects.
    crash: Option<String>,
    deadline: Instant,
    limit: Duration,
    // After the session: QEMU is gone when its place is free.
    _place: Place,
}

impl Serial {
    /// Boots a machine, which may take `limit` to do all that the test wants.
    ///
    /// # Panics
    /// QEMU cannot be started.
    pub fn boot(name: &str, machine: &Machine, limit: Duration) -> Serial {
        let place = Place::take();
        let session = match Session::start(machine.command()) {
            Ok(session) => session,
            Err(error) => panic!("{name}: {error:#}"),
        };
        Serial {
            name: name.into(),
            command: machine.shell_line(),
            lines: Vec::new(),
            session: Some(session),
            crash: None,
            deadline: Instant::now() + limit,
            limit,
            _place: place,
        }
    }

    /// The output so far.
    pub fn lines(&self) -> &[String] {
        &self.lines
    }

    /// The next line; `None` at the end of the machine.
    ///
    /// # Panics
    /// The time is up.
    pub fn next_line(&mut self) -> Option<String> {
        match self.event(self.deadline) {
            Event::Line(line) => Some(line),
            Event::End => {
                self.check_ending();
                None
            }
            Event::TimeUp => self.fail(&format!("not done after {:?}", self.limit)),
        }
    }

    /// QEMU has ended: fails unless its exit status is a success.
    fn check_ending(&mut self) {
        let Some(session) = self.session.take() else { return };
        match session.finish() {
            Ok(ending) if ending.status.success() => {}
            Ok(ending) => self.fail(&format!("QEMU: {}: {}", ending.status, ending.errors)),
            Err(error) => self.fail(&format!("{error:#}")),
        }
    }

    fn event(&mut self, deadline: Instant) -> Event {
        let event = self.session.as_mut().map_or(Event::End, |session| session.next(deadline));
        if let Event::Line(line) = &event {
            self.lines.push(line.clone());
            let is_expected = self.crash.take_if(|crash| line.contains(&**crash)).is_some();
            let is_panic = line.contains("Kernel panic - not syncing") && !is_expected;
            if line.contains("Escrow has failed") || is_panic {
                // Lines after the first sign of a failure belong to the log as well.
                let end = Instant::now() + Duration::from_millis(300);
                while let Some(Event::Line(line)) = self.session.as_mut().map(|s| s.next(end)) {
                    self.lines.push(line);
                }
                self.fail("the machine has failed");
            }
        }
        event
    }

    /// Expects one kernel panic with this text.
    pub fn expect_crash(&mut self, text: &str) {
        self.crash = Some(text.into());
    }

    /// Reads on to a line that contains `text`, and returns it.
    ///
    /// # Panics
    /// It does not come.
    pub fn wait_for(&mut self, text: &str) -> String {
        loop {
            match self.next_line() {
                Some(line) if line.contains(text) => return line,
                Some(_) => {}
                None => self.fail(&format!("the machine ended without saying {text:?}")),
            }
        }
    }

    /// Reads on to the end of the machine: it switched itself off.
    ///
    /// # Panics
    /// It does not, or QEMU itself has failed.
    pub fn wait_for_end(&mut self) {
        while self.next_line().is_some() {}
    }

    /// Checks that the machine prints nothing more, and has not ended either.
    ///
    /// # Panics
    /// It does, or has.
    pub fn is_silent_for(&mut self, time: Duration) {
        match self.event(Instant::now() + time) {
            Event::TimeUp => {}
            Event::Line(line) => self.fail(&format!("the machine goes on: {line}")),
            Event::End => self.fail("the machine has ended"),
        }
    }

    /// Types on the console.
    ///
    /// # Panics
    /// QEMU no longer reads.
    pub fn send(&mut self, text: &str) {
        if let Some(Err(error)) = self.session.as_mut().map(|session| session.send(text)) {
            self.fail(&format!("{error:#}"));
        }
    }

    /// Fails the test, and keeps the console's output.
    ///
    /// # Panics
    /// Always.
    #[track_caller]
    pub fn fail(&self, why: &str) -> ! {
        let kept = match self.keep() {
            Ok(path) => format!("its console is in {}", path.display()),
            Err(error) => format!("its console cannot be kept: {error}"),
        };
        panic!("{}: {why}; {kept}, which ends in{}", self.name, self.last());
    }

    fn last(&self) -> String {
        let last = self.lines.len().saturating_sub(SHOWN);
        self.lines[last..].iter().map(|line| format!("\n  {line}")).collect()
    }

    fn keep(&self) -> std::io::Result<PathBuf> {
        let target = artefacts().image.parent().map(PathBuf::from).unwrap_or_default();
        let folder = target.join("test-logs");
        fs::create_dir_all(&folder)?;
        let path = folder.join(format!("{}.log", self.name));
        let mut text = format!("{}\n\n", self.command);
        for line in &self.lines {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{line}");
        }
        fs::write(&path, text)?;
        Ok(path)
    }
}

impl Drop for Serial {
    fn drop(&mut self) {
        // An assertion of the test itself may have failed. After `fail` the log is only
        // written a second time.
        if thread::panicking() {
            match self.keep() {
                Ok(path) => {
                    eprintln!("{}: see {}, which ends in{}", self.name, path.display(), self.last())
                }
                Err(error) => eprintln!("{}: {error}", self.name),
            }
        }
    }
}

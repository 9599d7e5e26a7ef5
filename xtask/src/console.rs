// SPDX-License-Identifier: MIT OR Apache-2.0

//! A machine's serial console, read line by line, with a time limit.

use std::fmt;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How long QEMU may take to end once its console is closed.
const LAST_BREATH: Duration = Duration::from_secs(10);

/// What the console had to say next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A line of the machine's serial output, without its end.
    Line(String),
    /// QEMU has ended; there is no more.
    End,
    /// The deadline has passed. What came so far of an unfinished line is
    /// still to come.
    TimeUp,
}

/// A running QEMU. It is killed when this is dropped.
pub struct Session {
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    errors: thread::JoinHandle<String>,
}

/// How a session ended.
#[derive(Debug)]
pub struct Ending {
    /// QEMU's exit status.
    pub status: ExitStatus,
    /// What QEMU itself complained of.
    pub errors: String,
}

impl Session {
    /// Starts `command`, a machine's whose console is a
    /// [`Pipe`](crate::qemu::Console::Pipe).
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start(mut command: Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))?;
        let (stdout, mut stderr) =
            child.stdout.take().zip(child.stderr.take()).context("QEMU has no output")?;
        let (sender, lines) = channel();
        thread::spawn(move || forward_lines(stdout, &sender));
        let errors = thread::spawn(move || {
            let mut bytes = Vec::new();
            // What could be read counts, also when the rest cannot.
            let _ = stderr.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).trim_end().to_owned()
        });
        Ok(Self { input: child.stdin.take(), child, lines, errors })
    }

    /// Waits for the next line, at most until `deadline`.
    #[must_use]
    pub fn next(&mut self, deadline: Instant) -> Event {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.lines.recv_timeout(left) {
            Ok(line) => Event::Line(line),
            Err(RecvTimeoutError::Timeout) => Event::TimeUp,
            Err(RecvTimeoutError::Disconnected) => Event::End,
        }
    }

    /// Types `text` on the console.
    ///
    /// # Errors
    /// QEMU no longer reads.
    pub fn send(&mut self, text: &str) -> Result<()> {
        let input = self.input.as_mut().context("the console is closed")?;
        input
            .write_all(text.as_bytes())
            .and_then(|()| input.flush())
            .context("cannot write to the machine's console")
    }

    /// Ends the session: gives QEMU a moment if its console is closed
    /// already, and kills it if that was not enough.
    ///
    /// # Errors
    /// The process cannot be waited for.
    pub fn finish(mut self) -> Result<Ending> {
        self.input = None;
        let patience = Instant::now() + LAST_BREATH;
        while self.next(Instant::now()) == Event::End && Instant::now() < patience {
            if self.child.try_wait()?.is_some() {
                break;
            }
            thread::sleep(Duration::from_millis(5));
        }
        // Refused only for a process that has ended.
        let _ = self.child.kill();
        let status = self.child.wait().context("cannot wait for QEMU")?;
        let errors = std::mem::replace(&mut self.errors, thread::spawn(String::new));
        Ok(Ending { status, errors: errors.join().unwrap_or_default() })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Both fail only when there is no process any more.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("qemu", &self.child.id()).finish_non_exhaustive()
    }
}

fn forward_lines(output: impl Read, lines: &Sender<String>) {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    while let Ok(1..) = output.read_until(b'\n', &mut line) {
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end_matches(['\r', '\n']).to_owned();
        if lines.send(text).is_err() {
            return;
        }
        line.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Session {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Session::start(command).unwrap()
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn lines_then_the_end() {
        let mut session = shell(r"printf 'one\r\ntwo'; echo oops >&2; exit 3");
        assert_eq!(session.next(soon()), Event::Line("one".into()));
        assert_eq!(session.next(soon()), Event::Line("two".into()));
        assert_eq!(session.next(soon()), Event::End);
        let ending = session.finish().unwrap();
        assert_eq!(ending.status.code(), Some(3));
        assert_eq!(ending.errors, "oops");
    }

    #[test]
    fn what_is_sent_arrives() {
        let mut session = shell("read word; echo got $word");
        session.send("it\n").unwrap();
        assert_eq!(session.next(soon()), Event::Line("got it".into()));
    }

    #[test]
    fn a_silent_machine_is_killed() {
        let mut session = shell("exec sleep 60");
        let deadline = Instant::now() + Duration::from_millis(20);
        assert_eq!(session.next(deadline), Event::TimeUp);
        assert!(!session.finish().unwrap().status.success());
    }
}

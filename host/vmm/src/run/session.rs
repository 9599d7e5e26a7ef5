// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the program does while its guest runs: one thread that carries the
//! console between the guest and whoever is at it, answers the control socket,
//! and hears signals.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::buffer::{Buffer, is_transient};
use super::client::{Client, Wish};
use super::keys::{Command, Keys};
use super::oops;
use super::protocol::{Reply, Request, Status};
use super::status::Killer;
use super::terminal::{self, Raw};

/// Bytes of the console that are kept for who comes later.
const LATELY_MAX: usize = 1 << 14;
/// Bytes that may wait for the guest. Beyond, nothing more is read for it.
const INPUT_MAX: usize = 1 << 12;
/// The most connections.
const CLIENTS_MAX: usize = 16;
/// What one write to standard output takes: a terminal that is writable has room
/// for so much (Linux, WAKEUP_CHARS), and a pipe for more.
const OUTPUT_STEP: usize = 256;
/// How long the end of the output may take once the guest has ended.
const DRAIN: Duration = Duration::from_secs(2);
/// Signals that end the guest.
const ENDING: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];

/// What the keys are, as [`Command::Help`] tells.
const KEYS: &[u8] = b"\r\n[escrow: Ctrl-] q ends the guest, Ctrl-] Ctrl-] sends one Ctrl-]]\r\n";

/// A program's connections to the world.
pub struct Session {
    listener: UnixListener,
    signals: SignalFd,
    clients: Vec<Client>,
    /// Standard input, until its end.
    input: Option<File>,
    keys: Option<Keys>,
    /// Standard output, until nobody reads any more.
    output: Option<File>,
    terminal: Option<Raw>,
    to_output: Buffer,
    to_guest: Buffer,
    lately: Buffer,
    panics: oops::Listener,
}

/// What a session asks of its guest.
pub trait Guest {
    /// How it is.
    fn status(&self) -> Status;
    /// Asks it to power off.
    fn stop(&self) -> io::Result<()>;
}

/// What there is to wait for.
#[derive(Clone, Copy)]
enum Source {
    Ended,
    Signals,
    Listener,
    Console,
    Input,
    Output,
    Client(usize),
}

impl Session {
    /// A session that listens on `listener`, with this program's standard input
    /// and output. The signals that end it are blocked from here on, in this
    /// thread and in those that it starts.
    pub fn new(listener: UnixListener) -> Result<Session> {
        let duplicate = |fd: BorrowedFd| fd.try_clone_to_owned().map(File::from);
        // A job in the background must not read the terminal.
        let ours = terminal::is_ours();
        let is_terminal = io::stdin().is_terminal();
        let input = (ours || !is_terminal).then(|| duplicate(io::stdin().as_fd())).transpose()?;
        let output = duplicate(io::stdout().as_fd())?;
        Session::over(listener, input, output, ours.then(Keys::default))
    }

    fn over(
        listener: UnixListener,
        input: Option<File>,
        output: File,
        keys: Option<Keys>,
    ) -> Result<Session> {
        let mut set: SigSet = ENDING.into_iter().collect();
        set.add(Signal::SIGCONT);
        set.thread_block()?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&set, flags).context("signalfd")?;
        Ok(Session {
            listener,
            signals,
            clients: Vec::new(),
            input,
            keys,
            output: Some(output),
            terminal: None,
            to_output: Buffer::default(),
            to_guest: Buffer::default(),
            lately: Buffer::default(),
            panics: oops::Listener::default(),
        })
    }

    /// Makes the terminal raw, if there is one and it is this program's.
    pub fn enter_terminal(&mut self) -> Result<()> {
        if self.keys.is_some() && self.terminal.is_none() {
            self.terminal = Some(Raw::new().context("making the terminal raw")?);
        }
        Ok(())
    }

    /// Gives the terminal back.
    pub fn leave_terminal(&mut self) {
        self.terminal = None;
    }

    /// Whether the guest's kernel has panicked since its start.
    pub fn panicked(&self) -> bool {
        self.panics.heard()
    }

    /// Forgets what the guest before said.
    pub fn next_guest(&mut self) {
        self.panics = oops::Listener::default();
        self.to_guest = Buffer::default();
    }

    /// Serves a guest until `ended` is readable, or somebody ends it: who.
    pub fn serve(
        &mut self,
        console: &File,
        ended: BorrowedFd,
        guest: &dyn Guest,
    ) -> Result<Option<Killer>> {
        loop {
            for (source, ready) in self.wait(console, Some(ended), PollTimeout::NONE)? {
                match source {
                    Source::Ended => return Ok(None),
                    Source::Signals => {
                        if let Some(killer) = self.signal()? {
                            return Ok(Some(killer));
                        }
                    }
                    Source::Listener => self.accept(),
                    Source::Console => self.console(console, ready)?,
                    Source::Input => {
                        if let Some(killer) = self.typed() {
                            return Ok(Some(killer));
                        }
                    }
                    Source::Output => self.write_output(),
                    Source::Client(at) => {
                        if let Some(killer) = self.client(at, ready, guest) {
                            return Ok(Some(killer));
                        }
                    }
                }
            }
            self.clients.retain(|client| !client.is_finished());
        }
    }

    /// Passes on the last words of a guest that has ended.
    pub fn drain(&mut self, console: &File) -> Result<()> {
        let until = Instant::now() + DRAIN;
        let mut more = true;
        while more || !self.to_output.is_empty() || self.clients.iter().any(Client::has_output) {
            more = more && self.hear_console(console)?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let timeout = PollTimeout::try_from(left.min(Duration::from_millis(50)));
            let timeout = timeout.unwrap_or(PollTimeout::ZERO);
            for (source, _) in self.wait(console, None, timeout)? {
                match source {
                    Source::Output => self.write_output(),
                    Source::Client(at) => {
                        let client = &mut self.clients[at];
                        if client.write().is_err() {
                            client.close();
                        }
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Waits for whatever comes first; without `ended`, for room to write only.
    fn wait(
        &self,
        console: &File,
        ended: Option<BorrowedFd>,
        timeout: PollTimeout,
    ) -> Result<Vec<(Source, PollFlags)>> {
        let mut sources = Vec::with_capacity(6 + self.clients.len());
        let mut add = |source, fd, flags| sources.push((source, PollFd::new(fd, flags)));
        let (read, write) = (PollFlags::POLLIN, PollFlags::POLLOUT);
        if let Some(ended) = ended {
            add(Source::Ended, ended, read);
            add(Source::Signals, self.signals.as_fd(), read);
            if self.clients.len() < CLIENTS_MAX {
                add(Source::Listener, self.listener.as_fd(), read);
            }
            // If standard output does not take more, the output stays in the shim's
            // ring, which drops the oldest when it is full (as documented).
            let mut flags = PollFlags::empty();
            flags.set(read, self.to_output.is_empty());
            flags.set(write, !self.to_guest.is_empty());
            if !flags.is_empty() {
                add(Source::Console, console.as_fd(), flags);
            }
            if let Some(input) = self.input.as_ref().filter(|_| self.to_guest.len() < INPUT_MAX) {
                add(Source::Input, input.as_fd(), read);
            }
        }
        if let Some(output) = self.output.as_ref().filter(|_| !self.to_output.is_empty()) {
            add(Source::Output, output.as_fd(), write);
        }
        for (at, client) in self.clients.iter().enumerate() {
            let mut flags = PollFlags::empty();
            let listens = client.listens() && self.to_guest.len() < INPUT_MAX;
            flags.set(read, ended.is_some() && listens);
            flags.set(write, client.has_output());
            add(Source::Client(at), client.as_fd(), flags);
        }
        let (sources, mut fds): (Vec<_>, Vec<_>) = sources.into_iter().unzip();
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("poll"),
        }
        let ready = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        let all = sources.into_iter().zip(ready).filter(|(_, ready)| !ready.is_empty());
        Ok(all.collect())
    }

    fn signal(&mut self) -> Result<Option<Killer>> {
        let Some(signal) = self.signals.read_signal().context("signalfd")? else {
            return Ok(None);
        };
        let signal = Signal::try_from(signal.ssi_signo as i32)?;
        if signal != Signal::SIGCONT {
            return Ok(Some(Killer::Signal(signal)));
        }
        // The shell has changed the terminal's mode while this process was stopped.
        if let Some(terminal) = &self.terminal {
            let _ = terminal.again();
        }
        Ok(None)
    }

    fn accept(&mut self) {
        // A connection that was closed meanwhile is ignored.
        if let Ok((stream, _)) = self.listener.accept() {
            self.clients.extend(Client::new(stream));
        }
    }

    fn console(&mut self, mut console: &File, ready: PollFlags) -> Result<()> {
        if ready.contains(PollFlags::POLLOUT)
            && self.to_guest.write_to(&mut console, usize::MAX).is_err()
        {
            // The guest is about to end: drop its input.
            self.to_guest = Buffer::default();
        }
        if ready.intersects(PollFlags::POLLIN | PollFlags::POLLHUP) {
            self.hear_console(console)?;
        }
        Ok(())
    }

    /// Reads what the guest says. Whether there may be more.
    fn hear_console(&mut self, mut console: &File) -> Result<bool> {
        let mut bytes = [0; 4096];
        let count = match console.read(&mut bytes) {
            Ok(count) => count,
            Err(error) if is_transient(&error) => return Ok(false),
            Err(error) => return Err(error).context("reading the console"),
        };
        let bytes = &bytes[..count];
        self.panics.hear(bytes);
        self.lately.push_within(bytes, LATELY_MAX);
        if self.output.is_some() {
            self.to_output.push(bytes);
        }
        self.clients.iter_mut().for_each(|client| client.tell(bytes));
        Ok(count > 0)
    }

    /// Reads standard input.
    fn typed(&mut self) -> Option<Killer> {
        let input = self.input.as_mut()?;
        let mut bytes = [0; 1024];
        let count = match input.read(&mut bytes) {
            Ok(count) => count,
            Err(error) if is_transient(&error) => return None,
            Err(_) => 0,
        };
        if count == 0 {
            // The guest goes on without input.
            self.input = None;
            return None;
        }
        let Some(keys) = &mut self.keys else {
            self.to_guest.push(&bytes[..count]);
            return None;
        };
        let (bytes, command) = keys.typed(&bytes[..count]);
        self.to_guest.push(&bytes);
        match command {
            Some(Command::Quit) => return Some(Killer::Command),
            Some(Command::Help) => self.to_output.push(KEYS),
            None => {}
        }
        None
    }

    fn write_output(&mut self) {
        let Some(output) = &mut self.output else { return };
        if self.to_output.write_to(output, OUTPUT_STEP).is_err() {
            // Nobody reads any more; the guest goes on.
            self.output = None;
            self.to_output = Buffer::default();
        }
    }

    fn client(&mut self, at: usize, ready: PollFlags, guest: &dyn Guest) -> Option<Killer> {
        let client = self.clients.get_mut(at)?;
        if ready.contains(PollFlags::POLLOUT) && client.write().is_err() {
            client.close();
            return None;
        }
        if !ready.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
            return None;
        }
        match client.read() {
            Ok(Some(Wish::Request(Request::Status))) => {
                client.answer(&Reply::Status(guest.status()))
            }
            Ok(Some(Wish::Request(Request::Stop))) => match guest.stop() {
                Ok(()) => client.keep(),
                Err(error) => client.answer(&Reply::Refused(error.to_string())),
            },
            Ok(Some(Wish::Request(Request::Console))) => client.connect(self.lately.contents()),
            Ok(Some(Wish::Request(Request::Kill))) => {
                client.keep();
                // The end of a guest with much RAM takes longer than who asks waits for an answer.
                // What cannot be written now is written when the guest has ended.
                let _ = client.write();
                return Some(Killer::Command);
            }
            Ok(Some(Wish::Input(bytes))) => self.to_guest.push(&bytes),
            Ok(None) => {}
            Err(_) => client.close(),
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::net::Shutdown;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::path::PathBuf;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::thread;

    use nix::sys::eventfd::{EfdFlags, EventFd};
    use nix::sys::pthread::{pthread_kill, pthread_self};

    use super::*;
    use crate::run::protocol;

    /// A session in a thread, and the other ends of all that it has.
    struct Bench {
        guest: UnixStream,
        typing: UnixStream,
        screen: UnixStream,
        ended: EventFd,
        socket: PathBuf,
        thread: thread::JoinHandle<Option<Killer>>,
        itself: u64,
        stops: Receiver<()>,
        _folder: tempfile::TempDir,
    }

    /// A guest that tells when it is asked to stop.
    struct Stoppable(Sender<()>);

    impl Guest for Stoppable {
        fn status(&self) -> Status {
            Status { name: "x".into(), ..Status::default() }
        }

        fn stop(&self) -> io::Result<()> {
            self.0.send(()).map_err(io::Error::other)
        }
    }

    fn file(stream: UnixStream) -> File {
        OwnedFd::from(stream).into()
    }

    fn bench(keys: bool) -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("x.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let (guest, console) = UnixStream::pair().unwrap();
        let (typing, input) = UnixStream::pair().unwrap();
        let (screen, output) = UnixStream::pair().unwrap();
        console.set_nonblocking(true).unwrap();
        let ended = EventFd::from_flags(EfdFlags::empty()).unwrap();
        let theirs = ended.as_fd().try_clone_to_owned().unwrap();
        let (tell, itself) = channel();
        let (stop, stops) = channel();
        let thread = thread::spawn(move || {
            let keys = keys.then(Keys::default);
            let mut session =
                Session::over(listener, Some(file(input)), file(output), keys).unwrap();
            tell.send(pthread_self() as u64).unwrap();
            let console = file(console);
            let killer = session.serve(&console, theirs.as_fd(), &Stoppable(stop)).unwrap();
            if killer.is_some() {
                // The guest's end takes until the test closes the guest's end of the line.
                let mut fds = [PollFd::new(console.as_fd(), PollFlags::POLLIN)];
                poll(&mut fds, PollTimeout::NONE).unwrap();
            }
            session.drain(&console).unwrap();
            assert_eq!(session.panicked(), killer.is_none());
            killer
        });
        let itself = itself.recv().unwrap();
        Bench { guest, typing, screen, ended, socket, thread, itself, stops, _folder: folder }
    }

    fn expect(stream: &mut UnixStream, expected: &[u8]) {
        let mut bytes = vec![0; expected.len()];
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes.escape_ascii().to_string(), expected.escape_ascii().to_string());
    }

    impl Bench {
        fn ask(&self, request: Request) -> UnixStream {
            let mut stream = UnixStream::connect(&self.socket).unwrap();
            stream.write_all(&protocol::line(&request)).unwrap();
            stream
        }

        fn end(mut self) -> Option<Killer> {
            self.guest.write_all(b"Kernel panic - not syncing").unwrap();
            self.ended.write(1).unwrap();
            self.guest.shutdown(Shutdown::Write).unwrap();
            self.thread.join().unwrap()
        }
    }

    #[test]
    fn a_console_goes_both_ways() {
        let mut bench = bench(false);
        bench.guest.write_all(b"login: ").unwrap();
        expect(&mut bench.screen, b"login: ");
        bench.typing.write_all(b"root\x1dq").unwrap();
        expect(&mut bench.guest, b"root\x1dq");
        // The end of the input does not end the guest.
        bench.typing.shutdown(Shutdown::Both).unwrap();
        bench.guest.write_all(b"$ ").unwrap();
        expect(&mut bench.screen, b"$ ");
        assert_eq!(bench.end(), None);
    }

    #[test]
    fn last_words_are_not_lost() {
        let bench = bench(false);
        let mut screen = bench.screen.try_clone().unwrap();
        bench.guest.try_clone().unwrap().write_all(&[b'x'; 20_000]).unwrap();
        drop(screen.set_read_timeout(Some(Duration::from_secs(20))));
        // All is written when the end is told: what comes later is no guest's.
        let end = thread::spawn(move || bench.end());
        let mut all = Vec::new();
        screen.read_to_end(&mut all).unwrap();
        assert_eq!(end.join().unwrap(), None);
        assert_eq!(all.len(), 20_000 + b"Kernel panic - not syncing".len());
    }

    #[test]
    fn a_second_console_has_what_came_before_and_types_too() {
        let mut bench = bench(false);
        bench.guest.write_all(b"before ").unwrap();
        expect(&mut bench.screen, b"before ");
        let mut second = bench.ask(Request::Console);
        expect(&mut second, b"\"done\"\nbefore ");
        bench.guest.write_all(b"after").unwrap();
        expect(&mut second, b"after");
        expect(&mut bench.screen, b"after");
        second.write_all(b"ls\n").unwrap();
        expect(&mut bench.guest, b"ls\n");
        drop(second);
        assert_eq!(bench.end(), None);
    }

    #[test]
    fn a_reader_that_goes_away_does_not_end_the_guest() {
        let mut bench = bench(false);
        bench.screen.shutdown(Shutdown::Both).unwrap();
        for _ in 0..9 {
            bench.guest.write_all(&[b'x'; 1000]).unwrap();
        }
        let mut second = bench.ask(Request::Status);
        let mut line = String::new();
        BufReader::new(&mut second).read_line(&mut line).unwrap();
        assert!(line.starts_with("{\"status\":{\"name\":\"x\""), "{line}");
        assert_eq!(bench.end(), None);
    }

    #[test]
    fn a_kill_is_answered_and_the_connection_stays_to_the_end() {
        let bench = bench(false);
        let mut connection = bench.ask(Request::Kill);
        expect(&mut connection, b"\"done\"\n");
        drop(bench.guest);
        assert_eq!(bench.thread.join().unwrap(), Some(Killer::Command));
        assert_eq!(connection.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_stop_asks_the_guest_and_waits_for_it() {
        let mut bench = bench(false);
        let mut connection = bench.ask(Request::Stop);
        expect(&mut connection, b"\"done\"\n");
        bench.stops.try_recv().unwrap();
        bench.guest.write_all(b"not yet").unwrap();
        expect(&mut bench.screen, b"not yet");
        assert_eq!(bench.end(), None);
        assert_eq!(connection.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn the_escape_key_and_signals_end_the_guest() {
        let mut keys = bench(true);
        keys.typing.write_all(b"a\x1dq").unwrap();
        drop(keys.guest);
        assert_eq!(keys.thread.join().unwrap(), Some(Killer::Command));

        let signals = bench(true);
        pthread_kill(signals.itself as _, Signal::SIGTERM).unwrap();
        drop(signals.guest);
        let killer = signals.thread.join().unwrap();
        assert_eq!(killer, Some(Killer::Signal(Signal::SIGTERM)));
    }

    #[test]
    fn too_many_connections_wait() {
        let mut bench = bench(false);
        let idle: Vec<_> =
            (0..CLIENTS_MAX + 4).map(|_| UnixStream::connect(&bench.socket).unwrap()).collect();
        bench.guest.write_all(b"alive").unwrap();
        expect(&mut bench.screen, b"alive");
        drop(idle);
        let mut connection = bench.ask(Request::Console);
        expect(&mut connection, b"\"done\"\nalive");
        assert_eq!(bench.end(), None);
    }
}

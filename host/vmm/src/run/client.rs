// SPDX-License-Identifier: MIT OR Apache-2.0

//! A connection to a guest's control socket, at the guest's end.

use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use super::buffer::{Buffer, is_transient};
use super::protocol::{self, LINE_MAX, Reply, Request};

/// Bytes of the console that may wait for a connection. One that is slower loses
/// the oldest.
const WAITING_MAX: usize = 1 << 16;

/// A connection.
pub struct Client {
    stream: UnixStream,
    state: State,
    out: Buffer,
}

enum State {
    /// Its request, as far as it has come.
    Asking(Vec<u8>),
    /// It is at the console.
    Console,
    /// It waits for the end of the guest.
    Waiting,
    /// It has its answer.
    Answered,
}

/// What a connection wants.
pub enum Wish {
    /// A request to be answered.
    Request(Request),
    /// These bytes for the guest.
    Input(Vec<u8>),
}

impl Client {
    /// A new connection.
    pub fn new(stream: UnixStream) -> io::Result<Client> {
        stream.set_nonblocking(true)?;
        Ok(Client { stream, state: State::Asking(Vec::new()), out: Buffer::default() })
    }

    /// Whether it has something to read when it is readable.
    pub fn listens(&self) -> bool {
        !matches!(self.state, State::Answered)
    }

    /// Whether something waits to be written.
    pub fn has_output(&self) -> bool {
        !self.out.is_empty()
    }

    /// Whether nothing will come of it any more.
    pub fn is_finished(&self) -> bool {
        matches!(self.state, State::Answered) && self.out.is_empty()
    }

    /// Reads what it says. An error ends the connection.
    pub fn read(&mut self) -> io::Result<Option<Wish>> {
        let mut bytes = [0; 1024];
        let count = match self.stream.read(&mut bytes) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(error) if is_transient(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let bytes = &bytes[..count];
        let State::Asking(line) = &mut self.state else {
            let typed = matches!(self.state, State::Console);
            return Ok(typed.then(|| Wish::Input(bytes.to_vec())));
        };
        line.extend(bytes);
        let Some(end) = line.iter().position(|&byte| byte == b'\n') else {
            return if line.len() > LINE_MAX {
                Err(io::ErrorKind::InvalidData.into())
            } else {
                Ok(None)
            };
        };
        match protocol::parse(&line[..end]) {
            Ok(request) => Ok(Some(Wish::Request(request))),
            Err(error) => {
                self.answer(&Reply::Refused(error));
                Ok(None)
            }
        }
    }

    /// Answers its request, and has no more of it.
    pub fn answer(&mut self, reply: &Reply) {
        self.out.push(&protocol::line(reply));
        self.state = State::Answered;
    }

    /// Answers its request for the console, with what the guest has said lately.
    pub fn connect(&mut self, lately: &[u8]) {
        self.out.push(&protocol::line(&Reply::Done));
        self.out.push(lately);
        self.state = State::Console;
    }

    /// Answers its request, and keeps the connection until the guest ends.
    pub fn keep(&mut self) {
        self.out.push(&protocol::line(&Reply::Done));
        self.state = State::Waiting;
    }

    /// Has nothing more to say to it.
    pub fn close(&mut self) {
        self.state = State::Answered;
        self.out = Buffer::default();
    }

    /// Passes on what the guest says.
    pub fn tell(&mut self, bytes: &[u8]) {
        if let State::Console = self.state {
            self.out.push_within(bytes, WAITING_MAX);
        }
    }

    /// Writes what waits. An error ends the connection.
    pub fn write(&mut self) -> io::Result<()> {
        self.out.write_to(&mut self.stream, usize::MAX)
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn pair() -> (UnixStream, Client) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (ours, Client::new(theirs).unwrap())
    }

    fn flushed(mut ours: UnixStream, mut client: Client) -> Vec<u8> {
        client.write().unwrap();
        drop(client);
        let mut bytes = Vec::new();
        ours.read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_request_comes_in_pieces() {
        let (mut ours, mut client) = pair();
        assert!(client.read().unwrap().is_none());
        ours.write_all(b"\"sta").unwrap();
        assert!(client.read().unwrap().is_none());
        ours.write_all(b"tus\"\n").unwrap();
        assert!(matches!(client.read(), Ok(Some(Wish::Request(Request::Status)))));
        client.answer(&Reply::Refused("x".into()));
        assert!(!client.listens() && !client.is_finished());
        assert_eq!(flushed(ours, client), b"{\"refused\":\"x\"}\n");
    }

    #[test]
    fn the_console_follows_its_answer() {
        let (mut ours, mut client) = pair();
        client.tell(b"unheard");
        ours.write_all(b"\"console\"\n").unwrap();
        assert!(matches!(client.read(), Ok(Some(Wish::Request(Request::Console)))));
        client.connect(b"lately ");
        client.tell(b"now");
        ours.write_all(b"\"status\"\n").unwrap();
        let Ok(Some(Wish::Input(typed))) = client.read() else { panic!() };
        assert_eq!(typed, b"\"status\"\n");
        assert_eq!(flushed(ours, client), b"\"done\"\nlately now");
    }

    #[test]
    fn nonsense_is_refused_and_too_much_of_it_ends_the_connection() {
        let (mut ours, mut client) = pair();
        ours.write_all(b"GET / HTTP/1.1\n").unwrap();
        assert!(client.read().unwrap().is_none());
        assert!(String::from_utf8(flushed(ours, client)).unwrap().contains("not understood"));

        let (mut ours, mut client) = pair();
        ours.write_all(&[b'x'; LINE_MAX + 1]).unwrap();
        assert!((0..LINE_MAX).any(|_| client.read().is_err()));
    }

    #[test]
    fn who_does_not_read_loses_the_oldest() {
        let (ours, mut client) = pair();
        client.connect(b"");
        client.tell(&[b'a'; WAITING_MAX]);
        client.tell(b"z");
        assert_eq!(client.out.len(), WAITING_MAX);
        drop(ours);
        assert!((0..9).any(|_| client.write().is_err()));
    }
}

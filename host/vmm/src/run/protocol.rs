// SPDX-License-Identifier: MIT OR Apache-2.0

//! What `escrow ls`, `console`, `stop` and `kill` say to an `escrow run`, and
//! what that answers: one line of JSON each, on a Unix socket. After the answer
//! to [`Request::Console`], the rest of the connection is the console.

use serde::{Deserialize, Serialize};

/// The longest line, in bytes.
pub const LINE_MAX: usize = 4096;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Request {
    /// How is the guest?
    Status,
    /// Connects to the console.
    Console,
    /// Presses the power button. The connection closes when the guest is gone.
    Stop,
    /// Ends the guest at once. The connection closes when it is gone.
    Kill,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reply {
    /// To [`Request::Status`].
    Status(Status),
    /// The request is carried out, or has begun to be.
    Done,
    /// The request is not carried out: why.
    Refused(String),
}

/// How a guest is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// The process that runs it.
    pub pid: u32,
    /// Number of vCPUs.
    pub cpus: u32,
    /// Bytes of RAM.
    pub memory: u64,
    /// Its RAM is shared with the host, not lent.
    pub shared: bool,
    /// Its RAM is lent, and it opens parts of it to its devices.
    #[serde(default)]
    pub protected: bool,
    /// The kernel's file.
    pub kernel: String,
    /// How often it has started: 1, and one more for each reset.
    pub boots: u64,
    /// Seconds since its last start.
    pub uptime: u64,
    /// Returns of its vCPUs to its program since its last start.
    pub exits: u64,
    /// Of these, accesses to devices that the program emulates.
    pub mmio: u64,
    /// Of these, pages that could not be brought in at once.
    pub faults: u64,
}

/// A message as a line.
pub fn line(message: &impl Serialize) -> Vec<u8> {
    // Cannot fail: all types of a message have a form in JSON.
    let mut line = serde_json::to_vec(message).unwrap_or_default();
    line.push(b'\n');
    line
}

/// A message of a line, without its end.
pub fn parse<'a, T: Deserialize<'a>>(line: &'a [u8]) -> Result<T, String> {
    serde_json::from_slice(line).map_err(|error| format!("not understood: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_a_line() {
        assert_eq!(line(&Request::Console), b"\"console\"\n");
        let refused = Reply::Refused("a\nb".into());
        let text = line(&refused);
        assert_eq!(text, b"{\"refused\":\"a\\nb\"}\n");
        assert_eq!(parse(&text[..text.len() - 1]), Ok(refused));
        let status = Reply::Status(Status { name: "x".into(), pid: 7, ..Status::default() });
        let text = line(&status);
        assert_eq!(parse(&text[..text.len() - 1]), Ok(status));
        assert!(parse::<Request>(b"\"format\"").is_err());
        assert!(parse::<Request>(b"\xff").is_err());
    }
}

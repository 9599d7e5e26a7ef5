// SPDX-License-Identifier: MIT OR Apache-2.0

//! What Escrow has logged.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use escrow_vmcore::uapi;
use serde::Serialize;

/// How often `--follow` looks for new lines.
const INTERVAL: Duration = Duration::from_millis(500);

/// How the log is shown.
#[derive(clap::Args, Clone, Copy)]
pub struct Arguments {
    /// Go on, and print new lines as they come
    #[arg(long, short)]
    follow: bool,
    /// Print a JSON object for each line
    #[arg(long)]
    json: bool,
}

/// What the log has next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
enum Item {
    /// A line.
    Line {
        /// Bytes of the log before it.
        position: u64,
        text: String,
    },
    /// So many bytes are not kept any more.
    Lost { lost: u64 },
}

/// Prints the log.
pub fn log(arguments: Arguments) -> Result<()> {
    let path = Path::new(uapi::DEBUGFS_DIR).join("log");
    let open = || format!("opening {} (needs root, and Escrow's module)", path.display());
    let mut log = Log::new(File::open(&path).with_context(open)?);
    let mut out = std::io::stdout().lock();
    loop {
        let items = log.read().with_context(|| format!("reading {}", path.display()))?;
        for item in items {
            match item {
                item if arguments.json => writeln!(out, "{}", serde_json::to_string(&item)?)?,
                Item::Line { text, .. } => writeln!(out, "{text}")?,
                Item::Lost { lost } => writeln!(out, "({lost} bytes of the log are lost)")?,
            }
        }
        out.flush()?;
        if !arguments.follow {
            return Ok(());
        }
        std::thread::sleep(INTERVAL);
    }
}

/// The log's file, and how far it was read.
struct Log<F> {
    file: F,
    position: u64,
    /// A line whose end is still to come.
    line: Vec<u8>,
}

impl<F: Read + Seek> Log<F> {
    fn new(file: F) -> Self {
        Log { file, position: 0, line: Vec::new() }
    }

    /// What has come since the last time.
    fn read(&mut self) -> std::io::Result<Vec<Item>> {
        let mut items = Vec::new();
        let mut bytes = [0; 4096];
        loop {
            let size = self.file.read(&mut bytes)?;
            if size == 0 {
                return Ok(items);
            }
            let end = self.file.stream_position()?;
            let begin = end.saturating_sub(size as u64);
            if begin > self.position {
                // A line whose begin was read and whose rest is lost counts as lost.
                let lost = begin - self.position + self.line.len() as u64;
                items.push(Item::Lost { lost });
                self.line.clear();
            }
            self.position = begin;
            for &byte in bytes.iter().take(size) {
                self.position += 1;
                if byte != b'\n' {
                    self.line.push(byte);
                    continue;
                }
                let text = String::from_utf8_lossy(&self.line).into_owned();
                let position = self.position - 1 - self.line.len() as u64;
                items.push(Item::Line { position, text });
                self.line.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Result, SeekFrom};

    use super::*;

    /// A log that keeps what is from `start` on.
    struct Fake {
        all: Vec<u8>,
        start: u64,
        at: u64,
        most: usize,
    }

    impl Read for Fake {
        fn read(&mut self, to: &mut [u8]) -> Result<usize> {
            let from = self.at.max(self.start) as usize;
            let size = (self.all.len() - from).min(to.len()).min(self.most);
            to[..size].copy_from_slice(&self.all[from..from + size]);
            self.at = (from + size) as u64;
            Ok(size)
        }
    }

    impl Seek for Fake {
        fn seek(&mut self, to: SeekFrom) -> Result<u64> {
            assert_eq!(to, SeekFrom::Current(0));
            Ok(self.at)
        }
    }

    fn line(position: u64, text: &str) -> Item {
        Item::Line { position, text: text.into() }
    }

    #[test]
    fn lines_come_whole_however_they_are_read() {
        for most in [1, 3, 7, 100] {
            let fake = Fake { all: b"one\ntwo\nthr".to_vec(), start: 0, at: 0, most };
            let mut log = Log::new(fake);
            assert_eq!(log.read().unwrap(), [line(0, "one"), line(4, "two")]);
            assert_eq!(log.read().unwrap(), []);
            log.file.all.extend(b"ee\n");
            assert_eq!(log.read().unwrap(), [line(8, "three")]);
        }
    }

    #[test]
    fn what_is_lost_is_said() {
        let fake = Fake { all: b"one\ntwo\nthree\n".to_vec(), start: 4, at: 0, most: 5 };
        let mut log = Log::new(fake);
        let lost = |lost| Item::Lost { lost };
        assert_eq!(log.read().unwrap(), [lost(4), line(4, "two"), line(8, "three")]);
        // A read in the middle of a line returns nothing.
        log.file.all.extend(b"fo");
        assert_eq!(log.read().unwrap(), []);
        log.file.all.extend(b"ur\nfive\n");
        log.file.start = 19;
        assert_eq!(log.read().unwrap(), [lost(5), line(19, "five")]);
    }

    #[test]
    fn json_has_an_object_for_each() {
        let json = |item| serde_json::to_string(&item).unwrap();
        assert_eq!(json(line(4, "two")), r#"{"position":4,"text":"two"}"#);
        assert_eq!(json(Item::Lost { lost: 4 }), r#"{"lost":4}"#);
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! Pages in pipes, and in sockets that they were spliced to.

use std::io::{PipeReader, PipeWriter, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, splice, tee as tee_pipe};

use super::{
    AT, HELD, HOSTS, Holder, OFFSET, at_home, comes, fails, held, on_a_lent_page, story_of,
};
use crate::access::{Pin, read};
use crate::gunyah::{Exit, Mapping, PAGE};
use crate::tests::same;

/// The first word of what a holder has carried.
pub fn first_word(bytes: &[u8]) -> Result<u64> {
    let word = bytes.first_chunk().context("less than a word")?;
    Ok(u64::from_le_bytes(*word))
}

/// The first word of a page that comes out of something.
pub fn word_of(source: &mut impl std::io::Read) -> Result<u64> {
    let mut bytes = vec![0; PAGE as usize];
    source.read_exact(&mut bytes)?;
    first_word(&bytes)
}

impl Holder for Pin {
    const REFERENCES: u64 = 1;

    fn take(mapping: &Mapping, page: u64) -> Result<Pin> {
        Ok(Pin::take(mapping, page)?)
    }

    fn release(self) -> Result<u64> {
        first_word(&self.drain()?)
    }
}

/// A reference, and no pin.
pub fn vmsplice() -> Result<()> {
    story_of::<Pin>()
}

/// The mapping that the page was taken by is gone: that nobody has the page
/// mapped says nothing.
pub fn vmsplice_then_munmap() -> Result<()> {
    let guest = at_home()?;
    let elsewhere = guest.memory.map(HELD, 1)?;
    let pin = Pin::take(&elsewhere, 0)?;
    drop(elsewhere);
    held(&guest, 1)?;
    same(first_word(&pin.drain()?)?, HOSTS)?;
    comes(&guest, HOSTS)?;
    on_a_lent_page(&guest, || {
        let elsewhere = guest.memory.map(HELD, 1)?;
        fails(Pin::take(&elsewhere, 0).map_err(Into::into), Errno::EFAULT)
    })
}

/// One page in two pipes.
struct Tee {
    first: Pin,
    second: (PipeReader, PipeWriter),
}

impl Holder for Tee {
    const REFERENCES: u64 = 2;

    fn take(mapping: &Mapping, page: u64) -> Result<Tee> {
        let first = Pin::take(mapping, page)?;
        let second = std::io::pipe()?;
        let count = tee_pipe(&first, &second.1, PAGE as usize, SpliceFFlags::empty())?;
        ensure!(count == PAGE as usize, "{count} bytes in the second pipe");
        Ok(Tee { first, second })
    }

    fn release(mut self) -> Result<u64> {
        same(word_of(&mut self.second.0)?, HOSTS)?;
        first_word(&self.first.drain()?)
    }
}

/// Each pipe counts, and the last one to be drained lets go.
pub fn tee() -> Result<()> {
    story_of::<Tee>()?;
    let guest = at_home()?;
    let Tee { first, mut second } = Tee::take(&guest.mapping, HELD)?;
    same(first_word(&first.drain()?)?, HOSTS)?;
    held(&guest, 1).context("one of two drained")?;
    same(word_of(&mut second.0)?, HOSTS)?;
    comes(&guest, HOSTS)
}

/// A page on its way through a socket that nobody reads from.
struct Unread {
    sender: UnixStream,
    receiver: UnixStream,
}

impl Holder for Unread {
    const REFERENCES: u64 = 1;

    fn take(mapping: &Mapping, page: u64) -> Result<Unread> {
        let pin = Pin::take(mapping, page)?;
        let (sender, receiver) = UnixStream::pair()?;
        let count =
            splice(pin.as_fd(), None, sender.as_fd(), None, PAGE as usize, SpliceFFlags::empty())?;
        ensure!(count == PAGE as usize, "{count} bytes spliced");
        Ok(Unread { sender, receiver })
    }

    fn release(mut self) -> Result<u64> {
        let word = word_of(&mut self.receiver)?;
        drop(self.sender);
        ensure!(self.receiver.read(&mut [0])? == 0, "more than a page");
        Ok(word)
    }
}

/// The page itself is in the socket, not a copy of it.
pub fn splice_to_a_socket() -> Result<()> {
    story_of::<Unread>()?;
    // Closed without having been read.
    let guest = at_home()?;
    let unread = Unread::take(&guest.mapping, HELD)?;
    same(guest.order(crate::guest::Order::Load(AT))?, Exit::PageFault(AT, Errno::EAGAIN))?;
    drop(unread);
    same(read(&guest.mapping, OFFSET)?, HOSTS)?;
    comes(&guest, HOSTS)
}

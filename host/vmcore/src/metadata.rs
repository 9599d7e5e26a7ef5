// SPDX-License-Identifier: MIT OR Apache-2.0

//! How many pages a VM is given for its tables and vCPUs.

use crate::Errno;

/// Pages that a VM is created with: a root table and some way to go.
pub const INITIAL: u64 = 4;

/// What a VM was given. All-zero bytes are a valid, empty value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Metadata {
    /// Pages that Escrow has of this VM's.
    donated: u64,
}

impl Metadata {
    /// Pages of one VM at the most. 256 MiB of tables map 128 GiB page by
    /// page, so whoever asks for more is not served but stopped.
    pub const MAX: u64 = 1 << 16;
    /// Donations are rounded up to so many pages, so that a guest that
    /// touches its memory page by page does not cost a donation each time.
    const CHUNK: u64 = 4;

    /// How many pages to donate when at least `needed` are needed.
    ///
    /// # Errors
    /// `NoMemory` if the VM would have more than [`MAX`](Self::MAX).
    pub fn plan(&self, needed: u64) -> Result<u32, Errno> {
        let room = Self::MAX.saturating_sub(self.donated);
        if needed == 0 || needed > room {
            return Err(Errno::NoMemory);
        }
        let pages = needed.next_multiple_of(Self::CHUNK).min(room);
        u32::try_from(pages).map_err(|_| Errno::NoMemory)
    }

    /// Escrow has taken pages.
    pub fn gave(&mut self, pages: u64) {
        self.donated = self.donated.saturating_add(pages);
    }

    /// Escrow has given pages back.
    pub fn got_back(&mut self, pages: u64) {
        self.donated = self.donated.saturating_sub(pages);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn donations_come_in_chunks_and_end() {
        let mut metadata = Metadata::default();
        assert_eq!(metadata.plan(1), Ok(4));
        assert_eq!(metadata.plan(4), Ok(4));
        assert_eq!(metadata.plan(5), Ok(8));
        metadata.gave(Metadata::MAX - 6);
        assert_eq!(metadata.plan(5), Ok(6));
        assert_eq!(metadata.plan(7), Err(Errno::NoMemory));
        assert_eq!(metadata.plan(u64::MAX), Err(Errno::NoMemory));
        assert_eq!(metadata.plan(0), Err(Errno::NoMemory));
        metadata.got_back(2);
        assert_eq!(metadata.plan(7), Ok(8));
    }
}

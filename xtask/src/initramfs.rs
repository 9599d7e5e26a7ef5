// SPDX-License-Identifier: MIT OR Apache-2.0

//! Initramfs archives: gzipped cpio, as the kernel unpacks them.
//!
//! The kernel takes several archives one after the other, so a test adds a
//! file of its own by appending a second archive to the built one.

use std::io::{self, Write as _};

use cpio::newc::{Builder, trailer};
use flate2::Compression;
use flate2::write::GzEncoder;

const DIRECTORY: u32 = 0o040_755;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_777;
const CHARACTER: u32 = 0o020_600;

/// An archive in the making.
pub struct Archive {
    out: GzEncoder<Vec<u8>>,
    /// Every entry needs an inode number of its own, or the kernel takes
    /// files for hard links of each other.
    inode: u32,
}

impl Default for Archive {
    fn default() -> Self {
        Self::new()
    }
}

impl Archive {
    /// An empty archive.
    #[must_use]
    pub fn new() -> Self {
        Self { out: GzEncoder::new(Vec::new(), Compression::fast()), inode: 0 }
    }

    /// Adds a folder. Its parent must have been added before.
    ///
    /// # Errors
    /// The contents do not fit the format.
    pub fn directory(&mut self, path: &str) -> io::Result<()> {
        let entry = self.entry(path, DIRECTORY).nlink(2);
        self.add(entry, &[])
    }

    /// Adds a file with the given permission bits.
    ///
    /// # Errors
    /// The contents do not fit the format.
    pub fn file(&mut self, path: &str, permissions: u32, contents: &[u8]) -> io::Result<()> {
        let entry = self.entry(path, REGULAR | permissions);
        self.add(entry, contents)
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// The contents do not fit the format.
    pub fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        let entry = self.entry(path, SYMLINK);
        self.add(entry, target.as_bytes())
    }

    /// Adds a character device.
    ///
    /// # Errors
    /// The contents do not fit the format.
    pub fn character_device(&mut self, path: &str, major: u32, minor: u32) -> io::Result<()> {
        let entry = self.entry(path, CHARACTER);
        self.add(entry.rdev_major(major).rdev_minor(minor), &[])
    }

    /// The finished archive, compressed.
    ///
    /// # Errors
    /// The contents do not fit the format.
    pub fn finish(self) -> io::Result<Vec<u8>> {
        trailer(self.out)?.finish()
    }

    fn entry(&mut self, path: &str, mode: u32) -> Builder {
        self.inode += 1;
        Builder::new(path.trim_start_matches('/')).ino(self.inode).mode(mode)
    }

    fn add(&mut self, entry: Builder, contents: &[u8]) -> io::Result<()> {
        let size = u32::try_from(contents.len()).map_err(io::Error::other)?;
        let mut writer = entry.write(&mut self.out, size);
        writer.write_all(contents)?;
        writer.finish()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn the_archive_reads_back() {
        let mut archive = Archive::new();
        archive.directory("bin").unwrap();
        archive.file("/init", 0o755, b"#!/bin/sh\n").unwrap();
        archive.symlink("bin/sh", "busybox").unwrap();
        archive.character_device("dev/console", 5, 1).unwrap();
        let bytes = archive.finish().unwrap();

        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&bytes[..]).read_to_end(&mut plain).unwrap();
        let mut rest = &plain[..];
        let mut seen = Vec::new();
        loop {
            let mut reader = cpio::newc::Reader::new(rest).unwrap();
            let (name, mode) = (reader.entry().name().to_owned(), reader.entry().mode());
            let mut contents = String::new();
            reader.read_to_string(&mut contents).unwrap();
            rest = reader.finish().unwrap();
            if name == "TRAILER!!!" {
                break;
            }
            seen.push((name, mode, contents));
        }
        let expected = [
            ("bin", 0o40755, ""),
            ("init", 0o100755, "#!/bin/sh\n"),
            ("bin/sh", 0o120777, "busybox"),
            ("dev/console", 0o20600, ""),
        ];
        let expected = expected.map(|(n, m, c)| (n.to_owned(), m, c.to_owned()));
        assert_eq!(seen, expected);
    }
}

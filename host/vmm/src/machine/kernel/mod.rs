// SPDX-License-Identifier: MIT OR Apache-2.0

//! Arm64 Linux kernels, in the formats that people have them in: `Image`,
//! `Image.gz`, and the EFI executable that holds a compressed one (zboot, which
//! distributions install as `vmlinuz`).

mod foreign;
mod header;
mod realm;
mod zboot;

use std::io::{self, BufReader, Cursor, Read, Seek, SeekFrom};

use flate2::bufread::GzDecoder;
use ruzstd::decoding::StreamingDecoder;

use header::HEADER_SIZE;
pub use header::Header;
use header::sections_end;
use realm::Search;

/// Why a file is no kernel that can be started.
#[derive(Debug)]
pub enum Error {
    /// It cannot be read.
    Read(io::Error),
    /// It is another sort of file: what it seems to be, and what to do.
    Foreign(&'static str),
    /// It is an EFI executable whose kernel is compressed in a way that is not
    /// supported.
    Compression(String),
    /// It is the start of a kernel, and not all of it.
    Truncated,
    /// Its header contradicts itself.
    Header(&'static str),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::Read(error) => write!(f, "cannot read it: {error}"),
            Error::Foreign(what) => f.write_str(what),
            Error::Compression(name) => {
                write!(f, "an EFI zboot kernel compressed with {name}; gzip and zstd are supported")
            }
            Error::Truncated => f.write_str("the file ends before the kernel does"),
            Error::Header(what) => write!(f, "not an arm64 Linux kernel that can run: {what}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Error {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Error::Truncated,
            _ => Error::Read(error),
        }
    }
}

/// A source that has a beginning to go back to.
pub trait Source: Read + Seek {}

impl<T: Read + Seek> Source for T {}

/// A kernel that is about to be read: its header, and all of its bytes, the
/// header's included.
pub struct Kernel<'a> {
    header: Header,
    image: Box<dyn Read + 'a>,
    /// Bytes that are missing if the image ends now.
    missing: u64,
    realm: Search,
}

impl<'a> Kernel<'a> {
    /// A kernel out of `source`.
    ///
    /// # Errors
    /// It is no kernel that can be started.
    pub fn new<S: Source + 'a>(mut source: S) -> Result<Kernel<'a>, Error> {
        let mut head = Vec::with_capacity(foreign::HEAD);
        source.by_ref().take(foreign::HEAD as u64).read_to_end(&mut head)?;
        source.seek(SeekFrom::Start(0))?;
        if let Some(payload) = zboot::payload(&head) {
            let payload = payload?;
            source.seek(SeekFrom::Start(payload.offset))?;
            let compressed = BufReader::new(source.take(payload.size));
            return match payload.compression.as_str() {
                "gzip" => Kernel::plain(GzDecoder::new(compressed)),
                "zstd" | "zstd22" => Kernel::plain(zstd(compressed)?),
                _ => Err(Error::Compression(payload.compression)),
            };
        }
        if head.starts_with(&[0x1f, 0x8b]) {
            return Kernel::plain(GzDecoder::new(BufReader::new(source)));
        }
        Kernel::plain(source)
    }

    /// A kernel out of a source of the uncompressed `Image`.
    fn plain(mut source: impl Read + 'a) -> Result<Kernel<'a>, Error> {
        let mut head = Vec::with_capacity(foreign::HEAD);
        source.by_ref().take(foreign::HEAD as u64).read_to_end(&mut head)?;
        let Some(first) = head.first_chunk::<HEADER_SIZE>() else {
            return Err(Error::Foreign(foreign::name(&head).unwrap_or(foreign::SHORT)));
        };
        let Some(header) = Header::parse(first) else {
            let what = foreign::name(&head).unwrap_or(foreign::UNKNOWN);
            return Err(Error::Foreign(what));
        };
        let header = header?;
        let missing = sections_end(&head).unwrap_or(0);
        let image = Box::new(Cursor::new(head).chain(source));
        Ok(Kernel { header, image, missing, realm: Search::default() })
    }

    /// What its header says.
    pub fn header(&self) -> Header {
        self.header
    }

    /// Whether it can be the guest of a protected VM, as far as what was read of it tells.
    pub fn can_be_protected(&self) -> bool {
        self.realm.found()
    }
}

impl Read for Kernel<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.image.read(buffer)?;
        if count == 0 && !buffer.is_empty() && self.missing > 0 {
            let error = Error::Truncated.to_string();
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, error));
        }
        self.missing = self.missing.saturating_sub(count as u64);
        self.realm.look_at(&buffer[..count]);
        Ok(count)
    }
}

fn zstd<R: Read>(source: R) -> Result<impl Read, Error> {
    StreamingDecoder::new(source)
        .map_err(|error| Error::Read(io::Error::new(io::ErrorKind::InvalidData, error.to_string())))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;

    use super::header::tests::{image, with_sections};
    use super::zboot::tests::zboot;
    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
    }

    fn read(file: &[u8]) -> Result<Vec<u8>, Error> {
        let mut kernel = Kernel::new(Cursor::new(file))?;
        let mut bytes = Vec::new();
        kernel.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn message(file: &[u8]) -> String {
        read(file).map(|_| ()).unwrap_err().to_string()
    }

    #[test]
    fn every_format_holds_the_same_kernel() {
        let plain = image(0x8_0000, 0x20_0000, 300_000);
        for file in [
            plain.clone(),
            gzip(&plain),
            zboot("gzip", &gzip(&plain)),
            zboot("zstd", &zstd(&plain)),
            zboot("zstd22", &zstd(&plain)),
        ] {
            let kernel = Kernel::new(Cursor::new(&file)).unwrap();
            assert_eq!(kernel.header().text_offset, 0x8_0000);
            assert_eq!(kernel.header().image_size, 0x20_0000);
            assert!(read(&file).unwrap() == plain);
        }
    }

    #[test]
    fn other_files_are_named() {
        let plain = image(0, 0x20_0000, 4096);
        assert!(message(b"\x7fELF\x02\x01\x01").contains("ELF"));
        assert!(message(b"#!/bin/sh\n").contains("script"));
        assert!(message(b"").contains("empty"));
        assert!(message(&[0; 5000]).contains("not an arm64 Linux kernel"));
        assert!(message(&gzip(&[7; 5000])).contains("not an arm64 Linux kernel"));
        assert!(message(&gzip(b"070701000")).contains("initramfs"));
        assert!(message(&zboot("xzkern", &gzip(&plain))).contains("xzkern"));
        assert!(message(&zboot("zstd", &gzip(&plain))).contains("cannot read it"));
        assert!(message(&plain[..40]).contains("cut off"));
        assert!(message(b"hello\n").contains("not an arm64 Linux kernel"));
        assert!(message(&gzip(&plain)[..60]).contains("ends before"));
    }

    #[test]
    fn a_file_that_is_cut_off_is_no_kernel() {
        let plain = image(0, 0x20_0000, 40_000);
        for file in [gzip(&plain), zboot("gzip", &gzip(&plain)), zboot("zstd", &zstd(&plain))] {
            assert!(read(&file[..file.len() - 30]).is_err());
        }
        // What is not compressed says by its sections how long it is. A signature follows them.
        let whole = with_sections(plain.clone(), 0);
        assert!(read(&whole).unwrap() == whole);
        assert!(read(&[&whole[..], &[7; 1472]].concat()).is_ok());
        assert!(message(&whole[..whole.len() - 1]).contains("ends before"));
        assert!(message(&gzip(&with_sections(plain, 1))).contains("ends before"));
    }

    proptest! {
        #[test]
        fn any_file_is_read_or_refused(
            start in prop::sample::select(vec![
                vec![], image(0, 0x20_0000, 128), gzip(&image(0, 0x20_0000, 128)),
                zboot("gzip", &gzip(&image(0, 0x20_0000, 128))), zboot("zstd", &zstd(&[1; 99])),
            ]),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            more in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut file = start;
            file.extend(more);
            for (at, byte) in changes {
                if !file.is_empty() {
                    let at = at.index(file.len());
                    file[at] = byte;
                }
            }
            let _ = Kernel::new(Cursor::new(&file)).map(|kernel| {
                io::copy(&mut kernel.take(1 << 20), &mut io::sink())
            });
        }
    }
}

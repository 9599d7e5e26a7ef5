// SPDX-License-Identifier: MIT OR Apache-2.0

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, anyhow, bail};
use object::elf::{FileHeader64, PT_LOAD, ProgramHeader64};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, pod};

/// `/proc/kcore`: the kernel's linear map of all RAM, as an ELF file.
pub struct Kcore {
    file: File,
    segments: Vec<Segment>,
}

/// A stretch of RAM in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    mapped_at: u64,
    physical: u64,
    offset: u64,
    size: u64,
}

/// Size of an ELF64 file header.
const HEADER_SIZE: usize = size_of::<FileHeader64<Endianness>>();
/// More bytes of headers than this are a mistake: some hundred segments.
const HEADERS_MAX: u64 = 1 << 20;

impl Kcore {
    /// Opens it and reads its headers.
    pub fn open() -> Result<Kcore> {
        let path = "/proc/kcore";
        let file = File::open(path).with_context(|| format!("opening {path}"))?;
        let mut headers = vec![0; HEADER_SIZE];
        file.read_exact_at(&mut headers, 0).with_context(|| format!("reading {path}"))?;
        let size = headers_size(&headers).with_context(|| format!("in {path}"))?;
        headers.resize(size, 0);
        file.read_exact_at(&mut headers, 0).with_context(|| format!("reading {path}"))?;
        let segments = segments(&headers).with_context(|| format!("in {path}"))?;
        Ok(Kcore { file, segments })
    }

    /// Reads `size` bytes of RAM at a physical address through the kernel's
    /// own mapping.
    pub fn read(&self, physical: u64, size: usize) -> Result<Vec<u8>> {
        let offset = locate(&self.segments, physical, size as u64)
            .ok_or_else(|| anyhow!("/proc/kcore has no RAM at {physical:#x}"))?;
        let mut bytes = vec![0; size];
        self.file
            .read_exact_at(&mut bytes, offset)
            .with_context(|| format!("reading /proc/kcore at physical {physical:#x}"))?;
        Ok(bytes)
    }
}

/// The program headers, which `data` (all headers) must hold.
fn file_header(data: &[u8]) -> Result<(&FileHeader64<Endianness>, Endianness)> {
    // The header's fields are byte arrays, so any address is aligned.
    let (header, _) = pod::from_bytes::<FileHeader64<Endianness>>(data)
        .map_err(|()| anyhow!("shorter than an ELF header"))?;
    if !header.is_supported() {
        bail!("no 64-bit ELF file");
    }
    Ok((header, header.endian()?))
}

/// Bytes from the start of the file to the end of its program headers.
fn headers_size(data: &[u8]) -> Result<usize> {
    let (header, endian) = file_header(data)?;
    let entry = u64::from(header.e_phentsize(endian));
    let count = u64::from(header.e_phnum(endian));
    if entry != size_of::<ProgramHeader64<Endianness>>() as u64 || count == 0 {
        bail!("{count} program headers of {entry} bytes");
    }
    let end = header.e_phoff(endian).checked_add(entry * count);
    match end {
        Some(end) if end <= HEADERS_MAX => Ok(end as usize),
        _ => bail!("program headers beyond the first {HEADERS_MAX} bytes"),
    }
}

/// The segments that are RAM, in the order of their addresses in the kernel.
/// Those that are not (vmalloc space, modules) have a physical address of all
/// ones.
///
/// The kernel's own image is there twice. Its second mapping, high above the
/// linear map, has holes where memory was freed after the start.
fn segments(data: &[u8]) -> Result<Vec<Segment>> {
    let (header, endian) = file_header(data)?;
    let headers = header.program_headers(endian, data)?;
    let mut segments: Vec<Segment> = headers
        .iter()
        .filter(|segment| segment.p_type(endian) == PT_LOAD)
        .map(|segment| Segment {
            mapped_at: segment.p_vaddr(endian),
            physical: segment.p_paddr(endian),
            offset: segment.p_offset(endian),
            size: segment.p_memsz(endian),
        })
        .filter(|segment| segment.physical != u64::MAX)
        .collect();
    segments.sort_by_key(|segment| segment.mapped_at);
    Ok(segments)
}

/// Where in the file the `size` bytes of RAM at `physical` are, by the first
/// mapping of them.
fn locate(segments: &[Segment], physical: u64, size: u64) -> Option<u64> {
    segments.iter().find_map(|segment| {
        let inside = physical.checked_sub(segment.physical)?;
        (inside.checked_add(size)? <= segment.size).then_some(segment.offset + inside)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with one program header for each (virtual, physical, offset,
    /// size).
    fn file(loads: &[(u64, u64, u64, u64)]) -> Vec<u8> {
        use object::write::elf::{FileHeader, ProgramHeader, Writer};
        let mut data = Vec::new();
        let mut writer = Writer::new(Endianness::Little, true, &mut data);
        writer.reserve_file_header();
        writer.reserve_program_headers(loads.len() as u32);
        let header = FileHeader {
            os_abi: object::elf::OsAbi(0),
            abi_version: 0,
            e_type: object::elf::ET_CORE,
            e_machine: object::elf::EM_AARCH64,
            e_entry: 0,
            e_flags: object::elf::FileFlags(0),
        };
        writer.write_file_header(&header).unwrap();
        writer.write_align_program_headers();
        for &(p_vaddr, p_paddr, p_offset, size) in loads {
            writer.write_program_header(&ProgramHeader {
                p_type: PT_LOAD,
                p_flags: object::elf::ProgramFlags(7),
                p_offset,
                p_vaddr,
                p_paddr,
                p_filesz: size,
                p_memsz: size,
                p_align: 4096,
            });
        }
        data
    }

    #[test]
    fn ram_is_found() {
        let data = file(&[
            (0x8000, u64::MAX, 0x1000, 0x1000),
            // Two segments: the kernel's image and the linear map.
            (0x9000_0000, 0x4000_4000, 0x100_0000, 0x1000),
            (0x1000_0000, 0x4000_0000, 0x9000, 0x20_0000),
        ]);
        assert_eq!(headers_size(&data).unwrap(), data.len());
        let segments = segments(&data).unwrap();
        assert_eq!(segments.len(), 2);
        assert_eq!(locate(&segments, 0x4000_4000, 0x1000), Some(0xd000));
        assert_eq!(locate(&segments, 0x4000_3000, 0x1000), Some(0xc000));
        assert_eq!(locate(&segments, 0x401f_f000, 0x1000), Some(0x20_8000));
        for (physical, size) in [(0x401f_f001, 0x1000), (0x3fff_ffff, 1), (u64::MAX, 2)] {
            assert_eq!(locate(&segments, physical, size), None);
        }
    }

    #[test]
    fn damaged_headers_are_refused() {
        let good = file(&[(0, 0, 0x1000, 0x1000)]);
        assert!(headers_size(&good[..HEADER_SIZE - 1]).is_err());
        let mut foreign = good.clone();
        foreign[1] = b'X';
        assert!(headers_size(&foreign).is_err());
        // e_phoff far out, no program headers, program headers of odd size.
        for (offset, value) in [(0x27, 0x7f), (0x38, 0), (0x36, 57)] {
            let mut damaged = good.clone();
            damaged[offset] = value;
            assert!(headers_size(&damaged).is_err(), "{offset:#x}");
        }
        assert!(segments(&good[..good.len() - 1]).is_err());
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! From ELF to the flat file that boot loaders take.

use anyhow::{Context, Result, bail};
use object::read::elf::{ElfFile64, ProgramHeader as _};
use object::{LittleEndian, elf};

/// No image of ours comes near this; an address gone astray would.
const LARGEST: u64 = 64 << 20;

/// The contents of a program's loaded segments, at their places relative to
/// the first. Memory that the program zeroes itself (`p_memsz` beyond
/// `p_filesz` of the last segment) is not in the file.
pub fn flatten(elf: &[u8]) -> Result<Vec<u8>> {
    let file = ElfFile64::<LittleEndian>::parse(elf).context("not a 64-bit ELF file")?;
    let endian = LittleEndian;
    let loaded = file.elf_program_headers().iter();
    let loaded = loaded.filter(|h| h.p_type(endian) == elf::PT_LOAD && h.p_memsz(endian) != 0);
    let segments = loaded
        .map(|header| {
            let data = header.data(endian, elf);
            let data = data.ok().context("a segment is not in the file")?;
            Ok((header.p_paddr(endian), data))
        })
        .collect::<Result<Vec<_>>>()?;
    let base = segments.iter().map(|(address, _)| *address).min();
    let base = base.context("there is nothing to load")?;
    let mut image = Vec::new();
    for (address, data) in segments {
        let start = address - base;
        let end = start + data.len() as u64;
        if end > LARGEST {
            bail!("a segment at {address:#x} is far from the start of the program at {base:#x}");
        }
        let (start, end) = (usize::try_from(start)?, usize::try_from(end)?);
        if image.len() < end {
            image.resize(end, 0);
        }
        image[start..end].copy_from_slice(data);
    }
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file with the given segments: address, contents, size in memory.
    fn program(segments: &[(u64, &[u8], u64)]) -> Vec<u8> {
        let mut file = vec![0; 64 + 56 * segments.len()];
        file[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(16, &2_u16.to_le_bytes());
        put(18, &183_u16.to_le_bytes());
        put(20, &1_u32.to_le_bytes());
        put(32, &64_u64.to_le_bytes());
        put(52, &64_u16.to_le_bytes());
        put(54, &56_u16.to_le_bytes());
        put(56, &u16::try_from(segments.len()).unwrap().to_le_bytes());
        let mut offset = 64 + 56 * segments.len();
        for (i, (address, data, memory)) in segments.iter().enumerate() {
            let header = 64 + 56 * i;
            put(header, &1_u32.to_le_bytes());
            put(header + 8, &(offset as u64).to_le_bytes());
            put(header + 16, &address.to_le_bytes());
            put(header + 24, &address.to_le_bytes());
            put(header + 32, &(data.len() as u64).to_le_bytes());
            put(header + 40, &memory.to_le_bytes());
            offset += data.len();
        }
        for (_, data, _) in segments {
            file.extend_from_slice(data);
        }
        file
    }

    #[test]
    fn segments_keep_their_distances() {
        let elf = program(&[(0x1000, b"code", 4), (0x1008, b"da", 0x100), (0x2000, b"", 0)]);
        assert_eq!(flatten(&elf).unwrap(), b"code\0\0\0\0da");
    }

    #[test]
    fn what_is_no_program_is_refused() {
        assert!(flatten(b"no ELF").is_err());
        assert!(flatten(&program(&[])).is_err());
        let stray = program(&[(0x1000, b"a", 1), (1 << 40, b"b", 1)]);
        let error = flatten(&stray).unwrap_err().to_string();
        assert!(error.contains("0x10000000000"), "{error}");
    }
}

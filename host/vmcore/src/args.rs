// SPDX-License-Identifier: MIT OR Apache-2.0

//! What user space asks for, checked.

use core::ops::Range;

use escrow_abi::{PAGE_SIZE, Rights};

use crate::Errno;
use crate::binding::Give;
use crate::uapi;

/// vCPUs of one VM at the most.
pub const VCPUS_MAX: u32 = 32;
/// Bindings of one VM at the most.
pub const BINDINGS_MAX: usize = 4096;
/// IOEVENTFDs of one VM at the most.
pub const IOEVENTFDS_MAX: usize = 1024;

/// A checked [`uapi::VM_MAP_MEM`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MapRequest {
    /// Bind guest addresses to a part of a memory.
    Bind {
        /// Guest addresses.
        guest: Range<u64>,
        /// Where in the memory the first of them is, in bytes.
        offset: u64,
        /// How the guest gets the pages.
        give: Give,
        /// What the guest may do with them.
        rights: Rights,
    },
    /// Take guest addresses out of the guest.
    Unbind {
        /// Guest addresses.
        guest: Range<u64>,
        /// Where in the memory the first of them is, in bytes.
        offset: u64,
        /// How they must be bound; `None` for any.
        give: Option<Give>,
        /// What the guest must be allowed there; `None` for anything.
        rights: Option<Rights>,
    },
}

const RIGHTS_FLAGS: u32 = uapi::MAP_READ | uapi::MAP_WRITE | uapi::MAP_EXEC;

/// Checks a [`uapi::VM_MAP_MEM`].
///
/// As in v17, a guest that may do anything may read: stage 2 of v17 knows no memory
/// that is to be written or executed and not to be read.
///
/// # Errors
/// `Invalid` for unknown or contradicting flags and for what is not
/// page-aligned or empty, `Overflow` for a range that wraps.
pub fn map_mem(args: &uapi::MapMem) -> Result<MapRequest, Errno> {
    let guest = page_range(args.guest_addr, args.size)?;
    // Linux's file offsets (loff_t) are signed.
    let file = page_range(args.offset, args.size)?;
    if file.end > i64::MAX as u64 {
        return Err(Errno::Overflow);
    }
    let offset = args.offset;
    let give = match args.flags & !(uapi::MAP_UNMAP | RIGHTS_FLAGS) {
        0 => None,
        uapi::MAP_FORCE_LEND => Some(Give::Lend),
        uapi::MAP_FORCE_SHARE => Some(Give::Share),
        _ => return Err(Errno::Invalid),
    };
    // Bits 4 to 6 are read, write and execute, as in `Rights`.
    let rights = match u64::from((args.flags & RIGHTS_FLAGS) >> 4) {
        0 => None,
        some => {
            Some(Rights::from_bits(some | u64::from(Rights::READ.bits())).ok_or(Errno::Invalid)?)
        }
    };
    if args.flags & uapi::MAP_UNMAP != 0 {
        return Ok(MapRequest::Unbind { guest, offset, give, rights });
    }
    let rights = rights.ok_or(Errno::Invalid)?;
    Ok(MapRequest::Bind { guest, offset, give: give.unwrap_or(Give::Lend), rights })
}

/// What kind of memory [`uapi::CREATE_GUEST_MEM`] asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemKind {
    /// The descriptor is closed on exec.
    pub close_on_exec: bool,
    /// It may be made of 2 MiB folios.
    pub allow_huge: bool,
    /// A lend that is tried again goes before new mappings and pins.
    pub lend_first: bool,
}

/// Checks a [`uapi::CREATE_GUEST_MEM`].
///
/// # Errors
/// `Invalid` for unknown flags, and a size that is not page-aligned or no size of a file.
/// As v17 does, it takes a size of 0, which `ftruncate` changes, and does not look at the
/// reserved fields.
pub fn create_mem(args: &uapi::CreateMem) -> Result<MemKind, Errno> {
    let known = uapi::MEM_CLOEXEC | uapi::MEM_ALLOW_HUGEPAGE | uapi::MEM_LEND_FIRST;
    if args.flags & !known != 0 || !is_aligned(args.size) || args.size > i64::MAX as u64 {
        return Err(Errno::Invalid);
    }
    Ok(MemKind {
        close_on_exec: args.flags & uapi::MEM_CLOEXEC != 0,
        allow_huge: args.flags & uapi::MEM_ALLOW_HUGEPAGE != 0,
        lend_first: args.flags & uapi::MEM_LEND_FIRST != 0,
    })
}

/// How [`uapi::MEM_EXPORT_DMABUF`] wants a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Export {
    /// The descriptor is closed on exec.
    pub close_on_exec: bool,
    /// Programs may map it for writing.
    pub write: bool,
}

/// Checks a [`uapi::MEM_EXPORT_DMABUF`].
///
/// # Errors
/// `Invalid` for unknown flags, a reserved field that is not zero, and what is
/// not page-aligned or empty; `Overflow` for a range that wraps.
pub fn export_dmabuf(args: &uapi::ExportDmabuf) -> Result<Export, Errno> {
    let range = page_range(args.offset, args.size)?;
    if range.end > i64::MAX as u64 {
        return Err(Errno::Overflow);
    }
    if args.flags & !(uapi::EXPORT_CLOEXEC | uapi::EXPORT_WRITE) != 0 || args.reserved != 0 {
        return Err(Errno::Invalid);
    }
    Ok(Export {
        close_on_exec: args.flags & uapi::EXPORT_CLOEXEC != 0,
        write: args.flags & uapi::EXPORT_WRITE != 0,
    })
}

fn is_aligned(value: u64) -> bool {
    value & (PAGE_SIZE - 1) == 0
}

/// A page-aligned, not empty range that does not wrap.
fn page_range(start: u64, size: u64) -> Result<Range<u64>, Errno> {
    if size == 0 || !is_aligned(start) || !is_aligned(size) {
        return Err(Errno::Invalid);
    }
    let end = start.checked_add(size).ok_or(Errno::Overflow)?;
    Ok(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: uapi::MapMem = uapi::MapMem {
        guest_addr: 0x8000_0000,
        flags: uapi::MAP_READ,
        guest_mem_fd: 3,
        offset: 0x1000,
        size: 0x2000,
    };

    #[test]
    fn the_default_is_to_lend() {
        let lend = MapRequest::Bind {
            guest: 0x8000_0000..0x8000_2000,
            offset: 0x1000,
            give: Give::Lend,
            rights: Rights::READ,
        };
        assert_eq!(map_mem(&MAP), Ok(lend.clone()));
        let flags = uapi::MAP_READ | uapi::MAP_FORCE_LEND;
        assert_eq!(map_mem(&uapi::MapMem { flags, ..MAP }), Ok(lend));
    }

    #[test]
    fn flags_become_rights() {
        let flags = uapi::MAP_READ | uapi::MAP_WRITE | uapi::MAP_EXEC | uapi::MAP_FORCE_SHARE;
        let request = map_mem(&uapi::MapMem { flags, ..MAP });
        assert!(matches!(
            request,
            Ok(MapRequest::Bind { give: Give::Share, rights: Rights::ALL, .. })
        ));
        let flags = uapi::MAP_READ | uapi::MAP_EXEC;
        let request = map_mem(&uapi::MapMem { flags, ..MAP });
        assert!(matches!(request, Ok(MapRequest::Bind { rights: Rights::READ_EXECUTE, .. })));
        for (flags, expected) in
            [(uapi::MAP_WRITE, Rights::READ_WRITE), (uapi::MAP_EXEC, Rights::READ_EXECUTE)]
        {
            let request = map_mem(&uapi::MapMem { flags, ..MAP });
            assert!(matches!(request, Ok(MapRequest::Bind { rights, .. }) if rights == expected));
        }
    }

    #[test]
    fn unmapping_takes_the_flags_of_mapping() {
        for (flags, give, rights) in [
            (0, None, None),
            (uapi::MAP_FORCE_LEND, Some(Give::Lend), None),
            (uapi::MAP_FORCE_SHARE | uapi::MAP_WRITE, Some(Give::Share), Some(Rights::READ_WRITE)),
            (uapi::MAP_READ, None, Some(Rights::READ)),
        ] {
            let flags = flags | uapi::MAP_UNMAP;
            let (guest, offset) = (0x8000_0000..0x8000_2000, 0x1000);
            let expected = MapRequest::Unbind { guest, offset, give, rights };
            assert_eq!(map_mem(&uapi::MapMem { flags, ..MAP }), Ok(expected), "{flags:#x}");
        }
    }

    #[test]
    fn bad_bindings_are_refused() {
        for flags in [
            0,
            uapi::MAP_FORCE_LEND,
            3 | uapi::MAP_READ,
            4 | uapi::MAP_READ,
            0x80 | uapi::MAP_READ,
            uapi::MAP_UNMAP | 3,
            uapi::MAP_UNMAP | 8,
        ] {
            assert_eq!(map_mem(&uapi::MapMem { flags, ..MAP }), Err(Errno::Invalid), "{flags:#x}");
        }
        for bad in [
            uapi::MapMem { guest_addr: 0x8000_0800, ..MAP },
            uapi::MapMem { offset: 1, ..MAP },
            uapi::MapMem { size: 0, ..MAP },
            uapi::MapMem { size: 0x1001, ..MAP },
        ] {
            assert_eq!(map_mem(&bad), Err(Errno::Invalid), "{bad:x?}");
        }
        for bad in [
            uapi::MapMem { guest_addr: 0u64.wrapping_sub(0x1000), ..MAP },
            uapi::MapMem { offset: 0u64.wrapping_sub(0x1000), ..MAP },
            uapi::MapMem { offset: i64::MAX as u64 & !0xfff, ..MAP },
        ] {
            assert_eq!(map_mem(&bad), Err(Errno::Overflow), "{bad:x?}");
        }
    }

    #[test]
    fn memories_are_of_whole_pages_or_empty() {
        let good = uapi::CreateMem { flags: uapi::MEM_CLOEXEC, size: 0x1000, reserved: [0; 6] };
        let none = MemKind { close_on_exec: false, allow_huge: false, lend_first: false };
        for (flags, kind) in [
            (uapi::MEM_CLOEXEC, MemKind { close_on_exec: true, ..none }),
            (uapi::MEM_ALLOW_HUGEPAGE, MemKind { allow_huge: true, ..none }),
            (uapi::MEM_LEND_FIRST, MemKind { lend_first: true, ..none }),
        ] {
            assert_eq!(create_mem(&uapi::CreateMem { flags, ..good }), Ok(kind));
        }
        for ignored in [
            uapi::CreateMem { size: 0, ..good },
            uapi::CreateMem { reserved: [0, 0, 0, 0, 0, 1], ..good },
        ] {
            assert!(create_mem(&ignored).is_ok(), "{ignored:x?}");
        }
        for bad in [
            uapi::CreateMem { flags: 4, ..good },
            uapi::CreateMem { size: 0x1800, ..good },
            uapi::CreateMem { size: 1 << 63, ..good },
        ] {
            assert_eq!(create_mem(&bad), Err(Errno::Invalid), "{bad:x?}");
        }
    }

    #[test]
    fn a_buffer_is_of_whole_pages() {
        let good = uapi::ExportDmabuf { offset: 0x1000, size: 0x2000, flags: 2, reserved: 0 };
        assert_eq!(export_dmabuf(&good), Ok(Export { close_on_exec: false, write: true }));
        for bad in [
            uapi::ExportDmabuf { flags: 4, ..good },
            uapi::ExportDmabuf { reserved: 1, ..good },
            uapi::ExportDmabuf { size: 0, ..good },
            uapi::ExportDmabuf { offset: 8, ..good },
            uapi::ExportDmabuf { size: 0x2001, ..good },
        ] {
            assert_eq!(export_dmabuf(&bad), Err(Errno::Invalid), "{bad:x?}");
        }
        for bad in [
            uapi::ExportDmabuf { size: 0u64.wrapping_sub(0x1000), ..good },
            uapi::ExportDmabuf { offset: i64::MAX as u64 & !0xfff, ..good },
        ] {
            assert_eq!(export_dmabuf(&bad), Err(Errno::Overflow), "{bad:x?}");
        }
    }
}

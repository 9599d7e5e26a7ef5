// SPDX-License-Identifier: MIT OR Apache-2.0

//! Where everything is in a guest's machine: as in QEMU's `virt`, so that
//! programs made for that run unchanged.

use super::device_tree::Interrupt;
use crate::virtio::WINDOW;

/// Bytes in a mebibyte.
pub const MIB: u64 = 1 << 20;

/// A range of guest addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub size: u64,
}

impl Window {
    /// Where an access of `length` bytes is in here; `None` if it is not, or
    /// not with all its bytes.
    pub fn offset(self, address: u64, length: u64) -> Option<u64> {
        let offset = address.checked_sub(self.start)?;
        (offset.checked_add(length)? <= self.size).then_some(offset)
    }

    /// The first address after it.
    pub fn end(self) -> u64 {
        self.start + self.size
    }
}

/// The interrupt controller's distributor (EL2 emulates it).
pub const DISTRIBUTOR: Window = Window { start: 0x0800_0000, size: 0x1_0000 };
/// The first of its redistributors, one for each vCPU.
pub const REDISTRIBUTOR: Window = Window { start: 0x080a_0000, size: 0x2_0000 };
/// The serial line.
pub const SERIAL: Window = Window { start: 0x0900_0000, size: 0x1000 };
/// The serial line's interrupt.
pub const SERIAL_INTERRUPT: Interrupt = Interrupt::level(1);
/// The clock.
pub const CLOCK: Window = Window { start: 0x0901_0000, size: 0x1000 };
/// The controller of the power button.
pub const GPIO: Window = Window { start: 0x0903_0000, size: 0x1000 };
/// The power button's interrupt.
pub const GPIO_INTERRUPT: Interrupt = Interrupt::edge(7);
/// The page in which EL2 tells the vCPUs their stolen time.
pub const STOLEN_TIME: Window = Window { start: 0x090a_0000, size: 0x1000 };
/// Where RAM begins. A kernel finds its device tree here.
pub const RAM: u64 = 0x4000_0000;
/// The largest RAM: what is left of 40 bits, the guest addresses that every CPU
/// offers.
pub const RAM_MAX: u64 = (1 << 40) - RAM;
/// The smallest RAM: a kernel, its device tree, and a little.
pub const RAM_MIN: u64 = 32 * MIB;
/// The most vCPUs: as many as one of the interrupt controller's target lists
/// names.
pub const CPUS_MAX: u32 = 16;

/// The longest command line: Linux has room for 2,048 bytes with its end
/// (arch/arm64/include/uapi/asm/setup.h, COMMAND_LINE_SIZE).
pub const CMDLINE_MAX: usize = 2047;

/// The most virtio devices.
pub const VIRTIO_DEVICES: usize = 32;

/// The registers of virtio device `n`.
pub fn virtio(n: usize) -> Window {
    debug_assert!(n < VIRTIO_DEVICES);
    Window { start: 0x0a00_0000 + n as u64 * WINDOW, size: WINDOW }
}

/// The interrupt of virtio device `n`.
pub fn virtio_interrupt(n: usize) -> Interrupt {
    debug_assert!(n < VIRTIO_DEVICES);
    Interrupt::edge(16 + n as u32)
}

/// Where a kernel's parts are in RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The device tree.
    pub tree: Window,
    /// The kernel's first instruction.
    pub kernel: u64,
    /// The initramfs.
    pub initrd: Option<Window>,
}

/// A device tree's room. The kernel maps no more (booting.rst).
pub const TREE_ROOM: u64 = 2 * MIB;

/// Why parts do not fit into RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLarge {
    /// What RAM would have to be at least, in bytes.
    pub needed: u64,
}

/// Places a kernel of `kernel` bytes, `text_offset` behind a boundary of 2 MiB,
/// and an initramfs of `initrd` bytes in `ram` bytes.
///
/// The tree is first, the kernel follows in the next 2 MiB, and the initramfs is
/// at the end, so that what lies between is one free range.
pub fn place(
    ram: u64,
    text_offset: u64,
    kernel: u64,
    initrd: Option<u64>,
) -> Result<Placement, TooLarge> {
    const ROOM: u64 = 2 * MIB;
    let start = TREE_ROOM + text_offset;
    let rooms = |size: u64| size.div_ceil(ROOM).saturating_mul(ROOM);
    let kernel_end = rooms(start.saturating_add(kernel));
    let initrd_room = rooms(initrd.unwrap_or(0));
    let needed = kernel_end.saturating_add(initrd_room);
    if needed > ram {
        return Err(TooLarge { needed });
    }
    let initrd = initrd.map(|size| Window { start: RAM + (ram - initrd_room) / ROOM * ROOM, size });
    let tree = Window { start: RAM, size: TREE_ROOM };
    Ok(Placement { tree, kernel: RAM + start, initrd })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_do_not_overlap() {
        let last = Window {
            start: REDISTRIBUTOR.start + u64::from(CPUS_MAX - 1) * REDISTRIBUTOR.size,
            ..REDISTRIBUTOR
        };
        let mut all = vec![DISTRIBUTOR, REDISTRIBUTOR, last, SERIAL, CLOCK, GPIO, STOLEN_TIME];
        all.extend((0..VIRTIO_DEVICES).map(virtio));
        all.push(Window { start: RAM, size: RAM_MAX });
        assert!(all.windows(2).all(|pair| pair[0].end() <= pair[1].start), "{all:x?}");
    }

    #[test]
    fn an_access_is_inside_with_all_its_bytes_or_not() {
        assert_eq!(CLOCK.offset(0x0901_0000, 8), Some(0));
        assert_eq!(CLOCK.offset(0x0901_0ff8, 8), Some(0xff8));
        assert_eq!(CLOCK.offset(0x0901_0ffc, 8), None);
        assert_eq!(CLOCK.offset(0x0900_ffff, 1), None);
        assert_eq!(CLOCK.offset(u64::MAX, 8), None);
    }

    #[test]
    fn parts_are_apart() {
        let placed = place(64 * MIB, 0, 30 * MIB + 5, Some(7 * MIB + 1)).unwrap();
        assert_eq!(placed.tree, Window { start: RAM, size: 2 * MIB });
        assert_eq!(placed.kernel, RAM + 2 * MIB);
        let initrd = placed.initrd.unwrap();
        assert_eq!(initrd, Window { start: RAM + 56 * MIB, size: 7 * MIB + 1 });
        let old = place(64 * MIB, 0x8_0000, MIB, None).unwrap();
        assert_eq!((old.kernel, old.initrd), (RAM + 2 * MIB + 0x8_0000, None));
    }

    #[test]
    fn what_does_not_fit_says_what_would() {
        let TooLarge { needed } = place(32 * MIB, 0, 30 * MIB + 1, None).unwrap_err();
        assert_eq!(needed, 34 * MIB);
        assert!(place(needed, 0, 30 * MIB + 1, None).is_ok());
        let TooLarge { needed } = place(64 * MIB, 0, 30 * MIB, Some(33 * MIB)).unwrap_err();
        assert_eq!(needed, 66 * MIB);
        let exact = place(needed, 0, 30 * MIB, Some(33 * MIB)).unwrap();
        assert_eq!(exact.initrd.unwrap().start, RAM + 32 * MIB);
        assert!(place(u64::MAX / 2, 0, u64::MAX - MIB, Some(1)).is_err());
        assert!(place(64 * MIB, 0, MIB, Some(u64::MAX / 2)).is_err());
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! QEMU's firmware configuration device (`docs/specs/fw_cfg.rst` in QEMU's
//! sources), as the host finds it: without DMA.
//!
//! Its DMA register takes the address of a descriptor anywhere in memory, which
//! names another address to be read or written. So access to this one register bypasses
//! stage 2, and EL2 withholds it from the host. The host keeps the
//! selector and the data register, which move bytes through the CPU.
//!
//! A driver sees a device without DMA: the DMA bit is
//! clear in the item `FW_CFG_ID`, and its registers end before the DMA register.
//! Linux's driver then uses the data register for all that it reads. Writing an
//! item takes DMA, so there is no writing: the one item that Linux writes is
//! `etc/vmcoreinfo`, for crash dumps that QEMU takes.

use spin::mutex::TicketMutex;

use super::{Device, RegisterAccess};
use crate::addr::{PhysAddr, PhysRange};
use crate::machine::Machine;

/// The data register; what it shows next is the device's own state. It may be
/// accessed 8 to 64 bits wide.
const DATA: u64 = 0;
/// The selector, 16 bits, big-endian, write-only.
const SELECTOR: u64 = 8;

/// Bytes of both, with what is between them.
const REGISTERS: u64 = 16;

/// The item that tells the device's features, in 4 bytes, little-endian.
const ID: u16 = 1;
/// In its first byte: there is a DMA register.
const ID_DMA: u64 = 1 << 1;
/// In a key: an item is selected for writing as well; the same item.
const WRITE_CHANNEL: u16 = 1 << 14;

/// The device.
pub(super) struct FwCfg {
    base: PhysAddr,
    /// What the data register shows next is the beginning of [`ID`].
    shows_id: TicketMutex<bool>,
}

impl FwCfg {
    /// Whether the device's registers can be there.
    pub fn fits(registers: &PhysRange) -> bool {
        registers.base.is_aligned(8) && registers.size >= REGISTERS
    }

    /// The device with its registers at `base`.
    pub fn new(base: PhysAddr) -> FwCfg {
        // At reset, item 0 is selected.
        FwCfg { base, shows_id: TicketMutex::new(false) }
    }
}

impl<M: Machine> Device<M> for FwCfg {
    fn access(&self, machine: &M, access: RegisterAccess) -> Option<u64> {
        let RegisterAccess { offset, size, stored } = access;
        // Held over the access, so that what is noted is what the device shows.
        let mut shows_id = self.shows_id.lock();
        match (offset, size, stored) {
            (SELECTOR, 2, Some(key)) => {
                machine.write_device(self.base.add(SELECTOR), size, key);
                *shows_id = (key as u16).swap_bytes() & !WRITE_CHANNEL == ID;
                Some(0)
            }
            (DATA, _, None) => {
                let value = machine.read_device(self.base.add(DATA), size);
                let hidden = if *shows_id { ID_DMA } else { 0 };
                *shows_id = false;
                Some(value & !hidden)
            }
            // The device ignores stores to the data register; accesses to others
            // would be external aborts, but for those to the DMA register.
            _ => None,
        }
    }
}

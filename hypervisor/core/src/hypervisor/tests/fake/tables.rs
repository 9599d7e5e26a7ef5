// SPDX-License-Identifier: MIT OR Apache-2.0

//! Tables as the CPU finds them, from the registers on.

use std::sync::atomic::Ordering;

use super::host::Host;
use crate::addr::{PAGE_SIZE, PhysAddr};
use crate::stage2::Stage2Context;

impl Host {
    /// All of the host's tables, entry by entry, as the CPU finds them.
    pub fn host_tables(&self) -> Vec<u64> {
        let mut entries = Vec::new();
        self.read_tables(self.escrow.host_context(), |_, _, entry| entries.push(entry));
        entries
    }

    /// Shows all entries of a VM's tables but those that lead to tables: their
    /// addresses, levels and bits, in ascending order. The walk is the one that
    /// the CPU makes (DDI 0487, D8.2), from the registers on.
    pub fn read_tables(&self, context: &Stage2Context, mut f: impl FnMut(u64, u32, u64)) {
        let ipa_bits = 64 - (context.vtcr & 0x3f) as u32;
        let start_level = 2 - (context.vtcr >> 6 & 3) as u32;
        let in_root = ipa_bits - (39 - 9 * start_level);
        let root = context.vttbr & 0xffff_ffff_f000;
        for n in 0..(1u64 << in_root).div_ceil(512) {
            let table = PhysAddr(root + n * PAGE_SIZE);
            self.read_table(table, start_level, n << (48 - 9 * start_level), &mut f);
        }
    }

    /// The entries for the pages of 2 MiB of a VM's addresses.
    pub fn read_block(&self, context: &Stage2Context, base: u64, mut f: impl FnMut(u64, u64)) {
        let start_level = 2 - (context.vtcr >> 6 & 3) as u32;
        let root = context.vttbr & 0xffff_ffff_f000;
        let index = base >> (39 - 9 * start_level);
        let mut table = root + index / 512 * PAGE_SIZE;
        let mut entry = 0;
        let mut level = start_level;
        while level <= 2 {
            let index = (base >> (39 - 9 * level)) as usize % 512;
            entry = self.entry(PhysAddr(table), index);
            if entry & 3 != 3 {
                break;
            }
            table = entry & 0xffff_ffff_f000;
            level += 1;
        }
        if level == 3 {
            return self.read_table(PhysAddr(table), 3, base, &mut |at, _, entry| f(at, entry));
        }
        // A larger entry stands for it.
        let offset = base & ((1 << (39 - 9 * level)) - 1);
        for n in 0..512 {
            f(base + n * PAGE_SIZE, entry + offset + n * PAGE_SIZE);
        }
    }

    fn entry(&self, table: PhysAddr, index: usize) -> u64 {
        self.escrow.machine.word(table.add(8 * index as u64)).load(Ordering::Relaxed)
    }

    fn read_table(
        &self,
        table: PhysAddr,
        level: u32,
        base: u64,
        f: &mut impl FnMut(u64, u32, u64),
    ) {
        for n in 0..512 {
            let entry = self.entry(table, n);
            let at = base + ((n as u64) << (39 - 9 * level));
            let is_table = level < 3 && entry & 3 == 3;
            // What EL2 itself goes by must say the same.
            assert_eq!(entry >> 57 & 1 != 0, is_table, "{entry:#x} at level {level}");
            if is_table {
                self.read_table(PhysAddr(entry & 0xffff_ffff_f000), level + 1, at, f);
            } else {
                f(at, level, entry);
            }
        }
    }
}

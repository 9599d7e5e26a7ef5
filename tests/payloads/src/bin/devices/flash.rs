// SPDX-License-Identifier: MIT OR Apache-2.0

//! Memory that EL2 does not know as RAM: QEMU's second flash chip, which can be
//! read and executed like memory. How it is accessed is stage 1's affair.

use core::ptr;

use escrow_payloads::host::poke;
use escrow_payloads::{Host, Outcome, Test, check_eq, fail, mmu, probe, tests};

pub const TESTS: &[Test] =
    tests![memory_beside_ram_is_memory_if_stage_1_says_so, memory_beside_ram_can_be_executed,];

/// The chip.
const FLASH: u64 = 0x400_0000;
/// Where a test maps it.
const VIEW: u64 = 300;
const WORDS: [u32; 8] = [
    0x0403_0201,
    0x0807_0605,
    0x0c0b_0a09,
    0x100f_0e0d,
    0x1413_1211,
    0x1817_1615,
    0x1c1b_1a19,
    0xd65f_03c0, // ret
];
const RET: u64 = 28;

/// Writes [`WORDS`] to the chip, which is two of 16 bits side by side: the command to
/// program a word, the word; at the end, the one to be read like memory again
/// (Intel's command set, CFI 0001).
fn program() {
    // SAFETY: the chip's registers, mapped as a device; nobody else knows it.
    let write = |at: u64, value: u32| unsafe { ptr::write_volatile(at as *mut u32, value) };
    for (at, word) in (FLASH..).step_by(4).zip(WORDS) {
        write(at, 0x0040_0040);
        write(at, word);
    }
    write(FLASH, 0x00ff_00ff);
}

/// Maps the chip by a block entry, and runs a test on it.
fn mapped(host: &mut Host, entry: u64, test: impl FnOnce(u64) -> Outcome) -> Outcome {
    let table = host.page();
    for n in 1..512 {
        poke(table + n * 8, 0);
    }
    poke(table, entry);
    mmu::set_table(VIEW as usize, table);
    let outcome = test(VIEW * mmu::GIB);
    mmu::clear_table(VIEW as usize);
    outcome
}

/// What 64 bits are there, from a byte on.
fn expected(from: u64) -> u64 {
    (0..8).map(|n| (from + 1 + n) << (8 * n)).sum()
}

fn memory_beside_ram_is_memory_if_stage_1_says_so(host: &mut Host) -> Outcome {
    program();
    for entry in [mmu::block_entry(FLASH), mmu::uncached_block_entry(FLASH)] {
        mapped(host, entry, |at| {
            for offset in 0..16 {
                check_eq!(probe::read(at + offset), Ok(expected(offset)), "{offset}");
                for access in probe::ACCESSES {
                    if ["load16", "load32", "load_pair", "load_vector"].contains(&access.name)
                        && let Err(fault) = access.run(at + offset, 0)
                    {
                        fail!("{} at {offset}: {fault:x?}", access.name);
                    }
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn memory_beside_ram_can_be_executed(host: &mut Host) -> Outcome {
    program();
    mapped(host, mmu::block_entry(FLASH), |at| {
        check_eq!(probe::fetch(at + RET), Ok(()));
        Ok(())
    })
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! Memory of a PCI device that may be accessed as memory: the BAR of QEMU's `ivshmem`,
//! mapped so that it combines writes.

use std::arch::asm;
use std::fs::{self, OpenOptions};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::ptr;

use anyhow::{Context as _, Result, ensure};
use nix::sys::mman::{MapFlags, ProtFlags, mmap};

/// Its vendor and device.
const IVSHMEM: (&str, &str) = ("0x1af4", "0x1110");
/// Bytes of it that the test uses.
const SIZE: usize = 1 << 20;

fn device() -> Result<PathBuf> {
    let devices = fs::read_dir("/sys/bus/pci/devices")?;
    let is_it = |path: &PathBuf| {
        let is = |name, value| {
            fs::read_to_string(path.join(name)).is_ok_and(|text: String| text.trim() == value)
        };
        is("vendor", IVSHMEM.0) && is("device", IVSHMEM.1)
    };
    devices.flatten().map(|entry| entry.path()).find(is_it).context("no ivshmem on the bus")
}

/// Loads and stores of all kinds, at all offsets, as in memory.
pub fn combine_writes() -> Result<()> {
    let device = device()?;
    fs::write(device.join("enable"), "1").context("enable")?;
    let bar = OpenOptions::new().read(true).write(true).open(device.join("resource2_wc"));
    let bar = bar.context("resource2_wc")?;
    let length = NonZeroUsize::new(SIZE).context("no size")?;
    let rights = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping, of memory that nobody else uses.
    let at = unsafe { mmap(None, length, rights, MapFlags::MAP_SHARED, &bar, 0) }?;
    let at = at.as_ptr().cast::<u8>();

    let pattern: Vec<u8> = (0..SIZE).map(|n| (n * 7 + (n >> 8)) as u8).collect();
    for shift in [0, 1, 3, 7] {
        let part = &pattern[..SIZE - 64];
        // SAFETY: inside the mapping.
        unsafe {
            ptr::write_bytes(at, 0, SIZE);
            ptr::copy_nonoverlapping(part.as_ptr(), at.add(shift), part.len());
        }
        let mut back = vec![0; part.len()];
        // SAFETY: as above.
        unsafe { ptr::copy_nonoverlapping(at.add(shift), back.as_mut_ptr(), part.len()) };
        ensure!(back == part, "a copy to {shift} and back is another");
    }
    for offset in 0..32 {
        let place = at.wrapping_add(offset);
        let (first, second) = (0x1122_3344_5566_7788_u64, 0x99aa_bbcc_ddee_ff00_u64);
        let (a, b, c, d): (u64, u64, u64, u64);
        // SAFETY: 32 bytes inside the mapping.
        unsafe {
            asm!(
                "stp {first}, {second}, [{place}]",
                "ldp {a}, {b}, [{place}]",
                "ldr q0, [{place}]",
                "str q0, [{place}, #16]",
                "ldur {c}, [{place}, #16]",
                "ldur {d}, [{place}, #24]",
                first = in(reg) first,
                second = in(reg) second,
                place = in(reg) place,
                a = out(reg) a,
                b = out(reg) b,
                c = out(reg) c,
                d = out(reg) d,
                out("v0") _,
            );
        }
        ensure!(
            (a, b, c, d) == (first, second, first, second),
            "{offset}: {a:x} {b:x} {c:x} {d:x}"
        );
    }
    Ok(())
}

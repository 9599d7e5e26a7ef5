// SPDX-License-Identifier: MIT OR Apache-2.0

//! Linux as a guest of KVM, on the machine that a device tree describes: RAM, GICv3, timers,
//! PSCI, and a PL011 that shows what is written to it. The other primecells are there for their
//! drivers to find, and do nothing.

use std::fs;
use std::io::{self, Write as _};

use anyhow::{Context, Result, bail, ensure};
use kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN;
use kvm_ioctls::{Kvm, VcpuExit};

use escrow_peers::guest::{BLOCK, MEMORY};

use crate::vm::{Boot, Vm};

/// The parts of the guest, in this machine's initramfs.
const IMAGE: &str = "/guest/Image";
const INITRD: &str = "/guest/initrd";
const TREE: &str = "/guest/tree";
/// Where the image has its size in RAM, and its offset to 2 MiB (Linux,
/// Documentation/arch/arm64/booting.rst).
const TEXT_OFFSET: usize = 8;
/// Guest addresses of the PL011, and of the primecells with their part numbers.
const UART: u64 = 0x0900_0000;
const PRIMECELLS: [(u64, u8); 3] = [(UART, 0x11), (0x0901_0000, 0x31), (0x0903_0000, 0x61)];
/// Registers of the PL011 (DDI 0183): data, and flags: both FIFOs are empty.
const DATA: u64 = 0;
const FLAGS: u64 = 0x18;
const EMPTY: u32 = 1 << 7 | 1 << 4;
/// Where a primecell says what it is.
const IDENTITY: u64 = 0xfe0;

/// Boots it with `ram` bytes and its initramfs where the tree says. Returns when it has switched
/// itself off.
pub fn boot(kvm: &Kvm, ram: u64, initrd_at: u64) -> Result<()> {
    let read = |path: &str| fs::read(path).with_context(|| path.to_owned());
    let (image, initrd, tree) = (read(IMAGE)?, read(INITRD)?, read(TREE)?);
    let offset = image.get(TEXT_OFFSET..TEXT_OFFSET + 8).context("the image has no header")?;
    let kernel = MEMORY + BLOCK + u64::from_le_bytes(offset.try_into()?);
    let parts = [(MEMORY, &tree[..]), (kernel, &image[..]), (initrd_at, &initrd[..])];
    let mut vm = Vm::with(kvm, ram, true, &Boot { parts: &parts, pc: kernel, x0: MEMORY })?;
    drop((image, initrd, tree));
    let mut out = io::stdout().lock();
    loop {
        match vm.vcpu().run().context("KVM_RUN")? {
            VcpuExit::MmioRead(address, data) => {
                data.fill(0);
                let value = register(address).to_le_bytes();
                let length = data.len().min(value.len());
                data[..length].copy_from_slice(&value[..length]);
            }
            VcpuExit::MmioWrite(address, data) => {
                if address == UART + DATA {
                    out.write_all(&data[..1])?;
                }
            }
            VcpuExit::SystemEvent(event, _) => {
                ensure!(event == KVM_SYSTEM_EVENT_SHUTDOWN, "the guest's end: {event}");
                return Ok(());
            }
            exit => bail!("the guest ends: {exit:?}"),
        }
    }
}

/// What a register of a primecell holds.
fn register(address: u64) -> u32 {
    let Some((base, part)) = PRIMECELLS.iter().find(|(base, _)| address >> 12 == base >> 12) else {
        return 0;
    };
    let identity = [*part, 0x10, 0x14, 0, 0x0d, 0xf0, 0x05, 0xb1];
    match address - base {
        FLAGS if *base == UART => EMPTY,
        offset => {
            let byte = offset.checked_sub(IDENTITY).map(|offset| (offset / 4) as usize);
            byte.and_then(|byte| identity.get(byte)).map_or(0, |&byte| byte.into())
        }
    }
}

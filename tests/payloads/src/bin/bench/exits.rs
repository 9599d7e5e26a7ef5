// SPDX-License-Identifier: MIT OR Apache-2.0

//! Guest exits that the host answers at once: the way out to the host and
//! back into the guest.

use escrow_abi::{MemEntry, ORDER_PAGE, PAGE_SIZE, Rights, call, run};
use escrow_payloads::gic_guest::{GICD, GICR};
use escrow_payloads::host::refused;
use escrow_payloads::samples::Samples;
use escrow_payloads::{Host, Outcome, Test, check, check_eq, hvc, mmu, println, tests};

use crate::sample;

pub const TESTS: &[Test] =
    tests![guests_are_counted, guest_exits, guest_exits_with_gic, guest_exits_with_vectors];

/// Where guests have their code.
const CODE: u64 = 0x4000_0000;
/// Where guests have no memory.
pub const DEVICE: u64 = 0x0900_0000;
/// Pages donated for a guest: tables, vCPUs.
const METADATA: u64 = 12;
const SAMPLES: usize = 1000;

unsafe extern "C" {
    static guests_begin: u8;
    static guests_end: u8;
    static guest_read: u8;
    static guest_write: u8;
    static guest_write_slow: u8;
    static guest_wait: u8;
    static guest_vectors: u8;
}

/// A VM with one vCPU that runs a guest of `bench.S`.
pub struct Guest {
    pub vm: u64,
    pub vcpu: u64,
}

impl Guest {
    /// Starts the guest at a symbol.
    fn start(host: &mut Host, guest: *const u8) -> Outcome<Guest> {
        Self::start_with(host, guest, &[])
    }

    /// The same with a GIC, and registers of its own.
    pub fn start_with_gic(
        host: &mut Host,
        guest: *const u8,
        registers: &[(u64, u64)],
    ) -> Outcome<Guest> {
        let vm = host.vm(METADATA)?;
        hvc::call(call::VM_VGIC, &[vm, GICD, GICR, call::SPIS_MIN]).map_err(refused("VM_VGIC"))?;
        Self::start_in(host, vm, guest, registers)
    }

    /// The same with a second vCPU, which is off.
    pub fn start_two_with_gic(
        host: &mut Host,
        guest: *const u8,
        registers: &[(u64, u64)],
    ) -> Outcome<(Guest, u64)> {
        let vm = host.vm(METADATA)?;
        hvc::call(call::VM_VGIC, &[vm, GICD, GICR, call::SPIS_MIN]).map_err(refused("VM_VGIC"))?;
        let [second, ..] =
            hvc::call(call::VCPU_CREATE, &[vm, 1]).map_err(refused("VCPU_CREATE"))?;
        Ok((Self::start_in(host, vm, guest, registers)?, second))
    }

    /// The same with registers of its own.
    pub fn start_with(
        host: &mut Host,
        guest: *const u8,
        registers: &[(u64, u64)],
    ) -> Outcome<Guest> {
        let vm = host.vm(METADATA)?;
        Self::start_in(host, vm, guest, registers)
    }

    /// Starts it in a VM that is created.
    fn start_in(
        host: &mut Host,
        vm: u64,
        guest: *const u8,
        registers: &[(u64, u64)],
    ) -> Outcome<Guest> {
        let code = host.page();
        let source = &raw const guests_begin;
        let size = &raw const guests_end as usize - source as usize;
        check!(size <= PAGE_SIZE as usize, "the guests have {size} bytes");
        // SAFETY: the page is the arena's, and the guests fit.
        unsafe { core::ptr::copy_nonoverlapping(source, code as *mut u8, size) };
        mmu::clean(code, PAGE_SIZE);
        let entry = MemEntry::new(code, ORDER_PAGE, CODE, Rights::READ_EXECUTE);
        host.lists.lend(vm, &[entry]).map_err(refused("MEM_LEND of the guests"))?;
        let [vcpu, ..] = hvc::call(call::VCPU_CREATE, &[vm, 0]).map_err(refused("VCPU_CREATE"))?;
        let entry = CODE + (guest as u64 - source as u64);
        let own = [(1 << 8, entry), (1, DEVICE)];
        for &(register, value) in own.iter().chain(registers) {
            hvc::call(call::VCPU_SET_REGISTER, &[vcpu, register, value])
                .map_err(refused("VCPU_SET_REGISTER"))?;
        }
        hvc::call(call::VM_START, &[vm]).map_err(refused("VM_START"))?;
        Ok(Guest { vm, vcpu })
    }
}

/// Samples of a guest that exits with `state` each time. The `own`
/// instructions that it executes between two exits are not counted; the one
/// that exits never is by QEMU.
fn exits(
    host: &mut Host,
    name: &'static str,
    guest: *const u8,
    state: u64,
    own: u64,
    sample: fn(&mut [u64; 8]) -> u64,
) -> Outcome<Samples> {
    let guest = Guest::start(host, guest)?;
    exits_of(host, name, &guest, state, own, sample)
}

/// The same of a guest that is started, and that ends with it.
fn exits_of(
    host: &mut Host,
    name: &'static str,
    guest: &Guest,
    state: u64,
    own: u64,
    sample: fn(&mut [u64; 8]) -> u64,
) -> Outcome<Samples> {
    let Guest { vm, vcpu } = *guest;
    let mut samples = Samples::new(name);
    // The first ones come from further away.
    for round in 0..SAMPLES + 10 {
        let mut registers = [call::VCPU_RUN as u64, vcpu, 0, 0, 0, 0, 0, 0];
        let ticks = sample(&mut registers);
        check_eq!(registers[..2], [0, state], "exit {round} of {name}");
        if round >= 10 {
            samples.add(ticks - own);
        }
    }
    host.end(vm)?;
    Ok(samples)
}

/// What is subtracted for the guest's own instructions is what they are: two
/// guests that differ by 8 instructions and nothing else.
fn guests_are_counted(host: &mut Host) -> Outcome {
    let (write, slow) = (&raw const guest_write, &raw const guest_write_slow);
    let write = exits(host, "write", write, run::MMIO_WRITE, 1, sample::hvc)?;
    let slow = exits(host, "slow", slow, run::MMIO_WRITE, 9, sample::hvc)?;
    check_eq!(write.min, slow.min, "without the guest's instructions");
    Ok(())
}

/// `guest_exit` is WFI, the exit that leaves the host least to do: its way out
/// is a null exit's and the deadline of the guest's timer. The loads and stores
/// without memory are decoded on the way out, and the load's value is extended
/// and stored on the way back in.
fn guest_exits(host: &mut Host) -> Outcome {
    let (wait, read) = (&raw const guest_wait, &raw const guest_read);
    let write = &raw const guest_write;
    // One branch between two exits.
    println!("{}", exits(host, "guest_exit", wait, run::EXPECTS_WAKEUP, 1, sample::hvc)?);
    println!("{}", exits(host, "guest_exit_mmio_read", read, run::MMIO_READ, 1, sample::hvc)?);
    println!("{}", exits(host, "guest_exit_mmio_write", write, run::MMIO_WRITE, 1, sample::hvc)?);
    Ok(())
}

/// `guest_exit` of a guest with a GIC: on top come what its interrupts want done at each entry and
/// exit, and whether one ends the wait.
fn guest_exits_with_gic(host: &mut Host) -> Outcome {
    let guest = Guest::start_with_gic(host, &raw const guest_wait, &[])?;
    let (state, sample) = (run::EXPECTS_WAKEUP, sample::hvc);
    println!("{}", exits_of(host, "guest_exit_gic", &guest, state, 1, sample)?);
    Ok(())
}

/// Guest and host both use the vector registers between two exits, so that
/// both of their sets change places.
fn guest_exits_with_vectors(host: &mut Host) -> Outcome {
    let guest = &raw const guest_vectors;
    // The guest's branch and its vector instruction; the host's own.
    let sample = sample::hvc_vectors;
    println!("{}", exits(host, "guest_exit_vectors", guest, run::MMIO_WRITE, 3, sample)?);
    Ok(())
}

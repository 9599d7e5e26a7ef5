// SPDX-License-Identifier: MIT OR Apache-2.0

//! The shim as a lender.

use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result, bail, ensure};
use escrow_peers::counter::Counters;
use escrow_peers::guest::{
    Access, BLOCK, DEVICE, MEMORY, PAGE, PAGES_PER_BLOCK, Telling, Vcpu, What, Work, addresses,
    block, program, run,
};
use escrow_peers::lending::{self, BLOCKS, Lender, Samples};
use escrow_shim_tests::facts::fdinfo;
use escrow_shim_tests::gunyah::{self, Device, Exit, Mapping, Memory, RWX};
use escrow_vmcore::uapi::{self, CreateMem, boot_register};

/// `MODIFY_PAGES`: the owner may take the pages back, with their contents.
const UNLOCK: u64 = escrow_abi::call::MODIFY_UNLOCK;

/// What lies between two touches of a guest that jumps: what a lend takes along of
/// the program's mappings, at first.
const JUMP: u64 = 64 << 10;

/// Blocks that are fetched one page after the other: 64 MiB.
const FETCHED: u64 = 32;

/// Memories of `/dev/gunyah` with these flags beside `MEM_CLOEXEC`.
pub struct Shim<'a> {
    /// The device.
    pub device: &'a Device,
    /// `MEM_ALLOW_HUGEPAGE`, or nothing.
    pub flags: u64,
}

/// A VM with one memory, which is mapped here.
pub struct Vm {
    vcpu: gunyah::Vcpu,
    _vm: gunyah::Vm,
    mapping: Mapping,
    memory: Memory,
}

impl Vcpu for Vm {
    fn run(&mut self, answer: u64) -> Result<Access> {
        match self.vcpu.run().context("VCPU_RUN")? {
            Exit::Read(address, 8) => {
                self.vcpu.answer(answer);
                Ok(Access::Load(address))
            }
            Exit::Write(address, value) => Ok(Access::Store(address, value)),
            exit => bail!("the guest ends: {exit:x?}"),
        }
    }
}

/// The word at the start of a page of the mapping.
fn word(mapping: &Mapping, page: u64) -> *mut u64 {
    mapping.at(page * PAGE).cast()
}

impl Shim<'_> {
    /// A VM whose memory is one block with the program and so many behind it. Before it
    /// starts, `prepare` may add to it and to its first block, whose beginning is the
    /// program's.
    pub fn prepared<T>(
        &self,
        blocks: u64,
        prepare: impl FnOnce(&gunyah::Vm, &Mapping) -> Result<T>,
    ) -> Result<(Vm, T)> {
        let size = (1 + blocks) * BLOCK;
        let args = CreateMem { flags: uapi::MEM_CLOEXEC | self.flags, size, reserved: [0; 6] };
        let memory = self.device.create_mem(&args).context("CREATE_GUEST_MEM")?;
        let pages = size / PAGE;
        let mapping = memory.map(0, pages)?;
        for page in 0..pages {
            // SAFETY: within the mapping, of which nobody has a reference.
            unsafe { word(&mapping, page).write_volatile(MEMORY + page * PAGE) };
        }
        let program = program();
        // SAFETY: the first block is larger than the guest, and no one else's.
        unsafe { mapping.at(0).copy_from_nonoverlapping(program.as_ptr(), program.len()) };
        let vm = self.device.vm().context("CREATE_VM")?;
        vm.bind(MEMORY, RWX, &memory, 0, pages).context("VM_MAP_MEM")?;
        let registers =
            [(boot_register(uapi::REG_SET_PC, 0), MEMORY), (boot_register(0, 28), DEVICE)];
        for (reg, value) in registers {
            vm.set_boot_context(&uapi::BootContext { reg, reserved: 0, value })
                .context("VM_SET_BOOT_CONTEXT")?;
        }
        let vcpu = vm.vcpu(0)?;
        let prepared = prepare(&vm, &mapping)?;
        vm.start().context("VM_START")?;
        Ok((Vm { vcpu, _vm: vm, mapping, memory }, prepared))
    }
}

impl Lender for Shim<'_> {
    type Vm = Vm;

    fn vm(&self, blocks: u64) -> Result<Vm> {
        Ok(self.prepared(blocks, |_, _| Ok(()))?.0)
    }

    fn end(&self, vm: Vm) -> Result<impl FnOnce() -> Result<()>> {
        let Vm { vcpu, _vm, mapping, memory } = vm;
        drop((vcpu, _vm));
        Ok(move || {
            let lent = fdinfo(memory.as_fd(), uapi::fdinfo::LENT)?;
            ensure!(lent == "0", "{lent} pages are still lent");
            for page in PAGES_PER_BLOCK..(1 + BLOCKS) * PAGES_PER_BLOCK {
                // SAFETY: within the mapping, of which nobody has a reference.
                let left = unsafe { word(&mapping, page).read_volatile() };
                ensure!(left == 0, "{left:#x} is left in page {page}");
            }
            Ok(())
        })
    }
}

/// What a guest touches that goes down its memory in jumps, page after page of them.
fn scattered_touches() -> impl Iterator<Item = Work> {
    let blocks = || (1..=BLOCKS * BLOCK / JUMP).rev().step_by(PAGES_PER_BLOCK as usize);
    (0..JUMP / PAGE).flat_map(move |page| {
        blocks().map(move |last| {
            let first = block(0) + (last - 1) * JUMP + page * PAGE;
            Work::new(What::Loads, first, 0u64.wrapping_sub(JUMP), PAGES_PER_BLOCK)
        })
    })
}

impl Shim<'_> {
    /// Lends to a guest that goes down its memory in jumps, so that nothing that
    /// one lend does for its neighbours is of use to the next one; as often as there
    /// are pages between two touches.
    /// Without `by_level`, only with the PMU off.
    pub fn scattered(&self, counters: &mut Counters, by_level: bool) -> Result<Samples> {
        let mut samples = Samples::default();
        let rounds: &[bool] = if by_level { &[false, true] } else { &[false] };
        for &observed in rounds {
            counters.observe(observed)?;
            let mut vm = self.vm(BLOCKS)?;
            let overhead = lending::overhead(&mut vm, counters)?;
            for touch in scattered_touches() {
                if observed {
                    let (host, el2) = lending::lend_by_level(&mut vm, touch, overhead, counters)?;
                    samples.add(host, el2);
                } else {
                    samples.add_all(lending::lend(&mut vm, touch, overhead, counters)?.0);
                }
            }
            self.end(vm)?()?;
        }
        Ok(samples)
    }

    /// Pages that a guest has unlocked with their contents, touched one by one
    /// by the host.
    pub fn fetches(&self, counters: &mut Counters) -> Result<()> {
        let mut vm = self.vm(FETCHED)?;
        let mut samples = Samples::default();
        for number in 0..FETCHED {
            let at = block(number);
            let touch = Work::new(What::Loads, at, PAGE, PAGES_PER_BLOCK);
            run(&mut vm, touch, Telling::Done, counters)?;
            let unlock = Work::new(What::Modify(UNLOCK), at, BLOCK, 1);
            let answer = run(&mut vm, unlock, Telling::Done, counters)?.sum;
            ensure!(answer == 0, "the guest's MODIFY_PAGES: {answer:#x}");
            let first = (1 + number) * PAGES_PER_BLOCK;
            let touch = |vm: &Vm| {
                // SAFETY: within the mapping, of which nobody has a reference.
                let load = |page| unsafe { word(&vm.mapping, page).read_volatile() };
                (first..first + PAGES_PER_BLOCK).map(load).sum::<u64>()
            };
            let before = (counters.lower()?, counters.el2()?);
            let sum = touch(&vm);
            let after = (counters.lower()?, counters.el2()?);
            // The same when they are there: what the counting itself takes.
            let again = touch(&vm);
            let idle = (counters.lower()? - after.0, counters.el2()? - after.1);
            ensure!(sum == again && sum == addresses(at, PAGES_PER_BLOCK), "found {sum:#x}");
            samples.add(after.0 - before.0 - idle.0, after.1 - before.1 - idle.1);
        }
        samples.print("shim_fetch_4k", PAGES_PER_BLOCK)
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! What is counted. Each row's meaning is in docs/performance.md.

use anyhow::{Context, Result, ensure};
use kvm_ioctls::Kvm;

use escrow_peers::counter::Counters;
use escrow_peers::exits;
use escrow_peers::guest::{
    BLOCK, PAGE, PAGES_PER_BLOCK, Telling, What, Work, addresses, block, run,
};
use escrow_peers::lending::{self, Lender, Rows};
use escrow_peers::row::Row;

use crate::linux;
use crate::vm::Vm;

/// `SMCCC_VERSION`: the host answers it.
const SMCCC_VERSION: u64 = 0x8000_0000;
/// `ARM_SMCCC_VENDOR_HYP_KVM_HYP_MEMINFO_FUNC_ID`: EL2 answers it to a
/// protected VM, by the size of a page.
const HYP_MEMINFO: u64 = 0xc600_0002;
/// `ARM_SMCCC_VENDOR_HYP_KVM_MEM_SHARE_FUNC_ID` and its opposite.
const MEM_SHARE: u64 = 0xc600_0003;
const MEM_UNSHARE: u64 = 0xc600_0004;

/// Operations in a batch: EL2's part is only known of batches.
const BATCH: u64 = 100;
const BATCHES: usize = 50;
/// Samples of operations about single pages.
const PAGES: u64 = 256;
/// Samples of operations about blocks.
const BLOCKS: u64 = 8;

/// The machine's KVM and what counts.
struct Bench {
    kvm: Kvm,
    counters: Counters,
    protected: bool,
}

/// How often Linux boots.
const BOOTS: usize = 3;

/// What is to be counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Single operations.
    Operations,
    /// A whole memory, lent and reclaimed.
    Lending,
    /// A guest's exits, and Linux as a guest.
    Guests {
        /// Bytes of Linux' RAM.
        ram: u64,
        /// Where the device tree says that its initramfs is.
        initrd: u64,
    },
}

/// Counts a part of what this KVM has.
pub fn measure(part: Part, protected: bool) -> Result<()> {
    let kvm = Kvm::new().context("/dev/kvm")?;
    let mut counters = Counters::start()?;
    if part == Part::Lending {
        ensure!(protected, "a VM that is not protected is lent nothing");
        return lending::measure(&Protected(kvm), LENDING, &mut counters);
    }
    let mut bench = Bench { kvm, counters, protected };
    if let Part::Guests { ram, initrd } = part {
        bench.exits()?;
        return (0..BOOTS).try_for_each(|_| linux::boot(&bench.kvm, ram, initrd));
    }
    let exit = bench.calls()?;
    bench.pages(&exit)?;
    bench.blocks(&exit)?;
    if protected {
        bench.shares()?;
        bench.teardown()?;
    }
    Ok(())
}

/// Of a protected VM: it knows pages only, which is what its blocks are made of.
const LENDING: &[Rows] = &[
    Rows { lend: "shim_lend_4k", reclaim: "shim_reclaim_4k", parts: PAGES_PER_BLOCK },
    Rows { lend: "shim_lend_2m", reclaim: "shim_reclaim_2m", parts: 1 },
];

/// Protected VMs.
struct Protected(Kvm);

impl Lender for Protected {
    type Vm = Vm;

    fn vm(&self, blocks: u64) -> Result<Vm> {
        Vm::new(&self.0, true, blocks, false)
    }

    fn end(&self, vm: Vm) -> Result<impl FnOnce() -> Result<()>> {
        let memory = vm.end();
        Ok(move || {
            drop(memory);
            Ok(())
        })
    }
}

/// What an exit that the host answers takes, on average.
struct Exit {
    el2: f64,
    all: f64,
}

const fn work(what: What, first: u64, stride: u64, count: u64) -> Work {
    Work::new(what, first, stride, count)
}

impl Bench {
    fn vm(&self, blocks: u64, large: bool) -> Result<Vm> {
        Vm::new(&self.kvm, self.protected, blocks, large)
    }

    /// What the counter counts around nothing.
    fn overhead(&mut self, vm: &mut Vm) -> Result<u64> {
        let done = run(vm, work(What::Nothing, 0, 0, 32), Telling::Each, &mut self.counters)?;
        done.ticks.iter().copied().min().context("no ticks")
    }

    /// EL2's part of some work: less that of `idle`, which takes the guest the
    /// same instructions and does not exit.
    fn el2(&mut self, vm: &mut Vm, work: Work, idle: Work) -> Result<(i64, u64)> {
        // An interrupt may come in any of them, and adds an exit.
        let mut nothing = i64::MAX;
        for _ in 0..3 {
            nothing = nothing.min(run(vm, idle, Telling::Done, &mut self.counters)?.el2);
        }
        let done = run(vm, work, Telling::Done, &mut self.counters)?;
        Ok((done.el2 - nothing, done.sum))
    }

    /// EL2's part of batches of calls.
    fn batches(&mut self, vm: &mut Vm, function: u64) -> Result<Vec<i64>> {
        let calls = work(What::Calls(function), 0, 0, BATCH);
        let idle = work(What::Nothing, 0, 0, BATCH);
        (0..BATCHES).map(|_| Ok(self.el2(vm, calls, idle)?.0)).collect()
    }

    /// EL2's part of touching pages for the first time, each of which is found to
    /// hold its address.
    fn touch(&mut self, vm: &mut Vm, at: u64, pages: u64) -> Result<i64> {
        // The first page of block 0 is touched first of all.
        let idle = work(What::Loads, block(0), 0, pages);
        let (el2, sum) = self.el2(vm, work(What::Loads, at, PAGE, pages), idle)?;
        ensure!(sum == addresses(at, pages), "the guest found {sum:#x} from {at:#x} on");
        Ok(el2)
    }

    /// Hypercalls: one that the host answers, and one that EL2 does.
    fn calls(&mut self) -> Result<Exit> {
        let mut vm = self.vm(0, false)?;
        let overhead = self.overhead(&mut vm)?;
        let calls = work(What::Calls(SMCCC_VERSION), 0, 0, 1000);
        let done = run(&mut vm, calls, Telling::Each, &mut self.counters)?;
        ensure!(done.sum == 1000 * 0x1_0001, "SMCCC_VERSION: {:#x}", done.sum);
        let all = Row::of_ticks("guest_exit_with_host", &done, overhead);
        all.print()?;
        let el2 = Row::new("guest_exit", BATCH, self.batches(&mut vm, SMCCC_VERSION)?);
        el2.print()?;
        if self.protected {
            let calls = work(What::Calls(HYP_MEMINFO), 0, 0, 1000);
            let done = run(&mut vm, calls, Telling::Each, &mut self.counters)?;
            ensure!(done.sum == 1000 * PAGE, "HYP_MEMINFO: {:#x}", done.sum);
            let row = Row::of_ticks("hvc_el2", &done, overhead);
            row.print()?;
            row.named("hvc_guest").print()?;
        } else {
            all.named("hvc_guest").print()?;
        }
        Ok(Exit { el2: el2.mean() / BATCH as f64, all: all.mean() })
    }

    /// Exits that the host answers: its kernel, or this program.
    fn exits(&mut self) -> Result<()> {
        let mut vm = self.vm(0, false)?;
        let overhead = self.overhead(&mut vm)?;
        let calls = work(What::Calls(SMCCC_VERSION), 0, 0, exits::COUNT);
        let done = run(&mut vm, calls, Telling::Each, &mut self.counters)?;
        ensure!(done.sum == exits::COUNT * 0x1_0001, "SMCCC_VERSION: {:#x}", done.sum);
        Row::of_ticks("exit_with_host", &done, overhead).print()?;
        exits::mmio_user(&mut vm, &mut self.counters)?.print()
    }

    /// Pages that the host has and the guest has not, touched one by one.
    fn pages(&mut self, exit: &Exit) -> Result<()> {
        let mut vm = self.vm(2, false)?;
        let overhead = self.overhead(&mut vm)?;
        // The first touch of a block brings its table.
        let first = |n| work(What::Loads, block(n), PAGE, 1);
        run(&mut vm, first(0), Telling::Done, &mut self.counters)?;
        run(&mut vm, first(1), Telling::Done, &mut self.counters)?;
        let loads = work(What::Loads, block(0) + PAGE, PAGE, PAGES);
        let done = run(&mut vm, loads, Telling::Each, &mut self.counters)?;
        ensure!(
            done.sum == addresses(block(0) + PAGE, PAGES),
            "the guest found {:#x} in its pages",
            done.sum
        );
        let all = Row::of_ticks("lend_4k_with_host", &done, overhead);
        all.print()?;
        if !self.protected {
            // What maps the page is the host.
            let exit = exit.all as i64;
            let samples = all.samples().iter().map(|s| s - exit).collect();
            return Row::new("lend_4k", 1, samples).print();
        }
        const GROUP: u64 = 8;
        let mut samples = Vec::new();
        for group in 0..PAGES / GROUP {
            let el2 = self.touch(&mut vm, block(1) + (1 + group * GROUP) * PAGE, GROUP)?;
            samples.push(el2 - (GROUP as f64 * exit.el2) as i64);
        }
        Row::new("lend_4k", GROUP, samples).print()
    }

    /// Whole blocks that the guest touches, all of each.
    fn blocks(&mut self, exit: &Exit) -> Result<()> {
        let mut vm = self.vm(BLOCKS + 1, true)?;
        let overhead = self.overhead(&mut vm)?;
        // The first finds fewer tables.
        run(
            &mut vm,
            work(What::Loads, block(0), PAGE, PAGES_PER_BLOCK),
            Telling::Done,
            &mut self.counters,
        )?;
        if !self.protected {
            // Of large pages, one touch maps the block.
            let loads = work(What::Loads, block(1), BLOCK, BLOCKS);
            let done = run(&mut vm, loads, Telling::Each, &mut self.counters)?;
            let all = Row::of_ticks("lend_2m_with_host", &done, overhead);
            all.print()?;
            let rest = self.touch(&mut vm, block(1), BLOCKS * PAGES_PER_BLOCK)?;
            ensure!((rest as f64) < 20.0 * exit.el2, "blocks were mapped in parts: {rest}");
            let samples = all.samples().iter().map(|s| s - exit.all as i64).collect();
            return Row::new("lend_2m", 1, samples).print();
        }
        let mut samples = Vec::new();
        for n in 1..=BLOCKS {
            let el2 = self.touch(&mut vm, block(n), PAGES_PER_BLOCK)?;
            samples.push(el2 - (PAGES_PER_BLOCK as f64 * exit.el2) as i64);
        }
        Row::new("lend_512x4k_per_page", PAGES_PER_BLOCK, samples.clone()).print()?;
        Row::new("lend_2m", 1, samples).print()
    }

    /// Pages that a protected guest opens to the host, and closes again.
    fn shares(&mut self) -> Result<()> {
        let mut vm = self.vm(1, false)?;
        let overhead = self.overhead(&mut vm)?;
        let at = block(0);
        run(&mut vm, work(What::Loads, at, PAGE, PAGES + 1), Telling::Done, &mut self.counters)?;
        for (name, function) in [("share_4k", MEM_SHARE), ("unshare_4k", MEM_UNSHARE)] {
            // The first call of a block divides something, perhaps.
            run(&mut vm, work(What::Calls(function), at, 0, 1), Telling::Done, &mut self.counters)?;
            let calls = work(What::Calls(function), at + PAGE, PAGE, PAGES);
            let done = run(&mut vm, calls, Telling::Each, &mut self.counters)?;
            ensure!(done.sum == 0, "{name}: {:#x}", done.sum);
            let row = Row::of_ticks(name, &done, overhead);
            row.print()?;
            if function == MEM_SHARE {
                // From the guest to the host, as Escrow's call of that name.
                row.named("share_back_4k").print()?;
            }
        }
        Ok(())
    }

    /// The end of a protected VM: EL2 gives its pages back, zeroed.
    fn teardown(&mut self) -> Result<()> {
        let mut end = |blocks| -> Result<i64> {
            let mut vm = self.vm(BLOCKS, false)?;
            let loads = work(What::Loads, block(0), PAGE, blocks * PAGES_PER_BLOCK);
            run(&mut vm, loads, Telling::Done, &mut self.counters)?;
            let before = self.counters.el2()?;
            drop(vm);
            Ok(self.counters.el2()? - before)
        };
        let mut samples = Vec::new();
        for _ in 0..4 {
            let few = end(1)?;
            samples.push((end(BLOCKS)? - few) / (BLOCKS - 1) as i64);
        }
        Row::new("reclaim_4k", PAGES_PER_BLOCK, samples.clone()).print()?;
        Row::new("reclaim_2m", 1, samples).print()
    }
}

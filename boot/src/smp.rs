// SPDX-License-Identifier: MIT OR Apache-2.0

//! The machine's CPUs, and what the host asks of the firmware about them: PSCI
//! (Arm DEN0022).
//!
//! The host's calls that make a CPU run somewhere are made to the firmware
//! with Escrow's own entry in place of the host's, so that every CPU is under
//! Escrow before its first instruction at EL1.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::iter;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicU64, Ordering};

use aarch64_cpu::registers::{CNTFRQ_EL0, CNTPCT_EL0, MPIDR_EL1, Readable};
use escrow_aarch64::{
    Cpu as Identity, Firmware, Hardware, NoRuns, PerCpu, Promise, enter_host, identify, init_cpu,
    smc,
};
use escrow_abi::{call, psci};
use escrow_core::hypervisor::Hypervisor;
use escrow_core::psci::PsciCall;
use escrow_platform::board::{Cpu, MPIDR_AFFINITY};
use escrow_platform::range::Range;
use spin::mutex::TicketMutex;

use crate::gic::Redistributors;
use crate::host::clean;
use crate::memory::Stacks;
use crate::mmu::CpuStart;

/// Off, or on its way there: it will not run the host any more.
const OFF: u8 = 0;
/// The firmware was asked to switch it on, and it has not arrived yet.
const STARTING: u8 = 1;
/// Runs the host.
const ON: u8 = 2;
/// The firmware was asked to switch it on for it to say what it has.
const ASKED: u8 = 3;
/// It has said so, and switches itself off.
const ANSWERED: u8 = 4;

/// In the argument of a CPU that is only to say what it has.
const PROBE: u64 = 1 << 63;

/// PSCI 1.1, whose calls are the ones that Escrow knows.
const NEWEST_VERSION: u64 = 1 << 16 | 1;
/// CPU_SUSPEND's feature flag for OS-initiated mode. It needs a call to switch
/// it on that Escrow does not have.
const OS_INITIATED: u64 = 1 << 0;
/// How long boot waits for the other CPUs to say what they have, all together.
const ASK_PATIENCE_SECONDS: u64 = 1;
/// AFFINITY_INFO's answer for a CPU that is off.
const AFFINITY_OFF: u64 = 1;
/// How long the end of the machine waits for guests on other CPUs, and after that for these CPUs
/// to leave EL2. The host's timer interrupts ask each of them many times in a second.
const END_PATIENCE_SECONDS: u64 = 2;

/// The calling CPU's affinity, as [`Cpu::mpidr`] has it.
pub fn this_cpu() -> u64 {
    MPIDR_EL1.get() & MPIDR_AFFINITY
}

/// The data that Escrow keeps for each CPU. Aligned so that cleaning the part that is read
/// with caches off touches nothing else.
#[repr(C, align(256))]
pub struct CpuSlot {
    /// What `secondary_entry` reads, with its caches off. First, so that its
    /// address is the slot's.
    start: CpuStart,
    /// The same for a CPU that is only to say what it has.
    probe: CpuStart,
    index: u32,
    mpidr: u64,
    data: NonNull<PerCpu>,
    /// Where its redistributor is mapped, or 0.
    redistributor: u64,
    state: AtomicU8,
    /// What it said at boot of its features.
    identity: TicketMutex<Option<Identity>>,
    /// Where the CPU enters the host, and what it finds in `x0`.
    entry: AtomicU64,
    context: AtomicU64,
}

const _: () = assert!(core::mem::offset_of!(CpuSlot, start) == 0);

/// All CPUs.
pub struct Cpus {
    slots: &'static [CpuSlot],
    hypervisor: &'static Hypervisor<Hardware>,
    /// What the host and EL2 rely on: no CPU may have less.
    promise: Promise,
}

// SAFETY: of a slot, only the atomics and what has a lock change after
// `Slots::new`; `data` is used by its own CPU only.
unsafe impl Sync for CpuSlot {}

/// The slots of all CPUs, before there is a hypervisor.
#[derive(Clone, Copy)]
pub struct Slots(&'static [CpuSlot]);

/// The slots, for secondary CPUs to find their own.
static SLOTS: AtomicPtr<Slots> = AtomicPtr::new(ptr::null_mut());

/// The CPUs under a hypervisor: what secondary CPUs run the host by.
static CPUS: AtomicPtr<Cpus> = AtomicPtr::new(ptr::null_mut());

/// Bytes that [`Slots::new`] and [`Cpus::new`] take from the boot pool, for each
/// value.
pub fn allocations(cpus: usize) -> impl Iterator<Item = usize> {
    [size_of::<Cpus>(), size_of::<Slots>(), size_of::<CpuSlot>() * cpus]
        .into_iter()
        .chain(iter::repeat_n(size_of::<PerCpu>(), cpus))
}

impl Slots {
    /// Makes a slot for each CPU; the calling one is on. `None` if it is not
    /// among them. A CPU without a redistributor in the tree runs no guest with a GIC well: the
    /// timers of these interrupt nobody there, should the host have disabled their interrupt.
    pub fn new(
        stacks: &Stacks,
        cpus: &[Cpu],
        start: &CpuStart,
        redistributors: &Redistributors,
    ) -> Option<Slots> {
        cpus.iter().find(|cpu| cpu.mpidr == this_cpu())?;
        let mut slots = Vec::with_capacity(cpus.len());
        for (index, cpu) in cpus.iter().enumerate() {
            // Each CPU writes the rest of its own before it uses it.
            let data = NonNull::from(Box::leak(Box::<PerCpu>::new_uninit())).cast();
            let [stack, run_stack] = stacks.tops(index)?;
            // SAFETY: fresh memory, and the CPU's own stacks.
            unsafe { PerCpu::set_aside(data, stack, run_stack) };
            slots.push(CpuSlot {
                start: start.with(stack, index as u64),
                probe: start.with(stack, index as u64 | PROBE),
                index: index as u32,
                mpidr: cpu.mpidr,
                data,
                redistributor: redistributors.of(cpu.mpidr).unwrap_or(0),
                state: AtomicU8::new(if cpu.mpidr == this_cpu() { ON } else { OFF }),
                identity: TicketMutex::new(None),
                entry: AtomicU64::new(0),
                context: AtomicU64::new(0),
            });
        }
        let slots: &'static [CpuSlot] = slots.leak();
        let base = slots.as_ptr().expose_provenance() as u64;
        clean(Range::new(base, base + size_of_val(slots) as u64));
        let all: &'static Slots = Box::leak(Box::new(Slots(slots)));
        SLOTS.store(ptr::from_ref(all).cast_mut(), Ordering::Release);
        Some(*all)
    }

    /// What all CPUs have in common. `own` is the calling CPU's part.
    ///
    /// The host starts the others itself, but what it is to see of the CPUs must
    /// be known before it runs. So each is switched on once, says what it has,
    /// and switches itself off again. A CPU that does not come is left alone: the
    /// host may still start it, and if it then lacks what was promised, it is
    /// refused.
    pub fn ask(self, own: &Identity) -> Promise {
        let others = || self.0.iter().filter(|slot| slot.mpidr != this_cpu());
        for slot in others() {
            slot.state.store(ASKED, Ordering::Release);
            let call =
                [psci::CPU_ON_64.into(), slot.mpidr, secondary_entry(), slot.probe_address()];
            let answer = firmware(call);
            if answer != psci::SUCCESS {
                log::warn!(
                    "CPU {}: the firmware does not start it ({})",
                    slot.index,
                    answer as i64
                );
                slot.state.store(OFF, Ordering::Relaxed);
            }
        }
        let begin = CNTPCT_EL0.get();
        let limit = CNTFRQ_EL0.get() * ASK_PATIENCE_SECONDS;
        let in_time = || CNTPCT_EL0.get().wrapping_sub(begin) <= limit;
        let mut promise = Promise::of(own);
        for slot in others().filter(|slot| slot.state.load(Ordering::Relaxed) != OFF) {
            while slot.state.load(Ordering::Acquire) == ASKED && in_time() {
                core::hint::spin_loop();
            }
            // Until it is off, the firmware would not start it for the host.
            let is_off = || {
                let call = [psci::AFFINITY_INFO_64.into(), slot.mpidr, 0, 0];
                firmware(call) == AFFINITY_OFF
            };
            while slot.state.load(Ordering::Acquire) == ANSWERED && !is_off() && in_time() {
                core::hint::spin_loop();
            }
            slot.state.store(OFF, Ordering::Relaxed);
            match *slot.identity.lock() {
                Some(identity) => match identity.check() {
                    Ok(()) => promise = promise.and(&identity),
                    Err(why) => log::error!("CPU {} will not be used: {why}", slot.index),
                },
                None => log::warn!("CPU {} does not say what it has", slot.index),
            }
        }
        promise
    }
}

impl CpuSlot {
    /// Says what the calling CPU has, and switches it off.
    fn answer(&self) -> ! {
        *self.identity.lock() = Some(identify());
        // Boot may have given up waiting.
        let _ = self.state.compare_exchange(ASKED, ANSWERED, Ordering::Release, Ordering::Relaxed);
        firmware([psci::CPU_OFF.into(), 0, 0, 0]);
        crate::console::halt()
    }
}

impl Cpus {
    /// All CPUs, under a hypervisor.
    pub fn new(
        slots: Slots,
        hypervisor: &'static Hypervisor<Hardware>,
        promise: Promise,
    ) -> &'static Cpus {
        let all: &'static Cpus = Box::leak(Box::new(Cpus { slots: slots.0, hypervisor, promise }));
        CPUS.store(ptr::from_ref(all).cast_mut(), Ordering::Release);
        all
    }

    /// Brings the calling CPU under Escrow and has it run the host at `entry`
    /// with `context` in `x0`.
    ///
    /// # Safety
    ///
    /// The slot is the calling CPU's, whose stack holds nothing that is still
    /// in use, and the machine is set up.
    unsafe fn run_host(&self, slot: &CpuSlot, identity: &Identity, entry: u64, context: u64) -> ! {
        let mpidr = MPIDR_EL1.get();
        let features = self.promise.features;
        // SAFETY: `data` was set aside for this CPU, which does not run the
        // host yet, so nothing else has a reference to it.
        unsafe {
            PerCpu::place(slot.data, slot.index, mpidr, features, slot.redistributor);
            match init_cpu(slot.data, self.hypervisor, identity) {
                Ok(()) => enter_host(entry, [context, 0, 0, 0]),
                Err(error) => {
                    self.hypervisor.cpu_stopped();
                    self.refuse(slot, error)
                }
            }
        }
    }

    /// Has the boot CPU run the host.
    ///
    /// # Safety
    ///
    /// Only the boot CPU calls this, once, with the machine set up.
    pub unsafe fn start_host(&self, entry: u64, tree: u64) -> ! {
        self.hypervisor.cpu_started();
        match self.slot(this_cpu()) {
            // SAFETY: as the caller says.
            Some(slot) => unsafe { self.run_host(slot, &identify(), entry, tree) },
            None => crate::console::halt(),
        }
    }

    /// Switches the calling CPU off, and says why.
    fn refuse(&self, slot: &CpuSlot, why: impl fmt::Display) -> ! {
        log::error!("CPU {} is not used: {why}", slot.index);
        slot.state.store(OFF, Ordering::Release);
        firmware([psci::CPU_OFF.into(), 0, 0, 0]);
        crate::console::halt()
    }

    fn slot(&self, mpidr: u64) -> Option<&CpuSlot> {
        self.slots.iter().find(|slot| slot.mpidr == mpidr)
    }

    fn own_slot(&self, cpu: &PerCpu) -> Option<&CpuSlot> {
        self.slots.get(cpu.index() as usize)
    }

    fn cpu_on(&self, target: u64, entry: u64, context: u64) -> u64 {
        let Some(slot) = self.slot(target) else { return psci::INVALID_PARAMETERS };
        match slot.state.compare_exchange(OFF, STARTING, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => {}
            Err(STARTING) => return psci::ON_PENDING,
            Err(_) => return psci::ALREADY_ON,
        }
        slot.entry.store(entry, Ordering::Relaxed);
        slot.context.store(context, Ordering::Relaxed);
        let answer = firmware([psci::CPU_ON_64.into(), target, secondary_entry(), slot.address()]);
        if answer != psci::SUCCESS {
            slot.state.store(OFF, Ordering::Release);
        }
        answer
    }

    fn cpu_off(&self, slot: &CpuSlot) -> u64 {
        self.hypervisor.cpu_stopped();
        // From here on another CPU may ask for this one. The firmware refuses
        // as long as it is not off.
        slot.state.store(OFF, Ordering::Release);
        let answer = firmware([psci::CPU_OFF.into(), 0, 0, 0]);
        // The firmware has not switched it off. Another CPU that asked for it meanwhile is refused, as
        // it is on; until that one has gone, `entry` and `context` are its own to write.
        let back = || slot.state.compare_exchange(OFF, ON, Ordering::Acquire, Ordering::Relaxed);
        while back().is_err() {
            core::hint::spin_loop();
        }
        self.hypervisor.cpu_started();
        answer
    }

    /// Makes a call that comes back here if the CPU only slept lightly, and at
    /// `secondary_entry` if it lost its state.
    fn suspend(&self, slot: &CpuSlot, call: [u64; 2], entry: u64, context: u64) -> u64 {
        // The CPU is on, so nobody else writes these.
        slot.entry.store(entry, Ordering::Relaxed);
        slot.context.store(context, Ordering::Relaxed);
        let [function, argument] = call;
        if function == u64::from(psci::CPU_SUSPEND_64) {
            firmware([function, argument, secondary_entry(), slot.address()])
        } else {
            firmware([function, secondary_entry(), slot.address(), 0])
        }
    }
}

impl Cpus {
    /// Ends the machine by a call to the firmware, after what guests had in
    /// memory is gone. Guests on other CPUs leave at their next interrupt; if
    /// one does not, the machine goes on: that guest's memory could be read after a reset.
    ///
    /// One CPU ends the machine at a time; another one that asks for it meanwhile
    /// is refused, and waits for nothing.
    fn end(&self, call: [u64; 4]) -> u64 {
        // VMs may be created again when this is dropped, however that comes.
        let Some(closed) = self.hypervisor.close() else { return psci::INTERNAL_FAILURE };
        if !in_time(|| closed.scrub().is_ok()) {
            log::error!("a guest still runs on another CPU: the machine goes on");
            return psci::INTERNAL_FAILURE;
        }
        // What EL2 has of them. No run begins any more, so CPUs leave it soon: from now on, for
        // zeroing may have taken long.
        let runs = NoRuns::begin();
        if !in_time(|| runs.wipe()) {
            log::error!("a CPU does not leave EL2: the machine goes on");
            return psci::INTERNAL_FAILURE;
        }
        #[cfg(feature = "trace")]
        crate::console::dump_trace();
        firmware(call)
    }
}

/// Tries something until it is done, for [`END_PATIENCE_SECONDS`] at the most. Whether it is.
fn in_time(mut try_it: impl FnMut() -> bool) -> bool {
    let begin = CNTPCT_EL0.get();
    let limit = CNTFRQ_EL0.get() * END_PATIENCE_SECONDS;
    while !try_it() {
        if CNTPCT_EL0.get().wrapping_sub(begin) > limit {
            return false;
        }
        core::hint::spin_loop();
    }
    true
}

impl CpuSlot {
    /// What `secondary_entry` gets in `x0`.
    fn address(&self) -> u64 {
        core::ptr::from_ref(self).expose_provenance() as u64
    }

    /// The same, if it is only to say what it has.
    fn probe_address(&self) -> u64 {
        core::ptr::from_ref(&self.probe).expose_provenance() as u64
    }
}

/// Makes a call to the firmware that starts CPUs, if any, at `secondary_entry`.
fn firmware([function, x1, x2, x3]: [u64; 4]) -> u64 {
    // What was stored for the other CPU is visible before it can run (Arm ARM,
    // "Data Synchronization Barrier").
    aarch64_cpu::asm::barrier::dsb(aarch64_cpu::asm::barrier::SY);
    // SAFETY: PSCI calls with Escrow's own entry, or none; CPUs that they stop
    // hold nothing that another one waits for.
    let [answer, ..] = unsafe { smc([function, x1, x2, x3, 0, 0, 0, 0]) };
    answer
}

fn secondary_entry() -> u64 {
    unsafe extern "C" {
        fn secondary_entry();
    }
    (secondary_entry as *const ()).addr() as u64
}

impl Firmware for Cpus {
    fn psci(&self, cpu: &PerCpu, call: PsciCall) -> u64 {
        let Some(slot) = self.own_slot(cpu) else { return psci::INTERNAL_FAILURE };
        match call {
            PsciCall::Version => firmware([psci::VERSION.into(), 0, 0, 0]).min(NEWEST_VERSION),
            PsciCall::CpuOn { target, entry, context } => self.cpu_on(target, entry, context),
            PsciCall::CpuOff => self.cpu_off(slot),
            PsciCall::CpuSuspend { state, entry, context } => {
                let call = [psci::CPU_SUSPEND_64.into(), state.into()];
                self.suspend(slot, call, entry, context)
            }
            PsciCall::SystemSuspend { entry, context } => {
                self.suspend(slot, [psci::SYSTEM_SUSPEND_64.into(), 0], entry, context)
            }
            PsciCall::AffinityInfo { target, level } => {
                firmware([psci::AFFINITY_INFO_64.into(), target, level.into(), 0])
            }
            PsciCall::MigrateInfoType => firmware([psci::MIGRATE_INFO_TYPE.into(), 0, 0, 0]),
            PsciCall::SystemOff => self.end([psci::SYSTEM_OFF.into(), 0, 0, 0]),
            PsciCall::SystemReset => self.end([psci::SYSTEM_RESET.into(), 0, 0, 0]),
            PsciCall::SystemReset2 { kind, cookie } => {
                self.end([psci::SYSTEM_RESET2_64.into(), kind.into(), cookie, 0])
            }
            PsciCall::Features { function } => features(function),
        }
    }
}

fn features(function: u32) -> u64 {
    let known =
        function == call::SMCCC_VERSION || PsciCall::decode(&[function.into(), 0, 0, 0]).is_some();
    if !known {
        return psci::NOT_SUPPORTED;
    }
    let answer = firmware([psci::FEATURES.into(), function.into(), 0, 0]);
    let suspend = [psci::CPU_SUSPEND_32, psci::CPU_SUSPEND_64].contains(&function);
    // Negative answers, in 32 or 64 bits, are errors.
    if suspend && (answer as i32) >= 0 { answer & !OS_INITIATED } else { answer }
}

/// A secondary CPU, or one that comes back from a deep sleep; called by
/// `entry.S` with what [`CpuStart::argument`] holds.
///
/// # Safety
///
/// Only `entry.S` calls this, on the CPU with this index.
#[unsafe(no_mangle)]
unsafe extern "C" fn secondary_main(index: u64) -> ! {
    escrow_aarch64::install_vectors();
    // SAFETY: null, or what `Slots::new` leaked, which is not written to.
    let slots = unsafe { SLOTS.load(Ordering::Acquire).as_ref() };
    let Some(slot) = slots.and_then(|slots| slots.0.get((index & !PROBE) as usize)) else {
        crate::console::halt()
    };
    // What it was started for says the argument, not `state`: one that comes too late may find
    // that the host has asked for it meanwhile, and was told that it is on.
    if index & PROBE != 0 {
        slot.answer();
    }
    // SAFETY: null, or what `Cpus::new` leaked, which is not written to.
    let Some(cpus) = (unsafe { CPUS.load(Ordering::Acquire).as_ref() }) else {
        crate::console::halt()
    };
    let (entry, context) =
        (slot.entry.load(Ordering::Relaxed), slot.context.load(Ordering::Relaxed));
    let resumed = slot.state.load(Ordering::Relaxed) == ON;
    let identity = identify();
    if let Err(why) = cpus.promise.is_kept_by(&identity) {
        if resumed {
            cpus.hypervisor.cpu_stopped();
        }
        cpus.refuse(slot, why);
    }
    if !resumed {
        cpus.hypervisor.cpu_started();
        log::debug!("CPU {} enters the host at {entry:#x}", slot.index);
        slot.state.store(ON, Ordering::Release);
    }
    // SAFETY: this CPU has just arrived on its own stack.
    unsafe { cpus.run_host(slot, &identity, entry, context) }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! The machine half of `escrow-core`'s [`Machine`]: access to memory, which EL2 maps at its
//! physical address, and TLB and cache maintenance.

use core::arch::asm;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use aarch64_cpu::asm::barrier;
use escrow_abi::PAGE_SIZE;
use escrow_abi::errata::Hardening;
use escrow_core::addr::{Ipa, PhysAddr};
use escrow_core::errata::Errata;
use escrow_core::hypervisor::{GUEST_ADDRESS_BITS, Hypervisor};
#[cfg(feature = "trace")]
use escrow_core::machine::Note;
use escrow_core::machine::{Machine, MemoryError, Table};
use escrow_core::stage2::{
    BankPage, FreePage, Stage2Context, Stage2Features, TablePage, TimePage, VcpuPage,
};
#[cfg(feature = "trace")]
use escrow_core::stage2::{Descriptor, DescriptorCell};
use escrow_core::vcpu::{GuestIds, Vcpu, VcpuCell, VcpuContents};
use escrow_core::vgic;

use crate::features::Promise;
use crate::host::Firmware;
use crate::random::Source;
use crate::sysreg::{CNTFRQ_EL0, CNTPCT_EL0, ISR_EL1, VTCR_EL2, VTTBR_EL2};
use crate::trace::{self, Event};
use crate::walks::Walks;
use crate::window::{El2Tables, Windows, Zeroing};

/// What the exception handlers use.
pub struct Installed {
    /// The hypervisor.
    pub hypervisor: &'static Hypervisor<Hardware>,
    /// The firmware, through the boot code.
    pub firmware: &'static dyn Firmware,
}

static INSTALLED: AtomicPtr<Installed> = AtomicPtr::new(ptr::null_mut());

/// Sets what the exception handlers use. To be called before the
/// host is entered on any CPU.
pub fn install(installed: &'static Installed) {
    INSTALLED.store(ptr::from_ref(installed).cast_mut(), Ordering::Release);
}

/// What was installed.
#[inline(always)]
pub(crate) fn installed() -> Option<&'static Installed> {
    // SAFETY: null, or what `install` was given, which is never written to.
    unsafe { INSTALLED.load(Ordering::Acquire).as_ref() }
}

/// The CPU's memory system.
#[derive(Debug)]
pub struct Hardware {
    zeroing: Zeroing,
    /// Caches have to be cleaned for memory that is given to a guest. Not so with FEAT_S2FWB on CPUs
    /// where instruction fetches are coherent with data caches (`CTR_EL0.IDC` and `DIC`).
    needs_clean: bool,
    /// Instruction caches need not be invalidated (`CTR_EL0.DIC`).
    fetch_sees_writes: bool,
    /// FEAT_TLBIRANGE.
    tlb_ranges: bool,
    /// The errata of all CPUs that have run a VM ([`Errata`]), and their mitigations of speculation
    /// at entry to EL2.
    errata: AtomicU32,
    hardening: AtomicU32,
    /// The features that all CPUs have.
    pub(crate) promise: Promise,
    /// EL2's own map.
    pub(crate) windows: Windows,
    /// What guests read of the CPU.
    pub(crate) guest_ids: GuestIds,
    /// Where their random numbers come from.
    random: Source,
}

/// Issues a TLB maintenance instruction, and records it in the trace.
macro_rules! tlbi {
    ($event:expr, $operation:literal $(, $argument:expr)?) => {
        trace::event(|| $event);
        // SAFETY: removes cached translations only, of EL1&0.
        unsafe {
            asm!(
                concat!($operation, $(tlbi!(@ $argument),)?),
                $(in(reg) $argument,)?
                options(nostack, preserves_flags),
            )
        }
    };
    (@ $argument:expr) => { ", {}" };
}

/// Makes stores visible to table walkers.
#[inline(always)]
fn dsb_ishst() {
    barrier::dsb(barrier::ISHST);
    trace::event(|| Event::DsbIshst);
}

/// Waits for stores and TLB maintenance, on all CPUs.
#[inline(always)]
fn dsb_ish() {
    barrier::dsb(barrier::ISH);
    trace::event(|| Event::DsbIsh);
}

/// Makes writes of system registers, and maintenance that is complete, effective for the next
/// instructions.
#[inline(always)]
fn isb() {
    barrier::isb(barrier::SY);
    trace::event(|| Event::Isb);
}

impl Hardware {
    /// The machine whose CPUs have these features, with EL2's tables.
    pub fn new(promise: &Promise, tables: El2Tables) -> Hardware {
        let features = &promise.features;
        Hardware {
            zeroing: Zeroing::new(features),
            needs_clean: !(features.stage2.force_write_back && features.idc && features.dic),
            fetch_sees_writes: features.dic,
            windows: Windows::new(tables),
            tlb_ranges: features.tlb_ranges,
            errata: AtomicU32::new(0),
            hardening: AtomicU32::new(0),
            promise: *promise,
            guest_ids: GuestIds::of(
                &promise.guest,
                features.stage2.pa_bits.min(GUEST_ADDRESS_BITS),
            ),
            random: Source::find(promise),
        }
    }

    /// The stage-2 features of all CPUs.
    pub fn stage2(&self) -> Stage2Features {
        self.promise.features.stage2
    }

    /// Invalidates stage-2 TLB entries of a range of IPAs, of the VM that `VTTBR_EL2` selects;
    /// complete with the next DSB.
    #[inline(always)]
    fn invalidate_stage2(&self, base: Ipa, size: u64) {
        let page = base.0 >> 12;
        let pages = size / PAGE_SIZE;
        if pages == 1 {
            tlbi!(Event::TlbiIpas2e1is { ipa: base.0, size }, "tlbi ipas2e1is", page);
        } else if self.tlb_ranges && pages <= 32 * 64 {
            // RIPAS2E1IS covers (NUM + 1) * 2^(5 * SCALE + 1) pages. Entries after the range
            // may be invalidated as well: they are walked again.
            let (scale, unit) = if pages <= 64 { (0, 2) } else { (1, 64) };
            let num = pages.div_ceil(unit) - 1;
            // TG in bits 47:46: 4 KiB; SCALE in 45:44, NUM in 43:39.
            let operand = page | 1 << 46 | scale << 44 | num << 39;
            tlbi!(Event::TlbiIpas2e1is { ipa: base.0, size }, "sys #4, c8, c0, #2", operand);
        } else if pages <= 16 {
            for page in page..page + pages {
                let ipa = page << 12;
                tlbi!(Event::TlbiIpas2e1is { ipa, size: PAGE_SIZE }, "tlbi ipas2e1is", page);
            }
        } else {
            // The range may have been mapped by pages before it became a block, and an
            // invalidation by address removes one page's entry only.
            tlbi!(Event::TlbiVmalls12e1is, "tlbi vmalls12e1is");
        }
    }

    /// Notes the errata of a CPU that is about to run VMs, for the first time or again. Returns whether any
    /// of them is new.
    pub(crate) fn meet(&self, errata: Errata, hardening: Hardening) -> bool {
        let old = self.errata.fetch_or(errata.bits(), Ordering::Relaxed);
        let bit = hardening.bit() as u32;
        let known = self.hardening.fetch_or(bit, Ordering::Relaxed) & bit != 0;
        // Before any access of this CPU that is translated by EL1's tables: see `finish`.
        barrier::dsb(barrier::ISH);
        if errata.has(Errata::REPEAT_TLBI) {
            trace::event(|| Event::RepeatTlbi);
        }
        if errata.has(Errata::SPECULATIVE_AT) {
            trace::event(|| Event::SpeculativeAt);
        }
        !known || errata.bits() & !old != 0
    }

    /// Waits until the stage-2 `TLBI`s that this CPU has issued are complete on all CPUs. Every
    /// invalidation ends here. Afterwards no access is in progress that used a removed
    /// entry (DDI 0487, "Completion and completeness of TLB maintenance instructions").
    ///
    /// If a CPU has [`Errata::REPEAT_TLBI`], a store of that CPU may still be in progress after the
    /// `DSB`. It is complete after another `TLBI`, of any address, and a `DSB`. The one here
    /// is for address 0 of EL2's own translation, which is not mapped.
    ///
    /// The repetition is needed if *any* CPU has the erratum. A CPU that starts meanwhile sets
    /// the bit, executes a `DSB`, and only then walks EL1's tables, with empty TLBs
    /// ([`init_cpu`](crate::init_cpu)). Here the descriptor is made invalid, a `DSB`
    /// is executed, and only then is the bit read. So if the bit is still clear here, that CPU's
    /// walks read the invalid descriptor.
    #[inline(always)]
    pub(crate) fn finish(&self) {
        dsb_ish();
        if self.errata().has(Errata::REPEAT_TLBI) {
            tlbi!(Event::TlbiVae2is, "tlbi vae2is, xzr");
            dsb_ish();
        }
        isb();
    }

    /// Selects a VM in `VTTBR_EL2`, for TLB maintenance under its VMID, unless it is selected already.
    /// Returns what [`Self::exit_vmid_context`] restores. Two functions, not one with a closure: the compiler
    /// would not inline the closure.
    #[inline(always)]
    fn enter_vmid_context(&self, context: &Stage2Context) -> Option<SavedContext> {
        let is_there = VTTBR_EL2::read() == context.vttbr;
        if is_there { None } else { Some(self.switch_context(context)) }
    }

    #[inline(always)]
    fn exit_vmid_context(&self, saved: Option<SavedContext>) {
        if let Some((own, walks)) = saved {
            restore_context(&own, walks);
        }
    }

    /// Selects a VM that is not the one whose EL1 registers are in the CPU. Returns what to restore.
    #[cold]
    #[inline(never)]
    fn switch_context(&self, context: &Stage2Context) -> SavedContext {
        let own = Stage2Context { vttbr: VTTBR_EL2::read(), vtcr: VTCR_EL2::read() };
        finish_walks();
        let walks = self.errata().has(Errata::SPECULATIVE_AT).then(Walks::hold);
        set_context(context);
        (own, walks)
    }
}

/// The context that was in `VTTBR_EL2`, and how to allow its table walks again.
type SavedContext = (Stage2Context, Option<Walks>);

#[cold]
#[inline(never)]
fn restore_context(own: &Stage2Context, walks: Option<Walks>) {
    set_context(own);
    if let Some(walks) = walks {
        walks.resume();
    }
}

/// Waits for walks of EL1&0 that began before the exception to EL2, which may continue at EL2. To be
/// called before the registers of the EL1&0 translation change: such a walk could use old and new
/// values mixed (DDI 0487, R_LFHQG).
#[inline(always)]
pub(crate) fn finish_walks() {
    barrier::dsb(barrier::NSH);
}

/// What is in a vCPU's page.
#[inline(always)]
fn contents_of<'a>(page: VcpuPage) -> &'a VcpuContents {
    // SAFETY: a `VcpuPage` is made by `place_vcpu` alone, and core looks at it as long
    // as the VM lives; the locks and atomics in the contents order what follows.
    unsafe { &*(page.address().0 as *const VcpuContents) }
}

/// Points `VTTBR_EL2` and `VTCR_EL2` at a VM.
fn set_context(context: &Stage2Context) {
    VTCR_EL2::write(context.vtcr);
    VTTBR_EL2::write(context.vttbr);
    trace::event(|| Event::Vttbr(context.vttbr));
    // TLB maintenance uses the VMID that is in force (DDI 0487, "Scope of
    // the A64 TLB maintenance instructions"): the write has to be.
    isb();
}

impl Machine for Hardware {
    #[inline]
    fn table(&self, page: TablePage) -> &Table {
        // SAFETY: a `TablePage` is a page that core holds as a table, whose entries are
        // accessed as atomics only. It is mapped at EL2 under its own address: as long as it
        // is metadata, during which alone a VM's map leads to it; or for ever, as Escrow's
        // memory of boot.
        unsafe { &*(page.address().0 as *const Table) }
    }

    fn place_vcpu(&self, page: &FreePage, vcpu: Vcpu) {
        // SAFETY: a `FreePage` is Escrow's and not in use, and there is one of each; the contents
        // fit (it is asserted where `VcpuContents` is defined).
        unsafe { ptr::write(page.address().0 as *mut VcpuContents, VcpuContents::new(vcpu)) };
    }

    #[inline(always)]
    fn vcpu(&self, page: VcpuPage) -> &VcpuCell {
        &contents_of(page).cell
    }

    #[inline(always)]
    fn vcpu_interrupts(&self, page: VcpuPage) -> &vgic::Cpu {
        &contents_of(page).interrupts
    }

    fn place_bank(&self, page: &FreePage, bank: vgic::Bank) {
        // SAFETY: a `FreePage` is Escrow's and not in use, and there is one of each; a bank
        // fits (it is asserted where `Bank` is defined).
        unsafe { ptr::write(page.address().0 as *mut vgic::Bank, bank) };
    }

    #[inline(always)]
    fn bank(&self, page: BankPage) -> &vgic::Bank {
        // SAFETY: a `BankPage` is made by `place_bank` alone, and core looks at it as long
        // as the VM lives; the lock in the bank orders what follows.
        unsafe { &*(page.address().0 as *const vgic::Bank) }
    }

    fn interrupt_cpu(&self, affinity: u32) {
        crate::vgic::interrupt(affinity);
    }

    #[inline(always)]
    fn read_entry(&self, at: PhysAddr) -> Result<[u64; 4], MemoryError> {
        self.windows.read_entry(at)
    }

    fn write_entry(&self, at: PhysAddr, words: [u64; 4]) -> Result<(), MemoryError> {
        self.windows.write_entry(at, words)
    }

    #[inline(always)]
    fn read_entries(&self, at: PhysAddr, entries: &mut [[u64; 4]]) -> usize {
        self.windows.read_entries(at, entries)
    }

    fn map_metadata(&self, page: PhysAddr) {
        self.windows.map(page);
    }

    fn unmap_metadata(&self, at: PhysAddr, size: u64) {
        self.windows.unmap(at, size);
        self.finish();
    }

    #[cfg(feature = "trace")]
    fn write_descriptor(&self, slot: &DescriptorCell, to: Descriptor) {
        trace::write_descriptor(slot, to);
    }

    #[cfg(feature = "trace")]
    fn note<'a>(&self, note: impl FnOnce() -> Note<'a>) {
        trace::event(|| Event::Note(note()));
    }

    fn each_mapped(&self, f: &mut dyn FnMut(PhysAddr, u64)) {
        self.windows.each_mapped(f);
    }

    fn zero(&self, at: PhysAddr, size: u64) -> Result<(), MemoryError> {
        trace::event(|| Event::Zero { at: at.0, size });
        // Cleaned also with FEAT_S2FWB: the host's stage 2 does not force cacheability, and the
        // host could map the page non-cacheable and read the old contents from memory.
        let result = self.windows.zero(at, size, &self.zeroing);
        trace::event(|| Event::DsbSy);
        result
    }

    #[inline(always)]
    fn needs_clean(&self) -> bool {
        self.needs_clean
    }

    fn clean_to_poc(&self, at: PhysAddr, size: u64) -> Result<(), MemoryError> {
        let result = self.windows.clean(at, size, &self.zeroing);
        trace::event(|| Event::DsbSy);
        result
    }

    fn sync_fetches(&self) {
        if !self.fetch_sees_writes {
            // What was written may be instructions to its next user (DDI 0487,
            // B2.7.4.2 "Synchronization and coherency issues between data and
            // instruction accesses").
            // SAFETY: invalidating instruction caches loses nothing.
            unsafe { asm!("ic ialluis", options(nostack, preserves_flags)) };
            dsb_ish();
        }
    }

    #[inline(always)]
    fn interrupt_pending(&self) -> bool {
        // At EL2 it has the pending physical interrupts and SErrors, also those that PSTATE masks
        // (DDI 0487, "ISR_EL1").
        ISR_EL1::read() != 0
    }

    fn read_device(&self, at: PhysAddr, size: u64) -> u64 {
        // SAFETY: core names registers of devices that were mapped at EL2 for it, and
        // accesses that they take; `at` is a multiple of `size`. The instructions are
        // those that the host would have used.
        unsafe {
            match size {
                1 => ptr::read_volatile(at.0 as *const u8).into(),
                2 => ptr::read_volatile(at.0 as *const u16).into(),
                4 => ptr::read_volatile(at.0 as *const u32).into(),
                _ => ptr::read_volatile(at.0 as *const u64),
            }
        }
    }

    fn write_device(&self, at: PhysAddr, size: u64, value: u64) {
        // SAFETY: as for `read_device`.
        unsafe {
            match size {
                1 => ptr::write_volatile(at.0 as *mut u8, value as u8),
                2 => ptr::write_volatile(at.0 as *mut u16, value as u16),
                4 => ptr::write_volatile(at.0 as *mut u32, value as u32),
                _ => ptr::write_volatile(at.0 as *mut u64, value),
            }
        }
    }

    #[inline]
    fn publish(&self) {
        // A table walker is an observer of its own (DDI 0487, "Ordering and
        // completion of translation table walks"): after this it sees the new
        // descriptors.
        dsb_ishst();
    }

    #[inline(always)]
    fn invalidate(&self, context: &Stage2Context, ranges: impl Iterator<Item = (Ipa, u64)>) {
        // The invalid descriptors are visible before the entries go, or a
        // walk could bring them back (DDI 0487, "Using break-before-make when
        // updating translation table entries").
        dsb_ishst();
        let saved = self.enter_vmid_context(context);
        for (base, size) in ranges {
            self.invalidate_stage2(base, size);
        }
        // Stage-2 entries must be invalid before the combined ones are invalidated: a walk could
        // make a combined entry from a stage-2 entry again (DDI 0487, "Invalidation of TLB entries
        // from stage 2 translations").
        dsb_ish();
        tlbi!(Event::TlbiVmalle1is, "tlbi vmalle1is");
        self.finish();
        self.exit_vmid_context(saved);
    }

    fn invalidate_all(&self, context: &Stage2Context) {
        dsb_ishst();
        let saved = self.enter_vmid_context(context);
        tlbi!(Event::TlbiVmalls12e1is, "tlbi vmalls12e1is");
        self.finish();
        self.exit_vmid_context(saved);
    }

    #[inline(always)]
    fn errata(&self) -> Errata {
        Errata::from_bits(self.errata.load(Ordering::Relaxed))
    }

    fn hardening(&self) -> u64 {
        self.hardening.load(Ordering::Relaxed).into()
    }

    fn store_time(&self, page: TimePage, offset: u64, value: u64) {
        let at = page.address().0 + (offset & (PAGE_SIZE - 8));
        // SAFETY: a `TimePage` is metadata that core holds for it as long as the VM lives, mapped
        // at EL2 under its own address; the place is inside and aligned. Guests read it meanwhile,
        // which is what atomics are for.
        unsafe { &*(at as *const AtomicU64) }.store(value.to_le(), Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        CNTPCT_EL0::read()
    }

    fn ticks_per_second(&self) -> u64 {
        CNTFRQ_EL0::read()
    }

    fn has_random(&self) -> bool {
        self.random != Source::None
    }

    fn random(&self, words: &mut [u64]) -> bool {
        self.random.fill(words)
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! Runs of guests: entry, and dispatch of exits.
//!
//! While EL2 handles an exit, the guest's EL1 registers stay in the CPU. They
//! are stored when the run ends; those that exception entry changes also when EL2
//! injects an exception.

use core::arch::asm;

use escrow_core::hypervisor::{Hypervisor, Scratch};
use escrow_core::vcpu::syndrome::{Abort, Lazy, Syndrome, Wait};
use escrow_core::vcpu::{
    Answer, Exception, FaultAddress, GeneralRegisters, GuestExit, GuestIds, Next, READY, Waited,
};
use escrow_core::vm::Run;

use crate::fp::{self, Aside};
use crate::machine::Hardware;
use crate::percpu::PerCpu;
use crate::switch;
use crate::sysreg::*;
use crate::vgic::Gic;
use crate::window::walk_stage1;

unsafe extern "C" {
    // Not to be called from Rust: see `enter_guest`.
    fn escrow_enter_guest();
}

/// What [`enter_guest`] returns.
const EXIT_SYNCHRONOUS: u64 = 0;
const EXIT_INTERRUPT: u64 = 1;

/// `HCR_EL2.VI`: a virtual IRQ is pending. The guest takes it when its PSTATE lets it.
const HCR_VI: u64 = 1 << 7;

// What vectors.S relies on.
const _: () = {
    use core::mem::offset_of;
    use escrow_core::vcpu::Vcpu;
    assert!(offset_of!(Vcpu, regs) == 0);
    assert!(offset_of!(GeneralRegisters, x) == 0);
    assert!(offset_of!(GeneralRegisters, pc) == 248);
    assert!(offset_of!(GeneralRegisters, pstate) == 256);
};

/// Runs a vCPU until there is an answer for the host, and writes that into the host's `x0`
/// to `x4`. `run` is passed by value: by reference it would have to be in memory.
///
/// # Safety
///
/// `cpu` is the calling CPU's data, with the host's state in the CPU, and
/// nothing else refers to it.
#[inline(always)]
pub(crate) unsafe fn run(
    cpu: *mut PerCpu,
    hypervisor: &Hypervisor<Hardware>,
    run: Run<'_>,
    x: &mut [u64; 8],
) {
    if let Next::Exit(answer) = hypervisor.guest_entry(&run) {
        put(x, &answer);
        return;
    }
    // SAFETY: as granted.
    unsafe {
        // Two copies of `run`, so that the compiler can optimise each path on its own.
        if run.does_more() {
            let mut run = run;
            run_with_more(cpu, hypervisor, &mut run, x);
        } else {
            let mut run = run;
            run_guest(cpu, hypervisor, &mut run, x, &mut NoGic);
        }
    }
}

/// A run of a vCPU that has a GIC, or that is told its stolen time.
///
/// # Safety
///
/// As for [`run`].
#[inline(always)]
unsafe fn run_with_more(
    cpu: *mut PerCpu,
    hypervisor: &Hypervisor<Hardware>,
    run: &mut Run<'_>,
    x: &mut [u64; 8],
) {
    if run.has_gic {
        // SAFETY: a part of this CPU's data that nothing else refers to.
        let gic = unsafe { &mut (*cpu).gic };
        let mut with_gic = WithGic { gic, all: false };
        // SAFETY: as granted.
        unsafe { run_guest(cpu, hypervisor, run, x, &mut with_gic) };
    } else {
        // SAFETY: as granted.
        unsafe { run_guest(cpu, hypervisor, run, x, &mut NoGic) };
    }
    if run.stolen.is_some() {
        hypervisor.end_timed(run, x[1], x[4]);
    }
}

/// [`run`], with or without a GIC.
///
/// # Safety
///
/// As for [`run`].
#[inline(always)]
unsafe fn run_guest<I: Interrupts>(
    cpu: *mut PerCpu,
    hypervisor: &Hypervisor<Hardware>,
    run: &mut Run<'_>,
    x: &mut [u64; 8],
    gic: &mut I,
) {
    // SAFETY: as granted, and the host's state is in the CPU.
    let held_back = unsafe { switch::enter(cpu, hypervisor.context_of(run), run) };
    let timer_mask = gic.load(run, held_back);
    if !I::HAS_GIC && run.has_interrupt() {
        set_interrupt(true);
    }
    let mut aside = Aside::Nothing;
    let begins = gic.begins(hypervisor, run);
    if let Next::Exit(answer) = begins {
        put(x, &answer);
    }

    #[expect(
        clippy::while_immutable_condition,
        reason = "a run that does not begin; all others break"
    )]
    while !matches!(begins, Next::Exit(_)) {
        // SAFETY: the guest's state is in the CPU and the guest vectors are in
        // force; the guest's stage 2 keeps it to its own memory.
        let kind = unsafe { enter_guest(&mut run.regs) };
        switch::save_timer(&mut run.timer, timer_mask);
        // A separate call for each kind of exit: the compiler inlines and specialises each.
        let ids = &hypervisor.machine.guest_ids;
        // SAFETY: as granted; nothing else refers to it.
        let scratch = unsafe { &mut (*cpu).guest_scratch };
        let next = match kind {
            EXIT_SYNCHRONOUS => match Syndrome::of(ESR_EL2::read()) {
                Syndrome::Wait(wait) => match gic.waits(hypervisor, run, wait) {
                    Waited::Enter { interrupt } => {
                        gic.set_interrupt(interrupt);
                        continue;
                    }
                    Waited::Exit(answer) => {
                        put(x, &answer);
                        break;
                    }
                },
                Syndrome::Abort(abort) => {
                    run.el1.sctlr = SCTLR_EL1::read();
                    let exit = GuestExit::Abort(abort, address_of(abort));
                    gic.exits(hypervisor, scratch, run, exit, ids)
                }
                Syndrome::Trapped(trapped) => {
                    gic.exits(hypervisor, scratch, run, GuestExit::Trapped(trapped), ids)
                }
            },
            EXIT_INTERRUPT => gic.exits(hypervisor, scratch, run, GuestExit::Interrupt, ids),
            _ => {
                crate::host::report_of_guest("SError during a guest's run");
                gic.exits(hypervisor, scratch, run, GuestExit::SError, ids)
            }
        };
        match next {
            Next::Enter => {}
            Next::EnterWith { interrupt } => gic.set_interrupt(interrupt),
            Next::Inject(exception) => {
                // SAFETY: as granted, and the registers in the CPU are the
                // guest's.
                unsafe {
                    if exception == Exception::UNDEFINED && grant_registers(cpu, run, &mut aside) {
                        continue;
                    }
                    switch::inject(run, exception);
                }
                if run.slot().is_stopped() {
                    gic.stops(hypervisor, run);
                    put(x, &READY);
                    break;
                }
            }
            Next::Exit(answer) => {
                put(x, &answer);
                break;
            }
        }
    }

    if aside != Aside::Nothing {
        // SAFETY: the registers in the CPU are the guest's; `host_vectors` has the host's.
        unsafe {
            let (features, host) = (&(*cpu).features, &(*cpu).host_controls);
            fp::restore_host(features, host, &(*cpu).host_vectors, &mut run.fp, aside);
        }
    }
    gic.store(run);
    // SAFETY: as granted, and the guest's state is in the CPU.
    unsafe { switch::exit(cpu, run) };
}

/// The steps of a run that differ between vCPUs with and without a GIC.
trait Interrupts {
    /// Whether the vCPU has a GIC.
    const HAS_GIC: bool;

    /// Loads the vCPU's part of the virtual CPU interface. The timer is loaded already; `held_back` has the
    /// bits of `CNTV_CTL_EL0` that [`switch::enter`] added. Returns the bits that [`switch::save_timer`] is to clear.
    fn load(&mut self, run: &mut Run<'_>, held_back: u64) -> u64;

    /// Decides whether the guest is entered.
    fn begins(&mut self, hypervisor: &Hypervisor<Hardware>, run: &mut Run<'_>) -> Next;

    /// Handles an exit.
    fn exits(
        &mut self,
        hypervisor: &Hypervisor<Hardware>,
        scratch: &mut Scratch,
        run: &mut Run<'_>,
        exit: GuestExit,
        ids: &GuestIds,
    ) -> Next;

    /// Handles an exit by an instruction that waits.
    fn waits(&mut self, hypervisor: &Hypervisor<Hardware>, run: &mut Run<'_>, wait: Wait)
    -> Waited;

    /// Sets or clears the virtual interrupt of a guest without a GIC (`HCR_EL2.VI`).
    fn set_interrupt(&mut self, pending: bool);

    /// The run ends because the VM was stopped while an exception was injected.
    fn stops(&mut self, hypervisor: &Hypervisor<Hardware>, run: &mut Run<'_>);

    /// Stores the vCPU's part of the virtual CPU interface, before the world switch.
    fn store(&mut self, run: &mut Run<'_>);
}

/// A vCPU without a GIC: the host takes all physical interrupts.
struct NoGic;

impl Interrupts for NoGic {
    const HAS_GIC: bool = false;

    #[inline(always)]
    fn load(&mut self, _run: &mut Run<'_>, held_back: u64) -> u64 {
        held_back
    }

    #[inline(always)]
    fn begins(&mut self, _hypervisor: &Hypervisor<Hardware>, _run: &mut Run<'_>) -> Next {
        Next::Enter
    }

    #[inline(always)]
    fn exits(
        &mut self,
        hypervisor: &Hypervisor<Hardware>,
        scratch: &mut Scratch,
        run: &mut Run<'_>,
        exit: GuestExit,
        ids: &GuestIds,
    ) -> Next {
        hypervisor.guest_exit(scratch, run, exit, ids)
    }

    #[inline(always)]
    fn waits(
        &mut self,
        hypervisor: &Hypervisor<Hardware>,
        run: &mut Run<'_>,
        wait: Wait,
    ) -> Waited {
        hypervisor.guest_waits(run, wait)
    }

    #[inline(always)]
    fn set_interrupt(&mut self, pending: bool) {
        set_interrupt(pending);
    }

    #[inline(always)]
    fn stops(&mut self, _hypervisor: &Hypervisor<Hardware>, _run: &mut Run<'_>) {}

    #[inline(always)]
    fn store(&mut self, _run: &mut Run<'_>) {}
}

/// A vCPU with a GIC that runs on a CPU.
struct WithGic<'a> {
    gic: &'a mut Gic,
    all: bool,
}

impl Interrupts for WithGic<'_> {
    const HAS_GIC: bool = true;

    #[inline(always)]
    fn load(&mut self, run: &mut Run<'_>, held_back: u64) -> u64 {
        if held_back != 0 {
            // The vGIC gives its interrupt to the guest, so it need not be masked.
            CNTV_CTL_EL0::write(run.timer.ctl);
        }
        self.all = self.gic.load(run);
        0
    }

    #[inline(always)]
    fn begins(&mut self, hypervisor: &Hypervisor<Hardware>, run: &mut Run<'_>) -> Next {
        hypervisor.gic_begins(run, self.gic, self.all)
    }

    #[inline(always)]
    fn exits(
        &mut self,
        hypervisor: &Hypervisor<Hardware>,
        scratch: &mut Scratch,
        run: &mut Run<'_>,
        exit: GuestExit,
        ids: &GuestIds,
    ) -> Next {
        hypervisor.gic_exit(scratch, run, self.gic, exit, ids)
    }

    #[inline(always)]
    fn waits(
        &mut self,
        hypervisor: &Hypervisor<Hardware>,
        run: &mut Run<'_>,
        wait: Wait,
    ) -> Waited {
        hypervisor.gic_waits(run, self.gic, wait)
    }

    #[inline(always)]
    fn set_interrupt(&mut self, _pending: bool) {}

    #[inline(always)]
    fn stops(&mut self, hypervisor: &Hypervisor<Hardware>, run: &mut Run<'_>) {
        hypervisor.gic_ends(run, self.gic, READY);
    }

    #[inline(always)]
    fn store(&mut self, run: &mut Run<'_>) {
        self.gic.store(run);
    }
}

/// Writes a run's answer into the host's registers.
#[inline(always)]
fn put(x: &mut [u64; 8], answer: &Answer) {
    let [state, a, b, c] = *answer;
    x[..5].copy_from_slice(&[0, state, a, b, c]);
}

/// Enters the guest whose general registers these are; returns how its run
/// ended, with them stored.
///
/// # Safety
///
/// The rest of the guest's state is in the CPU.
#[inline(always)]
unsafe fn enter_guest(registers: &mut GeneralRegisters) -> u64 {
    let kind;
    // SAFETY: as granted. All registers that it changes are clobbers. So the compiler saves
    // only those that it uses here; the vector has saved the host's already.
    unsafe {
        asm!(
            "bl {enter}",
            enter = sym escrow_enter_guest,
            inout("x0") registers => _, out("x1") kind,
            out("x2") _, out("x3") _, out("x4") _, out("x5") _, out("x6") _,
            out("x7") _, out("x8") _, out("x9") _, out("x10") _, out("x11") _, out("x12") _,
            out("x13") _, out("x14") _, out("x15") _, out("x16") _, out("x17") _, out("x18") _,
            out("x20") _, out("x21") _, out("x22") _, out("x23") _, out("x24") _, out("x25") _,
            out("x26") _, out("x27") _, out("x28") _, out("x30") _,
        );
    }
    kind
}

/// Switches the vector registers or the pointer-authentication keys to the guest's, if the
/// trapped instruction uses them and they are not the guest's yet. Returns whether it did.
///
/// # Safety
///
/// As for [`run`], with the guest's state in the CPU.
#[cold]
unsafe fn grant_registers(cpu: *mut PerCpu, run: &mut Run<'_>, aside: &mut Aside) -> bool {
    let Syndrome::Trapped(trapped) = Syndrome::of(ESR_EL2::read()) else { return false };
    // SAFETY: as granted; these do not change during a run.
    let (features, host, guest) =
        unsafe { (&(*cpu).features, &(*cpu).host_controls, &(*cpu).guest_controls) };
    match trapped.uses() {
        Some(Lazy::Vectors) if *aside == Aside::Nothing => {
            // SAFETY: the vector registers are still the host's.
            unsafe {
                let room = &mut (*cpu).host_vectors;
                *aside = fp::load_guest(features, host, guest, room, &run.fp);
            }
            true
        }
        Some(Lazy::Keys) if features.pauth && !run.pauth => {
            // SAFETY: the keys are still the host's.
            unsafe { switch::grant_keys(&mut (*cpu).host, run) };
            true
        }
        _ => false,
    }
}

/// Sets or clears the virtual interrupt of the guest whose state is in the CPU. The switch to the
/// host loads the host's `HCR_EL2`, where VI is 0.
#[cold]
fn set_interrupt(pending: bool) {
    let others = HCR_EL2::read() & !HCR_VI;
    HCR_EL2::write(if pending { others | HCR_VI } else { others });
}

/// Reads the address of an abort.
#[inline(always)]
fn address_of(abort: Abort) -> FaultAddress {
    let far = FAR_EL2::read();
    FaultAddress { far, ipa: abort.ipa(far, HPFAR_EL2::read, || translate(far)) }
}

/// Translates an address by the guest's stage 1 and returns `PAR_EL1`; `None` if the walk of its tables
/// faults. The guest's `PAR_EL1` is preserved.
fn translate(far: u64) -> Option<u64> {
    let par = PAR_EL1::read();
    let el0 = SPSR_EL2::read() & 0x1f == 0;
    let walked = walk_stage1(far, el0);
    let result = PAR_EL1::read();
    PAR_EL1::write(par);
    walked.ok().map(|()| result)
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! The host: how it is entered, and what it traps for.

use core::sync::atomic::{AtomicU32, Ordering};

use escrow_abi::call;
use escrow_abi::psci::NOT_SUPPORTED;
use escrow_core::hardening::{WORKAROUND_2, store_bypass};
use escrow_core::hypervisor::{HostAbort, Reply, immediate};
use escrow_core::psci::{FirmwareCall, PsciCall};
use escrow_core::trap::{HostFault, RegisterFile};
use escrow_core::vcpu::syndrome::{
    Abort, Call, Conduit, Fault, Instruction, Syndrome, SystemAccess,
};
use escrow_core::vcpu::{Exception, ExceptionEntry, PstateFeatures, after_instruction};

use crate::fault::stop_if_stopped;
use crate::machine::{Installed, installed};
use crate::percpu::PerCpu;
use crate::smc::smc;
use crate::sysreg::*;

/// The host's registers that vectors.S keeps on the stack.
#[repr(C)]
pub(crate) struct HostFrame {
    /// X0 to X18.
    pub x: [u64; 19],
    pub x30: u64,
}

const _: () = assert!(size_of::<HostFrame>() == 160);

/// All of them, for what may be about any.
#[repr(C)]
struct SyncFrame {
    /// X19 to X29.
    kept: [u64; 11],
    /// Keeps the stack aligned.
    _pad: u64,
    rest: HostFrame,
}

const _: () = assert!(size_of::<SyncFrame>() == 96 + size_of::<HostFrame>());

impl RegisterFile for SyncFrame {
    fn read(&self, n: usize) -> u64 {
        match n {
            0..=18 => self.rest.x.get(n).copied().unwrap_or(0),
            19..=29 => self.kept.get(n - 19).copied().unwrap_or(0),
            30 => self.rest.x30,
            _ => 0,
        }
    }

    fn write(&mut self, n: usize, value: u64) {
        let register = match n {
            0..=18 => self.rest.x.get_mut(n),
            19..=29 => self.kept.get_mut(n - 19),
            30 => Some(&mut self.rest.x30),
            _ => None,
        };
        if let Some(register) = register {
            *register = value;
        }
    }
}

/// The firmware behind EL2, and who reaches it: the boot code.
pub trait Firmware: Sync {
    /// Answers a PSCI call that the host made on `cpu`, the calling CPU; the
    /// answer goes to the host's `x0`.
    ///
    /// Calls that succeed by not returning (`CpuOff`, `SystemOff`, …) do not
    /// return.
    fn psci(&self, cpu: &PerCpu, call: PsciCall) -> u64;
}

/// Answers an `HVC #0` of the host: the hot path.
///
/// Calls that need only their number are answered here, before
/// `escrow_host_call` sets up its stack frame.
///
/// # Safety
///
/// Called from the vector with the frame that it pushed.
#[unsafe(no_mangle)]
unsafe extern "C" fn escrow_host_hvc(frame: &mut HostFrame) {
    if let Some(answer) = immediate(frame.x[0] as u32) {
        frame.x[..5].copy_from_slice(&answer);
        return;
    }
    if frame.x[0] as u32 == call::MEM_LEND
        // SAFETY: `init_cpu` ran before the host did, and this does not change.
        && let Some(hypervisor) = unsafe { (*PerCpu::current()).hypervisor }
        && let Some(x) = frame.x.first_chunk_mut::<8>()
        && hypervisor.host_lends_list_of_one(x)
    {
        return;
    }
    // SAFETY: as granted.
    unsafe { escrow_host_call(frame) };
}

/// Answers a `MEM_LEND_ONE`: the usual way first.
///
/// # Safety
///
/// As for [`escrow_host_hvc`].
#[unsafe(no_mangle)]
unsafe extern "C" fn escrow_host_lend(frame: &mut HostFrame) {
    // SAFETY: `init_cpu` ran before the host did, and this does not change.
    if let Some(hypervisor) = unsafe { (*PerCpu::current()).hypervisor } {
        let x = frame.x.first_chunk_mut::<8>().expect("19 is more than 8");
        if hypervisor.host_lends_one(x) {
            return;
        }
    }
    // SAFETY: as granted.
    unsafe { escrow_host_call(frame) };
}

/// The rest of them.
///
/// # Safety
///
/// As for [`escrow_host_hvc`].
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn escrow_host_call(frame: &mut HostFrame) {
    let cpu = PerCpu::current();
    // SAFETY: `init_cpu` ran before the host did, and this does not change.
    let Some(hypervisor) = (unsafe { (*cpu).hypervisor }) else {
        frame.x[0] = NOT_SUPPORTED;
        return;
    };
    let x = frame.x.first_chunk_mut::<8>().expect("19 is more than 8");
    // SAFETY: `init_cpu` ran before the host did, and nothing else on this CPU
    // refers to its scratch space.
    let scratch = unsafe { &mut (*cpu).scratch };
    if hypervisor.host_call(scratch, x) == Reply::Again {
        // Return to the HVC itself: the host takes the pending interrupt, if it is not masked,
        // and then repeats the call.
        ELR_EL2::write(ELR_EL2::read().wrapping_sub(4));
    }
}

/// Answers a `VCPU_RUN`. Whatever of a guest EL2 has outside of the vCPU is on the stack that
/// this is on ([`crate::apart`]), or in `guest_scratch`.
///
/// # Safety
///
/// Called from the vector with the frame that it pushed and this CPU's data.
#[unsafe(no_mangle)]
unsafe extern "C" fn escrow_host_run(frame: &mut HostFrame, cpu: *mut PerCpu) {
    // SAFETY: `init_cpu` ran before the host did, and this does not change.
    let Some(hypervisor) = (unsafe { (*cpu).hypervisor }) else {
        frame.x[0] = NOT_SUPPORTED;
        return;
    };
    let x = frame.x.first_chunk_mut::<8>().expect("19 is more than 8");
    if let Some(run) = hypervisor.host_runs(x) {
        // SAFETY: the CPU's own data, and the host's state is in the CPU.
        unsafe { crate::guest::run(cpu, hypervisor, run, x) };
    }
}

/// Handles any other synchronous exception of the host.
///
/// # Safety
///
/// As for [`escrow_host_hvc`].
#[unsafe(no_mangle)]
unsafe extern "C" fn escrow_host_sync(frame: &mut SyncFrame) {
    let esr = ESR_EL2::read();
    let instruction = match Syndrome::of(esr) {
        Syndrome::Abort(abort) => return host_abort(frame, abort),
        Syndrome::Trapped(trapped) => trapped.instruction(),
        // WFI and WFE of the host do not trap.
        Syndrome::Wait(_) => Instruction::Undefined,
    };
    match instruction {
        // No interface uses an HVC with another immediate than 0.
        Instruction::Call(Call { conduit: Conduit::Hvc, .. }) => frame.rest.x[0] = NOT_SUPPORTED,
        Instruction::Call(Call { immediate, .. }) => host_smc(&mut frame.rest, immediate),
        Instruction::System(access) if host_accesses(frame, access) => {}
        _ => {
            report("trapped instruction", esr);
            inject(Exception::UNDEFINED);
        }
    }
}

/// Answers an interrupt or SError that was taken to EL2 from the host, which
/// `HCR_EL2` routes none of: it is noted, and the host goes on.
///
/// # Safety
///
/// As for [`escrow_host_hvc`].
#[unsafe(no_mangle)]
unsafe extern "C" fn escrow_host_unexpected(_frame: &mut HostFrame, kind: u64) {
    let what = match kind {
        1 => "IRQ",
        2 => "FIQ",
        _ => "SError",
    };
    report(what, ESR_EL2::read());
}

/// Answers a trapped access to a system register, if there is an answer.
fn host_accesses(frame: &mut SyncFrame, access: SystemAccess) -> bool {
    let Some(Installed { hypervisor, .. }) = installed() else { return false };
    let Some(value) = access.by_host(&hypervisor.machine.promise.host) else { return false };
    if access.is_read() {
        frame.write(access.register(), value);
    }
    skip_instruction();
    true
}

/// An `SMC`: PSCI goes to the boot code, some of the rest to the firmware.
fn host_smc(frame: &mut HostFrame, immediate: u16) {
    // A trapped SMC has not been executed (DDI 0487, "HCR_EL2", TSC): the
    // return address is its own.
    skip_instruction();
    let args = frame.x.first_chunk::<4>().expect("19 is more than 4");
    if immediate != 0 {
        frame.x[0] = NOT_SUPPORTED;
        return;
    }
    match FirmwareCall::decode(args) {
        FirmwareCall::Psci(call) => {
            // SAFETY: `init_cpu` ran before the host did, and nothing changes
            // this CPU's data while its firmware call is made.
            let cpu = unsafe { &*PerCpu::current() };
            frame.x[0] = match installed() {
                Some(Installed { firmware, .. }) => firmware.psci(cpu, call),
                None => NOT_SUPPORTED,
            };
        }
        FirmwareCall::Forward => {
            let args = *frame.x.first_chunk::<8>().expect("19 is more than 8");
            // SAFETY: the filter lets only calls through that pass numbers.
            let answer = unsafe { smc(args) };
            frame.x[..4].copy_from_slice(&answer);
        }
        FirmwareCall::StoreBypass { asked } => {
            let features =
                [call::SMCCC_ARCH_FEATURES.into(), WORKAROUND_2.into(), 0, 0, 0, 0, 0, 0];
            // SAFETY: it says what there is and changes nothing.
            let [answer, ..] = unsafe { smc(features) };
            frame.x[0] = store_bypass(answer as i32, asked);
        }
        FirmwareCall::Refuse => frame.x[0] = NOT_SUPPORTED,
    }
}

/// Lets the host go on behind the instruction that it trapped at.
fn skip_instruction() {
    ELR_EL2::write(ELR_EL2::read().wrapping_add(4));
    SPSR_EL2::write(after_instruction(SPSR_EL2::read()));
}

/// A stage-2 abort: the host touched what is not mapped for it.
fn host_abort(frame: &mut SyncFrame, abort: Abort) {
    stop_if_stopped();
    let far = FAR_EL2::read();
    let pstate = SPSR_EL2::read();
    // The host's stage 2 has no entries that allow some accesses and forbid others.
    let at = match abort.fault() {
        Fault::Translation => abort.ipa(far, HPFAR_EL2::read, || None),
        Fault::Permission | Fault::External | Fault::Other => None,
    };
    let outcome = match (at, installed()) {
        (Some(at), Some(Installed { hypervisor, .. })) => {
            let fault = HostFault { at, abort, pstate, sctlr: SCTLR_EL1::read() };
            hypervisor.host_abort(&fault, frame)
        }
        _ => HostAbort::Inject,
    };
    match outcome {
        HostAbort::Retry => {}
        HostAbort::Skip => skip_instruction(),
        HostAbort::Inject => inject(Exception::for_host(abort, far, pstate)),
    }
}

/// Makes the host, whose registers are in the CPU, take an exception.
fn inject(exception: Exception) {
    // SAFETY: `init_cpu` ran before the host did; its features never change.
    let features = unsafe { &(*PerCpu::current()).features };
    let interrupted = SPSR_EL2::read();
    let at = ELR_EL2::read();
    let pstate = PstateFeatures { mte: features.mte2, nmi: features.nmi };
    let entry = ExceptionEntry::new(interrupted, SCTLR_EL1::read(), VBAR_EL1::read(), pstate);
    ESR_EL1::write(exception.esr);
    if let Some(far) = exception.far {
        FAR_EL1::write(far);
    }
    ELR_EL1::write(at);
    SPSR_EL1::write(interrupted);
    ELR_EL2::write(entry.pc);
    SPSR_EL2::write(entry.pstate);
}

/// How often it is reported what should not have been.
static REPORTS: AtomicU32 = AtomicU32::new(16);

/// How many reports are left, this one included; `None` when it is one too many: a
/// VM could cause them all day, and they drive out what else the log has.
fn take_report() -> Option<u32> {
    let take = |left: u32| left.checked_sub(1);
    REPORTS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok()
}

fn end_of_reports(left: u32) -> &'static str {
    if left == 1 { "; not reported any more" } else { "" }
}

/// Logs what the host should not have been able to cause, a few times. Not
/// FAR_EL2: none of these exceptions sets it, so it may be a guest's.
#[cold]
fn report(what: &str, esr: u64) {
    if let Some(left) = take_report() {
        log::warn!(
            "unexpected {what}: ESR {esr:#x}, PC {:#x}{}",
            ELR_EL2::read(),
            end_of_reports(left),
        );
    }
}

/// The same of a guest. The host reads the log, so nothing of the guest is in it.
#[cold]
pub(crate) fn report_of_guest(what: &str) {
    if let Some(left) = take_report() {
        log::warn!("unexpected {what}{}", end_of_reports(left));
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! A vCPU's runs.

use escrow_vmcore::Errno;
use escrow_vmcore::exit::{Exit, Step, Vcpu, nanoseconds_until};
use escrow_vmcore::losses::Losses;
use escrow_vmcore::uapi::EXIT_WORDS;

use crate::store;

/// `struct escrow_exit`: what the program is told.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct CExit {
    pub(crate) reason: u32,
    pub(crate) reserved: u32,
    pub(crate) words: [u64; EXIT_WORDS],
}

impl From<Exit> for CExit {
    fn from(exit: Exit) -> Self {
        CExit { reason: exit.reason, reserved: 0, words: exit.words }
    }
}

/// `struct escrow_step`: what to do after a run.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct CStep {
    /// An `ESCROW_STEP_*`.
    pub(crate) kind: u32,
    /// `DOWN`: the exit type. `WRITE`, `READ`: the size.
    pub(crate) down: u32,
    /// `BRING`, `WRITE`, `READ`: the guest address. `SLEEP`: the deadline.
    /// `WAKE`, `SPI_DONE`: vCPUs, a bit each. `TOP_UP`: pages.
    pub(crate) at: u64,
    /// `BRING`: the access. `WRITE`: the value.
    pub(crate) access: u64,
    /// `EXIT`, `WRITE`, `READ`: for the program.
    pub(crate) exit: CExit,
}

/// `enum escrow_step_kind`.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum StepKind {
    /// Run again.
    Again = 0,
    /// Sleep until a time, or until woken.
    Sleep = 1,
    /// Sleep until woken.
    Off = 2,
    /// Bring in a page.
    Bring = 3,
    /// The guest has ended.
    Down = 4,
    /// Tell the program.
    Exit = 5,
    /// A write that an IOEVENTFD or a console may be for.
    Write = 6,
    /// Wake other vCPUs.
    Wake = 7,
    /// The guest is done with SPIs.
    SpiDone = 8,
    /// A read that a console may be for.
    Read = 9,
    /// The VM lacks pages for its tables.
    TopUp = 10,
}

impl From<Step> for CStep {
    fn from(step: Step) -> Self {
        let nothing = CStep::default();
        match step {
            Step::Again => CStep { kind: StepKind::Again as u32, ..nothing },
            Step::Sleep { deadline } => {
                CStep { kind: StepKind::Sleep as u32, at: deadline, ..nothing }
            }
            Step::TopUp { pages } => CStep { kind: StepKind::TopUp as u32, at: pages, ..nothing },
            Step::Off => CStep { kind: StepKind::Off as u32, ..nothing },
            Step::Bring { guest, access } => {
                CStep { kind: StepKind::Bring as u32, at: guest, access, ..nothing }
            }
            Step::Down { kind } => {
                CStep { kind: StepKind::Down as u32, down: kind.into(), ..nothing }
            }
            Step::Write { address, size, data, exit } => CStep {
                kind: StepKind::Write as u32,
                down: size,
                at: address,
                access: data,
                exit: exit.into(),
            },
            Step::Wake { vcpus } => {
                CStep { kind: StepKind::Wake as u32, at: vcpus.into(), ..nothing }
            }
            Step::SpiDone { wake } => {
                CStep { kind: StepKind::SpiDone as u32, at: wake.into(), ..nothing }
            }
            Step::Read { address, size, exit } => CStep {
                kind: StepKind::Read as u32,
                down: size,
                at: address,
                exit: exit.into(),
                ..nothing
            },
            Step::Exit(exit) => CStep { kind: StepKind::Exit as u32, exit: exit.into(), ..nothing },
        }
    }
}

/// A page of the guest's memory broke.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_losses_add(losses: &mut Losses, guest: u64) {
    losses.add(guest);
}

/// The next thing that the program is told about guest memory that broke, if any.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_losses_tell(losses: &mut Losses, exit: &mut CExit) -> bool {
    let next = losses.tell();
    if let Some(guest) = next {
        *exit = Exit::page_fault(guest, Errno::Poisoned).into();
    }
    next.is_some()
}

/// The registers of the next run; `answer` is what the program has made of
/// the last exit.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_vcpu_resume(
    vcpu: &Vcpu,
    answer: &[u64; EXIT_WORDS],
    registers: &mut [u64; 8],
) -> i32 {
    store(vcpu.resume(*answer), registers)
}

/// What a run's results mean.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_vcpu_ended(
    vcpu: &mut Vcpu,
    results: &[u64; 5],
    step: &mut CStep,
) -> i32 {
    match vcpu.ended(*results) {
        // The frequent exit first: the guest faults on a page that it gets now.
        Ok(Step::Bring { guest, access }) => {
            (step.kind, step.at, step.access) = (StepKind::Bring as u32, guest, access);
            0
        }
        other => store(other.map(CStep::from), step),
    }
}

/// Whether the next run brings an answer of the program's along.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_vcpu_has_answer(vcpu: &Vcpu) -> bool {
    vcpu.has_answer()
}

/// The write of a `WRITE` step is done, without the program.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_vcpu_write_done(vcpu: &mut Vcpu) {
    vcpu.write_done();
}

/// The value of a `READ` step, without the program.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_vcpu_read_done(vcpu: &mut Vcpu, value: u64) {
    vcpu.read_done(value);
}

/// How bringing in a page went: 0 or a negative errno.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_vcpu_page_brought(
    vcpu: &mut Vcpu,
    guest: u64,
    result: i32,
    step: &mut CStep,
) {
    *step = vcpu.page_brought(guest, Errno::from_return(result)).into();
}

/// Nanoseconds from one counter value to another.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_nanoseconds_until(now: u64, deadline: u64, frequency: u32) -> u64 {
    nanoseconds_until(now, deadline, frequency)
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! The end of a vCPU's run: what the shim does about it, what it tells the
//! program, and the arguments of the next run.

use escrow_abi::{Error, call, run};

use crate::Errno;
use crate::args::VCPUS_MAX;
use crate::uapi::{self, EXIT_WORDS};

/// What the vCPU's next run has to bring along.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
enum Pending {
    /// Nothing.
    #[default]
    Nothing = 0,
    /// The program's answer to a read.
    Read = 1,
    /// The program's word on a write.
    Write = 2,
    /// The program's word on a page fault.
    PageFault = 3,
    /// An abort, by the shim's own decision.
    Abort = 4,
    /// The value of a read, by the shim.
    Value = 5,
}

/// The shim's view of a vCPU. Its state is Escrow's alone.
#[derive(Debug)]
#[repr(C)]
pub struct Vcpu {
    handle: u64,
    pending: Pending,
    /// Size of a pending read in bytes.
    size: u32,
    /// The value of a read that the shim has answered.
    value: u64,
}

const _: () = assert!(size_of::<Vcpu>() == 24);

/// What to do after a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Run again.
    Again,
    /// Sleep until the host's virtual counter is there or somebody wakes the
    /// vCPU; `u64::MAX` is never.
    Sleep {
        /// Counter value.
        deadline: u64,
    },
    /// The vCPU is off: sleep until a sibling's [`Step::Wake`] names it.
    Off,
    /// Wake siblings, then run on.
    Wake {
        /// A bit each, by their numbers.
        vcpus: u32,
    },
    /// The guest is done with SPIs: ask EL2 with which, wake siblings, then run on.
    SpiDone {
        /// A bit each, by their numbers.
        wake: u32,
    },
    /// Give the VM at least so many pages for its tables, then run on: the guest makes its call
    /// again.
    TopUp {
        /// How many are missing.
        pages: u64,
    },
    /// Bring in the page at a guest address, and tell
    /// [`Vcpu::page_brought`] how that went.
    Bring {
        /// Guest address.
        guest: u64,
        /// `FAULT_*` bits of the access.
        access: u64,
    },
    /// The guest is down: tell [`Vm::down`](crate::vm::Vm::down).
    Down {
        /// An `EXIT_TYPE_*`.
        kind: u16,
    },
    /// The guest writes where no memory is. If somebody else sees to it, tell
    /// [`Vcpu::write_done`]; otherwise tell the program.
    Write {
        /// Guest address.
        address: u64,
        /// Bytes: 1, 2, 4 or 8.
        size: u32,
        /// The value.
        data: u64,
        /// For the program.
        exit: Exit,
    },
    /// The guest reads where no memory is. If somebody else has the value, tell
    /// [`Vcpu::read_done`]; otherwise tell the program.
    Read {
        /// Guest address.
        address: u64,
        /// Bytes: 1, 2, 4 or 8.
        size: u32,
        /// For the program.
        exit: Exit,
    },
    /// Tell the program.
    Exit(Exit),
}

/// What the program is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// `EXIT_*`.
    pub reason: u32,
    /// The words of [`uapi::Exit`].
    pub words: [u64; EXIT_WORDS],
}

impl Exit {
    fn mmio(address: u64, size: u32, write: Option<u64>) -> Exit {
        let flags = u64::from(size) | u64::from(write.is_some()) << 32;
        Exit { reason: uapi::EXIT_MMIO, words: [address, write.unwrap_or(0), flags] }
    }

    /// The guest has no memory at an address, for that reason.
    pub fn page_fault(address: u64, errno: Errno) -> Exit {
        let attempt = errno.to_return() as u32;
        Exit { reason: uapi::EXIT_PAGE_FAULT, words: [address, attempt.into(), 0] }
    }

    /// The VM has ended.
    pub fn status(status: u32, kind: u16) -> Exit {
        let word = u64::from(status) | u64::from(kind) << 32;
        Exit { reason: uapi::EXIT_STATUS, words: [word, 0, 0] }
    }
}

impl Vcpu {
    /// A vCPU that has not run yet.
    pub const fn new(handle: u64) -> Self {
        Vcpu { handle, pending: Pending::Nothing, size: 0, value: 0 }
    }

    /// The registers of the next [`call::VCPU_RUN`]. `answer` is what the
    /// program has made of the last exit's words.
    ///
    /// # Errors
    /// `Invalid` for a resume action that does not exist.
    pub fn resume(&self, answer: [u64; EXIT_WORDS]) -> Result<[u64; 8], Errno> {
        let [data, action] = match self.pending {
            Pending::Nothing => [0, 0],
            Pending::Abort => [0, run::ACTION_FAULT],
            Pending::Value => [self.value, run::ACTION_EMULATE],
            Pending::PageFault => match (answer[1] >> 32) as u8 {
                uapi::RESUME_HANDLED | uapi::RESUME_RETRY => [0, run::ACTION_RETRY],
                uapi::RESUME_FAULT => [0, run::ACTION_FAULT],
                _ => return Err(Errno::Invalid),
            },
            Pending::Read | Pending::Write => match (answer[2] >> 40) as u8 {
                uapi::RESUME_HANDLED if self.pending == Pending::Read => {
                    [truncate(answer[1], self.size), run::ACTION_EMULATE]
                }
                uapi::RESUME_HANDLED => [0, run::ACTION_EMULATE],
                uapi::RESUME_RETRY => [0, run::ACTION_RETRY],
                uapi::RESUME_FAULT => [0, run::ACTION_FAULT],
                _ => return Err(Errno::Invalid),
            },
        };
        Ok([u64::from(call::VCPU_RUN), self.handle, data, action, 0, 0, 0, 0])
    }

    /// What Escrow's answer to [`call::VCPU_RUN`] means.
    ///
    /// # Errors
    /// Those that Escrow refuses the run with; what was pending still is.
    /// `Io` for an answer that makes no sense.
    pub fn ended(&mut self, answer: [u64; 5]) -> Result<Step, Errno> {
        let [x0, state, data0, data1, data2] = answer;
        match Error::from_register(x0) {
            None if x0 == 0 => {}
            None => return Err(Errno::Io),
            // The shim runs a vCPU in one thread at a time. So EL2 is busy with a PSCI call of
            // another vCPU about this one, for a moment. The pending answer stays pending.
            Some(Error::Retry | Error::Busy) => return Ok(Step::Again),
            Some(error) => return Err(error.into()),
        }
        self.pending = Pending::Nothing;
        Ok(match state {
            run::READY => Step::Again,
            run::EXPECTS_WAKEUP => Step::Sleep { deadline: data2 },
            run::POWERED_OFF => Step::Off,
            run::SWITCHED_ON => match u32::try_from(data0) {
                Ok(id @ 0..VCPUS_MAX) => Step::Wake { vcpus: 1 << id },
                _ => return Err(Errno::Io),
            },
            run::WAKE => Step::Wake { vcpus: vcpus(data0)? },
            run::SPI_DONE => Step::SpiDone { wake: vcpus(data0)? },
            run::MMIO_READ | run::MMIO_WRITE => {
                let size = match data1 {
                    1 | 2 | 4 | 8 => data1 as u32,
                    _ => return Err(Errno::Io),
                };
                let write = (state == run::MMIO_WRITE).then(|| truncate(data2, size));
                self.size = size;
                let exit = Exit::mmio(data0, size, write);
                match write {
                    Some(data) => {
                        self.pending = Pending::Write;
                        Step::Write { address: data0, size, data, exit }
                    }
                    None => {
                        self.pending = Pending::Read;
                        Step::Read { address: data0, size, exit }
                    }
                }
            }
            run::TOP_UP => Step::TopUp { pages: data0 },
            run::PAGE_FAULT => Step::Bring { guest: data0, access: data2 },
            run::SYSTEM_DOWN => Step::Down {
                kind: if data0 == 0 { uapi::EXIT_TYPE_POWER_OFF } else { uapi::EXIT_TYPE_RESET },
            },
            // The guest wants pages back that it has opened to the host. The host may be
            // using them, so they stay open, and the guest's call fails.
            run::TAKE_BACK => Step::Again,
            // An access that cannot be emulated: the guest takes an external abort, as on
            // a machine without a device at that address.
            run::FAULT => {
                self.pending = Pending::Abort;
                Step::Again
            }
            _ => return Err(Errno::Io),
        })
    }

    /// Whether the next run brings along what the program has made of the last exit. Until
    /// it has begun, the program must not be told anything else.
    pub fn has_answer(&self) -> bool {
        matches!(self.pending, Pending::Read | Pending::Write | Pending::PageFault)
    }

    /// The write of a [`Step::Write`] is done: the program does not hear of it.
    pub fn write_done(&mut self) {
        self.pending = Pending::Nothing;
    }

    /// The read of a [`Step::Read`] is done: the program does not hear of it.
    pub fn read_done(&mut self, value: u64) {
        self.value = truncate(value, self.size);
        self.pending = Pending::Value;
    }

    /// How bringing in the page of a [`Step::Bring`] went.
    pub fn page_brought(&mut self, guest: u64, result: Result<(), Errno>) -> Step {
        match result {
            Ok(()) => Step::Again,
            // The binding was removed since the fault: the guest's next attempt is MMIO.
            Err(Errno::NotFound) => Step::Again,
            Err(Errno::Access) => {
                self.pending = Pending::Abort;
                Step::Again
            }
            Err(errno) => {
                self.pending = Pending::PageFault;
                Step::Exit(Exit::page_fault(guest, errno))
            }
        }
    }
}

/// Nanoseconds from `now` to `deadline`, two values of a counter that ticks
/// `frequency` times a second. 0 if it has passed.
pub fn nanoseconds_until(now: u64, deadline: u64, frequency: u32) -> u64 {
    const SECOND: u64 = 1_000_000_000;
    let frequency = u64::from(frequency.max(1));
    let ticks = deadline.saturating_sub(now);
    // Seconds and rest apart, as `ticks * SECOND` can overflow.
    let rest = (ticks % frequency) * SECOND / frequency;
    (ticks / frequency).saturating_mul(SECOND).saturating_add(rest)
}

/// vCPUs, a bit each.
///
/// # Errors
/// `Io` for more than there can be.
pub fn vcpus(mask: u64) -> Result<u32, Errno> {
    const { assert!(VCPUS_MAX == u32::BITS) };
    u32::try_from(mask).map_err(|_| Errno::Io)
}

fn truncate(value: u64, size: u32) -> u64 {
    match size {
        0..8 => value & ((1 << (size * 8)) - 1),
        _ => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vcpu() -> Vcpu {
        Vcpu::new(0x77)
    }

    /// The run page as a program sees it.
    fn as_page(exit: Exit) -> uapi::VcpuRun {
        uapi::VcpuRun {
            immediate_exit: 0,
            padding: [0; 7],
            exit_reason: exit.reason,
            reserved: 0,
            exit: uapi::Exit { words: exit.words },
        }
    }

    fn exit_of(step: Result<Step, Errno>) -> Exit {
        match step {
            Ok(Step::Exit(exit) | Step::Write { exit, .. } | Step::Read { exit, .. }) => exit,
            other => panic!("{other:?}"),
        }
    }

    /// The words of a layout, by its bytes.
    fn words(bytes: [u8; 24]) -> [u64; EXIT_WORDS] {
        let mut words = [0; EXIT_WORDS];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().unwrap());
        }
        words
    }

    /// Bytes of an MMIO exit, as `uapi::MmioExit` lays them out.
    fn mmio_bytes(address: u64, data: u64, len: u32, write: u8, action: u8) -> [u8; 24] {
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..16].copy_from_slice(&data.to_le_bytes());
        bytes[16..20].copy_from_slice(&len.to_le_bytes());
        (bytes[20], bytes[21]) = (write, action);
        bytes
    }

    #[test]
    fn a_read_brings_its_value_back() {
        let mut vcpu = vcpu();
        assert!(!vcpu.has_answer());
        for (size, value) in [(1, 0x88), (2, 0x7788), (4, 0x5566_7788), (8, 0x1122_3344_5566_7788)]
        {
            let exit = exit_of(vcpu.ended([0, run::MMIO_READ, 0x6000, size, 0]));
            assert!(vcpu.has_answer());
            assert_eq!(as_page(exit).exit_reason, uapi::EXIT_MMIO);
            assert_eq!(exit.words, words(mmio_bytes(0x6000, 0, size as u32, 0, 0)));
            let answer = words(mmio_bytes(0x6000, 0x1122_3344_5566_7788, size as u32, 0, 0));
            let registers = vcpu.resume(answer).unwrap();
            assert_eq!(registers, [u64::from(call::VCPU_RUN), 0x77, value, 0, 0, 0, 0, 0]);
            // The answer is pending until the run that delivers it has begun.
            assert!(vcpu.has_answer());
        }
        vcpu.ended([0, run::READY, 0, 0, 0]).unwrap();
        assert!(!vcpu.has_answer());
    }

    #[test]
    fn a_write_shows_its_bytes_and_nothing_else() {
        let mut vcpu = vcpu();
        let exit = exit_of(vcpu.ended([0, run::MMIO_WRITE, 0x6004, 2, 0xdead_beef]));
        assert_eq!(exit.words, words(mmio_bytes(0x6004, 0xbeef, 2, 1, 0)));
        assert_eq!(vcpu.resume(exit.words).unwrap()[2..4], [0, run::ACTION_EMULATE]);
    }

    #[test]
    fn a_write_that_somebody_else_saw_to_needs_no_answer() {
        let mut vcpu = vcpu();
        let step = vcpu.ended([0, run::MMIO_WRITE, 0x6004, 1, 0x1ff]).unwrap();
        let Step::Write { address: 0x6004, size: 1, data: 0xff, .. } = step else {
            panic!("{step:?}");
        };
        vcpu.write_done();
        // The run page's words are ignored, whatever a program has left there.
        assert_eq!(vcpu.resume([u64::MAX; 3]).unwrap()[2..4], [0, run::ACTION_EMULATE]);
    }

    #[test]
    fn the_programs_actions_get_the_hypervisors_numbers() {
        let mut vcpu = vcpu();
        for (state, data) in [(run::MMIO_READ, 0), (run::MMIO_WRITE, 5)] {
            vcpu.ended([0, state, 0x6000, 4, data]).unwrap();
            let action = |number| vcpu.resume(words(mmio_bytes(0x6000, 1, 4, 0, number)));
            assert_eq!(action(uapi::RESUME_FAULT).unwrap()[2..4], [0, run::ACTION_FAULT]);
            assert_eq!(action(uapi::RESUME_RETRY).unwrap()[2..4], [0, run::ACTION_RETRY]);
            assert_eq!(action(3), Err(Errno::Invalid));
        }
    }

    #[test]
    fn a_page_that_does_not_come_is_the_programs_to_judge() {
        let mut vcpu = vcpu();
        let step = vcpu.ended([0, run::PAGE_FAULT, 0x8000_0000, 0x1000, run::FAULT_WRITE]);
        assert_eq!(step, Ok(Step::Bring { guest: 0x8000_0000, access: run::FAULT_WRITE }));
        let exit = exit_of(Ok(vcpu.page_brought(0x8000_0000, Err(Errno::Again))));
        assert_eq!(exit.reason, uapi::EXIT_PAGE_FAULT);
        assert_eq!(exit.words, [0x8000_0000, u64::from(-11i32 as u32), 0]);
        // Where Escrow takes no abort, so is the guest's end.
        let exit = exit_of(Ok(vcpu.page_brought(0x8000_0000, Err(Errno::NotPermitted))));
        assert_eq!(exit.words, [0x8000_0000, u64::from(-1i32 as u32), 0]);
        for (action, number) in [
            (uapi::RESUME_HANDLED, run::ACTION_RETRY),
            (uapi::RESUME_RETRY, run::ACTION_RETRY),
            (uapi::RESUME_FAULT, run::ACTION_FAULT),
        ] {
            let answer = [0x8000_0000, u64::from(action) << 32, 0];
            assert_eq!(vcpu.resume(answer).unwrap()[3], number);
        }
        assert_eq!(vcpu.resume([0, 9 << 32, 0]), Err(Errno::Invalid));
    }

    #[test]
    fn a_page_that_came_or_may_not_come_is_not() {
        let mut vcpu = vcpu();
        assert_eq!(vcpu.page_brought(0, Ok(())), Step::Again);
        assert_eq!(vcpu.resume([u64::MAX; 3]).unwrap()[2..4], [0, 0], "the page is not read");
        assert_eq!(vcpu.page_brought(0, Err(Errno::Access)), Step::Again);
        assert_eq!(vcpu.resume([0; 3]).unwrap()[3], run::ACTION_FAULT);
    }

    #[test]
    fn what_cannot_be_emulated_becomes_an_abort() {
        let mut vcpu = vcpu();
        assert_eq!(vcpu.ended([0, run::FAULT, 0x9300_0000, 0x6000, 0]), Ok(Step::Again));
        assert_eq!(vcpu.resume([0; 3]).unwrap()[3], run::ACTION_FAULT);
        assert_eq!(vcpu.ended([0, run::TAKE_BACK, 0x8000_0000, 0x1000, 0]), Ok(Step::Again));
        assert_eq!(vcpu.ended([0, run::READY, 0, 0, 0]), Ok(Step::Again));
        assert_eq!(vcpu.resume([0; 3]).unwrap()[3], 0, "one abort for one fault");
    }

    #[test]
    fn an_interrupted_entry_keeps_what_was_pending() {
        let mut vcpu = vcpu();
        vcpu.ended([0, run::MMIO_READ, 0x6000, 4, 0]).unwrap();
        assert_eq!(vcpu.ended([Error::Busy.to_register(), 0, 0, 0, 0]), Ok(Step::Again));
        let answer = words(mmio_bytes(0x6000, 42, 4, 0, 0));
        assert_eq!(vcpu.resume(answer).unwrap()[2], 42);
    }

    #[test]
    fn the_end_names_its_reason() {
        let mut vcpu = vcpu();
        let down = vcpu.ended([0, run::SYSTEM_DOWN, 0, 0, 0]);
        assert_eq!(down, Ok(Step::Down { kind: uapi::EXIT_TYPE_POWER_OFF }));
        let down = vcpu.ended([0, run::SYSTEM_DOWN, 1, 0, 0]);
        assert_eq!(down, Ok(Step::Down { kind: uapi::EXIT_TYPE_RESET }));
        let exit = Exit::status(uapi::STATUS_EXITED, uapi::EXIT_TYPE_POWER_OFF);
        let mut bytes = [0; 24];
        (bytes[0], bytes[4]) = (2, 1);
        assert_eq!(exit, Exit { reason: uapi::EXIT_STATUS, words: words(bytes) });
    }

    #[test]
    fn who_was_switched_on_is_woken() {
        let mut vcpu = vcpu();
        assert_eq!(vcpu.ended([0, run::POWERED_OFF, 0, 0, 0]), Ok(Step::Off));
        for id in [0, 31] {
            let step = vcpu.ended([0, run::SWITCHED_ON, id, 0, 0]);
            assert_eq!(step, Ok(Step::Wake { vcpus: 1 << id }));
            assert_eq!(vcpu.resume([u64::MAX; 3]).unwrap()[2..4], [0, 0]);
        }
    }

    #[test]
    fn a_call_that_lacks_tables_is_made_again() {
        let mut vcpu = vcpu();
        let step = vcpu.ended([0, run::TOP_UP, 3, 0, 0]);
        assert_eq!(step, Ok(Step::TopUp { pages: 3 }));
        assert!(!vcpu.has_answer(), "the program has no part in it");
        assert_eq!(vcpu.resume([u64::MAX; 3]).unwrap()[2..4], [0, 0]);
    }

    #[test]
    fn who_was_interrupted_is_woken() {
        let mut vcpu = vcpu();
        for vcpus in [1, 0x8000_0002] {
            let step = vcpu.ended([0, run::WAKE, vcpus, 0, 0]);
            assert_eq!(step, Ok(Step::Wake { vcpus: vcpus as u32 }));
            let step = vcpu.ended([0, run::SPI_DONE, vcpus, 0, 0]);
            assert_eq!(step, Ok(Step::SpiDone { wake: vcpus as u32 }));
            assert_eq!(vcpu.resume([u64::MAX; 3]).unwrap()[2..4], [0, 0]);
        }
    }

    #[test]
    fn a_read_that_somebody_else_answered_is_not_the_programs() {
        let mut vcpu = vcpu();
        let step = vcpu.ended([0, run::MMIO_READ, 0x900_0018, 2, 0]).unwrap();
        let Step::Read { address: 0x900_0018, size: 2, .. } = step else {
            panic!("{step:?}");
        };
        vcpu.read_done(0x1_0090);
        assert!(!vcpu.has_answer());
        // The run page's words are ignored, however often the run is tried.
        for _ in 0..2 {
            assert_eq!(vcpu.resume([u64::MAX; 3]).unwrap()[2..4], [0x90, run::ACTION_EMULATE]);
            assert_eq!(vcpu.ended([Error::Busy.to_register(), 0, 0, 0, 0]), Ok(Step::Again));
        }
        vcpu.ended([0, run::READY, 0, 0, 0]).unwrap();
        assert_eq!(vcpu.resume([u64::MAX; 3]).unwrap()[2..4], [0, 0]);
    }

    #[test]
    fn nonsense_is_an_error() {
        let mut vcpu = vcpu();
        for answer in [
            [0, 0x999, 0, 0, 0],
            [0, run::MMIO_READ, 0, 3, 0],
            [0, run::SWITCHED_ON, 32, 0, 0],
            [0, run::SWITCHED_ON, u64::MAX, 0, 0],
            [0, run::WAKE, 1 << 32, 0, 0],
            [0, run::SPI_DONE, u64::MAX, 0, 0],
            [0, run::MMIO_WRITE, 0, 16, 0],
            [0x4444, 0, 0, 0, 0],
        ] {
            assert_eq!(vcpu.ended(answer), Err(Errno::Io), "{answer:?}");
        }
        assert_eq!(vcpu.ended([Error::Retry.to_register(), 0, 0, 0, 0]), Ok(Step::Again));
    }

    #[test]
    fn deadlines_do_not_overflow() {
        assert_eq!(nanoseconds_until(100, 100, 62_500_000), 0);
        assert_eq!(nanoseconds_until(200, 100, 62_500_000), 0);
        assert_eq!(nanoseconds_until(0, 62_500_000, 62_500_000), 1_000_000_000);
        assert_eq!(nanoseconds_until(0, 1, 62_500_000), 16);
        assert_eq!(nanoseconds_until(0, u64::MAX, 1), u64::MAX);
        assert_eq!(nanoseconds_until(0, 5, 0), 5_000_000_000, "no division by zero");
    }
}

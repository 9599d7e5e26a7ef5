// SPDX-License-Identifier: MIT OR Apache-2.0

use std::fmt;
use std::time::Duration;

use escrow_vmcore::uapi;
use nix::errno::Errno;

use super::protocol::{self, ARGUMENT_COUNT, Command, SCRATCH, WINDOW, WINDOW_SIZE};
use crate::gunyah::{self, Exit, MmioAccess, Vcpu};
use crate::host::Watchdog;

/// How long a guest may take for one command. A command is some thousand
/// instructions; emulated machines under load need the rest.
const PATIENCE: Duration = Duration::from_secs(20);

/// The host's end of the guest's window: gives commands and collects answers.
pub struct Interpreter {
    vcpu: Vcpu,
}

/// What came of a command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// The answer, see [`Command`].
    pub answer: u64,
    /// What the guest sent by [`Command::Send`].
    pub data: Vec<u64>,
    /// Accesses to MMIO addresses that are not the program's own, in order.
    pub accesses: Vec<MmioAccess>,
    /// Exceptions that the guest took.
    pub exceptions: Vec<Exception>,
}

impl Reply {
    /// [`Self::data`] as bytes, in the order of the guest's memory.
    pub fn bytes(&self) -> Vec<u8> {
        self.data.iter().flat_map(|word| word.to_le_bytes()).collect()
    }
}

/// An exception that the guest took at EL1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exception {
    /// Which vector, 0 to 15; 4 is "synchronous, from the same level".
    pub vector: u64,
    /// `ESR_EL1`.
    pub esr: u64,
    /// `FAR_EL1`.
    pub far: u64,
}

/// Why a command has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The shim would not run the vCPU.
    Refused(gunyah::Error),
    /// A page that the guest needs could not be brought in.
    PageFault {
        /// Guest address.
        address: u64,
        /// Why.
        errno: Errno,
    },
    /// The VM has ended: `STATUS_*` and `EXIT_TYPE_*` of [`uapi`].
    Ended {
        /// `STATUS_*`
        status: u32,
        /// `EXIT_TYPE_*`
        kind: u16,
    },
    /// The guest did not answer in time.
    TimedOut,
    /// The guest used its window in a way that the program never does.
    Unexpected(MmioAccess),
}

impl Failure {
    /// The guest switched itself off.
    pub const POWERED_OFF: Failure =
        Failure::Ended { status: uapi::STATUS_EXITED, kind: uapi::EXIT_TYPE_POWER_OFF };
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Refused(error) => write!(f, "{error}"),
            Failure::PageFault { address, errno } => {
                write!(f, "the guest's page at {address:#x} could not be brought in: {errno}")
            }
            Failure::Ended { status, kind } => {
                let status = match *status {
                    uapi::STATUS_LOAD_FAILED => "could not be started",
                    uapi::STATUS_EXITED => "ended",
                    uapi::STATUS_CRASHED => "crashed",
                    _ => "ended in an unknown way",
                };
                write!(f, "the guest {status} (exit type {kind})")
            }
            Failure::TimedOut => write!(f, "the guest did not answer within {PATIENCE:?}"),
            Failure::Unexpected(access) => write!(f, "unexpected {access:x?} of the guest"),
        }
    }
}

impl std::error::Error for Failure {}

/// What the guest meets while it does a command.
#[derive(Clone, Copy, Debug, Default)]
pub struct Surroundings<'a> {
    /// What [`Command::Receive`] reads; zeros follow.
    pub data: &'a [u64],
    /// What an MMIO load outside the program's own window reads.
    pub scratch: u64,
    /// Such a load ends in an abort in the guest instead.
    pub refuse: bool,
}

impl Interpreter {
    /// Takes over a vCPU of a started VM whose boot PC is the program.
    pub fn new(vcpu: Vcpu) -> Interpreter {
        Interpreter { vcpu }
    }

    /// Has the guest do a command, and runs it until it has answered.
    pub fn execute(&mut self, command: Command) -> Result<Reply, Failure> {
        self.execute_in(command, Surroundings::default(), Vcpu::run)
    }

    /// As [`Self::execute`], in given surroundings and by a given way to run
    /// the vCPU.
    pub fn execute_in(
        &mut self,
        command: Command,
        surroundings: Surroundings<'_>,
        mut run: impl FnMut(&mut Vcpu) -> gunyah::Result<Exit>,
    ) -> Result<Reply, Failure> {
        let watchdog = Watchdog::start(PATIENCE);
        let mut exchange = Exchange::new(command, surroundings);
        loop {
            let exit = watchdog.guard(&mut self.vcpu, &mut run).map_err(Failure::Refused)?;
            match exit {
                Exit::Interrupted if watchdog.barked() => return Err(Failure::TimedOut),
                Exit::Interrupted => {}
                Exit::PageFault { address, errno } => {
                    return Err(Failure::PageFault { address, errno });
                }
                Exit::Ended { status, kind } => return Err(Failure::Ended { status, kind }),
                Exit::Mmio(access) => match exchange.access(access)? {
                    Next::Load(value) => self.vcpu.complete_read(value),
                    Next::Abort => self.vcpu.refuse_access(),
                    Next::Continue => {}
                    Next::Done => return Ok(exchange.reply),
                },
            }
        }
    }

    /// Runs the vCPU without a time limit and without answering anything.
    pub fn run_on(&mut self) -> gunyah::Result<Exit> {
        self.vcpu.run()
    }
}

/// What becomes of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// It reads this.
    Load(u64),
    /// It aborts.
    Abort,
    /// It is a store, and that is all.
    Continue,
    /// It is the answer.
    Done,
}

/// One command on its way: the device behind the window.
struct Exchange<'a> {
    operation: u64,
    arguments: [u64; ARGUMENT_COUNT],
    /// The guest has fetched the operation.
    fetched: bool,
    surroundings: Surroundings<'a>,
    exception: Exception,
    reply: Reply,
}

impl<'a> Exchange<'a> {
    fn new(command: Command, surroundings: Surroundings<'a>) -> Exchange<'a> {
        let (operation, arguments) = command.encode();
        Exchange {
            operation,
            arguments,
            fetched: false,
            surroundings,
            exception: Exception::default(),
            reply: Reply::default(),
        }
    }

    fn access(&mut self, access: MmioAccess) -> Result<Next, Failure> {
        const ARGUMENTS_END: u64 = protocol::ARGUMENTS + 8 * ARGUMENT_COUNT as u64;
        let (address, size) = match access {
            MmioAccess::Read { address, size } | MmioAccess::Write { address, size, .. } => {
                (address, size)
            }
        };
        let own = address.checked_sub(WINDOW).filter(|&offset| offset < SCRATCH);
        let Some(offset) = own else {
            return Ok(self.foreign(access));
        };
        // The guest's program accesses its window by aligned words of 8 bytes, and
        // reads the operation first.
        let unexpected = Err(Failure::Unexpected(access));
        if size != 8 || offset % 8 != 0 || (!self.fetched && offset != protocol::OPERATION) {
            return unexpected;
        }
        match (access, offset) {
            (MmioAccess::Read { .. }, protocol::OPERATION) if !self.fetched => {
                self.fetched = true;
                Ok(Next::Load(self.operation))
            }
            (MmioAccess::Read { .. }, protocol::ARGUMENTS..ARGUMENTS_END) => {
                let index = (offset - protocol::ARGUMENTS) as usize / 8;
                Ok(Next::Load(self.arguments[index]))
            }
            (MmioAccess::Read { .. }, protocol::DATA) => {
                let (first, rest) = self.surroundings.data.split_first().unwrap_or((&0, &[]));
                self.surroundings.data = rest;
                Ok(Next::Load(*first))
            }
            (MmioAccess::Write { value, .. }, protocol::DATA) => {
                self.reply.data.push(value);
                Ok(Next::Continue)
            }
            (MmioAccess::Write { value, .. }, protocol::EXCEPTION_FAR) => {
                self.exception.far = value;
                Ok(Next::Continue)
            }
            (MmioAccess::Write { value, .. }, protocol::EXCEPTION_ESR) => {
                self.exception.esr = value;
                Ok(Next::Continue)
            }
            (MmioAccess::Write { value, .. }, protocol::EXCEPTION) => {
                self.exception.vector = value;
                self.reply.exceptions.push(std::mem::take(&mut self.exception));
                Ok(Next::Continue)
            }
            (MmioAccess::Write { value, .. }, protocol::ANSWER) => {
                self.reply.answer = value;
                Ok(Next::Done)
            }
            _ => unexpected,
        }
    }

    /// An access that a command asked for.
    fn foreign(&mut self, access: MmioAccess) -> Next {
        self.reply.accesses.push(access);
        match access {
            _ if self.surroundings.refuse => Next::Abort,
            MmioAccess::Read { .. } => Next::Load(self.surroundings.scratch),
            MmioAccess::Write { .. } => Next::Continue,
        }
    }
}

const _: () = assert!(SCRATCH < WINDOW_SIZE);

#[cfg(test)]
mod tests {
    use super::super::Width;
    use super::*;

    fn read(offset: u64) -> MmioAccess {
        MmioAccess::Read { address: WINDOW + offset, size: 8 }
    }

    fn write(offset: u64, value: u64) -> MmioAccess {
        MmioAccess::Write { address: WINDOW + offset, size: 8, value }
    }

    #[test]
    fn a_command_is_fetched_and_answered() {
        let command = Command::Store(Width::Word, 0x1234, 0x5678);
        let mut exchange = Exchange::new(command, Surroundings::default());
        assert_eq!(exchange.access(read(protocol::OPERATION)), Ok(Next::Load(command.encode().0)));
        assert_eq!(exchange.access(read(protocol::ARGUMENTS)), Ok(Next::Load(0x1234)));
        assert_eq!(exchange.access(read(protocol::ARGUMENTS + 8)), Ok(Next::Load(0x5678)));
        assert_eq!(exchange.access(write(protocol::ANSWER, 7)), Ok(Next::Done));
        assert_eq!(exchange.reply, Reply { answer: 7, ..Reply::default() });
    }

    #[test]
    fn data_goes_both_ways() {
        let surroundings = Surroundings { data: &[1, 2], ..Surroundings::default() };
        let mut exchange = Exchange::new(Command::Receive(0, 24), surroundings);
        exchange.access(read(protocol::OPERATION)).unwrap();
        let loads: Vec<_> =
            (0..3).map(|_| exchange.access(read(protocol::DATA)).unwrap()).collect();
        assert_eq!(loads, [Next::Load(1), Next::Load(2), Next::Load(0)]);
        exchange.access(write(protocol::DATA, 0x0807_0605_0403_0201)).unwrap();
        assert_eq!(exchange.reply.bytes(), [1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn accesses_elsewhere_are_the_commands() {
        let surroundings = Surroundings { scratch: 0x42, ..Surroundings::default() };
        let mut exchange = Exchange::new(Command::Nop, surroundings);
        exchange.access(read(protocol::OPERATION)).unwrap();
        let load = MmioAccess::Read { address: WINDOW + SCRATCH + 1, size: 1 };
        let store = MmioAccess::Write { address: 0x9000, size: 2, value: 9 };
        assert_eq!(exchange.access(load), Ok(Next::Load(0x42)));
        assert_eq!(exchange.access(store), Ok(Next::Continue));
        assert_eq!(exchange.reply.accesses, [load, store]);
        exchange.surroundings.refuse = true;
        assert_eq!(exchange.access(load), Ok(Next::Abort));
    }

    #[test]
    fn exceptions_are_collected() {
        let mut exchange = Exchange::new(Command::ReadHidden, Surroundings::default());
        exchange.access(read(protocol::OPERATION)).unwrap();
        exchange.access(write(protocol::EXCEPTION_FAR, 1)).unwrap();
        exchange.access(write(protocol::EXCEPTION_ESR, 2)).unwrap();
        exchange.access(write(protocol::EXCEPTION, 4)).unwrap();
        assert_eq!(exchange.reply.exceptions, [Exception { vector: 4, esr: 2, far: 1 }]);
    }

    #[test]
    fn a_guest_out_of_step_is_noticed() {
        let mut exchange = Exchange::new(Command::Nop, Surroundings::default());
        for access in [
            write(protocol::ANSWER, 0),
            read(protocol::ANSWER),
            MmioAccess::Read { address: WINDOW, size: 4 },
            MmioAccess::Read { address: WINDOW + 4, size: 8 },
        ] {
            assert_eq!(exchange.access(access), Err(Failure::Unexpected(access)));
        }
    }
}

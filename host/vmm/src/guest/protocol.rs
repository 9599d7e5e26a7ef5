// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the guest program and the host agree on.
//!
//! The guest owns a window of MMIO addresses: nothing is bound there, so each
//! access ends in an exit that the host answers. The guest reads an operation
//! and the arguments that it takes, does it, and writes the answer. The
//! program in `program.S` gets every number from here.

/// Guest address of the window.
pub const WINDOW: u64 = 0x6000;
/// Bytes in the window.
pub const WINDOW_SIZE: u64 = 0x1000;

/// Read: the operation, see [`Command`].
pub const OPERATION: u64 = 0x00;
/// Read: the first argument; the others follow in words of 8 bytes.
pub const ARGUMENTS: u64 = 0x08;
/// Arguments that an operation can have.
pub const ARGUMENT_COUNT: usize = 5;
/// Write: the operation is done, with this answer.
pub const ANSWER: u64 = 0x40;
/// Read: the next word for [`Command::Receive`]; write: the next word of
/// [`Command::Send`].
pub const DATA: u64 = 0x48;
/// Write: `FAR_EL1` of an exception. [`EXCEPTION`] follows.
pub const EXCEPTION_FAR: u64 = 0x50;
/// Write: `ESR_EL1` of an exception. [`EXCEPTION`] follows.
pub const EXCEPTION_ESR: u64 = 0x58;
/// Write: which vector an exception took, 0 to 15. The guest then goes on
/// behind the instruction that caused it.
pub const EXCEPTION: u64 = 0x60;
/// The first offset in the window that the program itself does not use: loads
/// and stores here, of any size, are the commands'.
pub const SCRATCH: u64 = 0x800;

/// Width of a load or a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// One byte.
    Byte,
    /// Two bytes.
    Half,
    /// Four bytes.
    Word,
    /// Eight bytes.
    Double,
}

impl Width {
    /// All widths.
    pub const ALL: [Width; 4] = [Width::Byte, Width::Half, Width::Word, Width::Double];

    /// Bytes.
    pub const fn bytes(self) -> u32 {
        1 << self as u32
    }

    /// The part of `value` that fits.
    pub const fn truncate(self, value: u64) -> u64 {
        value & (u64::MAX >> (64 - 8 * self.bytes()))
    }

    /// The part of `value` that fits, as a signed number.
    pub const fn sign_extend(self, value: u64) -> u64 {
        let spare = 64 - 8 * self.bytes();
        ((value << spare) as i64 >> spare) as u64
    }
}

/// Operation numbers: an index into the program's table.
pub mod op {
    /// [`Command::Nop`](super::Command::Nop).
    pub const NOP: u64 = 0;
    /// [`Command::Load`](super::Command::Load), plus the width's number.
    pub const LOAD: u64 = 1;
    /// [`Command::LoadSigned`](super::Command::LoadSigned), plus the width's
    /// number.
    pub const LOAD_SIGNED: u64 = 5;
    /// [`Command::Store`](super::Command::Store), plus the width's number.
    pub const STORE: u64 = 9;
    /// [`Command::Fill`](super::Command::Fill).
    pub const FILL: u64 = 13;
    /// [`Command::Differences`](super::Command::Differences).
    pub const DIFFERENCES: u64 = 14;
    /// [`Command::Send`](super::Command::Send).
    pub const SEND: u64 = 15;
    /// [`Command::Receive`](super::Command::Receive).
    pub const RECEIVE: u64 = 16;
    /// [`Command::Hypercall`](super::Command::Hypercall).
    pub const HYPERCALL: u64 = 17;
    /// [`Command::SetVectors`](super::Command::SetVectors).
    pub const SET_VECTORS: u64 = 18;
    /// [`Command::CheckVectors`](super::Command::CheckVectors).
    pub const CHECK_VECTORS: u64 = 19;
    /// [`Command::ReadHidden`](super::Command::ReadHidden).
    pub const READ_HIDDEN: u64 = 20;
    /// [`Command::Sleep`](super::Command::Sleep).
    pub const SLEEP: u64 = 21;
    /// [`Command::Spin`](super::Command::Spin).
    pub const SPIN: u64 = 22;
    /// [`Command::PowerOff`](super::Command::PowerOff).
    pub const POWER_OFF: u64 = 23;
    /// How many there are. The guest answers all ones to any other.
    pub const COUNT: u64 = 24;
}

/// What the guest can be told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Nothing. Answers 0.
    Nop,
    /// Loads from an address. Answers the value, zero-extended.
    Load(Width, u64),
    /// Loads from an address. Answers the value, sign-extended to 64 bits.
    LoadSigned(Width, u64),
    /// Stores a value at an address. Answers 0.
    Store(Width, u64, u64),
    /// Stores a word of 8 bytes all over a range (address, bytes). Answers 0.
    Fill(u64, u64, u64),
    /// Counts the words of 8 bytes in a range (address, bytes) that differ
    /// from a value. Answers the number.
    Differences(u64, u64, u64),
    /// Writes the range (address, bytes) to [`DATA`], 8 bytes at a time.
    /// Answers 0.
    Send(u64, u64),
    /// Fills the range (address, bytes) from [`DATA`]. Answers 0.
    Receive(u64, u64),
    /// `hvc #0` with `x0` to `x4`. Answers `x0`.
    Hypercall([u64; ARGUMENT_COUNT]),
    /// Sets `V0` to `V31`: register `i` gets seed + i in its lower half and
    /// its complement in the upper. Answers 0.
    SetVectors(u64),
    /// Compares `V0` to `V31` with what [`SetVectors`](Self::SetVectors) with
    /// the same seed made of them. Answers how many differ.
    CheckVectors(u64),
    /// Reads a register of the performance monitors, which guests do not have:
    /// an undefined instruction. Answers whatever; the exception is what counts.
    ReadHidden,
    /// Arms the virtual timer and waits by WFI until the counter has advanced
    /// by so many ticks. Answers by how many it has.
    Sleep(u64),
    /// Answers 0 and then loops for ever.
    Spin,
    /// PSCI SYSTEM_OFF. No answer.
    PowerOff,
}

impl Command {
    /// The operation's number and the arguments, as the guest reads them.
    pub fn encode(self) -> (u64, [u64; ARGUMENT_COUNT]) {
        let (operation, arguments): (u64, &[u64]) = match &self {
            Command::Nop => (op::NOP, &[]),
            Command::Load(width, address) => (op::LOAD + *width as u64, &[*address]),
            Command::LoadSigned(width, address) => (op::LOAD_SIGNED + *width as u64, &[*address]),
            Command::Store(width, address, value) => {
                (op::STORE + *width as u64, &[*address, *value])
            }
            Command::Fill(address, size, value) => (op::FILL, &[*address, *size, *value]),
            Command::Differences(address, size, value) => {
                (op::DIFFERENCES, &[*address, *size, *value])
            }
            Command::Send(address, size) => (op::SEND, &[*address, *size]),
            Command::Receive(address, size) => (op::RECEIVE, &[*address, *size]),
            Command::Hypercall(registers) => (op::HYPERCALL, registers),
            Command::SetVectors(seed) => (op::SET_VECTORS, &[*seed]),
            Command::CheckVectors(seed) => (op::CHECK_VECTORS, &[*seed]),
            Command::ReadHidden => (op::READ_HIDDEN, &[]),
            Command::Sleep(ticks) => (op::SLEEP, &[*ticks]),
            Command::Spin => (op::SPIN, &[]),
            Command::PowerOff => (op::POWER_OFF, &[]),
        };
        let mut words = [0; ARGUMENT_COUNT];
        for (word, argument) in words.iter_mut().zip(arguments) {
            *word = *argument;
        }
        (operation, words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_cut_and_extend() {
        let value = 0x8182_8384_f5f6_f7f8;
        assert_eq!(Width::ALL.map(Width::bytes), [1, 2, 4, 8]);
        assert_eq!(
            Width::ALL.map(|width| width.truncate(value)),
            [0xf8, 0xf7f8, 0xf5f6_f7f8, value]
        );
        assert_eq!(
            Width::ALL.map(|width| width.sign_extend(value)),
            [0xffff_ffff_ffff_fff8, 0xffff_ffff_ffff_f7f8, 0xffff_ffff_f5f6_f7f8, value]
        );
    }

    #[test]
    fn arguments_keep_their_order() {
        assert_eq!(
            Command::Store(Width::Half, 0x10, 0x20).encode(),
            (op::STORE + 1, [0x10, 0x20, 0, 0, 0])
        );
        assert_eq!(Command::Hypercall([1, 2, 3, 4, 5]).encode(), (op::HYPERCALL, [1, 2, 3, 4, 5]));
    }

    #[test]
    fn operations_do_not_collide() {
        let mut numbers: Vec<u64> = Width::ALL
            .iter()
            .flat_map(|&width| {
                [
                    Command::Load(width, 0),
                    Command::LoadSigned(width, 0),
                    Command::Store(width, 0, 0),
                ]
            })
            .chain([
                Command::Nop,
                Command::Fill(0, 0, 0),
                Command::Differences(0, 0, 0),
                Command::Send(0, 0),
                Command::Receive(0, 0),
                Command::Hypercall([0; 5]),
                Command::SetVectors(0),
                Command::CheckVectors(0),
                Command::ReadHidden,
                Command::Sleep(0),
                Command::Spin,
                Command::PowerOff,
            ])
            .map(|command| command.encode().0)
            .collect();
        numbers.sort_unstable();
        assert!(numbers.iter().copied().eq(0..op::COUNT), "{numbers:?}");
    }
}

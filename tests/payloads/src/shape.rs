// SPDX-License-Identifier: MIT OR Apache-2.0

//! The shapes of the host's calls, for tests that try them all.

use escrow_abi::call;

/// What an argument of a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Argument {
    /// A VM's handle.
    Vm,
    /// A vCPU's handle.
    Vcpu,
    /// A doorbell's handle.
    Doorbell,
    /// What a guest calls a doorbell: 32 bits.
    Label,
    /// Flags, of which there must be some.
    Flags,
    /// The address of a list; its count follows.
    List,
    /// How many entries the list before it has.
    Count,
    /// The first word of a list entry: frame and order.
    EntryFrame,
    /// The second: guest address and rights.
    EntryGuest,
    /// The third: references, all of them and the safe ones.
    EntryReferences,
    /// The fourth: who needs to reach it; the upper half is zero.
    EntryUsers,
    /// A physical address.
    Physical,
    /// The beginning of a range of a guest's addresses; its size follows.
    Guest,
    /// How many bytes the range before it has.
    Size,
    /// A `CONFIGURE_*` key.
    Key,
    /// The index of a vCPU.
    Index,
    /// The number of a register.
    Register,
    /// The handle of a VM that another is to have a handle on.
    Object,
    /// `RIGHT_*` bits.
    Rights,
    /// A handle of a guest's own.
    OfGuest,
    /// An `INFO_*` selector.
    Selector,
    /// What goes with a selector.
    Detail,
    /// A guest's address of frames of a GIC.
    Frames,
    /// How many SPIs there are to be.
    Spis,
    /// The INTID of an SPI.
    Spi,
    /// An `INPUT_*`.
    Input,
    /// Any value is right.
    Any,
}

/// The shape of a call of the host's.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Its number.
    pub function: u32,
    /// Its arguments, from X1 on.
    pub arguments: &'static [Argument],
}

impl Shape {
    /// What its first argument is.
    pub fn first(&self) -> Argument {
        self.arguments.first().copied().unwrap_or(Argument::Any)
    }

    /// Whether the entries of its list name guest addresses.
    pub fn maps(&self) -> bool {
        matches!(self.function, call::MEM_SHARE | call::MEM_LEND | call::MEM_DONATE)
    }

    /// In which register it takes a list, if it does; its count is in the next.
    pub fn list(&self) -> Option<usize> {
        self.arguments.iter().position(|&argument| argument == Argument::List).map(|n| n + 1)
    }
}

const fn shape(function: u32, arguments: &'static [Argument]) -> Shape {
    Shape { function, arguments }
}

use Argument::{
    Any, Count, Detail, Doorbell, EntryFrame, EntryGuest, EntryReferences, EntryUsers, Flags,
    Frames, Guest, Index, Input, Key, Label, List, Object, OfGuest, Physical, Register, Rights,
    Selector, Size, Spi, Spis, Vcpu, Vm,
};

/// All calls of the host's but [`call::HYP_IDENTIFY`].
pub const CALLS: &[Shape] = &[
    shape(call::VCPU_RUN, &[Vcpu, Any, Any, Any]),
    shape(call::VM_CREATE, &[List, Count]),
    shape(call::VM_CONFIGURE, &[Vm, Key, Guest, Size]),
    shape(call::VM_TOP_UP, &[Vm, List, Count]),
    shape(call::VM_START, &[Vm]),
    shape(call::VM_DESTROY, &[Vm]),
    shape(call::VM_INFO, &[Vm]),
    shape(call::VM_VGIC, &[Vm, Frames, Frames, Spis]),
    shape(call::VM_PV_TIME, &[Vm, Guest]),
    shape(call::VM_PROTECT, &[Vm]),
    shape(call::VCPU_CREATE, &[Vm, Index]),
    shape(call::VCPU_SET_REGISTER, &[Vcpu, Register, Any]),
    shape(call::MEM_SHARE, &[Vm, List, Count]),
    shape(call::MEM_UNSHARE, &[List, Count]),
    shape(call::MEM_LEND, &[Vm, List, Count]),
    shape(call::MEM_RECLAIM, &[List, Count]),
    shape(call::MEM_DONATE, &[Vm, List, Count]),
    shape(call::MEM_TAKE_BACK, &[List, Count]),
    shape(call::MEM_POISON, &[List, Count]),
    shape(call::MEM_LEND_ONE, &[Vm, EntryFrame, EntryGuest, EntryReferences, EntryUsers]),
    shape(call::CAP_GRANT, &[Vm, Object, Rights, Guest, Size]),
    shape(call::CAP_REVOKE, &[Vm, OfGuest]),
    shape(call::BELL_CREATE, &[Vm, Label]),
    shape(call::BELL_SEND, &[Doorbell, Any]),
    shape(call::BELL_RECEIVE, &[Doorbell, Flags]),
    shape(call::BELL_RESET, &[Doorbell]),
    shape(call::BELL_SET_MASK, &[Doorbell, Any, Any]),
    shape(call::SPI_INPUT, &[Vm, Spi, Input]),
    shape(call::SPI_DONE, &[Vm]),
    shape(call::LEDGER_INFO, &[Selector, Detail]),
    shape(call::FRAME_INFO, &[Physical]),
    shape(call::LOG_READ, &[Any]),
];

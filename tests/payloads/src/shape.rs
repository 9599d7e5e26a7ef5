// SPDX-License-Identifier: MIT OR Apache-2.0

//! The shapes of the host's calls, for tests that try them all.

use escrow_abi::call;

/// What the first argument of a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    /// A VM's handle.
    Vm,
    /// A vCPU's handle.
    Vcpu,
    /// Something else.
    Other,
}

/// The shape of a call of the host's.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Its number.
    pub function: u32,
    /// How many arguments it has after its number.
    pub arguments: usize,
    /// What the first of them is.
    pub first: First,
    /// Which argument is the address of a list, if one is; its count follows.
    pub list: Option<usize>,
}

const fn shape(function: u32, arguments: usize, first: First, list: Option<usize>) -> Shape {
    Shape { function, arguments, first, list }
}

/// All calls of the host's but [`call::HYP_IDENTIFY`].
pub const CALLS: &[Shape] = &[
    shape(call::VCPU_RUN, 4, First::Vcpu, None),
    shape(call::VM_CREATE, 2, First::Other, Some(1)),
    shape(call::VM_CONFIGURE, 4, First::Vm, None),
    shape(call::VM_TOP_UP, 3, First::Vm, Some(2)),
    shape(call::VM_START, 1, First::Vm, None),
    shape(call::VM_DESTROY, 1, First::Vm, None),
    shape(call::VM_INFO, 1, First::Vm, None),
    shape(call::VCPU_CREATE, 2, First::Vm, None),
    shape(call::VCPU_SET_REGISTER, 3, First::Vcpu, None),
    shape(call::MEM_SHARE, 3, First::Vm, Some(2)),
    shape(call::MEM_UNSHARE, 2, First::Other, Some(1)),
    shape(call::MEM_LEND, 3, First::Vm, Some(2)),
    shape(call::MEM_RECLAIM, 2, First::Other, Some(1)),
    shape(call::LEDGER_INFO, 2, First::Other, None),
    shape(call::FRAME_INFO, 1, First::Other, None),
];

// SPDX-License-Identifier: MIT OR Apache-2.0

//! The functions of a VM.

use alloc::boxed::Box;

use escrow_vmcore::function::{self, Function, Key, Words};
use escrow_vmcore::ioeventfd::Ioeventfds;
use escrow_vmcore::{Errno, uapi};

use crate::kernel::EventRef;
use crate::{new, status, store};

/// `struct escrow_ioeventfds`: the events of a VM.
pub type Events = Ioeventfds<EventRef>;

/// `struct escrow_function`: a checked function.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct CFunction {
    /// The interface's `type`.
    pub(crate) kind: u32,
    /// A vCPU's number, an IRQFD's label, the INTID of a console's interrupt or 0.
    pub(crate) id: u32,
    /// The eventfd of an IRQFD or IOEVENTFD that is to be added.
    pub(crate) fd: i32,
    /// An IRQFD's eventfd for the way back, if it has one.
    pub(crate) resample_fd: i32,
    /// A console's guest address.
    pub(crate) address: u64,
    /// An IRQFD is level-triggered.
    pub(crate) level: bool,
    /// An IRQFD has an eventfd for the way back.
    pub(crate) resamples: bool,
    pub(crate) reserved: [u8; 6],
}

/// Checks a function that is to be added.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_function_to_add(
    desc: &uapi::FunctionDesc,
    words: &Words,
    to: &mut CFunction,
) -> i32 {
    let nothing = CFunction { kind: desc.kind, ..CFunction::default() };
    let checked = function::to_add(desc, words).map(|function| match function {
        Function::Vcpu { id } => CFunction { id, ..nothing },
        Function::Irqfd { fd, label, level, resample } => CFunction {
            id: label,
            fd,
            level,
            resample_fd: resample.unwrap_or(-1),
            resamples: resample.is_some(),
            ..nothing
        },
        Function::Ioeventfd { fd, .. } => CFunction { fd, ..nothing },
        Function::Console { address, interrupt } => {
            CFunction { id: interrupt.unwrap_or(0), address, ..nothing }
        }
    });
    store(checked, to)
}

/// Checks a function that is to be removed. ENOENT: there is none like it.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_function_to_remove(
    desc: &uapi::FunctionDesc,
    words: &Words,
    to: &mut CFunction,
) -> i32 {
    let nothing = CFunction { kind: desc.kind, ..CFunction::default() };
    let checked = function::to_remove(desc, words).map(|key| match key {
        Key::Vcpu(id) | Key::Irqfd(id) => CFunction { id, ..nothing },
        Key::Ioeventfd(_) => nothing,
        Key::Console(address) => CFunction { address, ..nothing },
    });
    store(checked, to)
}

/// No events; null without memory.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_ioeventfds_new() -> Option<Box<Events>> {
    new(Events::default())
}

/// The end of what `escrow_rs_ioeventfds_new` made, and its references.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_ioeventfds_free(events: Option<Box<Events>>) {
    drop(events);
}

/// Adds an event, whose reference is taken over, whatever comes of it.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_ioeventfd_add(
    events: &mut Events,
    desc: &uapi::FunctionDesc,
    words: &Words,
    event: EventRef,
) -> i32 {
    status(function::to_add(desc, words).and_then(|function| match function {
        Function::Ioeventfd { filter, .. } => events.add(filter, event),
        _ => Err(Errno::Invalid),
    }))
}

/// Takes an event away, and lets go of it.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_ioeventfd_remove(
    events: &mut Events,
    desc: &uapi::FunctionDesc,
    words: &Words,
) -> i32 {
    status(function::to_remove(desc, words).and_then(|key| match key {
        Key::Ioeventfd(filter) => events.remove(&filter).map(drop),
        _ => Err(Errno::NotFound),
    }))
}

/// Signals the event that a write is for. false: there is none.
#[unsafe(no_mangle)]
pub extern "C" fn escrow_rs_ioeventfd_write(
    events: &Events,
    address: u64,
    size: u32,
    data: u64,
) -> bool {
    let event = events.find(address, size, data);
    event.inspect(|event| event.signal()).is_some()
}

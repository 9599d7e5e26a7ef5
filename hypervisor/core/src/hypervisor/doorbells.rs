// SPDX-License-Identifier: MIT OR Apache-2.0

//! The calls about doorbells: the host's by handle, a guest's own by label.

use escrow_abi::{Error, Handle, HandleKind, call};

use super::{Hypervisor, Refusal};
use crate::doorbell::Action;
use crate::machine::{Machine, Note};
use crate::vm::Run;

impl<M: Machine> Hypervisor<M> {
    /// Gives a VM a doorbell. Takes no lock but that of the VM's doorbells, which has
    /// it that they are not gone yet.
    pub(super) fn bell_create(&self, vm: u64, label: u64) -> Result<u64, Refusal> {
        let label = u32::try_from(label).map_err(|_| Error::InvalidArgument)?;
        let (handle, _, slot) = self.slot(vm, HandleKind::Vm)?;
        let index = slot.doorbells().create(handle.generation, label)?;
        Ok(Handle { kind: HandleKind::Doorbell, index, ..handle }.to_register())
    }

    /// Does something to the doorbell that a handle of the host's names. Takes no lock but
    /// that of the VM's doorbells.
    pub(super) fn bell(&self, doorbell: u64, action: Action) -> Result<u64, Refusal> {
        let (handle, _, slot) = self.slot(doorbell, HandleKind::Doorbell)?;
        if action == Action::Receive(0) {
            return Err(Error::InvalidArgument.into());
        }
        Ok(slot.doorbells().act(handle.generation, handle.index, action)?)
    }

    /// Answers a guest's call about a doorbell of its own. `args` are its `x0`–`x7`; the
    /// answer goes to `x0` and `x1`.
    pub(crate) fn guest_bell(&self, run: &Run<'_>, args: &[u64; 8]) -> [u64; 2] {
        self.machine.note(|| Note::Begin(args[0]));
        let (x0, x1) = match guest_action(args) {
            Ok(action) => match run.slot().doorbells().act_labelled(args[1], action) {
                // Only a receive returns the flags as they were before.
                Ok(before) if matches!(action, Action::Receive(_)) => (0, before),
                Ok(_) => (0, 0),
                Err(error) => (error.to_register(), 0),
            },
            Err(error) => (error.to_register(), 0),
        };
        self.machine.note(|| Note::End(x0));
        [x0, x1]
    }
}

/// What a guest asks for.
///
/// Of the registers behind the arguments, only the one that Gunyah reserves must be zero:
/// a guest that makes its calls as Linux does leaves anything in the others
/// (`arm_smccc_1_1_hvc` sets those that it is given).
fn guest_action(args: &[u64; 8]) -> Result<Action, Error> {
    let [function, _, a, b, c, ..] = *args;
    let (action, reserved) = match function as u32 {
        call::BELL_RECEIVE => (Action::Receive(a), b),
        call::BELL_RESET => (Action::Reset, a),
        call::BELL_SET_MASK => (Action::SetMask { enable: a, ack: b }, c),
        // A guest cannot ring its own doorbells.
        _ => return Err(Error::Denied),
    };
    if reserved != 0 || action == Action::Receive(0) {
        return Err(Error::InvalidArgument);
    }
    Ok(action)
}

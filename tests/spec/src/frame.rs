// SPDX-License-Identifier: MIT OR Apache-2.0

//! The table: what may happen to one frame of RAM.
//!
//! | state | owner reaches it | borrower reaches it |
//! | --- | --- | --- |
//! | `Hypervisor` | no VM does | |
//! | `Owned` (the host's) | yes | |
//! | `Donated` (a guest's own) | yes | |
//! | `Pinned` (the host's) | yes | |
//! | `Shared` | yes | yes |
//! | `SharedBack` | yes | yes |
//! | `Lent` | **no** | yes |
//! | `UnlockedZeroed`, `UnlockedContents` | no | yes, until it is fetched |
//! | `Metadata` | no | no: EL2 keeps a VM's tables in it |
//! | `Poisoned` | nobody | nobody |
//!
//! [`step`] says what each call makes of each state, [`contents`] what the next
//! one who looks finds in it.

use escrow_abi::{Error, FrameState};

/// A VM. 0 is the host, which never dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VmId(pub u16);

impl VmId {
    /// The host.
    pub const HOST: VmId = VmId(0);
}

/// A frame of RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its state.
    pub state: FrameState,
    /// Who owns it; the host, as a matter of form, where nobody does.
    pub owner: VmId,
    /// Who borrows it; for `Metadata` the VM that it serves.
    pub borrower: Option<VmId>,
    /// Where its borrower has it or, while it is `Donated`, the guest that owns
    /// it; otherwise 0.
    pub guest: u64,
}

/// A call about a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Who makes it.
    pub by: VmId,
    /// What it asks for.
    pub transition: Transition,
    /// Which of the frame's two VMs live.
    pub living: Living,
}

/// Whether the VMs of a frame live. The host always does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Living {
    /// Its owner.
    pub owner: bool,
    /// Its borrower; `true` if it has none.
    pub borrower: bool,
}

/// What a call asks for. The addresses are those of guests; the host's own are
/// the frames themselves, and 0 stands for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// `MEM_SHARE`, with a VM that will have it at an address.
    Share(VmId, u64),
    /// `MEM_LEND`, to a VM that will have it at an address.
    Lend(VmId, u64),
    /// `MEM_DONATE`, to a VM that will have it at an address, or to the host.
    Donate(VmId, u64),
    /// `VM_CREATE` and `VM_TOP_UP`: to EL2, for a VM.
    Equip(VmId),
    /// `MODIFY_PAGES` with `MODIFY_UNLOCK`, and perhaps `MODIFY_SANITIZE`.
    Unlock {
        /// The borrower wants it zeroed.
        sanitize: bool,
    },
    /// `RSI_IPA_STATE_SET` of what was unlocked and not fetched.
    Relock,
    /// `MEM_SHARE_BACK`.
    ShareBack,
    /// `MEM_TAKE_BACK`.
    TakeBack,
    /// `MEM_UNSHARE`, by an owner that has it at an address.
    Unshare(u64),
    /// `MEM_RECLAIM`, by an owner that had it at an address.
    Reclaim(u64),
    /// `MEM_POISON`.
    Poison,
}

/// What is in a frame after a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// What was in it before.
    Kept,
    /// Zeros.
    Zeroed,
}

/// Why a frame does not go along with a call, and the detail that the error
/// explains.
pub type Refusal = (Error, u64);

use FrameState::*;
use Transition::*;

/// What becomes of a frame.
///
/// This is the table of transitions. Everything that is not in it is refused.
pub fn step(frame: Frame, event: Event) -> Result<Frame, Refusal> {
    may_ask(frame, event)?;
    let Event { living, .. } = event;
    Ok(match (event.transition, frame.state) {
        // An owner gives what it has to itself.
        (Share(to, at), Owned | Donated) => frame.borrowed(Shared, to, at),
        (Lend(to, at), Owned | Donated) => frame.borrowed(Lent, to, at),
        (Donate(VmId::HOST, _), Owned | Donated) => Frame::HOME,
        (Donate(to, at), Owned | Donated) => Frame::donated(to, at),
        (Equip(vm), Owned) => frame.borrowed(Metadata, vm, 0),

        // A borrower opens what it was lent, or gives it up.
        (ShareBack, Lent) if living.owner => frame.with(SharedBack),
        (Unlock { sanitize: true }, Lent | UnlockedZeroed | UnlockedContents) => {
            frame.with(UnlockedZeroed)
        }
        (Unlock { sanitize: false }, Lent | UnlockedZeroed | UnlockedContents) => {
            frame.with(UnlockedContents)
        }
        (Relock, UnlockedZeroed | UnlockedContents) => frame.with(Lent),
        (ShareBack | Unlock { .. } | Relock, _) => return Err((Error::Denied, 0)),

        // An owner lets go of what was opened to it.
        (TakeBack, SharedBack) => frame.with(Lent),

        // An owner takes back what the borrower cannot keep: what is shared …
        (Unshare(at), Shared) => frame.home(at, living),
        // … what it gave up …
        (Reclaim(at), UnlockedZeroed | UnlockedContents) => frame.home(at, living),
        // … and what it left behind.
        (Reclaim(at), Lent | Shared | SharedBack | Metadata) if !living.borrower => {
            frame.home(at, living)
        }
        (Reclaim(_), Lent) => return Err((Error::Locked, 0)),
        // The host is the heir of what a dead guest had to itself.
        (Reclaim(_), Donated) if !living.owner => Frame::HOME,

        // The host puts broken memory out of use, wherever it is.
        (
            Poison,
            Owned | Donated | Shared | Lent | UnlockedZeroed | UnlockedContents | SharedBack,
        ) => Frame::POISONED,

        (Share(..) | Lend(..) | Donate(..) | Equip(_) | Poison, Pinned) => {
            return Err((Error::Pinned, 0));
        }
        (_, state) => return Err((Error::WrongState, state as u64)),
    })
}

/// Whether a call about a frame is its caller's to make.
fn may_ask(frame: Frame, Event { by, transition, living }: Event) -> Result<(), Refusal> {
    let owns = frame.owner == by && frame.state != Hypervisor;
    let inherits = by == VmId::HOST && !living.owner;
    match transition {
        Share(..) | Lend(..) | Donate(..) | Equip(_) if !owns => Err((Error::NotOwner, 0)),
        TakeBack | Unshare(_) | Reclaim(_) if !owns && !inherits => Err((Error::NotOwner, 0)),
        // It is the host that hears of broken memory, whoever has it.
        Poison if by != VmId::HOST || frame.state == Hypervisor => Err((Error::NotOwner, 0)),
        ShareBack | Unlock { .. } | Relock if frame.borrower != Some(by) => Err((Error::Denied, 0)),
        _ => Ok(()),
    }
}

/// What is in a frame after a call that succeeds.
///
/// What a VM may have written to reaches another one zeroed, unless the one
/// that wrote it wants to pass it on and lives, or both could see it all along.
/// An heir never sees anything.
pub fn contents(frame: Frame, Event { transition, living, .. }: Event) -> Contents {
    let kept = match transition {
        Share(..) | Lend(..) | Donate(..) | ShareBack | TakeBack | Relock => true,
        Unlock { sanitize } => !sanitize,
        Equip(_) => false,
        Unshare(_) => living.owner,
        Reclaim(_) => match frame.state {
            _ if !living.owner => false,
            Shared => true,
            UnlockedContents => living.borrower,
            _ => false,
        },
        // Nobody will look.
        Poison => true,
    };
    if kept { Contents::Kept } else { Contents::Zeroed }
}

impl Frame {
    /// The host's alone: where every frame of the host begins and ends.
    pub const HOME: Frame = Frame { state: Owned, owner: VmId::HOST, borrower: None, guest: 0 };
    /// Out of use.
    pub const POISONED: Frame = Frame { state: Poisoned, ..Frame::HOME };

    /// A guest's own.
    pub const fn donated(owner: VmId, guest: u64) -> Frame {
        Frame { state: Donated, owner, borrower: None, guest }
    }

    /// Whether a VM reaches the frame. (A guest that owns a frame which its
    /// borrower opened to it gets its entry when it touches the page, not
    /// before.)
    pub fn is_reached_by(self, vm: VmId) -> bool {
        let by_owner = matches!(self.state, Owned | Donated | Pinned | Shared | SharedBack);
        let by_borrower =
            matches!(self.state, Shared | SharedBack | Lent | UnlockedZeroed | UnlockedContents);
        vm == self.owner && by_owner || Some(vm) == self.borrower && by_borrower
    }

    /// The frame `pages` further on in a block whose frames are alike.
    pub fn next(self, bytes: u64) -> Frame {
        let moves = self.state == Donated || self.borrower.is_some() && self.state != Metadata;
        Frame { guest: if moves { self.guest + bytes } else { 0 }, ..self }
    }

    fn borrowed(self, state: FrameState, to: VmId, guest: u64) -> Frame {
        Frame { state, owner: self.owner, borrower: Some(to), guest }
    }

    fn with(self, state: FrameState) -> Frame {
        Frame { state, ..self }
    }

    /// Back with its owner, or with the owner's heir.
    fn home(self, at: u64, living: Living) -> Frame {
        if self.owner == VmId::HOST || !living.owner {
            Frame::HOME
        } else {
            Frame::donated(self.owner, at)
        }
    }
}

#[cfg(test)]
mod tests;

// SPDX-License-Identifier: MIT OR Apache-2.0

//! The promises, for every state and every call there is.

extern crate std;

use std::vec;
use std::vec::Vec;

use super::*;

const OWNER: VmId = VmId(1);
const BORROWER: VmId = VmId(2);
const STRANGER: VmId = VmId(3);
const VMS: [VmId; 4] = [VmId::HOST, OWNER, BORROWER, STRANGER];

/// Every frame that a machine can have.
fn frames() -> Vec<Frame> {
    let mut frames = vec![
        Frame::HOME,
        Frame::POISONED,
        Frame { state: Hypervisor, ..Frame::HOME },
        Frame { state: Pinned, ..Frame::HOME },
        Frame::HOME.borrowed(Metadata, BORROWER, 0),
        Frame::donated(OWNER, 0x1000),
    ];
    for owner in [VmId::HOST, OWNER] {
        for state in [Shared, Lent, UnlockedZeroed, UnlockedContents, SharedBack] {
            frames.push(Frame { state, owner, borrower: Some(BORROWER), guest: 0x2000 });
        }
    }
    frames
}

/// Every call about them that anybody can make.
fn events(frame: Frame) -> Vec<Event> {
    let transitions = [
        Share(STRANGER, 0x3000),
        Lend(STRANGER, 0x3000),
        Donate(STRANGER, 0x3000),
        Donate(VmId::HOST, 0),
        Equip(STRANGER),
        Unlock { sanitize: true },
        Unlock { sanitize: false },
        Relock,
        ShareBack,
        TakeBack,
        Unshare(0x1000),
        Reclaim(0x1000),
        Poison,
    ];
    let lives = |lives: bool| if lives { vec![true] } else { vec![true, false] };
    let mut events = Vec::new();
    for owner in lives(frame.owner == VmId::HOST) {
        for borrower in lives(frame.borrower.is_none()) {
            let living = Living { owner, borrower };
            for by in VMS.into_iter().filter(|&vm| is_alive(frame, living, vm)) {
                let event = |transition| Event { by, transition, living };
                events.extend(transitions.map(event));
            }
        }
    }
    events
}

fn is_alive(frame: Frame, living: Living, vm: VmId) -> bool {
    (frame.owner != vm || living.owner) && (frame.borrower != Some(vm) || living.borrower)
}

/// All that can happen: before, the call, after.
fn steps() -> impl Iterator<Item = (Frame, Event, Frame)> {
    let with_events = |frame| events(frame).into_iter().map(move |event| (frame, event));
    let all = frames().into_iter().flat_map(with_events);
    all.filter_map(|(frame, event)| Some((frame, event, step(frame, event).ok()?)))
}

#[test]
fn a_machine_has_no_other_frames() {
    for (frame, event, after) in steps() {
        let known = frames().into_iter().any(|known| known.state == after.state);
        assert!(known, "{frame:?} {event:?}");
        assert!(after.borrower != Some(after.owner), "{after:?}");
        let at_home = after.owner == VmId::HOST && after.borrower.is_none();
        assert!(!at_home || after.guest == 0, "{after:?}");
    }
}

/// P1: what is lent or donated is reached by one VM.
#[test]
fn what_is_lent_is_reached_by_its_borrower_alone() {
    for frame in frames().into_iter().chain(steps().map(|(_, _, after)| after)) {
        let reached: Vec<_> = VMS.into_iter().filter(|&vm| frame.is_reached_by(vm)).collect();
        let expected = match frame.state {
            Owned | Donated | Pinned => vec![frame.owner],
            Shared | SharedBack => VMS
                .into_iter()
                .filter(|&vm| vm == frame.owner || Some(vm) == frame.borrower)
                .collect(),
            Lent | UnlockedZeroed | UnlockedContents => frame.borrower.into_iter().collect(),
            Metadata | Hypervisor | Poisoned => vec![],
        };
        assert_eq!(reached, expected, "{frame:?}");
    }
}

/// P2: a living borrower loses a page that was lent to it by its own call
/// alone, or because it is broken.
#[test]
fn nobody_takes_a_page_from_a_living_borrower_without_its_consent() {
    for (frame, event, after) in steps() {
        let holds = matches!(frame.state, Lent | SharedBack) && event.living.borrower;
        let keeps = after.borrower == frame.borrower && after.guest == frame.guest;
        if holds && !keeps {
            assert_eq!(event.transition, Poison, "{frame:?} {event:?}");
        }
    }
}

#[test]
fn a_stranger_can_do_nothing() {
    for (frame, event, _) in steps() {
        let inherits = event.by == VmId::HOST && !event.living.owner;
        let its = event.by == frame.owner || Some(event.by) == frame.borrower;
        // Of what is broken, the host disposes.
        let broken = event.by == VmId::HOST && event.transition == Poison;
        assert!(its || inherits || broken, "{frame:?} {event:?}");
    }
}

/// P2: who comes to reach a page finds zeros, unless the one that had it says
/// otherwise and lives.
#[test]
fn who_comes_to_a_page_finds_what_is_meant_for_it() {
    for (frame, event, after) in steps() {
        let comes = |vm| after.is_reached_by(vm) && !frame.is_reached_by(vm);
        let Some(newcomer) = VMS.into_iter().find(|&vm| comes(vm)) else { continue };
        let given = event.by != newcomer && frame.is_reached_by(event.by);
        let passed_on = frame.state == UnlockedContents && event.living.borrower;
        let kept = contents(frame, event) == Contents::Kept;
        let meant = given || passed_on && event.living.owner;
        assert_eq!(kept, meant, "{frame:?} {event:?} {newcomer:?}");
    }
}

/// P5: whatever becomes of the guests, the host has a call, or guests have one
/// and then the host, that brings a page home; all but broken memory.
#[test]
fn everything_comes_home_when_the_guests_are_dead() {
    for frame in frames() {
        let stays = matches!(frame.state, Owned | Hypervisor | Pinned | Poisoned);
        let living =
            Living { owner: frame.owner == VmId::HOST, borrower: frame.borrower.is_none() };
        let event = Event { by: VmId::HOST, transition: Reclaim(0), living };
        let home = step(frame, event);
        assert_eq!(home == Ok(Frame::HOME), !stays, "{frame:?}: {home:?}");
        if !stays && frame.state != Shared {
            assert_eq!(contents(frame, event), Contents::Zeroed, "{frame:?}");
        }
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! Where a VM is in its life: one state, and the events that change it.
//!
//! ```text
//!  Live ──────────┐
//!   │             │ Close
//!   │ Down        ▼
//!   └──► Down ► Closed ──Destroyed──► Destroyed ──Home──► Home
//!                 │                      │                 ▲
//!                 │ Abandon              │ Abandon         │ Home
//!                 ▼                      ▼                 │
//!              Stuck ────Destroyed───► Zombie ─────────────┘
//! ```
//!
//! A VM that Escrow never got anything for goes from `Live` or `Closed` to
//! `Home` by `Unborn`.

use core::sync::atomic::{AtomicU32, Ordering};

/// The state of a VM. C compares the numbers, so their order is a part of the
/// interface: from `Closed` on, nobody uses the VM any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum State {
    /// Its guest may run.
    Live = 0,
    /// The guest has ended by itself, and its programs are told how.
    Down = 1,
    /// The last file was closed, or the machine ends.
    Closed = 2,
    /// No file of it is open, and EL2 refused to destroy it.
    Stuck = 3,
    /// Escrow has destroyed it, and gives its pages back.
    Destroyed = 4,
    /// Destroyed, no file of it is open, and EL2 keeps pages of it.
    Zombie = 5,
    /// Escrow has nothing of it, and gets nothing any more.
    Home = 6,
}

/// All states, by their numbers.
pub const STATES: [State; 7] = [
    State::Live,
    State::Down,
    State::Closed,
    State::Stuck,
    State::Destroyed,
    State::Zombie,
    State::Home,
];

/// What happens to a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Event {
    /// The guest has ended by itself.
    Down = 0,
    /// It must not be used any more: its last file was closed, or the machine ends.
    Close = 1,
    /// Escrow has destroyed it.
    Destroyed = 2,
    /// No file of it is open, and EL2 keeps the VM or pages of it.
    Abandon = 3,
    /// All of its pages have come home.
    Home = 4,
    /// Escrow never got anything for it.
    Unborn = 5,
}

/// All events, by their numbers.
pub const EVENTS: [Event; 6] =
    [Event::Down, Event::Close, Event::Destroyed, Event::Abandon, Event::Home, Event::Unborn];

impl State {
    /// The state after an event; `None` if that must not happen now.
    pub fn after(self, event: Event) -> Option<State> {
        use State::{Closed, Destroyed, Down, Home, Live, Stuck, Zombie};
        match (self, event) {
            (Live, Event::Down) => Some(Down),
            (Live | Down, Event::Close) => Some(Closed),
            (Closed, Event::Destroyed) => Some(Destroyed),
            (Closed, Event::Abandon) => Some(Stuck),
            (Destroyed, Event::Abandon) | (Stuck, Event::Destroyed) => Some(Zombie),
            (Destroyed | Zombie, Event::Home) => Some(Home),
            (Live | Closed | Home, Event::Unborn) => Some(Home),
            // A guest may end while its VM is closed, and a closed VM may be closed again:
            // the state stays.
            (now, Event::Down | Event::Close) => Some(now),
            // The end of a zombie was tried again, with the same result.
            (Stuck | Zombie, Event::Abandon) | (Home, Event::Home) => Some(self),
            _ => None,
        }
    }
}

/// A VM's state. Events may come from several tasks at a time.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Lifecycle(AtomicU32);

impl Lifecycle {
    /// The state at this moment.
    pub fn state(&self) -> State {
        from_number(self.0.load(Ordering::Acquire))
    }

    /// Has an event happen. The state before and after it; `None` changes
    /// nothing.
    pub fn advance(&self, event: Event) -> Option<State> {
        let next = |number| Some(from_number(number).after(event)? as u32);
        let before = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, next).ok()?;
        from_number(before).after(event)
    }
}

/// The state of a number. A number without a state is never written; it counts as
/// [`State::Home`].
fn from_number(number: u32) -> State {
    let at = usize::try_from(number).ok();
    at.and_then(|at| STATES.get(at)).copied().unwrap_or(State::Home)
}

/// The event with a number.
pub fn event(number: u32) -> Option<Event> {
    EVENTS.get(usize::try_from(number).ok()?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    extern crate std;

    #[test]
    fn numbers_are_places() {
        for (at, state) in STATES.iter().enumerate() {
            assert_eq!(*state as usize, at);
        }
        for (at, event) in EVENTS.iter().enumerate() {
            assert_eq!(*event as usize, at);
        }
    }

    #[test]
    fn nothing_goes_back() {
        for (state, event) in pairs() {
            if let Some(next) = state.after(event) {
                assert!(next >= state, "{state:?} {event:?} {next:?}");
            }
        }
    }

    #[test]
    fn what_is_closed_stays_closed() {
        for (state, event) in pairs().filter(|(state, _)| *state >= State::Closed) {
            assert!(state.after(event).is_none_or(|next| next >= State::Closed));
        }
    }

    #[test]
    fn home_is_reached_only_when_escrow_has_destroyed_it_or_never_had_it() {
        let known: std::vec::Vec<_> = pairs()
            .filter(|(state, event)| {
                *state != State::Home && state.after(*event) == Some(State::Home)
            })
            .collect();
        assert_eq!(
            known,
            [
                (State::Live, Event::Unborn),
                (State::Closed, Event::Unborn),
                (State::Destroyed, Event::Home),
                (State::Zombie, Event::Home),
            ]
        );
    }

    #[test]
    fn escrow_destroys_only_what_nobody_uses_and_once() {
        let from: std::vec::Vec<_> =
            STATES.into_iter().filter(|state| state.after(Event::Destroyed).is_some()).collect();
        assert_eq!(from, [State::Closed, State::Stuck]);
    }

    #[test]
    fn an_event_out_of_turn_changes_nothing() {
        let life = Lifecycle::default();
        assert_eq!(life.advance(Event::Home), None);
        assert_eq!(life.advance(Event::Abandon), None);
        assert_eq!(life.state(), State::Live);
    }

    #[test]
    fn every_life_ends_at_home() {
        for state in STATES {
            let mut now = state;
            for event in [Event::Close, Event::Destroyed, Event::Home] {
                now = now.after(event).unwrap_or(now);
            }
            assert_eq!(now, State::Home, "from {state:?}");
        }
    }

    /// A guest that ends while its VM is closed must not open it again.
    #[test]
    fn down_and_close_from_two_tasks() {
        for _ in 0..2000 {
            let life = Lifecycle::default();
            std::thread::scope(|scope| {
                scope.spawn(|| life.advance(Event::Down));
                scope.spawn(|| life.advance(Event::Close));
            });
            assert_eq!(life.state(), State::Closed);
        }
    }

    fn pairs() -> impl Iterator<Item = (State, Event)> {
        STATES.into_iter().flat_map(|state| EVENTS.into_iter().map(move |event| (state, event)))
    }
}

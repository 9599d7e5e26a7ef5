// SPDX-License-Identifier: MIT OR Apache-2.0

//! The line from an IRQFD's eventfd to the guest: what each signal of it sets at EL2.
//!
//! | the label stands for | a signal | the guest's end of it |
//! | --- | --- | --- |
//! | nothing yet | is remembered | – |
//! | a doorbell | rings it | EL2 clears the flag, if the IRQFD is level-triggered |
//! | an edge-triggered SPI | is an edge | – |
//! | a level-sensitive SPI | the level is high until the guest is done | if there were signals meanwhile, the level is high again; with a resampling eventfd, the program decides that |

use escrow_abi::call;

use crate::Errno;
use crate::tree::Interrupt;

/// What a label stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A doorbell, by EL2's handle.
    Doorbell(u64),
    /// An SPI.
    Spi(Interrupt),
}

/// A call to EL2 that a line makes. They may be made with interrupts off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Ring a doorbell.
    Ring(u64),
    /// Set the ack mask of a doorbell, and which flags ring.
    SetMask {
        /// EL2's handle.
        bell: u64,
        /// Flags that ring.
        enabled: u64,
        /// Flags that are cleared when they ring.
        acknowledged: u64,
    },
    /// Set the input of an SPI, a `call::INPUT_*`.
    Input {
        /// The SPI.
        intid: u32,
        /// The input.
        input: u64,
    },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    #[default]
    None = 0,
    Doorbell = 1,
    Edge = 2,
    Level = 3,
}

/// A line. All-zero bytes are a valid value: edge-triggered, and connected with nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Line {
    /// Handle or INTID.
    to: u64,
    kind: Kind,
    /// The IRQFD was added as level-triggered. It counts for doorbells alone.
    is_level: bool,
    /// It has a resampling eventfd. It counts for level-sensitive SPIs alone.
    resamples: bool,
    /// A level-sensitive SPI is high, and not done.
    is_high: bool,
    /// There was a signal that the guest has yet to see.
    is_owed: bool,
    reserved: [u8; 3],
}

/// The vCPUs that a call's answer says to run, a bit each.
type Wake = u32;

/// Who makes a line's calls.
pub trait Caller {
    /// Makes a call.
    ///
    /// # Errors
    /// EL2's.
    fn make(&mut self, call: Call) -> Result<Wake, Errno>;
}

impl<F: FnMut(Call) -> Result<Wake, Errno>> Caller for F {
    fn make(&mut self, call: Call) -> Result<Wake, Errno> {
        self(call)
    }
}

impl Line {
    /// A line that is connected with nothing.
    pub fn new(is_level: bool, resamples: bool) -> Line {
        Line { is_level, resamples, ..Line::default() }
    }

    /// What it is connected with.
    fn target(&self) -> Option<Target> {
        let spi = |level| Target::Spi(Interrupt { intid: self.to as u32, level });
        match self.kind {
            Kind::None => None,
            Kind::Doorbell => Some(Target::Doorbell(self.to)),
            Kind::Edge => Some(spi(false)),
            Kind::Level => Some(spi(true)),
        }
    }

    /// The eventfd is signalled.
    ///
    /// # Errors
    /// EL2's. The signal is lost.
    pub fn signal(&mut self, caller: &mut impl Caller) -> Result<Wake, Errno> {
        let input = |intid, input| Call::Input { intid, input };
        match self.target() {
            None => {
                self.is_owed = true;
                Ok(0)
            }
            Some(Target::Doorbell(bell)) => caller.make(Call::Ring(bell)),
            Some(Target::Spi(Interrupt { intid, level: false })) => {
                caller.make(input(intid, call::INPUT_EDGE))
            }
            // The line is high already. The guest may have read its device before this signal,
            // so another interrupt is owed. With a resample event, the program decides that.
            Some(Target::Spi(_)) if self.is_high => {
                self.is_owed = !self.resamples;
                Ok(0)
            }
            Some(Target::Spi(Interrupt { intid, .. })) => {
                let wake = caller.make(input(intid, call::INPUT_HIGH_UNTIL_DONE))?;
                self.is_high = true;
                Ok(wake)
            }
        }
    }

    /// The label stands for `target` from now on. A signal that came before is passed on now. If it
    /// stands for that already, nothing happens.
    ///
    /// # Errors
    /// EL2's. Then it is connected with nothing.
    pub fn connect(
        &mut self,
        target: Option<Target>,
        caller: &mut impl Caller,
    ) -> Result<Wake, Errno> {
        if self.target() == target {
            return Ok(0);
        }
        let mut wake = self.disconnect(caller)?;
        let Some(target) = target else { return Ok(wake) };
        if let Target::Doorbell(bell) = target {
            // An eventfd has no signal for "no longer asserted". So EL2 clears the flag when
            // the doorbell rings.
            if self.is_level {
                wake |= caller.make(Call::SetMask { bell, enabled: 1, acknowledged: 1 })?;
            }
        }
        (self.kind, self.to) = match target {
            Target::Doorbell(bell) => (Kind::Doorbell, bell),
            Target::Spi(Interrupt { intid, level: false }) => (Kind::Edge, intid.into()),
            Target::Spi(Interrupt { intid, level: true }) => (Kind::Level, intid.into()),
        };
        if core::mem::take(&mut self.is_owed) {
            wake |= self.signal(caller)?;
        }
        Ok(wake)
    }

    /// Whether the label stands for something.
    pub fn is_connected(&self) -> bool {
        self.kind != Kind::None
    }

    /// The guest is done with an SPI. If that is this line's, the level is low now, unless there
    /// were signals meanwhile. → vCPUs to run, and whether to signal the resampling eventfd
    ///
    /// # Errors
    /// EL2's.
    pub fn done(&mut self, intid: u32, caller: &mut impl Caller) -> Result<(Wake, bool), Errno> {
        if self.kind != Kind::Level || self.to != u64::from(intid) || !self.is_high {
            return Ok((0, false));
        }
        self.is_high = false;
        let mut wake = 0;
        if core::mem::take(&mut self.is_owed) {
            wake = self.signal(caller)?;
        }
        Ok((wake, self.resamples))
    }

    /// The label stands for nothing from now on. A high level ends; an edge, or a flag of a doorbell,
    /// stays. A signal that the guest has not seen goes to what the label stands for next.
    ///
    /// # Errors
    /// EL2's. It is disconnected all the same.
    pub fn disconnect(&mut self, caller: &mut impl Caller) -> Result<Wake, Errno> {
        let (kind, to) = (core::mem::take(&mut self.kind), core::mem::take(&mut self.to));
        let was_high = core::mem::take(&mut self.is_high);
        self.is_owed |= was_high;
        match kind {
            Kind::Level if was_high => {
                caller.make(Call::Input { intid: to as u32, input: call::INPUT_LOW })
            }
            // The next IRQFD with this label may be edge-triggered: undo the mask.
            Kind::Doorbell if self.is_level => {
                caller.make(Call::SetMask { bell: to, enabled: u64::MAX, acknowledged: 0 })
            }
            _ => Ok(0),
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    /// Keeps the calls; each wakes the vCPUs of a bit that no other call has.
    #[derive(Default)]
    struct Calls(Vec<Call>);

    impl Caller for Calls {
        fn make(&mut self, call: Call) -> Result<Wake, Errno> {
            self.0.push(call);
            Ok(1 << (self.0.len() - 1))
        }
    }

    fn level(intid: u32) -> Option<Target> {
        Some(Target::Spi(Interrupt { intid, level: true }))
    }

    fn input(intid: u32, input: u64) -> Call {
        Call::Input { intid, input }
    }

    const HIGH: u64 = call::INPUT_HIGH_UNTIL_DONE;

    #[test]
    fn doorbells_ring() {
        for is_level in [false, true] {
            let (mut line, mut calls) = (Line::new(is_level, false), Calls::default());
            assert_eq!(line.connect(Some(Target::Doorbell(7)), &mut calls), Ok(is_level.into()));
            assert_eq!(line.signal(&mut calls), Ok(if is_level { 2 } else { 1 }));
            line.signal(&mut calls).unwrap();
            line.disconnect(&mut calls).unwrap();
            let mask = |enabled, acknowledged| Call::SetMask { bell: 7, enabled, acknowledged };
            let rings = [Call::Ring(7), Call::Ring(7)];
            let expected = match is_level {
                true => [&[mask(1, 1)], &rings[..], &[mask(u64::MAX, 0)]].concat(),
                false => rings.to_vec(),
            };
            assert_eq!((calls.0, line.is_connected()), (expected, false));
        }
    }

    #[test]
    fn edges_are_edges() {
        let (mut line, mut calls) = (Line::new(true, true), Calls::default());
        let target = Some(Target::Spi(Interrupt { intid: 40, level: false }));
        line.connect(target, &mut calls).unwrap();
        for _ in 0..3 {
            line.signal(&mut calls).unwrap();
        }
        assert_eq!(line.done(40, &mut calls), Ok((0, false)));
        line.disconnect(&mut calls).unwrap();
        assert_eq!(calls.0, [input(40, call::INPUT_EDGE); 3]);
    }

    #[test]
    fn a_level_is_high_until_the_guest_is_done() {
        let (mut line, mut calls) = (Line::new(false, false), Calls::default());
        line.connect(level(40), &mut calls).unwrap();
        assert_eq!(line.signal(&mut calls), Ok(1));
        assert_eq!(line.done(41, &mut calls), Ok((0, false)));
        assert_eq!(line.done(40, &mut calls), Ok((0, false)));
        assert_eq!(line.done(40, &mut calls), Ok((0, false)), "once");
        assert_eq!(calls.0, [input(40, HIGH)]);
        // Signals while the line is high make one more interrupt, as the guest may have read
        // its device before them.
        for _ in 0..3 {
            line.signal(&mut calls).unwrap();
        }
        assert_eq!(line.done(40, &mut calls), Ok((4, false)));
        assert_eq!(line.done(40, &mut calls), Ok((0, false)));
        assert_eq!(calls.0, [input(40, HIGH); 3]);
    }

    #[test]
    fn with_a_way_back_the_program_decides() {
        let (mut line, mut calls) = (Line::new(false, true), Calls::default());
        line.connect(level(40), &mut calls).unwrap();
        line.signal(&mut calls).unwrap();
        line.signal(&mut calls).unwrap();
        assert_eq!(line.done(40, &mut calls), Ok((0, true)));
        assert_eq!(line.done(40, &mut calls), Ok((0, false)));
        assert_eq!(calls.0, [input(40, HIGH)]);
        line.signal(&mut calls).unwrap();
        assert_eq!(calls.0, [input(40, HIGH); 2]);
    }

    #[test]
    fn what_came_before_is_made_up_for() {
        let (mut line, mut calls) = (Line::default(), Calls::default());
        line.signal(&mut calls).unwrap();
        line.signal(&mut calls).unwrap();
        assert_eq!(line.connect(None, &mut calls), Ok(0));
        assert_eq!(line.connect(level(40), &mut calls), Ok(1));
        assert_eq!(line.connect(level(40), &mut calls), Ok(0), "once");
        assert_eq!(calls.0, [input(40, HIGH)]);
        // With another tree the old SPI gets low, and the new one has the signal.
        assert_eq!(line.connect(level(50), &mut calls), Ok(0b110));
        let lowered = [input(40, HIGH), input(40, call::INPUT_LOW), input(50, HIGH)];
        assert_eq!(calls.0, lowered);
    }

    #[test]
    fn what_el2_refuses_is_not_connected() {
        let mut line = Line::new(true, false);
        line.signal(&mut Calls::default()).unwrap();
        let mut refuses = |_| Err(Errno::NoDevice);
        assert_eq!(line.connect(Some(Target::Doorbell(7)), &mut refuses), Err(Errno::NoDevice));
        assert!(!line.is_connected());
        let mut calls = Calls::default();
        line.connect(Some(Target::Doorbell(7)), &mut calls).unwrap();
        assert_eq!(calls.0.last(), Some(&Call::Ring(7)));
        // After a call that failed, the line does not count as high.
        let mut line = Line::default();
        line.connect(level(40), &mut calls).unwrap();
        assert_eq!(line.signal(&mut refuses), Err(Errno::NoDevice));
        line.signal(&mut calls).unwrap();
        assert_eq!(calls.0.last(), Some(&input(40, HIGH)));
    }

    /// EL2's side of one level-sensitive SPI, and a device behind it.
    #[derive(Default)]
    struct Guest {
        high: bool,
        /// Deactivations that the host has yet to hear of.
        done: bool,
        /// Requests that the guest has yet to see.
        requests: u32,
    }

    proptest! {
        /// A device has requests, signals each, and the guest handles all that there are when it
        /// is interrupted. Whatever the order, no request waits without an interrupt to come.
        #[test]
        fn no_signal_is_lost(resamples: bool, steps in prop::collection::vec(0u8..4, 0..100)) {
            let mut line = Line::new(false, resamples);
            let mut guest = Guest::default();
            line.connect(level(40), &mut Calls::default()).unwrap();
            for step in steps.into_iter().chain(vec![2, 3, 2, 3]) {
                let mut calls = Calls::default();
                match step {
                    // The device requests something, maybe before the last request was seen.
                    0 | 1 => {
                        guest.requests += 1;
                        line.signal(&mut calls).unwrap();
                    }
                    // The guest takes the interrupt, reads its device, and ends the interrupt.
                    2 if guest.high => {
                        (guest.requests, guest.high, guest.done) = (0, false, true);
                    }
                    // EL2 tells the host of the end.
                    3 if guest.done => {
                        guest.done = false;
                        let (_, ask) = line.done(40, &mut calls).unwrap();
                        prop_assert_eq!(ask, resamples);
                        if ask && guest.requests > 0 {
                            line.signal(&mut calls).unwrap();
                        }
                    }
                    _ => {}
                }
                prop_assert!(calls.0.iter().all(|&call| call == input(40, HIGH)));
                guest.high |= !calls.0.is_empty();
                prop_assert!(guest.requests == 0 || guest.high || guest.done);
            }
            prop_assert_eq!(guest.requests, 0);
        }
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

use proptest::prelude::*;

use super::*;

const VM: u64 = 7;

/// What Gunyah documents of a doorbell, flag by flag, and when it falls silent.
#[derive(Debug)]
struct Model {
    set: [bool; 64],
    enabled: [bool; 64],
    acked: [bool; 64],
    rings: bool,
}

impl Model {
    fn new() -> Model {
        Model { set: [false; 64], enabled: [true; 64], acked: [false; 64], rings: false }
    }

    fn word(bits: &[bool; 64]) -> u64 {
        (0..64).filter(|&n| bits[n]).fold(0, |word, n| word | 1 << n)
    }

    fn bits(word: u64) -> [bool; 64] {
        core::array::from_fn(|n| word >> n & 1 == 1)
    }

    fn is_due(&self) -> bool {
        (0..64).any(|n| self.set[n] && self.enabled[n])
    }

    /// It is asserted, if an enabled flag is set; then the ack mask is applied.
    fn assert_if_due(&mut self) {
        if self.is_due() {
            self.rings = true;
            (0..64).filter(|&n| self.acked[n]).for_each(|n| self.set[n] = false);
        }
    }

    fn act(&mut self, action: Action) -> u64 {
        let before = Self::word(&self.set);
        match action {
            Action::Send(flags) => {
                (0..64).filter(|&n| flags >> n & 1 == 1).for_each(|n| self.set[n] = true);
                self.assert_if_due();
            }
            Action::Receive(clear) => {
                (0..64).filter(|&n| clear >> n & 1 == 1).for_each(|n| self.set[n] = false);
                self.rings &= self.is_due();
            }
            Action::Reset => *self = Model::new(),
            Action::SetMask { enable, ack } => {
                let was_due = self.is_due();
                (self.enabled, self.acked) = (Self::bits(enable), Self::bits(ack));
                // A new mask deasserts the doorbell only if that disables the flags it rang for.
                self.rings &= self.is_due() || !was_due;
                self.assert_if_due();
            }
        }
        before
    }
}

/// Few flags, or masks and flags would hardly ever meet.
fn flags() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => prop::bits::u64::masked(0x8000_0000_0000_0007),
        1 => Just(u64::MAX),
        1 => any::<u64>(),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        3 => flags().prop_map(Action::Send),
        3 => flags().prop_map(Action::Receive),
        1 => Just(Action::Reset),
        2 => (flags(), flags()).prop_map(|(enable, ack)| Action::SetMask { enable, ack }),
    ]
}

proptest! {
    #[test]
    fn doorbells_do_what_the_model_does(
        actions in prop::collection::vec((0..3u8, action()), 1..64),
    ) {
        let bells = Doorbells::new();
        bells.open(VM);
        let mut models = [0, 1, 2].map(|n| {
            bells.create(VM, 40 + n).unwrap();
            Model::new()
        });
        for (n, (index, action)) in actions.into_iter().enumerate() {
            let model = &mut models[index as usize];
            // Guests name a doorbell by its label: both calls must do the same.
            let before = if n % 2 == 0 {
                bells.act(VM, index, action)
            } else {
                bells.act_labelled(40 + u64::from(index), action)
            };
            prop_assert_eq!(before, Ok(model.act(action)));
            for (index, model) in models.iter().enumerate() {
                let rings = bells.ringing.load(Ordering::Relaxed) >> index & 1 == 1;
                prop_assert_eq!(rings, model.rings, "{}", index);
                prop_assert!(rings || !model.is_due());
            }
            prop_assert_eq!(bells.is_ringing(), models.iter().any(|model| model.rings));
        }
    }
}

fn one() -> Doorbells {
    let bells = Doorbells::new();
    bells.open(VM);
    assert_eq!(bells.create(VM, 1), Ok(0));
    bells
}

#[test]
fn it_rings_until_all_enabled_flags_are_received() {
    let bells = one();
    assert_eq!(bells.act(VM, 0, Action::Send(0)), Ok(0));
    assert!(!bells.is_ringing());
    assert_eq!(bells.act(VM, 0, Action::Send(6)), Ok(0));
    assert_eq!(bells.act(VM, 0, Action::Send(1)), Ok(6));
    assert_eq!(bells.act(VM, 0, Action::Receive(3)), Ok(7));
    assert!(bells.is_ringing());
    assert_eq!(bells.act(VM, 0, Action::Receive(u64::MAX)), Ok(4));
    assert!(!bells.is_ringing());
}

#[test]
fn masked_flags_ring_when_they_are_enabled() {
    let bells = one();
    bells.act(VM, 0, Action::SetMask { enable: 2, ack: 0 }).unwrap();
    bells.act(VM, 0, Action::Send(1)).unwrap();
    assert!(!bells.is_ringing());
    bells.act(VM, 0, Action::SetMask { enable: 3, ack: 0 }).unwrap();
    assert!(bells.is_ringing());
    bells.act(VM, 0, Action::SetMask { enable: 2, ack: 0 }).unwrap();
    assert!(!bells.is_ringing());
    // A reset enables all flags and clears them, so the doorbell does not ring.
    bells.act(VM, 0, Action::Reset).unwrap();
    assert!(!bells.is_ringing());
    assert_eq!(bells.act(VM, 0, Action::Send(1)), Ok(0));
    assert!(bells.is_ringing());
}

#[test]
fn an_acknowledged_bell_rings_until_the_next_receive() {
    let bells = one();
    bells.act(VM, 0, Action::SetMask { enable: 1, ack: 3 }).unwrap();
    // A flag that is not enabled is not acknowledged either.
    bells.act(VM, 0, Action::Send(2)).unwrap();
    assert_eq!(bells.act(VM, 0, Action::Send(5)), Ok(2));
    assert!(bells.is_ringing());
    assert_eq!(bells.act(VM, 0, Action::Send(8)), Ok(4));
    assert!(bells.is_ringing());
    // New masks do not stop the ringing.
    bells.act(VM, 0, Action::SetMask { enable: 1, ack: 0 }).unwrap();
    bells.act(VM, 0, Action::SetMask { enable: 0, ack: 0 }).unwrap();
    assert!(bells.is_ringing());
    // But they do if they disable the flags it rings for.
    bells.act(VM, 0, Action::SetMask { enable: 4, ack: 0 }).unwrap();
    bells.act(VM, 0, Action::SetMask { enable: 1, ack: 3 }).unwrap();
    assert!(!bells.is_ringing());
    assert_eq!(bells.act(VM, 0, Action::Send(1)), Ok(12));
    assert!(bells.is_ringing());
    assert_eq!(bells.act(VM, 0, Action::Receive(16)), Ok(12));
    assert!(!bells.is_ringing());
}

#[test]
fn labels_are_taken_once_and_tables_fill_up() {
    let bells = Doorbells::new();
    assert_eq!(bells.create(VM, 0), Err(Error::HandleRevoked));
    bells.open(VM);
    for n in 0..DOORBELLS_MAX {
        assert_eq!(bells.create(VM, !(n as u32)), Ok(n as u8));
        assert_eq!(bells.create(VM, !(n as u32)), Err(Error::Denied));
    }
    assert_eq!(bells.create(VM, 0), Err(Error::TableFull));
    // Doorbells are independent of each other.
    let last = DOORBELLS_MAX as u8 - 1;
    bells.act(VM, last, Action::Send(1)).unwrap();
    bells.act(VM, 0, Action::Send(1)).unwrap();
    bells.act(VM, 0, Action::Reset).unwrap();
    assert!(bells.is_ringing());
    bells.act(VM, last, Action::Reset).unwrap();
    assert!(!bells.is_ringing());
    assert_eq!(bells.act(VM, last + 1, Action::Reset), Err(Error::HandleRevoked));
}

#[test]
fn the_next_vm_s_doorbells_are_not_the_last_one_s() {
    let bells = one();
    bells.act(VM, 0, Action::Send(1)).unwrap();
    bells.close();
    assert!(!bells.is_ringing());
    assert_eq!(bells.act(VM, 0, Action::Send(1)), Err(Error::HandleRevoked));
    assert_eq!(bells.create(VM, 2), Err(Error::HandleRevoked));
    assert_eq!(bells.act_labelled(1, Action::Reset), Err(Error::HandleNull));
    bells.open(VM + 1);
    assert_eq!(bells.create(VM + 1, 1), Ok(0));
    for action in [Action::Send(1), Action::Receive(1), Action::Reset] {
        assert_eq!(bells.act(VM, 0, action), Err(Error::HandleRevoked));
    }
    assert!(!bells.is_ringing());
    // Flags that were sent to its predecessor are gone.
    assert_eq!(bells.act_labelled(1, Action::Receive(1)), Ok(0));
}

#[test]
fn a_label_is_all_of_its_register() {
    let bells = one();
    assert_eq!(bells.act_labelled(1 << 32 | 1, Action::Receive(1)), Err(Error::HandleNull));
    assert_eq!(bells.act_labelled(0, Action::Receive(1)), Err(Error::HandleNull));
    assert_eq!(bells.act_labelled(1, Action::Receive(1)), Ok(0));
}

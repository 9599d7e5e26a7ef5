// SPDX-License-Identifier: MIT OR Apache-2.0

//! Random traffic: registers, inputs, SGIs and what guests do with interrupts, of 1 to 8
//! vCPUs with few and many list registers, held against the specification.

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;

use super::spec::{Field, IRM};
use super::world::{Place, Seen, World};
use crate::vgic::{Input, SgiRegister};

/// What the traffic is about: some of each kind, in words of their own and in the same.
const INTIDS: [u32; 24] = [
    0, 1, 5, 15, 16, 20, 27, 31, 32, 33, 34, 35, 63, 64, 65, 300, 510, 511, 512, 513, 900, 992,
    1018, 1019,
];

#[derive(Clone, Debug)]
enum Step {
    WriteBits { by: usize, of: usize, field: usize, intid: usize, others: u32, to: bool },
    ReadBits { by: usize, of: usize, field: usize, intid: usize, clear: bool },
    Priority { by: usize, of: usize, intid: usize, priority: u8 },
    Config { by: usize, intid: usize, edge: bool },
    Route { by: usize, intid: usize, to: u8 },
    Ctlr { by: usize, groups: [bool; 2] },
    Waker { by: usize, of: usize, sleeps: bool },
    Denials { by: usize, of: usize, denies: [bool; 2] },
    Sgi { by: usize, register: usize, sgi: u32, targets: Option<u16> },
    Input { intid: usize, input: usize },
    Ppi { of: usize, intid: usize, high: bool },
    Acknowledge { pe: usize },
    WrongGroup { pe: usize },
    End { pe: usize },
    Deactivate { pe: usize, which: usize },
    Mask { pe: usize, mask: u8 },
    Groups { pe: usize, groups: [bool; 2] },
    Points { pe: usize, points: [u32; 2], common: bool },
    Split { pe: usize, split: bool },
    Leave { pe: usize },
    Enter { pe: usize, all: bool },
    Wait { pe: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let (pe, intid) = (0usize..8, 0usize..INTIDS.len());
    let of = pe.clone();
    let by = pe.clone();
    prop_oneof![
        6 => (by.clone(), of.clone(), 0usize..4, intid.clone(), any::<u32>(), any::<bool>())
            .prop_map(|(by, of, field, intid, others, to)| {
                Step::WriteBits { by, of, field, intid, others, to }
            }),
        4 => (by.clone(), of.clone(), 0usize..4, intid.clone(), any::<bool>())
            .prop_map(|(by, of, field, intid, clear)| {
                Step::ReadBits { by, of, field, intid, clear }
            }),
        3 => (by.clone(), of.clone(), intid.clone(), any::<u8>())
            .prop_map(|(by, of, intid, priority)| Step::Priority { by, of, intid, priority }),
        2 => (by.clone(), intid.clone(), any::<bool>())
            .prop_map(|(by, intid, edge)| Step::Config { by, intid, edge }),
        3 => (by.clone(), intid.clone(), any::<u8>())
            .prop_map(|(by, intid, to)| Step::Route { by, intid, to }),
        1 => (by.clone(), prop::array::uniform2(prop::bool::weighted(0.8)))
            .prop_map(|(by, groups)| Step::Ctlr { by, groups }),
        1 => (by.clone(), of.clone(), any::<bool>())
            .prop_map(|(by, of, sleeps)| Step::Waker { by, of, sleeps }),
        1 => (by.clone(), of.clone(), any::<[bool; 2]>())
            .prop_map(|(by, of, denies)| Step::Denials { by, of, denies }),
        5 => (by.clone(), 0usize..3, 0usize..4, prop::option::of(any::<u16>()))
            .prop_map(|(by, register, sgi, targets)| {
                Step::Sgi { by, register, sgi: INTIDS[sgi], targets }
            }),
        10 => (intid.clone(), 0usize..4).prop_map(|(intid, input)| Step::Input { intid, input }),
        3 => (of.clone(), 4usize..8, any::<bool>())
            .prop_map(|(of, intid, high)| Step::Ppi { of, intid, high }),
        16 => pe.clone().prop_map(|pe| Step::Acknowledge { pe }),
        1 => pe.clone().prop_map(|pe| Step::WrongGroup { pe }),
        9 => pe.clone().prop_map(|pe| Step::End { pe }),
        5 => (pe.clone(), any::<usize>())
            .prop_map(|(pe, which)| Step::Deactivate { pe, which }),
        2 => (pe.clone(), any::<u8>()).prop_map(|(pe, mask)| Step::Mask { pe, mask }),
        2 => (pe.clone(), prop::array::uniform2(prop::bool::weighted(0.8)))
            .prop_map(|(pe, groups)| Step::Groups { pe, groups }),
        1 => (pe.clone(), (2u32..8, 3u32..8), any::<bool>())
            .prop_map(|(pe, points, common)| Step::Points { pe, points: points.into(), common }),
        1 => (pe.clone(), any::<bool>()).prop_map(|(pe, split)| Step::Split { pe, split }),
        3 => pe.clone().prop_map(|pe| Step::Leave { pe }),
        3 => (pe.clone(), any::<bool>()).prop_map(|(pe, all)| Step::Enter { pe, all }),
        2 => pe.prop_map(|pe| Step::Wait { pe }),
    ]
}

const FIELDS: [Field; 4] = [Field::Group, Field::Enable, Field::Pending, Field::Active];
const REGISTERS: [SgiRegister; 3] =
    [SgiRegister::Group1, SgiRegister::Group0, SgiRegister::OtherGroup1];
const INPUTS: [Input; 4] = [Input::High, Input::Low, Input::Edge, Input::HighUntilDone];

/// The bits of the palette in a word, as far as chance has them, and one of them in any case.
fn bits(intid: u32, others: u32) -> u32 {
    let palette = INTIDS.iter().filter(|&&other| other / 32 == intid / 32);
    palette.fold(0, |bits, other| bits | 1 << (other % 32)) & others | 1 << (intid % 32)
}

fn play(world: &mut World, step: &Step) {
    let n = world.cpus();
    match *step {
        Step::WriteBits { by, of, field, intid, others, to } => {
            let intid = INTIDS[intid];
            let word = intid as usize / 32;
            let mut bits = bits(intid, others);
            if FIELDS[field] == Field::Active && !to {
                for bit in 0..32 {
                    let of = if word == 0 { Some(of % n) } else { None };
                    if world.is_held(of, word as u32 * 32 + bit) {
                        bits &= !(1 << bit);
                    }
                }
            }
            world.write_bits(by % n, of % n, FIELDS[field], word, bits, to);
        }
        Step::ReadBits { by, of, field, intid, clear } => {
            world.read_bits(by % n, of % n, FIELDS[field], INTIDS[intid] as usize / 32, clear);
        }
        Step::Priority { by, of, intid, priority } => {
            world.write_priority(by % n, of % n, INTIDS[intid], priority);
        }
        Step::Config { by, intid, edge } => world.write_config(by % n, INTIDS[intid], edge),
        Step::Route { by, intid, to } => {
            let route = match to {
                0..50 => IRM,
                50..60 => 0x01_0000,
                _ => u64::from(to) % n as u64,
            };
            world.write_route(by % n, INTIDS[intid], route);
        }
        Step::Ctlr { by, groups } => world.write_ctlr(by % n, groups),
        Step::Waker { by, of, sleeps } => world.write_waker(by % n, of % n, sleeps),
        Step::Denials { by, of, denies } => world.write_denials(by % n, of % n, denies),
        Step::Sgi { by, register, sgi, targets } => {
            world.sgi(by % n, REGISTERS[register], sgi, targets);
        }
        Step::Input { intid, input } => world.input(INTIDS[intid], INPUTS[input]),
        Step::Ppi { of, intid, high } => world.ppi(of % n, INTIDS[intid], high),
        Step::Acknowledge { pe } => {
            let pe = pe % n;
            world.run(pe);
            if let Some((_, group)) = world.sims[pe].signalled() {
                world.acknowledge(pe, group);
            }
        }
        Step::WrongGroup { pe } => {
            let pe = pe % n;
            world.run(pe);
            if let Some((_, group)) = world.sims[pe].signalled() {
                world.acknowledge(pe, 1 - group);
            }
        }
        Step::End { pe } => {
            world.end(pe % n);
        }
        Step::Deactivate { pe, which } => {
            let pe = pe % n;
            if !world.spec.pes[pe].split {
                return;
            }
            // One's own, one of another's, or any.
            let of = which / 7 % n;
            let (intid, own) = match which % 7 {
                0..4 if !world.split[pe].is_empty() => {
                    let n = which / 7 % world.split[pe].len();
                    (world.split[pe].swap_remove(n), true)
                }
                4 | 5 if !world.split[of].is_empty() => {
                    (world.split[of][which / 49 % world.split[of].len()], false)
                }
                _ => (INTIDS[which / 7 % INTIDS.len()], false),
            };
            let of = if intid < 32 { Some(pe) } else { None };
            if own || !world.is_held(of, intid) {
                world.deactivate(pe, intid);
            }
        }
        Step::Mask { pe, mask } => {
            let mask = if mask & 1 != 0 { 0xf8 } else { mask & 0xf8 };
            world.set_interface(pe % n, |pe| pe.mask = mask);
        }
        Step::Groups { pe, groups } => world.set_interface(pe % n, |pe| pe.groups = groups),
        Step::Points { pe, points, common } => {
            // With something active, what is ended first would not be what is most urgent.
            if world.stacks[pe % n].is_empty() {
                world.set_interface(pe % n, |pe| {
                    pe.bpr = points;
                    pe.common_bpr = common;
                });
            }
        }
        Step::Split { pe, split } => {
            let pe = pe % n;
            if world.stacks[pe].is_empty() && world.split[pe].is_empty() {
                world.set_interface(pe, |pe| pe.split = split);
            }
        }
        Step::Leave { pe } => {
            if world.places[pe % n] == Place::Inside {
                world.leave(pe % n);
            }
        }
        Step::Enter { pe, all } => {
            if world.places[pe % n] != Place::Inside {
                world.enter(pe % n, all);
            }
        }
        Step::Wait { pe } => world.wait(pe % n),
    }
}

/// All that is pending gets to a vCPU once they let it, and nothing is left over.
fn drain(world: &mut World) {
    let n = world.cpus();
    for intid in INTIDS {
        world.input(intid, Input::Low);
        for pe in (0..n).filter(|_| (16..32).contains(&intid)) {
            world.ppi(pe, intid, false);
        }
    }
    world.write_ctlr(0, [true; 2]);
    for pe in 0..n {
        world.write_waker(0, pe, false);
        world.write_denials(0, pe, [false; 2]);
        while world.end(pe) {
            world.settle();
        }
        for intid in std::mem::take(&mut world.split[pe]) {
            world.deactivate(pe, intid);
        }
        world.set_interface(pe, |pe| {
            pe.groups = [true; 2];
            pe.mask = 0xf8;
        });
        world.settle();
    }
    for intid in INTIDS {
        for of in 0..if intid < 32 { n } else { 1 } {
            let (word, bit) = (intid as usize / 32, 1 << (intid % 32));
            world.write_bits(0, of, Field::Active, word, bit, false);
            world.write_bits(0, of, Field::Enable, word, bit, true);
            world.write_priority(0, of, intid, 0x80);
        }
        world.settle();
    }
    for _ in 0..8 * INTIDS.len() {
        for pe in 0..n {
            play(world, &Step::Acknowledge { pe });
            world.settle();
            if world.end(pe) {
                world.settle();
                for intid in std::mem::take(&mut world.split[pe]) {
                    world.deactivate(pe, intid);
                }
                world.settle();
            }
        }
        if (0..n).all(|pe| world.sims[pe].signalled().is_none()) {
            break;
        }
    }
    for intid in INTIDS {
        let nowhere = |route: u64| route & IRM == 0 && route & 0xff_ffff == 0x01_0000;
        for pe in 0..if intid < 32 { n } else { 1 } {
            let interrupt = world.spec.interrupt(pe, intid as usize).unwrap();
            assert!(
                !interrupt.pending() || nowhere(interrupt.route),
                "{intid} of vCPU {pe} never came: {interrupt:?}"
            );
            assert!(!interrupt.active, "{intid} of vCPU {pe} is still active");
        }
    }
}

fn history(cpus: usize, registers: usize, steps: &[Step]) -> World {
    let mut world = World::new(cpus, registers);
    // Most is enabled, or nothing would happen.
    world.write_ctlr(0, [true; 2]);
    for pe in 0..cpus {
        world.set_interface(pe, |pe| {
            pe.groups = [true; 2];
            pe.mask = 0xf8;
        });
        world.write_bits(0, pe, Field::Enable, 0, u32::MAX, true);
        world.write_bits(0, pe, Field::Group, 0, 0xffff_00f0, true);
    }
    for word in INTIDS.map(|intid| intid as usize / 32) {
        if word != 0 {
            world.write_bits(0, 0, Field::Enable, word, bits(word as u32 * 32, u32::MAX), true);
            world.write_bits(0, 0, Field::Group, word, 0x5555_5556, true);
        }
    }
    for (n, intid) in (0u8..).zip(INTIDS) {
        // Few of one priority.
        world.write_priority(0, usize::from(n) % cpus, intid, (n % 12).wrapping_mul(0x38));
    }
    world.settle();
    for step in steps {
        play(&mut world, step);
        world.settle();
    }
    drain(&mut world);
    world
}

fn machine() -> impl Strategy<Value = (usize, usize, Vec<Step>)> {
    let registers = prop::sample::select(vec![1usize, 2, 3, 4, 4, 16]);
    (1usize..=8, registers, prop::collection::vec(step(), 1..120))
}

proptest! {
    #[test]
    fn traffic_is_as_specified((cpus, registers, steps) in machine()) {
        history(cpus, registers, &steps);
    }
}

/// The histories contain every kind of event that this module is to test.
#[test]
fn traffic_has_it_all() {
    let mut runner = TestRunner::deterministic();
    let mut seen = Seen::default();
    for _ in 0..200 {
        let (cpus, registers, steps) = machine().new_tree(&mut runner).unwrap().current();
        seen.add(&history(cpus, registers, &steps).seen);
    }
    println!("{seen:?}");
    let Seen {
        acknowledged,
        preempted,
        kicks,
        wakes,
        waits,
        quick,
        maintenance,
        overflow,
        overflow_of_both,
        disabled_group,
        active_outside,
        ended_outside,
        pending_and_active,
        trapped,
        done,
        slept,
    } = seen;
    assert!(acknowledged >= 1000 && kicks >= 1000 && maintenance >= 500);
    for often in [
        preempted,
        wakes,
        waits,
        quick,
        overflow,
        overflow_of_both,
        disabled_group,
        active_outside,
        ended_outside,
        pending_and_active,
        trapped,
        done,
        slept,
    ] {
        assert!(often >= 10, "{seen:?}");
    }
}

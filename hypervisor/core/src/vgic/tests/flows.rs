// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the traffic does not say by itself: SGIs' targets, linked timers, kicks that are
//! spared, vCPUs that are switched off, what the short way costs.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::sim::{SPURIOUS, Simulated};
use super::spec::Field;
use super::world::{FakePages, Place, World};
use crate::vgic::bits::Intid;
use crate::vgic::lr::Groups;
use crate::vgic::queue::{Note, Queue};
use crate::vgic::{Access, Effects, Frame, Input, Interface, SgiRegister, Spi, Vgic};

/// All vCPUs are in the guest and take all.
fn ready(cpus: usize, registers: usize) -> World {
    let mut world = World::new(cpus, registers);
    world.write_ctlr(0, [true; 2]);
    for pe in 0..cpus {
        world.set_interface(pe, |pe| {
            pe.groups = [true; 2];
            pe.mask = 0xf8;
        });
        world.write_bits(0, pe, Field::Enable, 0, u32::MAX, true);
        world.write_bits(0, pe, Field::Group, 0, u32::MAX, true);
    }
    for word in 1..32 {
        world.write_bits(0, 0, Field::Enable, word, u32::MAX, true);
        world.write_bits(0, 0, Field::Group, word, u32::MAX, true);
    }
    world.settle();
    world
}

#[test]
fn sgis_go_where_their_affinity_says() {
    let vgic = Vgic::new(FakePages::new(32, 64));
    for index in 0..32 {
        vgic.admit(index, true, &mut Effects::default());
    }
    // (Aff3, Aff2, Aff1, RS, IRM, list) -> vCPUs
    let pairs: [(u64, u64, u64, u64, u64, u64, u32); 9] = [
        (0, 0, 0, 0, 0, 0x8001, 0x8001),
        (0, 0, 1, 0, 0, 0x8001, 0x8001 << 16),
        (0, 0, 2, 0, 0, 0xffff, 0),
        (0, 1, 0, 0, 0, 0xffff, 0),
        (1, 0, 0, 0, 0, 0xffff, 0),
        // Aff0 is 16 to 31: nobody's.
        (0, 0, 0, 1, 0, 0xffff, 0),
        (0, 0, 0, 0, 0, 0, 0),
        (0, 0, 0, 0, 1, 0, !(1 << 3)),
        (9, 9, 9, 9, 1, 0xffff, !(1 << 3)),
    ];
    for (aff3, aff2, aff1, range, irm, list, expected) in pairs {
        let value = aff3 << 48 | range << 44 | irm << 40 | aff2 << 32 | 7 << 24 | aff1 << 16 | list;
        vgic.send(3, SgiRegister::Group1, value, &mut Effects::default());
        let mut reached = 0u32;
        for index in 0..32u8 {
            let frame = Frame::Redistributor(index);
            let mut effects = Effects::default();
            let read = vgic.access(0, frame, 0x1_0200, 4, None, &mut effects);
            if read == crate::vgic::Access::Done(1 << 7) {
                reached |= 1 << index;
            }
            vgic.access(0, frame, 0x1_0280, 4, Some(u64::MAX), &mut effects);
        }
        assert_eq!(reached, expected, "{value:#x}");
    }
}

const TIMER: u32 = 27;

#[test]
fn a_linked_timer_is_deactivated_by_the_guest() {
    let mut world = ready(1, 4);
    world.vgic.link(0, Intid::new(TIMER).unwrap(), TIMER as u16);
    world.ppi(0, TIMER, true);
    assert_eq!(world.sims[0].lrs[0], 0x5000_0000_0000_0000 | u64::from(TIMER) << 32 | 27 | 1 << 61);
    assert!(world.vgic.holds_link(0));
    world.acknowledge(0, 1);
    assert!(!world.sims[0].has_maintenance());
    world.end(0);
    assert_eq!(world.sims[0].deactivated, [TIMER]);
    // The physical timer says if it still fires: here, it does not.
    world.spec.pes[0].private[27].line = false;
    world.leave(0);
    world.enter(0, false);
    world.settle();
    assert!(!world.vgic.holds_link(0));
    assert!(world.sims[0].lrs.iter().all(|lr| lr >> 62 == 0));
    world.read_bits(0, 0, Field::Pending, 0, false);
}

/// A change that was left for a list register is not made to the next that is in it.
#[test]
fn what_comes_too_late_is_for_nobody() {
    for (field, to) in [(Field::Pending, false), (Field::Active, false)] {
        let mut world = ready(2, 4);
        world.run(1);
        world.sgi(0, SgiRegister::Group1, 1, Some(2));
        world.acknowledge(1, 1);
        world.end(1);
        // vCPU 1 has ended it, which nobody else knows.
        world.write_bits(0, 1, field, 0, 1 << 1, to);
        world.sgi(0, SgiRegister::Group1, 2, Some(2));
        world.settle();
        if field == Field::Active {
            world.acknowledge(1, 1);
        }
        world.leave(1);
        world.enter(1, false);
        world.settle();
        world.read_bits(0, 1, field, 0, false);
        assert_eq!(world.stacks[1].len() + usize::from(world.sims[1].signalled().is_some()), 1);
    }
}

/// An enable of a group is about all SPIs that are for any vCPU. A CPU that has an interrupt does not do all of that
/// in one go.
#[test]
fn what_is_about_all_spis_is_left_for_later() {
    let mut world = ready(2, 4);
    for pe in 0..2 {
        world.set_interface(pe, |pe| pe.groups = [true, false]);
        world.run(pe);
        world.leave(pe);
        world.enter(pe, false);
    }
    let spis: Vec<u32> = (1..31).map(|word| word * 32 + 3).collect();
    for &spi in &spis {
        world.write_route(0, spi, 1 << 31);
        world.input(spi, Input::Edge);
    }
    world.settle();
    let left = |world: &World| -> u32 {
        world.vgic.pages().banks.iter().map(|b| b.rest.load(Ordering::Relaxed).count_ones()).sum()
    };
    assert_eq!(left(&world), 0);
    // vCPU 0 enables the group, which its next exit finds.
    world.set_interface(0, |pe| pe.groups = [true; 2]);
    world.vgic.pages().interrupted.store(true, Ordering::Relaxed);
    let mut entries = 0;
    loop {
        world.vgic.exit(0, &mut world.sims[0]);
        let before = left(&world);
        let mut effects = Effects::default();
        world.vgic.enter(0, &mut world.sims[0], 0, false, &mut effects);
        entries += 1;
        let after = left(&world);
        assert!(before == 0 || after == before - 1, "one word at a time: {before}, {after}");
        assert_eq!(effects.unfinished, after != 0);
        if after == 0 {
            break;
        }
    }
    assert_eq!(entries, 32);
    world.vgic.pages().interrupted.store(false, Ordering::Relaxed);
    world.settle();
    for _ in &spis {
        assert!(spis.contains(&world.acknowledge(0, 1)));
        world.end(0);
        world.settle();
    }
    assert_eq!(world.acknowledge(0, 1), SPURIOUS);
}

/// The CPUs of a machine need not have the same number of list registers.
#[test]
fn a_vcpu_moves_to_a_cpu_with_fewer_list_registers() {
    for active in 0..2 {
        let mut world = ready(1, 8);
        for sgi in 0..8 {
            world.sgi(0, SgiRegister::Group1, sgi, Some(1));
        }
        world.settle();
        for _ in 0..active {
            world.acknowledge(0, 1);
        }
        world.leave(0);
        world.sims[0].lrs.truncate(2);
        world.enter(0, true);
        world.settle();
        // And to one with more.
        for n in 0..8 {
            if n == 4 {
                world.leave(0);
                world.sims[0].lrs.resize(16, 0);
                world.enter(0, true);
                world.settle();
            }
            if n >= active {
                world.acknowledge(0, 1);
            }
            world.end(0);
            world.settle();
        }
        assert_eq!(world.acknowledge(0, 1), SPURIOUS);
        assert_eq!(world.seen.acknowledged, 8);
    }
}

/// The short way does what the long one does.
#[test]
fn a_timer_s_short_way_is_the_long_one() {
    for (enabled, registers, others) in
        [(true, 4, 0), (true, 4, 3), (true, 4, 4), (true, 2, 5), (false, 4, 1)]
    {
        let mut world = ready(1, registers);
        world.vgic.link(0, Intid::new(TIMER).unwrap(), TIMER as u16);
        world.write_priority(0, 0, TIMER, 0x40);
        for sgi in 0..others {
            world.write_priority(0, 0, sgi, 0x80);
            world.sgi(0, SgiRegister::Group1, sgi, Some(1));
        }
        if !enabled {
            world.write_bits(0, 0, Field::Enable, 0, 1 << TIMER, false);
        }
        for round in 0..3 {
            let timer = Intid::new(TIMER).unwrap();
            let is_in = world.vgic.interrupt(0, timer, &mut world.sims[0]);
            // Once there is a list register for it, and while it is in one.
            assert_eq!(is_in, !enabled || (others as usize) < registers || round > 0);
            if !is_in {
                world.places[0] = Place::Out;
                world.enter(0, false);
            }
            world.spec.pes[0].private[27].line = true;
            world.settle();
        }
        if enabled {
            assert_eq!(world.acknowledge(0, 1), TIMER);
            world.settle();
            world.read_bits(0, 0, Field::Active, 0, false);
            world.end(0);
            assert_eq!(world.sims[0].deactivated, [TIMER]);
            world.spec.pes[0].private[27].line = false;
            world.leave(0);
            world.enter(0, false);
            world.settle();
        } else {
            world.write_bits(0, 0, Field::Enable, 0, 1 << TIMER, true);
            world.settle();
            assert_eq!(world.acknowledge(0, 1), TIMER);
        }
    }
}

/// The guest deactivates a linked timer without an exit, and so it may fire again without one.
#[test]
fn a_timer_comes_again_without_an_exit() {
    let mut world = ready(1, 4);
    let timer = Intid::new(TIMER).unwrap();
    world.vgic.link(0, timer, TIMER as u16);
    world.write_priority(0, 0, TIMER, 0x40);
    for round in 0..3 {
        assert!(world.vgic.interrupt(0, timer, &mut world.sims[0]));
        world.spec.pes[0].private[27].line = true;
        world.settle();
        assert_eq!(world.acknowledge(0, 1), TIMER, "round {round}");
        world.spec.pes[0].private[27].line = false;
        world.end(0);
        assert_eq!(world.sims[0].deactivated.len(), round + 1);
        world.settle();
    }
}

#[test]
fn a_linked_timer_that_is_masked_in_time_does_not_come() {
    let mut world = ready(1, 4);
    world.vgic.link(0, Intid::new(TIMER).unwrap(), TIMER as u16);
    world.ppi(0, TIMER, true);
    world.ppi(0, TIMER, false);
    world.settle();
    assert_eq!(world.acknowledge(0, 1), SPURIOUS);
    assert!(!world.vgic.holds_link(0));
}

#[test]
fn one_kick_for_many_events() {
    let mut world = ready(2, 4);
    world.run(1);
    let mut effects = Effects::default();
    for _ in 0..5 {
        world.vgic.send(0, SgiRegister::Group1, 1 << 24 | 2, &mut effects);
    }
    assert_eq!(effects.inside, 2);
    let mut more = Effects::default();
    world.vgic.send(0, SgiRegister::Group1, 2 << 24 | 2, &mut more);
    assert_eq!(more, Effects::default(), "it is interrupted already");
    // And none for one that is out.
    world.leave(1);
    world.enter(1, false);
    world.leave(1);
    let mut more = Effects::default();
    world.vgic.send(0, SgiRegister::Group1, 3 << 24 | 2, &mut more);
    assert_eq!(more, Effects::default());
    world.enter(1, false);
    for sgi in [1, 2, 3] {
        assert_eq!(world.sims[1].acknowledge(1), sgi);
        world.sims[1].end(1, sgi);
    }
}

#[test]
fn what_ends_something_waits_for_who_is_inside() {
    const SPI: u32 = 40;
    let gicr = Frame::Redistributor(1);
    let gicd = Frame::Distributor;
    let ones = Some(u64::MAX);
    let cases = [
        // ISENABLER, ICENABLER, ISPENDR, ICPENDR, ISACTIVER, ICACTIVER, IGROUPR, IPRIORITYR
        (gicr, 0x1_0100, ones, false),
        (gicr, 0x1_0180, ones, true),
        (gicr, 0x1_0200, ones, false),
        (gicr, 0x1_0280, ones, true),
        (gicr, 0x1_0300, ones, true),
        (gicr, 0x1_0380, ones, true),
        (gicr, 0x1_0080, Some(0), false),
        (gicr, 0x1_0400, Some(0x4040_4040), false),
        (gicr, 0x1_0100, None, false),
        (gicr, 0x1_0200, None, true),
        (gicr, 0x1_0300, None, true),
        // CTLR.DPG1NS, WAKER
        (gicr, 0, Some(1 << 25), true),
        (gicr, 0x14, Some(2), true),
        (gicr, 0x14, Some(0), false),
        (gicd, 0x104, ones, false),
        (gicd, 0x184, ones, true),
        (gicd, 0x204, ones, false),
        (gicd, 0x284, ones, true),
        (gicd, 0x304, ones, true),
        (gicd, 0x384, ones, true),
        (gicd, 0x084, Some(0), false),
        (gicd, 0x428, Some(0x4040_4040), false),
        (gicd, 0x104, None, false),
        (gicd, 0x204, None, true),
        (gicd, 0x304, None, true),
        // CTLR
        (gicd, 0, Some(1), true),
        (gicd, 0, Some(3), false),
    ];
    for (frame, offset, write, waits) in cases {
        let mut world = ready(2, 4);
        world.write_route(0, SPI, 1);
        world.run(1);
        world.sgi(0, SgiRegister::Group1, 3, Some(2));
        world.input(SPI, Input::High);
        assert_eq!(world.sims[1].lrs.iter().filter(|lr| **lr >> 62 == 1).count(), 2);
        world.leave(0);
        let mut effects = Effects::default();
        let access = world.vgic.access(0, frame, offset, 4, write, &mut effects);
        let expected = if waits { 1 << 1 } else { 0 };
        let waited = match access {
            Access::Wait(waits) => waits,
            Access::Done(_) => 0,
        };
        assert_eq!(waited, expected, "{frame:?} {offset:#x} {write:?}");
        assert!(!waits || effects.inside == 1 << 1);
        // Once it is out, there is nothing to wait for.
        world.leave(1);
        assert_eq!(world.vgic.poll(0, 1 << 1), 0);
        let again = world.vgic.access(0, frame, offset, 4, write, &mut Effects::default());
        assert!(matches!(again, Access::Done(_)));
    }
}

#[test]
fn an_edge_of_what_is_active_comes_without_an_exit() {
    for input in [Input::High, Input::Edge] {
        let mut world = ready(1, 4);
        world.write_config(0, 40, true);
        world.input(40, Input::Edge);
        assert_eq!(world.acknowledge(0, 1), 40);
        let kicks = world.seen.kicks;
        world.input(40, input);
        assert_eq!(world.seen.kicks, kicks + 1);
        world.end(0);
        assert!(!world.sims[0].has_maintenance());
        assert_eq!(world.acknowledge(0, 1), 40);
        world.end(0);
        assert_eq!(world.acknowledge(0, 1), SPURIOUS);
    }
}

#[test]
fn the_first_to_enable_a_group_gets_what_is_for_any() {
    let mut world = ready(2, 4);
    world.write_route(0, 40, 1 << 31);
    for pe in 0..2 {
        world.set_interface(pe, |pe| pe.groups = [true, false]);
    }
    world.input(40, Input::Edge);
    world.settle();
    // It does so without an exit, and leaves because of that.
    world.sims[1].vmcr |= super::sim::VENG1;
    assert!(world.sims[1].has_maintenance());
    world.leave(1);
    world.enter(1, false);
    assert!(!world.sims[1].has_maintenance());
    assert_eq!(world.sims[1].signalled(), Some((40, 1)));
}

#[test]
fn a_group_s_end_brings_in_the_other_one() {
    // List registers with interrupts of one group, and one of the other left out.
    for group in 0..2 {
        let mut world = ready(1, 2);
        for (sgi, priority) in [(1, 0x10), (2, 0x20), (3, 0x30)] {
            world.write_priority(0, 0, sgi, priority);
        }
        let of_group_0 = if group == 0 { 0b0110 } else { 0b1000 };
        world.write_bits(0, 0, Field::Group, 0, !of_group_0, true);
        for sgi in 1..4 {
            world.sgi(0, SgiRegister::Group1, sgi, Some(1));
        }
        world.settle();
        assert_eq!(world.sims[0].signalled(), Some((1, group as usize)));
        assert!(!world.sims[0].has_maintenance());
        world.sims[0].vmcr &= !(1 << group);
        assert!(world.sims[0].has_maintenance());
        world.leave(0);
        world.enter(0, false);
        assert!(!world.sims[0].has_maintenance());
        assert_eq!(world.sims[0].signalled(), Some((3, 1 - group as usize)));
        // And back.
        world.sims[0].vmcr |= 1 << group;
        assert!(world.sims[0].has_maintenance());
        world.leave(0);
        world.enter(0, false);
        assert_eq!(world.sims[0].signalled(), Some((1, group as usize)));
    }
}

#[test]
fn who_denies_a_group_gets_none_of_it_that_are_for_any() {
    let mut world = ready(2, 4);
    world.run(0);
    world.run(1);
    world.write_route(0, 40, 1 << 31);
    world.write_config(0, 40, true);
    for (denies, offered) in [([false, true], 1), ([true, false], 0)] {
        world.write_denials(0, 0, denies);
        world.input(40, Input::Edge);
        world.settle();
        assert_eq!(world.sims[offered].signalled(), Some((40, 1)));
        world.acknowledge(offered, 1);
        world.end(offered);
    }
}

#[test]
fn exits_without_interrupts_touch_no_list_register() {
    /// Panics if anything is looked at that is not saved with each exit.
    struct Untouched(u64);
    impl Interface for Untouched {
        fn list_registers(&self) -> usize {
            unreachable!()
        }
        fn list_register(&self, _: usize) -> u64 {
            unreachable!()
        }
        fn set_list_register(&mut self, _: usize, _: u64) {
            unreachable!()
        }
        fn hcr(&self) -> u64 {
            unreachable!()
        }
        fn set_hcr(&mut self, _: u64) {
            unreachable!()
        }
        fn vmcr(&self) -> u64 {
            self.0
        }
        fn has_maintenance(&self) -> bool {
            unreachable!()
        }
        fn active_priorities(&self) -> [u32; 4] {
            unreachable!()
        }
        fn preemption_shift(&self) -> u32 {
            unreachable!()
        }
    }
    let mut world = ready(1, 4);
    world.leave(0);
    let mut untouched = Untouched(world.sims[0].vmcr);
    let mut effects = Effects::default();
    world.vgic.enter(0, &mut untouched, 0, false, &mut effects);
    world.vgic.exit(0, &mut untouched);
    assert!(world.vgic.sleep(0, &untouched));
}

#[test]
fn a_guest_that_takes_to_eoimode_1_has_dir_trapped() {
    const TDIR: u64 = 1 << 14;
    let mut world = ready(1, 4);
    assert_eq!(world.sims[0].hcr & TDIR, 0);
    world.sims[0].vmcr |= super::sim::VEOIM;
    world.leave(0);
    world.enter(0, false);
    assert_eq!(world.sims[0].hcr & TDIR, TDIR);
    world.sims[0].vmcr &= !super::sim::VEOIM;
    world.leave(0);
    world.enter(0, false);
    assert_eq!(world.sims[0].hcr & TDIR, 0);
}

/// What is pending and not signalled lets a vCPU sleep, as it would a CPU.
#[test]
fn a_vcpu_sleeps_over_what_its_interface_masks() {
    let sleeps = |world: &mut World| {
        world.wait(0);
        let sleeps = world.places[0] == Place::Asleep;
        world.run(0);
        sleeps
    };
    let mut world = ready(1, 4);
    world.write_priority(0, 0, 1, 0x88);
    world.write_priority(0, 0, 2, 0x80);
    world.set_interface(0, |pe| pe.bpr = [3, 4]);
    world.sgi(0, SgiRegister::Group1, 1, Some(1));
    assert!(!sleeps(&mut world));
    // By the priority mask.
    world.set_interface(0, |pe| pe.mask = 0x88);
    assert!(sleeps(&mut world));
    world.set_interface(0, |pe| pe.mask = 0x90);
    assert!(!sleeps(&mut world));
    // By its group.
    world.set_interface(0, |pe| pe.groups = [true, false]);
    assert!(sleeps(&mut world));
    world.set_interface(0, |pe| pe.groups = [false, true]);
    // By what is active: the other one is more urgent, but not by the part that preempts.
    assert_eq!(world.acknowledge(0, 1), 1);
    world.sgi(0, SgiRegister::Group1, 2, Some(1));
    assert!(sleeps(&mut world));
    world.write_priority(0, 0, 2, 0x78);
    assert!(!sleeps(&mut world));
}

#[test]
fn a_vcpu_that_is_off_gets_none_that_are_for_any() {
    let mut world = ready(3, 4);
    world.write_route(0, 40, 1 << 31);
    world.write_config(0, 40, true);
    for pe in 0..3 {
        if world.places[pe] == Place::Inside {
            world.leave(pe);
        }
    }
    let mut effects = Effects::default();
    world.vgic.set_power(0, false, &mut effects);
    world.vgic.set_power(2, false, &mut effects);
    world.vgic.input(Spi::new(40).unwrap(), Input::Edge, &mut effects);
    world.enter(1, false);
    assert_eq!(world.sims[1].signalled(), Some((40, 1)));
    // It is switched off itself: the first to be switched on gets it.
    world.leave(1);
    world.vgic.set_power(1, false, &mut effects);
    world.sims[1] = Simulated::new(4);
    world.vgic.set_power(2, true, &mut effects);
    world.enter(2, false);
    assert_eq!(world.sims[2].signalled(), Some((40, 1)));
}

#[test]
fn what_a_vcpu_had_when_it_was_switched_off_is_not_lost() {
    let mut world = ready(1, 2);
    world.sgi(0, SgiRegister::Group1, 1, Some(1));
    world.sgi(0, SgiRegister::Group1, 2, Some(1));
    assert_eq!(world.acknowledge(0, 1), 1);
    world.leave(0);
    let mut effects = Effects::default();
    world.vgic.set_power(0, false, &mut effects);
    world.vgic.set_power(0, true, &mut effects);
    world.sims[0] = Simulated { vmcr: world.sims[0].vmcr, ..Simulated::new(2) };
    world.stacks[0].clear();
    world.spec.pes[0].running.clear();
    world.enter(0, true);
    world.settle();
    // Still active, but in no list register that a reset interface would not have.
    world.read_bits(0, 0, Field::Active, 0, false);
    assert_eq!(world.acknowledge(0, 1), 2);
}

#[test]
fn numbers_that_are_none_do_nothing() {
    let world = ready(1, 4);
    let mut effects = Effects::default();
    for number in [0, 31, 1020, 1023, 8192, u32::MAX] {
        assert_eq!(Spi::new(number), None);
    }
    for number in [40, 1019, 1020, 1023, 8192, u32::MAX] {
        world.vgic.deactivate(0, number, &mut effects);
    }
    world.vgic.set_private(9, Intid::new(27).unwrap(), true, &mut effects);
    world.vgic.set_private(0, Intid::new(40).unwrap(), true, &mut effects);
    world.vgic.exit(9, &mut Simulated::new(1));
    world.vgic.set_power(9, true, &mut effects);
    let small = Vgic::new(FakePages::new(1, 64));
    small.input(Spi::new(64).unwrap(), Input::High, &mut effects);
    assert_eq!(effects, Effects::default());
}

proptest! {
    /// The queue is a set that knows its first.
    #[test]
    fn the_queue_finds_the_first(
        steps in prop::collection::vec((0u32..1020, 0u8..32, 0u8..2, any::<bool>()), 1..400),
    ) {
        let mut queue = Queue::new();
        let mut model = BTreeSet::new();
        for (intid, level, group, crowd) in steps {
            // Many in the same words, of the same levels.
            let (intid, level) = if crowd { (intid % 70, level % 3) } else { (intid, level) };
            let intid = Intid::new(intid).unwrap();
            let present = model.iter().copied().find(|&(_, _, other)| other == intid);
            assert_eq!(queue.contains(intid), present.is_some());
            if let Some(present) = present {
                queue.remove(intid);
                model.remove(&present);
            } else {
                queue.remove(intid);
                queue.insert(intid, Note::new(level, group, crowd));
                model.insert((level, group, intid));
            }
            for groups in 0..4 {
                let mut of = model.iter().filter(|&&(_, group, _)| groups & 1 << group != 0);
                let first = of.next().map(|&(level, _, _)| level);
                let top = queue.top(Groups(groups));
                assert_eq!(top.map(|intid| queue.note(intid).level()), first);
                if let Some(intid) = top {
                    let note = queue.note(intid);
                    assert!(model.contains(&(note.level(), note.group(), intid)));
                    assert!(Groups(groups).contains(note.group()));
                }
                assert_eq!(queue.is_empty(Groups(groups)), first.is_none());
            }
        }
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! vCPUs on CPUs of their own, all at once: threads. Nobody waits for good, no event is lost,
//! none comes twice.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::sim::{SPURIOUS, Simulated, VENG0, VENG1};
use super::world::FakePages;
use crate::vgic::{Access, Effects, Frame, Input, Interface, SgiRegister, Spi, Vgic};

const VCPUS: usize = 4;
/// Few: spinning for a lock whose next holder does not run takes long on a busy machine.
const STEPS: u32 = 400;
/// SGIs 0 to 7, SPIs 32 to 55.
const SGIS: u32 = 8;
const SPIS: std::ops::Range<u32> = 32..56;
const PATIENCE: Duration = Duration::from_secs(60);

struct Machine {
    vgic: Vgic<FakePages>,
    /// CPUs that have an SGI of the hypervisor's pending.
    interrupted: [AtomicBool; VCPUS],
    /// vCPUs that the host was told to run.
    woken: [AtomicBool; VCPUS],
    /// Events and acknowledgements: of each vCPU's SGIs, then of SPIs.
    sent: Vec<AtomicU32>,
    taken: Vec<AtomicU32>,
}

fn index(pe: usize, intid: u32) -> usize {
    if intid < 32 { pe * 32 + intid as usize } else { (VCPUS - 1) * 32 + intid as usize }
}

impl Machine {
    fn new() -> Machine {
        let counts = || (0..VCPUS * 32 + 64).map(|_| AtomicU32::new(0)).collect();
        let machine = Machine {
            vgic: Vgic::new(FakePages::new(VCPUS, 64)),
            interrupted: Default::default(),
            woken: Default::default(),
            sent: counts(),
            taken: counts(),
        };
        for pe in 0..VCPUS as u8 {
            machine.vgic.admit(pe, true, &mut Effects::default());
            machine.write(pe.into(), Frame::Redistributor(pe), 0x1_0100, 4, u64::MAX);
            machine.write(pe.into(), Frame::Redistributor(pe), 0x1_0080, 4, 0xf0);
        }
        machine.write(0, Frame::Distributor, 0, 4, 3);
        machine.write(0, Frame::Distributor, 0x104, 4, u64::MAX);
        machine.write(0, Frame::Distributor, 0xc08, 4, u64::MAX);
        machine.write(0, Frame::Distributor, 0xc0c, 4, u64::MAX);
        for spi in SPIS {
            machine.write(0, Frame::Distributor, 0x6000 + 8 * spi, 8, u64::from(spi) % 4);
        }
        machine
    }

    fn tell(&self, effects: &Effects) {
        for pe in 0..VCPUS {
            if effects.inside & 1 << pe != 0 {
                self.interrupted[pe].store(true, Ordering::SeqCst);
            }
            if effects.asleep & 1 << pe != 0 {
                self.woken[pe].store(true, Ordering::SeqCst);
            }
        }
    }

    /// An access of a vCPU that is out.
    fn access(&self, pe: usize, frame: Frame, at: u32, size: u32, write: Option<u64>) -> u64 {
        let mut effects = Effects::default();
        let access = self.vgic.access(pe as u8, frame, at, size, write, &mut effects);
        self.tell(&effects);
        match access {
            Access::Done(value) => value,
            Access::Wait(mut waits) => {
                let begin = Instant::now();
                while waits != 0 {
                    assert!(begin.elapsed() < PATIENCE, "vCPU {pe} waits for {waits:#x}");
                    std::thread::yield_now();
                    waits = self.vgic.poll(pe as u8, waits);
                }
                self.vgic.read_after_wait(pe as u8, frame, at, size)
            }
        }
    }

    fn write(&self, pe: usize, frame: Frame, at: u32, size: u32, value: u64) {
        self.access(pe, frame, at, size, Some(value));
    }

    fn sgi(&self, pe: usize, sgi: u32, targets: u64) {
        for to in (0..VCPUS).filter(|to| targets & 1 << to != 0) {
            self.sent[index(to, sgi)].fetch_add(1, Ordering::SeqCst);
        }
        let mut effects = Effects::default();
        let value = u64::from(sgi) << 24 | targets;
        self.vgic.send(pe as u8, SgiRegister::Group1, value, &mut effects);
        self.tell(&effects);
    }

    fn edge(&self, spi: u32) {
        self.sent[index(0, spi)].fetch_add(1, Ordering::SeqCst);
        let mut effects = Effects::default();
        self.vgic.input(Spi::new(spi).unwrap(), Input::Edge, &mut effects);
        self.tell(&effects);
    }

    fn enter(&self, pe: usize, sim: &mut Simulated, all: bool) {
        let mut effects = Effects::default();
        self.vgic.enter(pe as u8, sim, pe as u32, all, &mut effects);
        self.tell(&effects);
    }

    fn acknowledge(&self, pe: usize, sim: &mut Simulated) -> Option<(usize, u32)> {
        let (_, group) = sim.signalled()?;
        let intid = sim.acknowledge(group);
        assert_ne!(intid, SPURIOUS);
        self.taken[index(pe, intid)].fetch_add(1, Ordering::SeqCst);
        Some((group, intid))
    }

    /// What ends a stretch of the guest's code.
    fn leave_if_due(&self, pe: usize, sim: &mut Simulated) {
        let begin = Instant::now();
        while self.interrupted[pe].swap(false, Ordering::SeqCst) || sim.has_maintenance() {
            assert!(begin.elapsed() < PATIENCE, "vCPU {pe} leaves for ever: {sim:x?}");
            self.vgic.exit(pe as u8, sim);
            self.enter(pe, sim, false);
        }
    }

    fn run(&self, pe: usize, sim: &mut Simulated, mut random: impl FnMut(u32) -> u32) {
        let mut stack = Vec::new();
        self.enter(pe, sim, true);
        for _ in 0..STEPS {
            self.leave_if_due(pe, sim);
            match random(16) {
                0..3 => self.sgi(pe, random(SGIS), random(16).into()),
                3 | 4 => self.edge(SPIS.start + random(24)),
                5..9 => stack.extend(self.acknowledge(pe, sim)),
                9..12 => {
                    if let Some((group, intid)) = stack.pop() {
                        sim.end(group, intid);
                    }
                }
                12 | 13 => {
                    self.vgic.exit(pe as u8, sim);
                    let spi = SPIS.start + random(24);
                    match random(6) {
                        0 => self.write(
                            pe,
                            Frame::Distributor,
                            0x6000 + 8 * spi,
                            8,
                            random(4).into(),
                        ),
                        1 => self.write(pe, Frame::Distributor, 0x400 + spi, 1, random(256).into()),
                        2 => self.write(pe, Frame::Distributor, 0x184, 4, 1 << (spi - 32)),
                        3 => self.write(pe, Frame::Distributor, 0x104, 4, u64::MAX),
                        4 => {
                            let of = Frame::Redistributor(random(4) as u8);
                            self.write(pe, of, 0x1_0400 + random(SGIS), 1, random(256).into());
                        }
                        _ => {
                            let of = Frame::Redistributor(random(4) as u8);
                            let read = self.access(pe, of, 0x1_0200, 4, None);
                            assert_eq!(read & !0xff, 0);
                            self.access(pe, Frame::Distributor, 0x304, 4, None);
                        }
                    }
                    self.enter(pe, sim, false);
                }
                14 => self.sleep(pe, sim),
                _ => {
                    self.vgic.exit(pe as u8, sim);
                    self.enter(pe, sim, true);
                }
            }
        }
        while let Some((group, intid)) = stack.pop() {
            sim.end(group, intid);
        }
        self.vgic.exit(pe as u8, sim);
    }

    /// WFI. The host also runs the vCPU again after a while without a wake-up; then no interrupt
    /// may be pending.
    fn sleep(&self, pe: usize, sim: &mut Simulated) {
        self.woken[pe].store(false, Ordering::SeqCst);
        self.vgic.exit(pe as u8, sim);
        let sleeps = self.vgic.sleep(pe as u8, sim);
        if sleeps {
            let begin = Instant::now();
            while !self.woken[pe].load(Ordering::SeqCst) && begin.elapsed().as_micros() < 50 {
                std::hint::spin_loop();
            }
        }
        self.enter(pe, sim, false);
        if sleeps && sim.signalled().is_some() {
            let begin = Instant::now();
            let told = || {
                self.woken[pe].load(Ordering::SeqCst) || self.interrupted[pe].load(Ordering::SeqCst)
            };
            while !told() {
                assert!(begin.elapsed() < PATIENCE, "nobody woke vCPU {pe}");
                std::thread::yield_now();
            }
        }
    }
}

#[test]
fn nothing_is_lost_in_a_crowd() {
    for (seed, registers) in [(1u64, 1), (2, 2), (3, 4), (4, 16)] {
        let machine = Machine::new();
        let mut sims = vec![Simulated::new(registers); VCPUS];
        std::thread::scope(|scope| {
            for (pe, sim) in sims.iter_mut().enumerate() {
                sim.vmcr = VENG0 | VENG1 | 2 << 21 | 3 << 18 | 0xff << 24;
                let machine = &machine;
                let mut state = (seed << 8 | pe as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
                scope.spawn(move || {
                    machine.run(pe, sim, |below| {
                        // xorshift64*
                        state ^= state >> 12;
                        state ^= state << 25;
                        state ^= state >> 27;
                        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as u32 % below
                    });
                });
            }
        });
        // What is left comes now.
        machine.write(0, Frame::Distributor, 0x104, 4, u64::MAX);
        for round in 0.. {
            assert!(round < 1000);
            let mut quiet = true;
            for (pe, sim) in sims.iter_mut().enumerate() {
                machine.enter(pe, sim, true);
                while let Some((group, intid)) = machine.acknowledge(pe, sim) {
                    sim.end(group, intid);
                    machine.leave_if_due(pe, sim);
                    quiet = false;
                }
                machine.vgic.exit(pe as u8, sim);
            }
            if quiet {
                break;
            }
        }
        for field in [0x200, 0x300] {
            assert_eq!(machine.access(0, Frame::Distributor, field + 4, 4, None), 0, "{field:#x}");
            for pe in 0..VCPUS as u8 {
                let read = machine.access(0, Frame::Redistributor(pe), 0x1_0000 + field, 4, None);
                assert_eq!(read, 0, "{field:#x} of vCPU {pe}");
            }
        }
        let mut all = 0;
        for (n, (sent, taken)) in machine.sent.iter().zip(&machine.taken).enumerate() {
            let (sent, taken) = (sent.load(Ordering::SeqCst), taken.load(Ordering::SeqCst));
            assert!(taken <= sent, "{n}: {taken} of {sent}");
            assert_eq!(taken == 0, sent == 0, "{n}: {taken} of {sent}");
            all += taken;
        }
        assert!(all > 100, "{all}");
    }
}

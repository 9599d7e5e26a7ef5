// SPDX-License-Identifier: MIT OR Apache-2.0

//! Processes that do all there is to be done, at random, with VMs of their own
//! and memories that they share.
//!
//! What guests write into lent pages has a mark, and they give pages up zeroed.
//! So the host must never find that mark.

use std::collections::HashSet;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, bail, ensure};
use escrow_abi::call::{MODIFY_SANITIZE, MODIFY_UNLOCK};
use escrow_shim_tests::access::{self, Pin};
use escrow_shim_tests::guest::{ANSWER, Guest, Order, RAM, WINDOW};
use escrow_shim_tests::gunyah::{Device, Exit, Mapping, Memory, PAGE, RWX};
use escrow_vmcore::uapi::{self, MAP_FORCE_SHARE};
use nix::errno::Errno;
use nix::sys::signal::{Signal, raise};

use crate::random::Random;
use crate::shared::Shared;

/// In the upper half of what guests write into lent pages.
const MARK: u64 = 0x5ec2_e75e;
/// Pages of a memory.
pub const PAGES: u64 = 64;
/// Bindings are at multiples of this, one after the other.
const STRIDE: u64 = 1 << 30;
/// VMs that a process has at the most.
const MOST: usize = 3;
/// Exits that a guest's order may take.
const EXITS: u32 = 12;

/// A memory, and all of it mapped.
pub struct Place {
    memory: Memory,
    mapping: Mapping,
}

impl Place {
    /// A new one.
    pub fn new(device: &Device, random: &mut Random) -> Result<Place> {
        let huge = if random.below(4) == 0 { uapi::MEM_ALLOW_HUGEPAGE } else { 0 };
        let flags = uapi::MEM_CLOEXEC | huge;
        let args = uapi::CreateMem { flags, size: PAGES * PAGE, reserved: [0; 6] };
        let memory = device.create_mem(&args)?;
        let mapping = memory.map(0, PAGES)?;
        Ok(Place { memory, mapping })
    }
}

/// Part of a memory in a VM.
struct Binding {
    at: u64,
    place: Rc<Place>,
    page: u64,
    pages: u64,
    shared: bool,
}

struct Machine {
    guest: Guest,
    bindings: Vec<Binding>,
    /// Where the next binding will be.
    next: u64,
    /// The order that the guest is reading, or carrying out.
    words: [u64; 4],
    /// Addresses that were given up: they are no place for secrets.
    given_up: HashSet<u64>,
}

/// How often what was done.
#[derive(Default)]
pub struct Tally {
    done: [AtomicU64; OPERATIONS.len()],
    refused: [AtomicU64; OPERATIONS.len()],
    /// Processes that ended, or were ended.
    pub lives: AtomicU64,
}

impl Tally {
    fn of(&self, which: usize) -> [u64; 2] {
        [&self.done[which], &self.refused[which]].map(|number| number.load(Ordering::Relaxed))
    }

    /// For people.
    pub fn report(&self) -> String {
        let all = OPERATIONS.iter().enumerate().map(|(which, (name, _))| {
            let [done, refused] = self.of(which);
            format!("{name} {done}+{refused}")
        });
        all.collect::<Vec<_>>().join(", ")
    }

    /// Fails if something was never done, by nobody.
    pub fn check(&self) -> Result<()> {
        for (which, (name, _)) in OPERATIONS.iter().enumerate() {
            let [done, refused] = self.of(which);
            ensure!(done > 0, "{name} was never done, and refused {refused} times");
        }
        Ok(())
    }
}

/// A process's own.
struct Process {
    device: Device,
    random: Random,
    places: Vec<Rc<Place>>,
    machines: Vec<Machine>,
    pins: Vec<Pin>,
}

type Operation = fn(&mut Process) -> Result<(), Errno>;

const OPERATIONS: [(&str, Operation); 15] = [
    ("create", Process::create),
    ("bind", Process::bind),
    ("guest-store", Process::guest_store),
    ("guest-load", Process::guest_load),
    ("guest-unlock", Process::guest_unlock),
    ("host-read", Process::host_read),
    ("host-write", Process::host_write),
    ("pin", Process::pin),
    ("unpin", Process::unpin),
    ("punch", Process::punch),
    ("populate", Process::populate),
    ("resize", Process::resize),
    ("unbind", Process::unbind),
    ("memory", Process::memory),
    ("close", Process::close),
];
/// Of 100: what VMs are for comes often, their beginnings and ends do not.
const WEIGHTS: [u64; OPERATIONS.len()] = [3, 8, 20, 10, 14, 12, 8, 5, 4, 4, 2, 2, 4, 2, 2];

/// One life, until the process is killed, kills itself or ends.
pub fn live(shared: &[Rc<Place>], seed: u64, tally: &Shared<Tally>) -> Result<()> {
    let random = Random::new(seed);
    let device = Device::open()?;
    let places = shared.to_vec();
    let mut process = Process { device, random, places, machines: Vec::new(), pins: Vec::new() };
    for begin in [Process::create, Process::bind, Process::bind] {
        // If not, others will.
        let _ = begin(&mut process);
    }
    let operations = 50 + process.random.below(400);
    for _ in 0..operations {
        process.step(tally)?;
    }
    match process.random.below(4) {
        0 => raise(Signal::SIGKILL)?,
        // SAFETY: ends this process with everything open.
        1 => unsafe { libc::_exit(0) },
        _ => while process.close().is_ok() {},
    }
    Ok(())
}

impl Process {
    fn step(&mut self, tally: &Tally) -> Result<()> {
        let mut lot = self.random.below(WEIGHTS.iter().sum());
        let drawn = WEIGHTS.iter().position(|&weight| {
            let hit = lot < weight;
            lot = lot.wrapping_sub(weight);
            hit
        });
        let Some((which, (name, operation))) = drawn.and_then(|i| Some((i, OPERATIONS.get(i)?)))
        else {
            bail!("the lot {lot} is nobody's");
        };
        match operation(self) {
            Ok(()) => {
                tally.done[which].fetch_add(1, Ordering::Relaxed);
            }
            // A page with another guest, in the host's hands, or not there; a
            // VM that has ended; nothing to do it with.
            Err(
                Errno::EAGAIN
                | Errno::EBUSY
                | Errno::EEXIST
                | Errno::EINVAL
                | Errno::ENOENT
                | Errno::EFAULT
                | Errno::EINTR
                | Errno::ENODEV
                | Errno::ESRCH,
            ) => {
                tally.refused[which].fetch_add(1, Ordering::Relaxed);
            }
            Err(errno) => bail!("{name}: {errno}"),
        }
        Ok(())
    }

    fn place(&mut self) -> Result<Rc<Place>, Errno> {
        self.random.of(&self.places).cloned().ok_or(Errno::ESRCH)
    }

    fn range(&mut self) -> (u64, u64) {
        let page = self.random.below(PAGES);
        (page, 1 + self.random.below((PAGES - page).min(8)))
    }

    fn create(&mut self) -> Result<(), Errno> {
        if self.machines.len() == MOST {
            return Err(Errno::ESRCH);
        }
        let flags = if self.random.below(4) == 0 { MAP_FORCE_SHARE } else { 0 };
        let guest = Guest::started(&self.device, 4, flags)
            .map_err(|error| error.downcast().unwrap_or(Errno::EIO))?;
        self.machines.push(Machine {
            guest,
            bindings: Vec::new(),
            next: RAM + STRIDE,
            words: [0; 4],
            given_up: HashSet::new(),
        });
        Ok(())
    }

    fn machine(&mut self) -> Result<(&mut Machine, &mut Random), Errno> {
        let which = self.random.below(self.machines.len() as u64) as usize;
        let machine = self.machines.get_mut(which).ok_or(Errno::ESRCH)?;
        Ok((machine, &mut self.random))
    }

    fn bind(&mut self) -> Result<(), Errno> {
        let (place, (page, pages)) = (self.place()?, self.range());
        let (machine, random) = self.machine()?;
        let shared = random.below(3) == 0;
        let flags = RWX | if shared { MAP_FORCE_SHARE } else { 0 };
        let at = machine.next;
        machine.guest.vm.bind(at, flags, &place.memory, page, pages)?;
        machine.next += STRIDE;
        machine.bindings.push(Binding { at, place, page, pages, shared });
        Ok(())
    }

    /// Has a guest do something with a page of a binding, which the host may
    /// come to see or not. A guest that was interrupted goes on with what it
    /// had to do before, and comes to this when it asks for orders.
    fn order(&mut self, order: impl Fn(u64, bool) -> Order) -> Result<u64, Errno> {
        let (machine, random) = self.machine()?;
        let binding = random.of(&machine.bindings).ok_or(Errno::ESRCH)?;
        let at = binding.at + random.below(binding.pages) * PAGE;
        let seen = binding.shared || machine.given_up.contains(&at);
        let order = order(at, seen);
        let mut is_taken = false;
        for _ in 0..EXITS {
            match machine.guest.vcpu.run()? {
                Exit::Read(from @ WINDOW..ANSWER, 8) => {
                    if from == WINDOW {
                        machine.words = order.words();
                        is_taken = true;
                        if matches!(order, Order::Unlock(..)) {
                            machine.given_up.insert(at);
                        }
                    }
                    machine.guest.vcpu.answer(machine.words[((from - WINDOW) / 8) as usize]);
                }
                Exit::Write(ANSWER, answer) if is_taken => return Ok(answer),
                Exit::PageFault(_, errno) => {
                    // The guest goes on without the page.
                    machine.guest.vcpu.refuse_page(uapi::RESUME_FAULT);
                    if errno != Errno::EAGAIN && errno != Errno::EEXIST {
                        return Err(errno);
                    }
                }
                // A fault that it takes, or an address that is none.
                Exit::Read(..) | Exit::Write(..) => {}
                Exit::Status(..) => return Err(Errno::ENODEV),
            }
        }
        Err(Errno::EAGAIN)
    }

    fn guest_store(&mut self) -> Result<(), Errno> {
        let secret = MARK << 32 | self.random.below(1 << 32);
        let store = |at, seen| Order::Store(at, if seen { at } else { secret });
        self.order(store).map(drop)
    }

    fn guest_load(&mut self) -> Result<(), Errno> {
        self.order(|at, _| Order::Load(at)).map(drop)
    }

    fn guest_unlock(&mut self) -> Result<(), Errno> {
        self.order(|at, _| Order::Unlock(at, MODIFY_UNLOCK | MODIFY_SANITIZE)).map(drop)
    }

    fn host_read(&mut self) -> Result<(), Errno> {
        let (place, (page, _)) = (self.place()?, self.range());
        let word = access::read(&place.mapping, page * PAGE)?;
        // A secret that the host can read is none: no errno is bad enough.
        if word >> 32 == MARK { Err(Errno::EBADMSG) } else { Ok(()) }
    }

    fn host_write(&mut self) -> Result<(), Errno> {
        let (place, (page, _)) = (self.place()?, self.range());
        access::write(&place.mapping, page * PAGE, page)
    }

    fn pin(&mut self) -> Result<(), Errno> {
        let (place, (page, _)) = (self.place()?, self.range());
        self.pins.push(Pin::take(&place.mapping, page)?);
        Ok(())
    }

    fn unpin(&mut self) -> Result<(), Errno> {
        let pin = self.pins.pop().ok_or(Errno::ESRCH)?;
        let bytes = pin.drain().map_err(|_| Errno::EIO)?;
        let marked = bytes.chunks_exact(8).any(|word| word[4..] == (MARK as u32).to_le_bytes());
        if marked { Err(Errno::EBADMSG) } else { Ok(()) }
    }

    fn punch(&mut self) -> Result<(), Errno> {
        let (place, (page, pages)) = (self.place()?, self.range());
        place.memory.punch(page, pages)
    }

    fn populate(&mut self) -> Result<(), Errno> {
        let (place, (page, pages)) = (self.place()?, self.range());
        place.memory.fallocate(0, page * PAGE, pages * PAGE)
    }

    fn resize(&mut self) -> Result<(), Errno> {
        let place = self.place()?;
        let (page, _) = self.range();
        let shrunk = place.memory.resize(page * PAGE);
        // Not for long: others want to use it.
        place.memory.resize(PAGES * PAGE)?;
        shrunk
    }

    fn unbind(&mut self) -> Result<(), Errno> {
        let (machine, random) = self.machine()?;
        let which = random.below(machine.bindings.len() as u64) as usize;
        let binding = machine.bindings.get(which).ok_or(Errno::ESRCH)?;
        let Binding { at, ref place, page, pages, .. } = *binding;
        machine.guest.vm.unbind(at, &place.memory, page, pages)?;
        machine.bindings.swap_remove(which);
        Ok(())
    }

    /// A memory of its own comes, or the last goes.
    fn memory(&mut self) -> Result<(), Errno> {
        if self.places.len() > 5 {
            self.places.pop();
            return Ok(());
        }
        let place = Place::new(&self.device, &mut self.random)
            .map_err(|error| error.downcast().unwrap_or(Errno::EIO))?;
        self.places.push(Rc::new(place));
        Ok(())
    }

    fn close(&mut self) -> Result<(), Errno> {
        let which = self.random.below(self.machines.len() as u64) as usize;
        if which >= self.machines.len() {
            return Err(Errno::ESRCH);
        }
        let Machine { guest, bindings, .. } = self.machines.swap_remove(which);
        let Guest { memory, mapping, vm, vcpu } = guest;
        match self.random.below(4) {
            0 => drop((vm, vcpu, memory, mapping, bindings)),
            1 => drop((memory, bindings, mapping, vcpu, vm)),
            2 => drop((vcpu, vm, bindings, mapping, memory)),
            _ => drop((bindings, mapping, vm, memory, vcpu)),
        }
        Ok(())
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! Every argument of every call, wrong in every way that it can be, all others being
//! right; from all CPUs at once.

use arrayvec::ArrayVec;
use escrow_abi::{Error, Handle, HandleKind, LIST_MAX, call};
use escrow_payloads::expect::refusal;
use escrow_payloads::host::{Counts, Lists, frame, page_at, refused};
use escrow_payloads::shape::{Argument, CALLS, Shape};
use escrow_payloads::spoil::Elsewhere;
use escrow_payloads::{Host, Outcome, Test, check, check_eq, cpus, hvc, tests};

use crate::all_lists;

pub const TESTS: &[Test] = tests![every_argument_of_every_call];

/// A value that an argument must not have, and how it is refused.
type Wrong = (u64, Error);
type Wrongs = ArrayVec<Wrong, 64>;

/// What one CPU makes its calls about.
struct Subject<'a> {
    elsewhere: &'a Elsewhere,
    lists: Lists,
    vm: u64,
    vcpu: u64,
    doorbell: u64,
    /// Another VM that lives.
    other: u64,
    /// Handles of a VM, a vCPU and a doorbell that are no more.
    dead: [u64; 3],
    /// A page at home, one that is the VM's metadata, one that is lent to it.
    page: u64,
    metadata: u64,
    lent: u64,
}

impl Subject<'_> {
    /// What makes the call do something, but for the argument that is tried.
    fn right(&self, shape: &Shape) -> [u64; 8] {
        let mut registers = [0; 8];
        registers[0] = shape.function as u64;
        for (register, argument) in registers[1..].iter_mut().zip(shape.arguments) {
            *register = match argument {
                Argument::Vm => self.vm,
                Argument::Vcpu => self.vcpu,
                Argument::Doorbell => self.doorbell,
                Argument::Flags => 1,
                Argument::List => self.lists.address(),
                Argument::EntryFrame => self.page,
                Argument::EntryGuest => page_at(self.page, 0x5000).guest,
                Argument::EntryReferences | Argument::EntryUsers => 0,
                Argument::Count | Argument::Key => 1,
                Argument::Physical => self.page,
                Argument::Guest | Argument::Size => 0x1000,
                Argument::Frames => 0x800_0000,
                Argument::Spis => 32,
                Argument::Spi => 40,
                Argument::Input => call::INPUT_HIGH,
                Argument::Object => self.other,
                Argument::Rights => call::RIGHT_SHARE,
                Argument::OfGuest => 0,
                // One that is there already, so that none is made.
                Argument::Index | Argument::Register | Argument::Label => 0,
                Argument::Selector | Argument::Detail | Argument::Any => 0,
            };
        }
        registers
    }

    fn own(&self, kind: HandleKind) -> u64 {
        match kind {
            HandleKind::Vm => self.vm,
            HandleKind::Vcpu => self.vcpu,
            HandleKind::Doorbell => self.doorbell,
        }
    }

    /// How a handle is refused; `None` if it is right.
    fn handle(&self, value: u64, kind: HandleKind) -> Option<Error> {
        if value == self.own(kind) {
            return None;
        }
        let Some(handle) = Handle::from_register(value) else { return Some(Error::HandleNull) };
        if handle.kind != kind {
            return Some(Error::HandleType);
        }
        let slots = 1..MAX_VMS;
        Some(if slots.contains(&handle.slot) { Error::HandleRevoked } else { Error::HandleNull })
    }

    fn handles(&self, kind: HandleKind, wrongs: &mut Wrongs) {
        let own = self.own(kind);
        let next = own + (1 << 24);
        let before = own & ((1 << 24) - 1) | 1 << 24;
        let values = [0, 1, u64::MAX, 1 << 63, own + (1 << 23), next, self.vm + 1]
            .into_iter()
            .chain([self.vm, self.vcpu, self.doorbell, self.doorbell + 1])
            .chain([self.page, self.metadata, own ^ (2 << 20)])
            .chain(self.dead)
            .chain([own | 0xfff << 8, own & !(0xfff << 8)])
            // The slot's first, unless this is it.
            .chain((before != own).then_some(before))
            .chain(self.elsewhere.addresses());
        for value in values {
            if let Some(error) = self.handle(value, kind) {
                wrongs.push((value, error));
            }
        }
    }

    /// The values that an argument must not have. `list` is whether it is the address of
    /// a list of so many entries.
    fn wrongs(&self, argument: Argument) -> Wrongs {
        let mut wrongs = Wrongs::new();
        let mut all = |values: &[u64], error| wrongs.extend(values.iter().map(|&v| (v, error)));
        let minus_one = u64::MAX;
        match argument {
            Argument::Vm | Argument::Object => self.handles(HandleKind::Vm, &mut wrongs),
            Argument::Rights => all(&[0, 8, 1 << 32, 1 << 63, minus_one], Error::InvalidArgument),
            Argument::OfGuest => {
                let looks_right = [1 << 24 | 1 << 20, 7 << 24 | 1 << 20, self.vm, self.vcpu];
                let values = looks_right.into_iter().chain(self.elsewhere.addresses());
                for value in values.chain([0, minus_one, Handle::HOST, 1 << 24, self.page]) {
                    wrongs.push((value, handle_of_guest(value)));
                }
            }
            Argument::Vcpu => self.handles(HandleKind::Vcpu, &mut wrongs),
            Argument::Doorbell => self.handles(HandleKind::Doorbell, &mut wrongs),
            Argument::Label => all(&[1 << 32, 1 << 63, minus_one], Error::InvalidArgument),
            Argument::Flags => all(&[0], Error::InvalidArgument),
            Argument::List => {
                let list = self.lists.address();
                all(&[minus_one, list + 1, list + 8, list + 0xfff], Error::Misaligned);
                all(&self.elsewhere.not_ram, Error::InvalidAddress);
                for range in &self.elsewhere.escrow {
                    all(&[range.start, range.end - 0x1000], Error::NotOwner);
                }
                all(&[self.metadata, self.lent], Error::NotOwner);
            }
            Argument::Count => {
                let most = LIST_MAX as u64;
                let counts = [0, most + 1, 1 << 32, 1 << 59, (1 << 59) + 1, 1 << 63, minus_one];
                all(&counts, Error::InvalidSize);
            }
            Argument::EntryFrame => {
                let orders = [1, 8, 10, 0x100, 0xfff].map(|order| self.page | order);
                all(&orders, Error::InvalidArgument);
                all(&[self.page | 0x1000 | 9], Error::Misaligned);
                all(&self.elsewhere.not_ram, Error::InvalidAddress);
                all(&[1 << 52, 1 << 63], Error::InvalidAddress);
                for range in &self.elsewhere.escrow {
                    all(&[range.start, range.end - 0x1000], Error::NotOwner);
                }
            }
            Argument::EntryGuest => {
                // No right to read, and rights that there are not.
                let rights = [0, 2, 4, 6, 9, 0x801, 0xfff].map(|rights| 0x5000 | rights);
                all(&rights, Error::InvalidArgument);
                let far = [1 << 39, 1 << 52, 1 << 63, !0xfff].map(|at| at | 3);
                all(&far, Error::AddressOverflow);
            }
            // Of references and users the `calls` payload has more.
            Argument::EntryReferences => {}
            Argument::EntryUsers => all(&[1 << 32, 1 << 63, minus_one], Error::InvalidArgument),
            Argument::Physical => {
                all(&self.elsewhere.not_ram, Error::InvalidAddress);
                all(&[minus_one, 1 << 63], Error::InvalidAddress);
                for range in &self.elsewhere.escrow {
                    all(&[range.start, range.end - 1], Error::NotOwner);
                }
            }
            Argument::Guest => {
                all(&[1, 0x800, minus_one], Error::Misaligned);
                all(&[1 << 39, 1 << 52, 1 << 63, !0xfff], Error::AddressOverflow);
            }
            Argument::Size => {
                all(&[0], Error::InvalidSize);
                all(&[1, 0xfff, minus_one], Error::Misaligned);
                all(&[1 << 39, !0xfff, !0x1fff, 1 << 63], Error::AddressOverflow);
            }
            Argument::Key | Argument::Selector => {
                all(&[9, 1 << 32, 1 << 63, minus_one], Error::InvalidArgument);
            }
            Argument::Index => all(&[32, 1 << 32, minus_one], Error::InvalidArgument),
            Argument::Register => {
                all(&[31, 1 << 8 | 1, 3 << 8, 1 << 32, minus_one], Error::InvalidArgument);
            }
            Argument::Detail => {
                let states = escrow_abi::FrameState::ALL.len() as u64;
                all(&[states, 1 << 32, 1 << 63, minus_one], Error::InvalidArgument);
            }
            Argument::Frames => {
                all(&[1, 0x1000, 0x800_8000, minus_one], Error::Misaligned);
                all(&[1 << 39, 1 << 63, !0xffff], Error::AddressOverflow);
            }
            Argument::Spis => {
                all(&[0, 31, 33, 987, 989, 992, 1024, 1 << 32 | 32, minus_one], Error::InvalidSize);
            }
            Argument::Spi => {
                all(&[0, 27, 31, 1020, 1 << 32 | 40, minus_one], Error::InvalidArgument);
            }
            Argument::Input => all(&[4, 1 << 32, 1 << 63, minus_one], Error::InvalidArgument),
            Argument::Any => {}
        }
        wrongs
    }

    /// Tries all of one call. How many tries that were.
    fn try_call(&self, shape: &Shape) -> Outcome<u64> {
        // An entry that is right for the call's list, if it has one.
        let entry = if shape.maps() { page_at(self.page, 0x5000) } else { frame(self.page) };
        self.lists.put(&[entry]);
        let right = self.right(shape);
        let mut tries = 0;
        for (n, &argument) in (1..).zip(shape.arguments) {
            for (value, error) in self.wrongs(argument) {
                let mut registers = right;
                registers[n] = value;
                // A VM has no handle on itself, nor on who was in its place before.
                let to_itself = shape.function == call::CAP_GRANT
                    && error == Error::HandleRevoked
                    && slot(registers[1]) == slot(registers[2]);
                let error = if to_itself { Error::InvalidArgument } else { error };
                check_eq!(
                    hvc::call_registers(&registers),
                    Err(refusal(error)),
                    "{:#x}, x{n} = {value:#x}",
                    shape.function
                );
                tries += 1;
            }
        }
        for n in 1 + shape.arguments.len()..8 {
            for value in [1, 0x1000, 1 << 63, u64::MAX] {
                let mut registers = right;
                registers[n] = value;
                check_eq!(
                    hvc::call_registers(&registers),
                    Err(refusal(Error::InvalidArgument)),
                    "{:#x}, x{n} = {value:#x}",
                    shape.function
                );
                tries += 1;
            }
        }
        // A list that wraps: its end is what is wrong, not its begin.
        if let Some(list) = shape.list() {
            for (at, count) in [(!0xfff, 128), (!0x1fff, 256), (!0x3fff, 512)] {
                let mut registers = right;
                registers[list..list + 2].copy_from_slice(&[at, count]);
                let answer = hvc::call_registers(&registers);
                check_eq!(answer, Err(refusal(Error::AddressOverflow)), "list {at:#x}, {count}");
                tries += 1;
            }
        }
        Ok(tries)
    }
}

/// How a handle of a guest's own is refused, where the guest has none.
fn handle_of_guest(value: u64) -> Error {
    match Handle::from_register(value) {
        Some(Handle { kind: HandleKind::Vcpu | HandleKind::Doorbell, .. }) => Error::HandleType,
        Some(Handle { slot: 0..MAX_CAPABILITIES, .. }) => Error::HandleRevoked,
        _ => Error::HandleNull,
    }
}

fn slot(handle: u64) -> u64 {
    handle >> 8 & 0xfff
}

/// Slots of VMs, the host's own included; see `docs/tests.md`.
const MAX_VMS: u16 = 64;
/// Handles that a guest may have.
const MAX_CAPABILITIES: u16 = 16;

fn every_argument_of_every_call(host: &mut Host) -> Outcome {
    let elsewhere = Elsewhere::find(host)?;
    let lists = all_lists(host);
    let stride = 9;
    let pages = host.arena.pages(stride * cpus::MAX_CPUS as u64);
    let ready = cpus::Barrier::new();
    let settled = cpus::Barrier::new();
    cpus::try_on_all(|n| {
        let lists = lists[n];
        let own = |k: u64| pages + (stride * n as u64 + k) * 0x1000;
        // One that dies, one that lives, by turns, so that slots are used again.
        let make = |from: u64| -> Outcome<[u64; 3]> {
            let vm = lists.vm_of(own(from), 2)?;
            let [vcpu, ..] =
                hvc::call(call::VCPU_CREATE, &[vm, 0]).map_err(refused("VCPU_CREATE"))?;
            let [doorbell, ..] =
                hvc::call(call::BELL_CREATE, &[vm, 0]).map_err(refused("BELL_CREATE"))?;
            Ok([vm, vcpu, doorbell])
        };
        let dead = make(0)?;
        hvc::call(call::VM_DESTROY, &[dead[0]]).map_err(refused("VM_DESTROY"))?;
        lists.reclaim(&[frame(own(0)), frame(own(1))]).map_err(refused("MEM_RECLAIM"))?;
        let [vm, vcpu, doorbell] = make(2)?;
        let other = lists.vm_of(own(8), 1)?;
        lists.top_up(vm, &[frame(own(4)), frame(own(5))]).map_err(refused("VM_TOP_UP"))?;
        lists.lend(vm, &[page_at(own(6), 0x1000)]).map_err(refused("MEM_LEND"))?;
        let subject = Subject {
            elsewhere: &elsewhere,
            lists,
            vm,
            vcpu,
            doorbell,
            other,
            dead,
            page: own(7),
            metadata: own(2),
            lent: own(6),
        };
        // From here on nothing changes, whoever calls what.
        ready.wait()?;
        let before = Counts::read();
        let info = hvc::call(call::VM_INFO, &[vm]);
        let mut tries = 0;
        for shape in CALLS {
            tries += subject.try_call(shape)?;
        }
        check!(tries > 300, "{tries} tries");
        settled.wait()?;
        check_eq!(Counts::read(), before, "after {tries} refusals");
        check_eq!(hvc::call(call::VM_INFO, &[vm]), info);
        Ok(())
    })?;
    host.destroy_all()?;
    host.bring_home()
}

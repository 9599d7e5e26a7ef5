// SPDX-License-Identifier: MIT OR Apache-2.0

//! Handles that name nothing, something else, or something dead.

use escrow_abi::{Error, Handle, HandleKind, call};
use escrow_payloads::expect::{refusal, refuses};
use escrow_payloads::guest::Agent;
use escrow_payloads::host::{frame, page_at, refused};
use escrow_payloads::{Host, Outcome, Test, check, fail, hvc, tests};

use escrow_payloads::shape::{Argument, CALLS, Shape};

pub const TESTS: &[Test] = tests![
    handles_that_are_none,
    handles_of_another_kind,
    handles_of_others,
    dead_handles_stay_dead,
    vcpus_that_were_never_made,
    there_is_an_end_of_vms,
];

/// A VM with a vCPU and a doorbell.
struct Objects {
    vm: u64,
    vcpu: u64,
    doorbell: u64,
}

impl Objects {
    fn of(agent: &Agent) -> Outcome<Objects> {
        let [doorbell, ..] =
            hvc::call(call::BELL_CREATE, &[agent.vm, 7]).map_err(refused("BELL_CREATE"))?;
        Ok(Objects { vm: agent.vm, vcpu: agent.vcpu, doorbell })
    }

    fn all(&self) -> [(Argument, u64); 3] {
        [(Argument::Vm, self.vm), (Argument::Vcpu, self.vcpu), (Argument::Doorbell, self.doorbell)]
    }
}

/// Arguments for a call that are right but for its handle.
fn arguments(host: &Host, shape: &Shape, handle: u64, page: u64) -> [u64; 5] {
    let mut arguments = [handle, 0, 0, 0, 0];
    if let Some(list) = shape.list() {
        let entry = if shape.maps() { page_at(page, 0x1000) } else { frame(page) };
        arguments[list - 1..list + 1].copy_from_slice(&host.lists.put(&[entry]));
    }
    if shape.function == call::VM_CONFIGURE {
        arguments[1..4].copy_from_slice(&[call::CONFIGURE_MEMORY_ADD, 0x1000, 0x1000]);
    }
    if shape.function == call::MEM_LEND_ONE {
        arguments[1..].copy_from_slice(&page_at(page, 0x1000).words());
    }
    if shape.function == call::BELL_RECEIVE {
        arguments[1] = 1;
    }
    arguments
}

/// Every call that takes a handle refuses this one.
fn all_refuse(host: &Host, handle: u64, kind: Argument, page: u64, error: Error) -> Outcome {
    // CAP_GRANT takes two handles: it is among the hostile payload's.
    let others = CALLS.iter().filter(|shape| shape.function != call::CAP_GRANT);
    for shape in others.filter(|shape| shape.first() == kind) {
        let arguments = arguments(host, shape, handle, page);
        refuses(shape.function, &arguments[..shape.arguments.len()], refusal(error))?;
    }
    Ok(())
}

fn unpack(register: u64) -> Outcome<Handle> {
    match Handle::from_register(register) {
        Some(handle) => Ok(handle),
        None => fail!("{register:#x} is no handle"),
    }
}

fn handles_that_are_none(host: &mut Host) -> Outcome {
    let agent = Agent::create(host)?;
    let page = host.page();
    let vm = unpack(agent.vm)?;
    for (kind, right) in Objects::of(&agent)?.all() {
        let handle = unpack(right)?;
        let none = [
            0,
            u64::MAX,
            1,
            // Without a generation, and of kinds that do not exist.
            right & 0xff_ffff,
            right & !(0xf << 20),
            right | 0xf << 20,
            // Slots beyond the last, and the host's own number.
            Handle { slot: 64, ..handle }.to_register(),
            Handle { slot: 0xfff, ..handle }.to_register(),
            Handle { slot: 0, ..handle }.to_register(),
        ];
        for value in none {
            all_refuse(host, value, kind, page, Error::HandleNull)?;
        }
    }
    // A VM has no vCPU number.
    let odd = agent.vm | 1;
    check!(vm.kind == HandleKind::Vm);
    all_refuse(host, odd, Argument::Vm, page, Error::HandleNull)?;
    host.end(agent.vm)
}

fn handles_of_another_kind(host: &mut Host) -> Outcome {
    let agent = Agent::create(host)?;
    let page = host.page();
    let objects = Objects::of(&agent)?.all();
    for (kind, own) in objects {
        for (_, handle) in objects.into_iter().filter(|&(_, handle)| handle != own) {
            all_refuse(host, handle, kind, page, Error::HandleType)?;
        }
    }
    host.end(agent.vm)
}

fn handles_of_others(host: &mut Host) -> Outcome {
    let agent = Agent::create(host)?;
    let page = host.page();
    for (kind, right) in Objects::of(&agent)?.all() {
        let handle = unpack(right)?;
        // Generations that are not, and slots where nobody lives.
        for generation in [handle.generation + 1, Handle::GENERATION_MAX] {
            let value = Handle { generation, ..handle }.to_register();
            all_refuse(host, value, kind, page, Error::HandleRevoked)?;
        }
        let value = Handle { slot: handle.slot + 1, generation: 1000, ..handle }.to_register();
        all_refuse(host, value, kind, page, Error::HandleRevoked)?;
    }
    host.end(agent.vm)
}

fn dead_handles_stay_dead(host: &mut Host) -> Outcome {
    let dead = Objects::of(&Agent::start(host)?)?;
    let page = host.page();
    let all_dead = |host: &mut Host| {
        dead.all()
            .into_iter()
            .try_for_each(|(kind, dead)| all_refuse(host, dead, kind, page, Error::HandleRevoked))
    };
    hvc::call(call::VM_DESTROY, &[dead.vm]).map_err(refused("VM_DESTROY"))?;
    // Before its pages are home, after that, and when the slot is taken again.
    all_dead(host)?;
    host.bring_home()?;
    all_dead(host)?;
    for _ in 0..3 {
        let next = Objects::of(&Agent::start(host)?)?;
        let twice = next.all().into_iter().zip(dead.all()).any(|(next, dead)| next == dead);
        check!(!twice, "a handle is used twice");
        all_dead(host)?;
        host.end(next.vm)?;
    }
    Ok(())
}

fn vcpus_that_were_never_made(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    let handle = unpack(agent.vcpu)?;
    for vcpu in [1, 31] {
        let value = Handle { index: vcpu, ..handle }.to_register();
        refuses(call::VCPU_RUN, &[value, 0, 0, 0], refusal(Error::HandleRevoked))?;
    }
    for vcpu in [32, 255] {
        let value = Handle { index: vcpu, ..handle }.to_register();
        refuses(call::VCPU_RUN, &[value, 0, 0, 0], refusal(Error::HandleRevoked))?;
    }
    host.end(agent.vm)
}

fn there_is_an_end_of_vms(host: &mut Host) -> Outcome {
    let mut vms = 0;
    let refusal = loop {
        let page = host.page();
        match host.lists.vm_create(&[frame(page)]) {
            Ok(_) => vms += 1,
            Err(refusal) => break refusal,
        }
        check!(vms < 4096, "there is no end");
    };
    check!(refusal == escrow_payloads::expect::refusal(Error::TableFull), "{refusal:?}");
    check!(vms >= 16, "only {vms} VMs");
    host.destroy_all()?;
    host.bring_home()
}

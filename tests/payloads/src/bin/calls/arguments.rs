// SPDX-License-Identifier: MIT OR Apache-2.0

//! Arguments that are neither handles nor lists.

use escrow_abi::{Error, FrameState, call};
use escrow_payloads::expect::{escrow_memory, not_ram, refusal, refuses, refuses_registers};
use escrow_payloads::guest::Agent;
use escrow_payloads::host::{frame_state, refused};
use escrow_payloads::{Host, Outcome, Test, check_eq, hvc, tests};

use escrow_payloads::shape::CALLS;

pub const TESTS: &[Test] = tests![
    reserved_arguments_are_zero,
    ledger_info_knows_its_selectors,
    frame_info_is_for_owners,
    configure_takes_whole_pages,
    configure_has_an_end,
    vcpus_have_indices,
    vcpus_have_these_registers,
    lives_go_one_way,
    runs_take_these_actions,
];

fn reserved_arguments_are_zero(host: &mut Host) -> Outcome {
    let agent = Agent::create(host)?;
    for shape in CALLS {
        for reserved in 1 + shape.arguments.len()..8 {
            for value in [1, 1 << 63, u64::MAX] {
                let mut registers = [0; 8];
                registers[0] = shape.function as u64;
                registers[1] = if shape.function == call::VCPU_RUN { agent.vcpu } else { agent.vm };
                registers[reserved] = value;
                refuses_registers(&registers, refusal(Error::InvalidArgument))?;
            }
        }
    }
    host.end(agent.vm)
}

fn ledger_info_knows_its_selectors(_: &mut Host) -> Outcome {
    let states = FrameState::ALL.len() as u64;
    for detail in [states, states + 1, 1 << 32, u64::MAX] {
        let arguments = [call::INFO_PAGES, detail];
        refuses(call::LEDGER_INFO, &arguments, refusal(Error::InvalidArgument))?;
    }
    for selector in [
        call::INFO_VMS,
        call::INFO_CPUS,
        call::INFO_VERSION,
        call::INFO_ERRATA,
        call::INFO_HARDENING,
    ] {
        let arguments = [selector, 1];
        refuses(call::LEDGER_INFO, &arguments, refusal(Error::InvalidArgument))?;
    }
    for selector in [6, 1 << 32, u64::MAX] {
        refuses(call::LEDGER_INFO, &[selector, 0], refusal(Error::InvalidArgument))?;
    }
    Ok(())
}

fn frame_info_is_for_owners(host: &mut Host) -> Outcome {
    for range in escrow_memory(host)? {
        for at in [range.start, range.start + 0x1008, range.end - 1] {
            refuses(call::FRAME_INFO, &[at], refusal(Error::NotOwner))?;
        }
    }
    for at in not_ram(host) {
        refuses(call::FRAME_INFO, &[at], refusal(Error::InvalidAddress))?;
    }
    // Any address of the page will do.
    let page = host.page();
    check_eq!(frame_state(page + 0xfff)?, FrameState::Owned);
    Ok(())
}

fn configure_takes_whole_pages(host: &mut Host) -> Outcome {
    let vm = host.vm(4)?;
    let add = call::CONFIGURE_MEMORY_ADD;
    for (base, size, error) in [
        (1, 0x1000, Error::Misaligned),
        (0x800, 0x1000, Error::Misaligned),
        (0x1000, 0x1001, Error::Misaligned),
        (0x1000, u64::MAX, Error::Misaligned),
        (0x1000, 0, Error::InvalidSize),
    ] {
        for key in [add, call::CONFIGURE_MEMORY_REMOVE] {
            refuses(call::VM_CONFIGURE, &[vm, key, base, size], refusal(error))?;
        }
    }
    for key in [0, 3, 1 << 32, u64::MAX] {
        let arguments = [vm, key, 0x1000, 0x1000];
        refuses(call::VM_CONFIGURE, &arguments, refusal(Error::InvalidArgument))?;
    }
    host.end(vm)
}

fn configure_has_an_end(host: &mut Host) -> Outcome {
    let vm = host.vm(4)?;
    for (base, size) in [
        (!0xfff, 0x1000),
        (!0xfff, 0x2000),
        (0x1000, !0xfff),
        (1 << 63, 1 << 63),
        (0, 1 << 52),
        (1 << 52, 0x1000),
    ] {
        for key in [call::CONFIGURE_MEMORY_ADD, call::CONFIGURE_MEMORY_REMOVE] {
            let arguments = [vm, key, base, size];
            refuses(call::VM_CONFIGURE, &arguments, refusal(Error::AddressOverflow))?;
        }
    }
    // More ranges than there is room for.
    let mut added = 0;
    let error = loop {
        let arguments = [vm, call::CONFIGURE_MEMORY_ADD, added << 21, 0x1000];
        match hvc::call(call::VM_CONFIGURE, &arguments) {
            Ok(_) => added += 1,
            Err(refusal) => break refusal.error,
        }
    };
    check_eq!((added >= 8, error), (true, Error::TableFull), "{added} ranges");
    host.end(vm)
}

fn vcpus_have_indices(host: &mut Host) -> Outcome {
    let vm = host.vm(4)?;
    for index in [32, 33, 256, 1 << 32, u64::MAX] {
        refuses(call::VCPU_CREATE, &[vm, index], refusal(Error::InvalidArgument))?;
    }
    // Four pages: the root, and three vCPUs.
    for index in [0, 31, 7] {
        hvc::call(call::VCPU_CREATE, &[vm, index]).map_err(refused("VCPU_CREATE"))?;
    }
    for index in [0, 31, 7] {
        refuses(call::VCPU_CREATE, &[vm, index], refusal(Error::Denied))?;
    }
    let none_left = hvc::Refusal { error: Error::NoMemory, index: 0, detail: 1 };
    refuses(call::VCPU_CREATE, &[vm, 1], none_left)?;
    host.end(vm)
}

fn vcpus_have_these_registers(host: &mut Host) -> Outcome {
    let vm = host.vm(4)?;
    let [vcpu, ..] = hvc::call(call::VCPU_CREATE, &[vm, 0]).map_err(refused("VCPU_CREATE"))?;
    let bad = [31, 32, 255, 1 << 8 | 1, 2 << 8 | 2, 3 << 8, 4 << 8, 1 << 32, 1 << 63, u64::MAX];
    for register in bad {
        let arguments = [vcpu, register, 0x1234];
        refuses(call::VCPU_SET_REGISTER, &arguments, refusal(Error::InvalidArgument))?;
    }
    for register in (0..31).chain([1 << 8, 2 << 8, 2 << 8 | 1]) {
        hvc::call(call::VCPU_SET_REGISTER, &[vcpu, register, u64::MAX])
            .map_err(refused("VCPU_SET_REGISTER"))?;
    }
    host.end(vm)
}

fn lives_go_one_way(host: &mut Host) -> Outcome {
    // Without a vCPU there is nothing to start.
    let vm = host.vm(4)?;
    refuses(call::VM_START, &[vm], refusal(Error::Denied))?;
    let [vcpu, ..] = hvc::call(call::VCPU_CREATE, &[vm, 0]).map_err(refused("VCPU_CREATE"))?;
    // Not before the start.
    refuses(call::VCPU_RUN, &[vcpu, 0, 0, 0], refusal(Error::Denied))?;
    hvc::call(call::VM_START, &[vm]).map_err(refused("VM_START"))?;
    // Not after it.
    refuses(call::VM_START, &[vm], refusal(Error::Denied))?;
    // A vCPU may come later; it is off, so that nobody sets its registers but who
    // switches it on.
    let [late, ..] = hvc::call(call::VCPU_CREATE, &[vm, 1]).map_err(refused("VCPU_CREATE"))?;
    refuses(call::VCPU_CREATE, &[vm, 1], refusal(Error::Denied))?;
    refuses(call::VCPU_SET_REGISTER, &[late, 0, 0], refusal(Error::Denied))?;
    refuses(call::VCPU_SET_REGISTER, &[vcpu, 0, 0], refusal(Error::Denied))?;
    host.end(vm)
}

fn runs_take_these_actions(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    // It waits for the answer to a store.
    for action in [3, 1 << 32, u64::MAX] {
        let arguments = [agent.vcpu, 0, action, 0];
        refuses(call::VCPU_RUN, &arguments, refusal(Error::InvalidArgument))?;
    }
    // The refused answers changed nothing: the agent goes on where it was.
    agent.store(escrow_payloads::guest::MAILBOX + 0x800, 1)?;
    host.end(agent.vm)
}

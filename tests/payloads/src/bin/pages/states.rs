// SPDX-License-Identifier: MIT OR Apache-2.0

//! Every call on a page in every state: what starts from there is done, the
//! rest is refused with the state.

use escrow_abi::{Error, FrameState, call};
use escrow_payloads::expect::{refusal_of, refuses_with};
use escrow_payloads::guest::{Agent, FREE};
use escrow_payloads::host::{block_at, frame, frame_state, page_at, refused};
use escrow_payloads::{Host, Outcome, Test, check_eq, hvc, tests};

pub const TESTS: &[Test] =
    tests![no_call_starts_from_the_wrong_state, pages_of_two_vms_do_not_mix, the_counters_follow,];

/// Tries everything that must not be done to a page in a state.
fn nothing_starts_here(host: &Host, vm: u64, at: u64, but: &[u32]) -> Outcome {
    let state = frame_state(at)?;
    let wrong = refusal_of(Error::WrongState, 0, state as u64);
    let lists = &host.lists;
    let [map, bare] = [page_at(at, FREE + 0x5000), frame(at)];
    let tries: [(u32, &dyn Fn() -> hvc::Answer); 6] = [
        (call::MEM_LEND, &|| lists.lend(vm, &[map])),
        (call::MEM_SHARE, &|| lists.share(vm, &[map])),
        (call::VM_TOP_UP, &|| lists.top_up(vm, &[bare])),
        (call::VM_CREATE, &|| lists.vm_create(&[bare]).map(|vm| [vm, 0, 0, 0])),
        (call::MEM_UNSHARE, &|| lists.unshare(&[bare])),
        (call::MEM_RECLAIM, &|| lists.reclaim(&[bare])),
    ];
    for (function, attempt) in tries {
        if but.contains(&function) {
            continue;
        }
        let locked = function == call::MEM_RECLAIM && state == FrameState::Lent;
        let expected = if locked { refusal_of(Error::Locked, 0, 0) } else { wrong };
        refuses_with(expected, &[function as u64, state as u64], attempt)?;
    }
    Ok(())
}

fn no_call_starts_from_the_wrong_state(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    let other = host.vm(12)?;
    let metadata = host.arena.pages(1);
    let [home, shared, lent, zeroed, kept] =
        [host.page(), host.page(), host.page(), host.page(), host.page()];
    host.lists.top_up(agent.vm, &[frame(metadata)]).map_err(refused("VM_TOP_UP"))?;
    host.lists.share(agent.vm, &[page_at(shared, FREE)]).map_err(refused("MEM_SHARE"))?;
    let entries = [
        page_at(lent, FREE + 0x1000),
        page_at(zeroed, FREE + 0x2000),
        page_at(kept, FREE + 0x3000),
    ];
    host.lists.lend(agent.vm, &entries).map_err(refused("MEM_LEND"))?;
    let unlock = call::MODIFY_PAGES as u64;
    let sanitized = call::MODIFY_UNLOCK | call::MODIFY_SANITIZE;
    check_eq!(agent.hvc(&[unlock, 0, FREE + 0x2000, 0x1000, sanitized])?, 0);
    check_eq!(agent.hvc(&[unlock, 0, FREE + 0x3000, 0x1000, call::MODIFY_UNLOCK])?, 0);

    for (at, state) in [
        (home, FrameState::Owned),
        (shared, FrameState::Shared),
        (lent, FrameState::Lent),
        (zeroed, FrameState::UnlockedZeroed),
        (kept, FrameState::UnlockedContents),
        (metadata, FrameState::Metadata),
    ] {
        check_eq!(frame_state(at)?, state);
        let starts: &[u32] = match state {
            FrameState::Owned => {
                &[call::MEM_LEND, call::MEM_SHARE, call::VM_TOP_UP, call::VM_CREATE]
            }
            FrameState::Shared => &[call::MEM_UNSHARE],
            FrameState::UnlockedZeroed | FrameState::UnlockedContents => &[call::MEM_RECLAIM],
            _ => &[],
        };
        nothing_starts_here(host, agent.vm, at, starts)?;
        nothing_starts_here(host, other, at, starts)?;
    }

    // A dead VM's pages come home, and that is all that can be done to them.
    hvc::call(call::VM_DESTROY, &[agent.vm]).map_err(refused("VM_DESTROY"))?;
    for at in [lent, zeroed, kept, metadata] {
        nothing_starts_here(host, other, at, &[call::MEM_RECLAIM])?;
    }
    nothing_starts_here(host, other, shared, &[call::MEM_RECLAIM, call::MEM_UNSHARE])?;
    host.end(other)
}

fn pages_of_two_vms_do_not_mix(host: &mut Host) -> Outcome {
    let [first, second] = [host.vm(12)?, host.vm(12)?];
    let pages = host.arena.pages(4);
    for (n, vm) in [(0, first), (1, second), (2, first), (3, second)] {
        let entry = [page_at(pages + n * 0x1000, 0x1000 * (n + 1))];
        let done = if n < 2 { host.lists.lend(vm, &entry) } else { host.lists.share(vm, &entry) };
        done.map_err(refused("MEM_LEND or MEM_SHARE"))?;
    }
    let shared = [frame(pages + 0x2000), frame(pages + 0x3000)];
    let mixed = refusal_of(Error::MixedVms, 1, 0);
    refuses_with(mixed, &[0], || host.lists.unshare(&shared))?;
    for vm in [first, second] {
        hvc::call(call::VM_DESTROY, &[vm]).map_err(refused("VM_DESTROY"))?;
    }
    let lent = [frame(pages), frame(pages + 0x1000)];
    refuses_with(mixed, &[1], || host.lists.reclaim(&lent))?;
    host.bring_home()
}

fn the_counters_follow(host: &mut Host) -> Outcome {
    use FrameState::{Lent, Metadata, Owned, Shared};
    use escrow_payloads::host::Counts;

    let start = Counts::read();
    let vm = host.vm(12)?;
    let mut expected = Counts { vms: start.vms + 1, ..start.moved(Owned, Metadata, 12) };
    check_eq!(Counts::read(), expected);
    let pages = host.arena.pages(3);
    let block = host.arena.blocks(1);
    host.lists
        .lend(vm, &[page_at(pages, 0x1000), block_at(block, 0x20_0000)])
        .map_err(refused("MEM_LEND"))?;
    expected = expected.moved(Owned, Lent, 513);
    check_eq!(Counts::read(), expected);
    host.lists.share(vm, &[page_at(pages + 0x1000, 0x3000)]).map_err(refused("MEM_SHARE"))?;
    expected = expected.moved(Owned, Shared, 1);
    check_eq!(Counts::read(), expected);
    let info = hvc::call(call::VM_INFO, &[vm]).map_err(refused("VM_INFO"))?;
    // Root and two tables of the twelve are in use.
    check_eq!(info, [0, 514, 12, 9]);
    hvc::call(call::VM_DESTROY, &[vm]).map_err(refused("VM_DESTROY"))?;
    // Still there, until the last page is home.
    check_eq!(Counts::read(), expected);
    host.bring_home()?;
    check_eq!(Counts::read(), start);
    Ok(())
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! Steps 7 and 8: the guest gives the page up, and it goes to another.

use anyhow::{Context, Result};
use escrow_abi::{FrameState, call};

use super::checks::{Checks, contents, outcome};
use super::stage::{
    Guest, MEMORY_BASE, MEMORY_SIZE, PAGE, PAGE_ADDRESS, PAGE_OFFSET, PROGRAM_OFFSET, Prepared,
    random, write_program,
};
use crate::guest::{Command, Failure, Interpreter, Surroundings, Width, program};
use crate::gunyah::{Access, Binding, Folios, MmioAccess, PAGE_SIZE, Protection};
use crate::host::{Facts, Kcore, Touch, Touched, physical_address, touch};

/// Step 7: the guest zeroes the page and unlocks it, and the host has it back.
pub fn unlock(checks: &mut Checks, prepared: &Prepared<'_>, guest: &mut Guest) -> Result<()> {
    let Prepared { page, memory, .. } = prepared;
    let size = PAGE_SIZE as usize;
    let before = Facts::read()?;
    let answer = guest.answer(Command::Hypercall([
        call::MODIFY_PAGES.into(),
        0,
        PAGE_ADDRESS,
        PAGE_SIZE,
        call::MODIFY_UNLOCK | call::MODIFY_SANITIZE,
    ]))?;
    checks.equal("the hypercall", 0, answer as i64);
    let unlocked = |facts: &Facts| facts.pages_in(FrameState::UnlockedZeroed);
    let count = i128::from(unlocked(&Facts::read()?)) - i128::from(unlocked(&before));
    checks.equal("pages unlocked", 1, count);

    // The first load reclaims the page. If that fails, the rest cannot be tried.
    let first = touch(page.address(), Touch::Load);
    checks.equal("the host loads", "0x00", first);
    if first != Touched::Byte(0) {
        return Ok(());
    }
    let secret = prepared.secret.to_le_bytes();
    let known: &[(&str, &[u8])] = &[("the secret", &secret)];
    checks.equal("the page reads", "zeros", contents(&page.read(0, size), known));
    let fresh = memory.map(PAGE_OFFSET, PAGE_SIZE, Protection::Read)?;
    checks.equal("a new mapping reads", "zeros", contents(&fresh.read(0, size), known));

    let text = format!("the host writes {:016x}", random()?);
    page.write(0, text.as_bytes());
    let linear = Kcore::open()?.read(physical_address(page.address())?, size)?;
    let known: &[(&str, &[u8])] = &[("what the host wrote", &text.as_bytes()[16..])];
    checks.equal("/proc/kcore shows", "what the host wrote", contents(&linear, known));
    Ok(())
}

/// Step 8: the first VM's binding of the page ends, and a second VM is lent it
/// while the first runs on.
pub fn lend_again(checks: &mut Checks, prepared: &Prepared<'_>, first: &mut Guest) -> Result<()> {
    let Prepared { baseline, page, memory, .. } = prepared;
    let size = PAGE_SIZE as usize;
    first.vm.unbind(memory, PAGE)?;
    let message = format!("for the second guest, {:016x}. ", random()?).into_bytes();
    let message = &message[..message.len() / 8 * 8];
    page.write(0, message);

    // The second VM has its program in a memory of its own, and this page.
    let own = baseline.device.create_memory(MEMORY_SIZE, Folios::Small)?;
    drop(write_program(&own)?);
    let vm = baseline.device.create_vm()?;
    let place = Binding {
        guest: MEMORY_BASE + PROGRAM_OFFSET,
        offset: PROGRAM_OFFSET,
        size: (program().len() as u64).next_multiple_of(PAGE_SIZE),
    };
    vm.lend(&own, place, Access::All)?;
    vm.lend(memory, PAGE, Access::ReadWrite)?;
    let vcpu = vm.add_vcpu(0)?;
    vm.set_boot_pc(place.guest)?;
    vm.start()?;
    let mut second = Guest { vm, interpreter: Interpreter::new(vcpu) };

    let reply = second.interpreter.execute(Command::Send(PAGE_ADDRESS, message.len() as u64))?;
    let known: &[(&str, &[u8])] = &[("the host's new message", message)];
    checks.equal("it reads", "the host's new message", contents(&reply.bytes(), known));
    let secret = random()? | 0x0101_0101_0101_0101;
    second.answer(Command::Fill(PAGE_ADDRESS, PAGE_SIZE, secret))?;
    checks.equal("it keeps", "the secret", second.view_of(secret)?);
    checks.equal("the host's load", "SIGBUS", touch(page.address(), Touch::Load));

    let load = Command::Load(Width::Double, PAGE_ADDRESS);
    let surroundings = Surroundings { scratch: 0x1234, ..Surroundings::default() };
    let reply = first.interpreter.execute_in(load, surroundings, |vcpu| vcpu.run())?;
    let exit = MmioAccess::Read { address: PAGE_ADDRESS, size: 8 };
    let seen = if reply.accesses == [exit] && reply.answer == 0x1234 {
        "an MMIO exit".to_owned()
    } else {
        format!("{:x?}, {:#x}", reply.accesses, reply.answer)
    };
    checks.equal("the first VM's load", "an MMIO exit", seen);

    let end = second.interpreter.execute(Command::PowerOff);
    let end = match end {
        Err(failure) if failure == Failure::POWERED_OFF => "powered off".to_owned(),
        other => outcome(&other),
    };
    checks.equal("it ends", "powered off", end);
    drop(second);
    drop(own);

    let left = match touch(page.address(), Touch::Load) {
        Touched::Byte(_) => contents(&page.read(0, size), &[("the secret", &secret.to_le_bytes())]),
        signal => signal.to_string(),
    };
    checks.equal("then the host reads", "zeros", left);
    let alive = first.answer(Command::Nop).context("the first VM does not answer any more")?;
    checks.equal("the first VM answers", 0, alive);
    Ok(())
}

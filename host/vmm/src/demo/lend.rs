// SPDX-License-Identifier: MIT OR Apache-2.0

//! Steps 1 to 4: from a memory of the host's to a guest with a secret.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use escrow_abi::FrameState;
use nix::time::{ClockId, clock_gettime};

use super::checks::{Checks, contents, outcome};
use super::stage::{
    Baseline, Guest, MEMORY_SIZE, PAGE_ADDRESS, PAGE_OFFSET, PROGRAM_OFFSET, Prepared,
    SPARE_ADDRESS, Unstarted, create_vm, random, write_program,
};
use crate::guest::cpu::{self, ioctl_with_vectors};
use crate::guest::{Command, Interpreter, SCRATCH, Surroundings, WINDOW, Width, program};
use crate::gunyah::{Folios, MmioAccess, PAGE_SIZE, Protection};
use crate::host::{Facts, Kcore, Pin, Refusal, physical_address};

/// Step 1: the host creates a guest memory, maps it, and writes a program and
/// a message.
pub fn prepare<'a>(checks: &mut Checks, baseline: &'a Baseline) -> Result<Prepared<'a>> {
    let memory = baseline.device.create_memory(MEMORY_SIZE, Folios::Small)?;
    let page = memory.map(PAGE_OFFSET, 2 * PAGE_SIZE, Protection::ReadWrite)?;
    checks.equal("a fresh page reads", "zeros", contents(&page.read(0, PAGE_SIZE as usize), &[]));

    // Without zero bytes, neither the secret nor the message is found in zeroed memory.
    let secret = random()? | 0x0101_0101_0101_0101;
    let message = format!("host to guest, {:016x}: tell nobody about this.", random()?);
    let message = message.into_bytes();
    ensure!(message.len() % 8 == 0, "the guest sends whole words");
    page.write(0, &message);
    page.write(PAGE_SIZE as usize, b"the page behind it");
    let program_page = write_program(&memory)?;

    let again = memory.map(0, MEMORY_SIZE, Protection::Read)?;
    let same = again.read(PAGE_OFFSET as usize, message.len()) == message
        && again.read(PROGRAM_OFFSET as usize, program().len()) == program();
    let seen = if same { "the same" } else { "something else" };
    checks.equal("another mapping shows", "the same", seen);

    let physical = physical_address(page.address())?;
    let linear = Kcore::open()?.read(physical, message.len())?;
    let known: &[(&str, &[u8])] = &[("the message", &message)];
    checks.equal("/proc/kcore shows", "the message", contents(&linear, known));

    let program = Some(program_page);
    Ok(Prepared { baseline, memory, page, program, physical, message, secret })
}

/// Step 2: a pipe holds the program's page, though no mapping does. The VM
/// must not start, and nothing must change.
pub fn start_pinned(checks: &mut Checks, prepared: &mut Prepared<'_>) -> Result<(Unstarted, Pin)> {
    let mapping = prepared.program.take().context("the program is not mapped")?;
    let pin = Pin::take(&mapping, 0, PAGE_SIZE as usize).context("vmsplice")?;
    drop(mapping);

    let created = create_vm(&prepared.baseline.device, &prepared.memory)?;
    let before = Facts::read()?;
    let started = created.vm.start().map_err(|error| error.errno);
    checks.equal("starting the guest", "EAGAIN", outcome(&started));

    let refusal = Refusal::parse(&prepared.memory.fdinfo()?);
    let expected = Refusal { offset: PROGRAM_OFFSET, excess: 1 };
    checks.equal("named", expected, refusal.map_or("nothing".into(), |seen| seen.to_string()));

    let difference = before.difference(&Facts::read()?);
    checks.equal("EL2's counts", "unchanged", difference.as_deref().unwrap_or("unchanged"));

    let mapping = prepared.memory.map(PROGRAM_OFFSET, PAGE_SIZE, Protection::Read)?;
    let kept = mapping.read(0, program().len()) == program();
    checks.equal("the page", "unchanged", if kept { "unchanged" } else { "changed" });
    Ok((created, pin))
}

/// Step 3: the pipe is drained, and the page can be lent.
pub fn start(
    checks: &mut Checks,
    prepared: &Prepared<'_>,
    (created, pin): (Unstarted, Pin),
) -> Result<Guest> {
    let drained = pin.drain().context("draining the pipe")?;
    let seen = if drained.starts_with(program()) { "the program" } else { "something else" };
    checks.equal("the pipe held", "the program", seen);

    let Unstarted { vm, vcpu } = created;
    let started = vm.start().map_err(|error| error.errno);
    checks.equal("starting the guest", "done", outcome(&started));
    started.context("VM_START")?;
    let again = vm.start().map_err(|error| error.errno);
    checks.equal("starting it again", "done", outcome(&again));

    let lent = lent_since(prepared.baseline)?;
    checks.equal("pages lent", 1, lent);
    Ok(Guest { vm, interpreter: Interpreter::new(vcpu) })
}

/// How many more pages are lent than before the first step.
fn lent_since(baseline: &Baseline) -> Result<i128> {
    let [before, now] = [&baseline.facts, &Facts::read()?]
        .map(|facts| i128::from(facts.pages_in(FrameState::Lent)));
    Ok(now - before)
}

/// Step 4: the guest reads the message and sends it back, exercises MMIO and
/// its vector registers, and fills the page with a secret.
pub fn talk(checks: &mut Checks, prepared: &Prepared<'_>, guest: &mut Guest) -> Result<()> {
    let length = prepared.message.len() as u64;
    let reply = guest.interpreter.execute(Command::Send(PAGE_ADDRESS, length))?;
    let known: &[(&str, &[u8])] = &[("the message", &prepared.message)];
    let whole = reply.bytes() == prepared.message;
    let seen = if whole {
        "the message".into()
    } else {
        format!("{} (in part)", contents(&reply.bytes(), known))
    };
    checks.equal("the guest reads", "the message", seen);

    let right = mmio(guest)?;
    checks.equal("right MMIO accesses of 1, 2, 4, 8 bytes", "12 of 12", format!("{right} of 12"));
    checks.equal("MMIO that the host refuses", "an abort in the guest", refused(guest)?);
    checks.equal("a hidden register", "undefined in the guest", hidden(guest)?);

    let (host, in_guest) = vector_registers(guest)?;
    checks.equal("vector registers lost by the host", 0, host);
    checks.equal("lost by the guest", 0, in_guest);

    checks.equal("words through MMIO to a fresh page and back", "the same", there_and_back(guest)?);
    checks.equal("waiting for a timer by WFI", "sleeps", nap(guest)?);

    guest.answer(Command::Fill(PAGE_ADDRESS, PAGE_SIZE, prepared.secret))?;
    checks.equal("the page has", "the secret", guest.view_of(prepared.secret)?);
    // Three: the program's page, the secret's, and the one that was allocated at the guest's
    // touch.
    checks.equal("pages lent", 3, lent_since(prepared.baseline)?);
    Ok(())
}

/// Loads, sign-extending loads and stores of each width. How many of the 12
/// are right at both ends.
fn mmio(guest: &mut Guest) -> Result<usize> {
    const VALUE: u64 = 0x8182_8384_f5f6_f7f8;
    let mut right = 0;
    for width in Width::ALL {
        // Not at the start of the window, but aligned: with its MMU off, a guest cannot make
        // unaligned accesses.
        let address = WINDOW + SCRATCH + 8 + u64::from(width.bytes());
        let address = address.next_multiple_of(width.bytes().into());
        let size = width.bytes();
        let load = MmioAccess::Read { address, size };
        let store = MmioAccess::Write { address, size, value: width.truncate(VALUE) };
        for (command, answer, access) in [
            (Command::Load(width, address), width.truncate(VALUE), load),
            (Command::LoadSigned(width, address), width.sign_extend(VALUE), load),
            (Command::Store(width, address, VALUE), 0, store),
        ] {
            let surroundings = Surroundings { scratch: VALUE, ..Surroundings::default() };
            let reply = guest.interpreter.execute_in(command, surroundings, |vcpu| vcpu.run())?;
            if reply.answer == answer && reply.accesses == [access] && reply.exceptions.is_empty() {
                right += 1;
            }
        }
    }
    Ok(right)
}

/// Sends words to the guest, which stores them in a page that nobody has
/// touched, and has them sent back.
fn there_and_back(guest: &mut Guest) -> Result<&'static str> {
    let words: Vec<u64> = cpu::pattern(1).iter().map(|&vector| vector as u64).collect();
    let size = 8 * words.len() as u64;
    let surroundings = Surroundings { data: &words, ..Surroundings::default() };
    let command = Command::Receive(SPARE_ADDRESS, size);
    guest.interpreter.execute_in(command, surroundings, |vcpu| vcpu.run())?;
    // The rest of the new page is zero.
    let reply = guest.interpreter.execute(Command::Send(SPARE_ADDRESS, size + 64))?;
    let same = reply.data.get(..words.len()) == Some(&words[..]);
    let zeros = reply.data.iter().skip(words.len()).all(|&word| word == 0);
    Ok(if same && zeros { "the same" } else { "something else" })
}

/// Has the guest wait for a timer by WFI: that takes the time that it should,
/// and no time of the host's CPU.
fn nap(guest: &mut Guest) -> Result<String> {
    const NAP_MS: u64 = 100;
    // An emulated CPU can be late: one attempt of these must be in time.
    const TRIES: u32 = 3;
    let ticks = cpu::counter_frequency() * NAP_MS / 1000;
    let mut least = Duration::MAX;
    for _ in 0..TRIES {
        let before = cpu_time()?;
        let slept = guest.answer(Command::Sleep(ticks))?;
        if slept < ticks {
            return Ok(format!("woke after {slept} of {ticks} ticks"));
        }
        least = least.min(cpu_time()?.saturating_sub(before));
        if least < Duration::from_millis(NAP_MS / 2) {
            return Ok("sleeps".to_owned());
        }
    }
    Ok(format!("uses {least:?} of CPU time in {NAP_MS} ms"))
}

/// CPU time that this process has used.
fn cpu_time() -> Result<Duration> {
    let time = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?;
    Ok(Duration::from(time))
}

/// `ESR_EL1.EC`: unknown reason, which is what an undefined instruction has.
const EC_UNKNOWN: u64 = 0x00;
/// `ESR_EL1.EC`: data abort from the same exception level.
const EC_DATA_ABORT: u64 = 0x25;
/// The vector of a synchronous exception from the same exception level.
const VECTOR_SYNCHRONOUS: u64 = 4;

/// Has the guest load from an address where the host refuses to answer.
fn refused(guest: &mut Guest) -> Result<String> {
    let address = WINDOW + SCRATCH;
    let surroundings = Surroundings { refuse: true, ..Surroundings::default() };
    let command = Command::Load(Width::Word, address);
    let reply = guest.interpreter.execute_in(command, surroundings, |vcpu| vcpu.run())?;
    Ok(match reply.exceptions[..] {
        [one]
            if one.vector == VECTOR_SYNCHRONOUS
                && one.esr >> 26 & 0x3f == EC_DATA_ABORT
                && one.far == address =>
        {
            "an abort in the guest".to_owned()
        }
        ref others => format!("{others:x?}"),
    })
}

/// Has the guest read a system register that guests do not have.
fn hidden(guest: &mut Guest) -> Result<String> {
    let reply = guest.interpreter.execute(Command::ReadHidden)?;
    Ok(match reply.exceptions[..] {
        [one] if one.vector == VECTOR_SYNCHRONOUS && one.esr >> 26 & 0x3f == EC_UNKNOWN => {
            "undefined in the guest".to_owned()
        }
        ref others => format!("{others:x?}"),
    })
}

/// Gives the host and the guest values in all of their vector registers, each
/// its own, and runs the guest. How many registers were different afterwards:
/// the host's (over all runs), and the guest's.
fn vector_registers(guest: &mut Guest) -> Result<(usize, u64)> {
    const GUEST_SEED: u64 = 0x6775_6573_7400_0000;
    let mut runs = 0;
    let mut lost = 0;
    let mut execute = |command| {
        guest.interpreter.execute_in(command, Surroundings::default(), |vcpu| {
            vcpu.run_by(|fd, request| {
                runs += 1;
                let before = cpu::pattern(runs);
                let (result, after) = ioctl_with_vectors(fd, request, &before);
                lost += before.iter().zip(&after).filter(|(before, after)| before != after).count();
                result
            })
        })
    };
    execute(Command::SetVectors(GUEST_SEED))?;
    execute(Command::Nop)?;
    let in_guest = execute(Command::CheckVectors(GUEST_SEED))?.answer;
    Ok((lost, in_guest))
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! Who can hold a page of a guest memory, and what comes of it.
//!
//! Whoever holds a page in the host keeps it there: the guest's run ends with
//! EAGAIN, fdinfo names the page and by how many references it is held, and
//! nothing has changed for anybody. When the holder has let go, the same run
//! goes on. Once the guest has the page, the same holder is refused.
//!
//! A reference that `get_user_pages` takes counts one, a pin of
//! `pin_user_pages` 1024 (`GUP_PIN_COUNTING_BIAS`).

mod advice;
mod breaks;
mod bulk;
mod direct;
mod doubles;
mod holes;
mod huge;
mod kills;
mod looks;
mod mappings;
mod pipes;
mod poison;
mod races;
mod remote;
mod sockets;
mod starvation;
mod upkeep;
mod uring;
mod userfault;

use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use escrow_abi::call::MODIFY_UNLOCK;
use escrow_shim_tests::runner::same;
use escrow_shim_tests::tests;
use escrow_vmcore::uapi::{RESUME_FAULT, fdinfo};
use nix::errno::Errno;

use crate::access::{read, write};
use crate::guest::{ANSWER, Guest, Order, RAM};
use crate::gunyah::{Device, Exit, Mapping, PAGE};
use crate::wait::PATIENCE;

tests! {
    "holders::":
    pipes::vmsplice,
    pipes::vmsplice_then_munmap,
    pipes::tee,
    pipes::splice_to_a_socket,
    uring::registered_buffers,
    uring::registered_buffers_of_a_closed_ring,
    uring::buffer_rings,
    direct::a_read_in_flight,
    direct::a_write_in_flight,
    direct::a_fixed_buffer_in_flight,
    sockets::zero_copy_send,
    sockets::packet_memory,
    remote::process_vm_readv,
    remote::process_vm_writev,
    remote::proc_mem,
    remote::ptrace,
    mappings::fork_in_parent_and_child,
    mappings::moved,
    mappings::several,
    mappings::split_and_replaced,
    mappings::of_another_program,
    races::faults_on_several_cpus,
    races::everybody,
    starvation::by_pins_without_end,
    races::a_fault_that_waits_keeps_nobody,
    upkeep::compaction,
    upkeep::migration,
    upkeep::same_page_merging,
    upkeep::reclaim,
    upkeep::contiguous_allocations,
    upkeep::offlining,
    advice::every_advice,
    advice::of_a_part_of_a_block,
    advice::locks,
    advice::removal_is_a_hole,
    userfault::only_asynchronous_write_protection,
    poison::a_poisoned_page_is_not_lent,
    poison::a_lent_page_breaks,
    poison::programs_that_say_so,
    breaks::a_mapped_page,
    breaks::a_page_of_a_mapped_folio,
    breaks::a_page_of_a_held_folio,
    breaks::a_page_of_a_shared_folio,
    breaks::a_page_of_another_s_folio,
    breaks::the_rest_of_a_lent_folio,
    breaks::one_after_the_other,
    breaks::more_than_can_be_told,
    breaks::is_told_with_the_next_answer,
    holes::over_what_is_lent,
    holes::under_a_holder,
    holes::memory_closed_first,
    doubles::two_guests_at_once,
    doubles::lent_and_shared,
    kills::at_every_stage,
    huge::one_held_page_keeps_all,
    huge::a_part_given_up_stays_away,
    huge::a_hole_in_a_part,
    huge::truncation_to_the_middle,
    huge::broken_up_for_its_binding,
    huge::one_broken_page_keeps_no_other,
    huge::one_page_breaks_while_lent,
    huge::stays_whole,
    huge::a_start_brings_one,
    bulk::one_of_many_is_held,
    bulk::one_of_many_is_away,
    bulk::one_of_many_is_broken,
    looks::page_tables_and_frames,
    looks::core_dumps,
}

/// The page that is held, and where the guest has it.
const HELD: u64 = 8;
const OFFSET: u64 = HELD * PAGE;
const AT: u64 = RAM + OFFSET;

/// What the host, and the guest, have written there.
const HOSTS: u64 = 0x1122_3344_5566_7788;
const GUESTS: u64 = 0x99aa_bbcc_ddee_ff00;

/// References of one that pins.
const PIN: u64 = 1024;

/// One way to hold a page.
trait Holder: Sized {
    /// By how many references.
    const REFERENCES: u64;
    /// What it says when the page is lent.
    const ON_LENT: Errno = Errno::EFAULT;

    /// Takes hold of a page. What is refused is the error's root.
    fn take(mapping: &Mapping, page: u64) -> Result<Self>;

    /// Lets go. What is in the first word of the page then, which it also is
    /// to have carried where it should.
    fn release(self) -> Result<u64>;
}

/// The story of all holders that stay.
fn story_of<H: Holder>() -> Result<()> {
    let guest = at_home()?;
    let holder = H::take(&guest.mapping, HELD).context("on a page at home")?;
    held(&guest, H::REFERENCES)?;
    let word = holder.release().context("letting go")?;
    comes(&guest, word)?;
    on_a_lent_page(&guest, || fails(H::take(&guest.mapping, HELD), H::ON_LENT))
}

/// A guest that runs, and the host's word in the page.
fn at_home() -> Result<Guest> {
    let guest = Guest::started(&Device::open()?, 16, 0)?;
    write(&guest.mapping, OFFSET, HOSTS)?;
    Ok(guest)
}

/// Has the guest take the page, and write to it.
fn lend(guest: &Guest) -> Result<()> {
    guest.ask(Order::Store(AT, GUESTS)).map(drop).context("lending")
}

/// What fdinfo says of a page that is held.
fn refusal(page: u64, references: u64) -> String {
    format!("offset={:#x} excess={references} accessible=0", page * PAGE)
}

/// The page does not come, and all is as it was. The guest is left at its
/// load from the page.
fn held(guest: &Guest, references: u64) -> Result<()> {
    let refused = Exit::PageFault(AT, Errno::EAGAIN);
    let lent = guest.memory.count(fdinfo::LENT)?;
    same(guest.order(Order::Load(AT))?, refused).context("the held page")?;
    same(guest.memory.refusal()?, refusal(HELD, references))?;
    same(guest.memory.count(fdinfo::LENT)?, lent)?;
    same(read(&guest.mapping, OFFSET)?, HOSTS).context("the host's word")?;
    same(guest.run()?, refused).context("a second try")?;

    // The guest gives up and turns to the neighbours.
    guest.vcpu.refuse_page(RESUME_FAULT);
    let exit = guest.run()?;
    guest.expect_abort_now(exit)?;
    for at in [AT - PAGE, AT + PAGE] {
        same(guest.ask(Order::Store(at, at))?, 0).context("a neighbour")?;
        same(guest.ask(Order::Load(at))?, at)?;
    }
    same(guest.memory.count(fdinfo::LENT)?, lent + 2)?;
    same(guest.order(Order::Load(AT))?, refused).context("the held page, again")?;
    same(guest.memory.refusal()?, refusal(HELD, references))
}

/// The guest's load ends with that word: at once, or after the kernel has done
/// what it does behind a program's back.
fn comes(guest: &Guest, word: u64) -> Result<()> {
    let begin = Instant::now();
    loop {
        match guest.run()? {
            Exit::PageFault(AT, Errno::EAGAIN) if begin.elapsed() < PATIENCE => {}
            exit => return same(exit, Exit::Write(ANSWER, word)).context("after letting go"),
        }
    }
}

/// Whatever `attempt` does, the page stays with the guest, whole.
fn on_a_lent_page(guest: &Guest, attempt: impl FnOnce() -> Result<()>) -> Result<()> {
    lend(guest)?;
    let lent = guest.memory.count(fdinfo::LENT)?;
    attempt().context("on a lent page")?;
    same(guest.memory.count(fdinfo::LENT)?, lent)?;
    same(guest.ask(Order::Load(AT))?, GUESTS).context("the guest's word")?;
    same(guest.ask(Order::Unlock(AT, MODIFY_UNLOCK))?, 0)?;
    same(read(&guest.mapping, OFFSET)?, GUESTS).context("the guest's word at home")
}

/// Fails unless the result's error is that one.
fn fails<T>(result: Result<T>, errno: Errno) -> Result<()> {
    match result {
        Ok(_) => bail!("done instead of {errno}"),
        Err(error) => {
            let of_io = error.downcast_ref::<std::io::Error>().and_then(|e| e.raw_os_error());
            let seen = of_io.map(Errno::from_raw).or(error.downcast_ref().copied());
            ensure!(seen == Some(errno), "{error:#} instead of {errno}");
            Ok(())
        }
    }
}

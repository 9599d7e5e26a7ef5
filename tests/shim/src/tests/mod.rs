// SPDX-License-Identifier: MIT OR Apache-2.0

//! The tests.

mod accounting;
mod arguments;
mod console;
mod dmabuf;
mod ends;
mod functions;
mod gic;
pub mod holders;
mod huge;
mod ioeventfd;
mod irqfd;
mod lent;
mod limits;
mod memory;
mod protect;
mod refs;
mod scheduled;
mod shared;
mod start;
mod storm;
mod told;
mod unload;
mod v17;
mod vcpus;

use anyhow::{Result, bail};
use escrow_shim_tests::runner::same;
use escrow_shim_tests::tests;
use nix::errno::Errno;

tests! {
    arguments::of_memories,
    arguments::of_bindings,
    arguments::of_vms,
    arguments::of_functions,
    memory::fresh_pages_are_zero,
    memory::its_size_changes,
    memory::holes,
    memory::only_shared_mappings,
    memory::a_path_outlives_the_file,
    memory::a_path_races_with_the_close,
    memory::shared_futexes,
    memory::neighbours_are_mapped_along,
    shared::both_see_both,
    shared::a_hole_takes_the_page_from_the_guest,
    shared::contents_outlive_the_vm,
    lent::pages_leave_and_come_home,
    lent::a_locked_page_stays,
    lent::a_pin_is_named_and_waited_for,
    lent::a_refused_page_is_an_abort,
    lent::one_guest_at_a_time,
    lent::rights_are_kept,
    lent::beyond_the_end,
    lent::part_of_a_binding_goes,
    protect::is_asked_for_first,
    protect::pages_are_opened_and_taken_back,
    protect::a_pin_holds_off_taking_back,
    protect::what_goes_while_it_is_open,
    protect::tables_come_when_a_call_lacks_them,
    protect::ram_that_is_gone_ends_the_guest,
    protect::parts_of_blocks,
    protect::a_long_run_is_opened,
    protect::killed_at_any_moment,
    huge::a_block_leaves_and_comes_home_as_one,
    huge::what_fits_no_block_goes_page_by_page,
    huge::a_hole_in_a_block_is_zeros,
    huge::a_block_is_cut,
    huge::a_block_is_mapped_by_one_entry,
    start::nothing_half_started,
    start::a_device_tree_comes_whole_or_not_at_all,
    start::runs_end_when_asked,
    refs::hinder_no_lend,
    refs::cover_for_no_pin,
    refs::an_access_ends_when_told,
    refs::who_keeps_is_named,
    refs::let_go_twice,
    refs::no_way_back_once_told,
    refs::hold_off_holes,
    refs::to_a_part_of_a_block,
    refs::outlive_the_memory_s_files,
    refs::arguments_are_checked,
    dmabuf::is_the_memory,
    dmabuf::is_read_only_if_so_exported,
    dmabuf::a_static_importer_keeps_its_pages,
    dmabuf::a_dynamic_importer_is_told,
    dmabuf::importers_that_misbehave,
    dmabuf::drivers_do_not_map_it,
    dmabuf::is_no_more_than_its_part,
    dmabuf::races_with_holes,
    dmabuf::closed_in_any_order,
    dmabuf::arguments_are_checked,
    dmabuf::vgem_imports_it,
    ends::in_any_order,
    ends::of_all_vcpus_at_once,
    ends::killed_at_any_moment,
    functions::are_checked,
    functions::are_told_apart,
    ioeventfd::a_write_ends_in_the_kernel,
    ioeventfd::values_are_told_apart,
    ioeventfd::other_accesses_are_the_programs,
    ioeventfd::goes_under_a_running_vcpu,
    ioeventfd::lets_go_of_its_event,
    ioeventfd::outlives_its_descriptor_and_dies_with_the_vm,
    irqfd::rings_in_the_guest,
    irqfd::wakes_who_sleeps,
    irqfd::interrupts_who_runs,
    irqfd::what_came_before_is_not_lost,
    irqfd::labels_are_those_of_the_tree,
    irqfd::trees_that_are_none,
    irqfd::comes_and_goes_under_signals,
    irqfd::closed_in_any_order,
    console::both_ways,
    console::full_rings,
    console::wakes_who_waits,
    console::ends,
    console::are_checked,
    console::comes_and_goes_under_a_guest,
    gic::edges,
    gic::levels,
    gic::a_way_back,
    gic::the_guest_says_who_is_interrupted,
    gic::sgis_wake_who_sleeps,
    gic::a_timer_interrupts_who_sleeps,
    gic::a_console_interrupts,
    gic::what_came_before_is_not_lost,
    gic::a_vm_without_one_polls,
    gic::trees_are_checked,
    gic::as_many_spis_as_are_named,
    gic::signals_outlive_the_vm,
    vcpus::switch_each_other_on,
    vcpus::that_are_off_are_woken_when_asked,
    vcpus::more_than_there_are_cpus,
    scheduled::guest_time_is_told,
    scheduled::a_quota_holds,
    scheduled::freezes_and_thaws,
    scheduled::stops_and_continues,
    scheduled::is_traced,
    storm::unlocking_with_zeros,
    storm::unlocking_with_contents,
    accounting::follows_the_pages,
    accounting::ends_with_a_kill,
    accounting::populating_has_a_limit,
    accounting::touching_has_a_limit,
    accounting::the_borrower_is_killed_first,
    accounting::a_victim_s_memory_is_free,
    accounting::a_victim_ends_no_other_s_vms,
    accounting::a_victim_s_vms_are_closed_meanwhile,
    accounting::counts_records,
    accounting::counts_metadata,
    limits::of_locked_memory,
    limits::are_seen,
    limits::of_vms,
    limits::of_memories,
    limits::of_consoles,
    limits::of_users_of_a_user,
    limits::of_bindings,
    limits::of_functions,
    told::counts_and_lists,
    told::counts_shares_and_what_is_kept,
    told::mappers_have_a_limit,
    told::traces,
    v17::arguments_of_calls_without_any,
    v17::fields_that_nobody_looks_at,
    v17::rights_imply_reading,
    v17::unmapping_names_how_it_is_bound,
    v17::unmapping_in_parts,
    v17::unmapping_across_bindings,
    v17::a_page_is_bound_once,
    v17::one_ioeventfd_to_an_address,
    v17::an_ioeventfd_s_length_counts_with_a_value,
    v17::a_shared_page_goes_and_its_neighbours_stay,
    v17::a_page_of_a_shared_block_goes_and_its_neighbours_stay,
    v17::accesses_across_a_page_s_end,
    v17::a_tree_of_several_blocks,
    v17::a_tree_of_several_blocks_whole_or_not_at_all,
    v17::a_tree_that_is_not_bound,
    v17::registers_that_there_are_not,
    v17::a_vcpu_comes_after_the_start,
    v17::many_holes,
    v17::vcpus_race_for_pages,
    unload::is_refused_for_each_file,
}

/// Fails unless the result is that error.
fn refused<T>(result: Result<T, Errno>, errno: Errno) -> Result<()> {
    match result {
        Err(error) if error == errno => Ok(()),
        Err(error) => bail!("{error} instead of {errno}"),
        Ok(_) => bail!("done instead of {errno}"),
    }
}

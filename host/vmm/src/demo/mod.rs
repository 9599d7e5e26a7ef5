// SPDX-License-Identifier: MIT OR Apache-2.0

//! The life of a lent page, in nine steps; in the tenth, a Linux kernel runs on lent memory.
//!
//! Each step takes what it needs from the steps before; one that cannot be
//! tried, because what it needs is not there, has failed.

#[cfg(target_arch = "aarch64")]
mod attack;
#[cfg(target_arch = "aarch64")]
mod boot;
mod checks;
#[cfg(target_arch = "aarch64")]
mod home;
#[cfg(target_arch = "aarch64")]
mod kill;
#[cfg(target_arch = "aarch64")]
mod lend;
mod report;
#[cfg(target_arch = "aarch64")]
mod stage;

pub use report::Format;

/// Runs the demo and prints a report; `kernel` is the last step's. Whether all steps passed.
///
/// # Errors
/// Where it cannot begin: without Escrow, its module or the rights to it.
#[cfg(target_arch = "aarch64")]
pub fn run(format: Format, kernel: Option<&std::path::Path>) -> anyhow::Result<bool> {
    use stage::{Baseline, after};

    let baseline = Baseline::take()?;
    let mut report = report::Report::new(format);

    let mut prepared =
        report.step("the host fills a guest memory", |checks| lend::prepare(checks, &baseline));
    let pinned = report.step("a pipe pins the page that the guest starts on", |checks| {
        lend::start_pinned(checks, after(1, prepared.as_mut())?)
    });
    let mut guest = report.step("the pipe is drained", |checks| {
        lend::start(checks, after(1, prepared.as_ref())?, after(2, pinned)?)
    });
    report.step("the guest reads a message, uses MMIO, keeps a secret", |checks| {
        lend::talk(checks, after(1, prepared.as_ref())?, after(3, guest.as_mut())?)
    });
    report.step("the host tries to read the secret", |checks| {
        attack::peek(checks, after(1, prepared.as_ref())?, after(3, guest.as_mut())?)
    });
    report.step("the host punches a hole over it", |checks| {
        attack::punch(checks, after(1, prepared.as_ref())?, after(3, guest.as_mut())?)
    });
    let unlocked = report.step("the guest zeroes and unlocks the page", |checks| {
        home::unlock(checks, after(1, prepared.as_ref())?, after(3, guest.as_mut())?)
    });
    report.step("a second VM gets the page", |checks| {
        after(7, unlocked)?;
        home::lend_again(checks, after(1, prepared.as_ref())?, after(3, guest.as_mut())?)
    });
    // Free all, so that the last check sees what is left.
    drop(guest);
    drop(prepared);
    report.step("a VM's process is killed in the middle of a run", |checks| {
        kill::in_a_run(checks, &baseline)
    });
    let title = "a Linux kernel boots on lent memory, and powers off";
    match boot::kernel(kernel) {
        Some(kernel) => {
            report.step(title, |checks| boot::and_power_off(checks, &baseline, kernel));
        }
        None => report.leave_out(title, "this host has no kernel in /boot; give one with --kernel"),
    }
    report.finish()
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! The kernel's log: what it says of tasks that it has ended. What a test has
//! read there is gone from it; whatever is left in the end is trouble.

use std::ptr;

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;

/// `syslog(2)`: read all, and clear.
const READ_CLEAR: i32 = 4;

/// Takes all lines.
pub fn take() -> Result<Vec<String>> {
    let mut bytes = vec![0_u8; 1 << 20];
    // SAFETY: the kernel writes no more than it is told.
    let count = unsafe { libc::klogctl(READ_CLEAR, bytes.as_mut_ptr().cast(), bytes.len() as i32) };
    let count = Errno::result(count).context("klogctl")?;
    bytes.truncate(count as usize);
    Ok(String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect())
}

/// Forgets all lines.
pub fn clear() -> Result<()> {
    // SAFETY: without a buffer, nothing is written.
    let done = unsafe { libc::klogctl(5, ptr::null_mut(), 0) };
    Errno::result(done).map(drop).context("klogctl")
}

/// What the kernel says of one task that it has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Oops {
    /// `Internal error: …`
    pub error: String,
    /// The function that made the access.
    pub function: String,
    /// The address, where the kernel names it.
    pub address: Option<usize>,
}

/// Takes the one report that the log must have.
pub fn oops() -> Result<Oops> {
    let lines = take()?;
    let errors: Vec<_> = after(&lines, "Internal error: ").collect();
    ensure!(errors.len() == 1, "{} tasks were ended: {lines:#?}", errors.len());
    let bad = ["BUG", "WARNING", "SError", "reboot is needed"];
    let bad: Vec<_> = lines.iter().filter(|line| bad.iter().any(|b| line.contains(b))).collect();
    ensure!(bad.is_empty(), "{bad:#?}");
    // `pc : liar_load+0x8/0x10 [liar]`
    let function = after(&lines, "pc : ").next().and_then(|text| text.split('+').next());
    let address = after(&lines, " at virtual address ").next();
    Ok(Oops {
        error: errors[0].split(" [#").next().unwrap_or_default().to_owned(),
        function: function.unwrap_or_default().to_owned(),
        address: address.and_then(|text| usize::from_str_radix(text.trim(), 16).ok()),
    })
}

fn after<'a>(lines: &'a [String], mark: &'a str) -> impl Iterator<Item = &'a str> {
    lines.iter().filter_map(move |line| Some(line.split_once(mark)?.1))
}

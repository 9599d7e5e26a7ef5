// SPDX-License-Identifier: MIT OR Apache-2.0

//! What is counted of a hypervisor that Linux runs guests on, and how: the same
//! guest and the same counting for Escrow's shim and for its peers.
//!
//! On a QEMU that counts instructions (`-icount shift=0`), a tick of the virtual
//! counter is an instruction, at whatever exception level. The guest reads it
//! around a call or a load; the PMU tells what of that is not spent at EL2.

#![deny(clippy::print_stdout, clippy::print_stderr)]
// KVM and the shim are of arm64; elsewhere there is nothing to build.
#![cfg(all(target_os = "linux", target_arch = "aarch64"))]

pub mod counter;
pub mod exits;
pub mod guest;
pub mod lending;
pub mod row;

use std::io::{self, Write as _};
use std::time::Duration;

/// When the kernel's threads have done what they do after a boot, in time
/// since the counter's start.
const QUIET_AFTER: Duration = Duration::from_secs(20);

/// Waits until the kernel's threads are quiet.
pub fn wait_for_quiet() {
    while let Some(rest) = QUIET_AFTER.checked_sub(counter::uptime()) {
        std::thread::sleep(rest);
    }
}

/// Prints the result of a measurement. An error of the output is ignored: nobody reads it then.
pub fn tell(name: &str, result: anyhow::Result<()>) {
    let mut text = String::new();
    let counts = match result {
        Ok(()) => "1 passed, 0 failed",
        Err(error) => {
            text = format!("test {name} ... FAILED: {error:#}\n");
            "0 passed, 1 failed"
        }
    };
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{text}payload bench: {counts}, 0 skipped").and_then(|()| out.flush());
}

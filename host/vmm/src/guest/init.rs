// SPDX-License-Identifier: MIT OR Apache-2.0

use std::convert::Infallible;
use std::io::{self, BufRead as _, Write as _};

use anyhow::{Context as _, Result, bail};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::termios::tcdrain;
use nix::sys::utsname::uname;
use nix::unistd::getpid;

/// What a Linux guest's first process does: says `token` and which kernel it
/// runs on, waits for a line, and powers off.
pub fn init(token: &str) -> Result<()> {
    if getpid().as_raw() != 1 {
        bail!("this is for a guest's first process");
    }
    let release = uname().context("uname")?.release().to_string_lossy().into_owned();
    let mut out = io::stdout().lock();
    writeln!(out, "{token} from Linux {release}")?;
    out.flush()?;
    io::stdin().lock().read_line(&mut String::new())?;
    // Wait until the UART has sent everything, before the power-off.
    tcdrain(&out)?;
    let off: Infallible = reboot(RebootMode::RB_POWER_OFF)?;
    match off {}
}

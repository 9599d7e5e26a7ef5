// SPDX-License-Identifier: MIT OR Apache-2.0

//! 32-bit programs. Linux emulates some of their accesses that are not
//! aligned, and must see that these are no such.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context as _, Result, ensure};
use escrow_shim_tests::runner::same;
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use nix::unistd::execv;

use super::{in_child, killed_by};
use crate::borrower::Borrower;
use crate::device::Liar;
use crate::region::{PAGE, Region, load};

/// Where the program's instructions are in its file.
const CODE: usize = 0x100;
/// Where its pages are mapped: code and data.
const AT: [u32; 2] = [0x1_0000, 0x2_0000];

/// An ELF program of two pages: in the first a load from the second, by this
/// instruction with the address in r0.
fn program(load: u32) -> Vec<u8> {
    let half = |value: u16| value.to_le_bytes();
    let word = |value: u32| value.to_le_bytes();
    let mut file = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // Executable, Arm, entry, program headers, EABI 5.
    file.extend([half(2), half(40)].concat());
    file.extend([1, AT[0] + CODE as u32, 52, 0, 0x0500_0000].map(word).concat());
    file.extend([52, 32, 2, 0, 0, 0].map(half).concat());
    let page = PAGE as u32;
    for (offset, at, flags) in [(0, AT[0], 5), (page, AT[1], 4)] {
        file.extend([1, offset, at, at, page, page, flags, page].map(word).concat());
    }
    file.resize(CODE, 0);
    let code = [
        0xe3a0_0802, // mov r0, #0x20000
        load,
        0xe3a0_0000, // mov r0, #0
        0xe3a0_7001, // mov r7, #1
        0xef00_0000, // svc #0: exit
    ];
    file.extend(code.map(word).concat());
    file.resize(2 * PAGE, 0);
    file
}

/// Single loads, and those that Linux emulates.
pub fn of_32_bit_processes() -> Result<()> {
    let path = "/tmp/thirty-two";
    for (name, instruction) in
        [("ldr", 0xe590_1000), ("ldm", 0xe890_0006), ("ldrd", 0xe1c0_20d0), ("ldrh", 0xe1d0_10b0)]
    {
        fs::write(path, program(instruction))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        let run = || in_child(|| Ok(execv(&CString::new(path)?, &[c"thirty-two"]).map(drop)?));
        let status = run()?;
        let is_right = matches!(status, WaitStatus::Exited(_, 0));
        ensure!(is_right, "{name}, before anything is lent: {status:?}");

        // Who has it open for writing keeps it from being started.
        let (liar, region) = (Liar::open()?, Region::file_to_read(&File::open(path)?, 2)?);
        load(region.page(1));
        let mut borrower = Borrower::new(&liar)?;
        borrower.lend(liar.hold(region.page(1))?.frame)?;
        same(killed_by(run()?), Some(Signal::SIGBUS)).context(name)?;
        borrower.home()?;
        drop(region);
        fs::remove_file(path)?;
    }
    Ok(())
}

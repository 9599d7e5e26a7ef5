// SPDX-License-Identifier: MIT OR Apache-2.0

//! Modules of the host's kernel, as Debian packs them, and the tests' own.

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::kmod::{DeleteModuleFlags, delete_module};

use crate::runner::Lacking;

/// `MODULE_INIT_COMPRESSED_FILE` of `linux/module.h`
const COMPRESSED: i32 = 4;

/// Loads what another module needs, unless it is part of this kernel.
pub fn load_if_there(name: &str) -> Result<()> {
    if fs::exists(path(name)?)? { insert(name, "") } else { Ok(()) }
}

fn path(name: &str) -> Result<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(format!("/lib/modules/{}/{name}.ko.xz", release.trim()))
}

/// Loads a module with parameters, unless what it `makes` is there. The kernel
/// unpacks it.
pub fn load(name: &str, parameters: &str, makes: &str) -> Result<()> {
    if fs::exists(makes)? {
        return Ok(());
    }
    if !fs::exists(path(name)?)? {
        return Err(Lacking(name.to_owned()).into());
    }
    insert(name, parameters)
}

/// Loads a module of the tests' own, unless it is there.
pub fn load_ours(name: &str) -> Result<()> {
    let path = path(name)?;
    insert_file(name, path.trim_end_matches(".xz"), "", 0)
}

/// Unloads a module, unless somebody uses it.
pub fn unload(name: &CStr) {
    // Whoever needs it gone finds out.
    let _ = delete_module(name, DeleteModuleFlags::O_NONBLOCK);
}

fn insert(name: &str, parameters: &str) -> Result<()> {
    insert_file(name, &path(name)?, parameters, COMPRESSED)
}

fn insert_file(name: &str, path: &str, parameters: &str, flags: i32) -> Result<()> {
    let file = File::open(path).with_context(|| path.to_owned())?;
    let parameters = CString::new(parameters)?;
    // SAFETY: the kernel reads the file and the string, which both live.
    let result = unsafe {
        libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), parameters.as_ptr(), flags)
    };
    match Errno::result(result) {
        Ok(_) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("loading {name}")),
    }
}

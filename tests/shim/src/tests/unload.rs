// SPDX-License-Identifier: MIT OR Apache-2.0

//! The shim stays while somebody needs it. What waits for pages holds it, too:
//! that is among the tests of what fails.

use anyhow::{Context as _, Result};
use nix::errno::Errno;

use super::memory::path_of;
use super::refused;
use crate::gunyah::{Device, unload};

/// Each file alone is enough, and so are a mapping and a path without the file.
pub fn is_refused_for_each_file() -> Result<()> {
    let stays = || refused(unload(), Errno::EWOULDBLOCK);
    let device = Device::open()?;
    stays().context("the device")?;
    let memory = device.memory(1)?;
    drop(device);
    stays().context("a memory")?;
    let mapping = memory.map(0, 1)?;
    drop(memory);
    stays().context("a mapping")?;
    drop(mapping);
    let memory = Device::open()?.memory(1)?;
    let path = path_of(&memory)?;
    drop(memory);
    stays().context("a path")?;
    drop(path);

    let vm = Device::open()?.vm()?;
    stays().context("a VM")?;
    let vcpu = vm.vcpu(0)?;
    drop(vm);
    stays().context("a vCPU")?;
    drop(vcpu);
    Ok(())
}

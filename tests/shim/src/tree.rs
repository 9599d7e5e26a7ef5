// SPDX-License-Identifier: MIT OR Apache-2.0

//! Device trees of guests.

use anyhow::Result;
use vm_fdt::FdtWriter;

/// One that configures doorbells as Gunyah's programs do.
pub fn with_doorbells(labels: impl IntoIterator<Item = u32>) -> Result<Vec<u8>> {
    let mut to = FdtWriter::new()?;
    let nodes = ["", "gunyah-vm-config", "vdevices"];
    let nodes = nodes.map(|name| to.begin_node(name));
    for (n, label) in labels.into_iter().enumerate() {
        let bell = to.begin_node(&format!("bell-{n:x}"))?;
        to.property_string("vdevice-type", "doorbell")?;
        to.property_string("generate", &format!("/hypervisor/bell-{n:x}"))?;
        to.property_u32("label", label)?;
        to.end_node(bell)?;
    }
    for node in nodes.into_iter().rev() {
        to.end_node(node?)?;
    }
    Ok(to.finish()?)
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! Device trees of guests.

use anyhow::Result;
use vm_fdt::FdtWriter;

/// Where the GICv3 of [`with_gic`] is: the distributor, and vCPU 0's redistributor.
pub const GICD: u64 = 0x800_0000;
/// See [`GICD`].
pub const GICR: u64 = 0x80a_0000;

/// One of a machine with a GICv3 that has room for so many vCPUs. Labels stand for SPIs: number,
/// and flags (1 edge, 4 level).
pub fn with_gic(
    distributor: u64,
    vcpus: u64,
    labels: impl IntoIterator<Item = (u32, u32, u32)>,
) -> Result<Vec<u8>> {
    let mut to = FdtWriter::new()?;
    let root = to.begin_node("")?;
    to.property_u32("#address-cells", 2)?;
    to.property_u32("#size-cells", 2)?;
    let gic = to.begin_node("intc@8000000")?;
    to.property_string("compatible", "arm,gic-v3")?;
    to.property_u32("#interrupt-cells", 3)?;
    to.property_array_u64("reg", &[distributor, 0x1_0000, GICR, vcpus * 0x2_0000])?;
    to.end_node(gic)?;
    let nodes = ["gunyah-vm-config", "vdevices"].map(|name| to.begin_node(name));
    for (label, spi, flags) in labels {
        let bell = to.begin_node(&format!("bell-{label:x}"))?;
        to.property_string("vdevice-type", "doorbell")?;
        to.property_u32("label", label)?;
        to.property_array_u32("interrupts", &[0, spi, flags])?;
        to.end_node(bell)?;
    }
    for node in nodes.into_iter().rev() {
        to.end_node(node?)?;
    }
    to.end_node(root)?;
    Ok(to.finish()?)
}

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

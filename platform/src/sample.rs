// SPDX-License-Identifier: MIT OR Apache-2.0

//! Device trees for the tests: a machine like QEMU's `virt`, with the parts
//! that a test wants different.

use vm_fdt::{FdtReserveEntry, FdtWriter};

/// A machine.
pub struct Sample {
    /// `reg` of the memory node.
    pub memory: Vec<u64>,
    /// Identifiers of the CPUs.
    pub cpus: Vec<u64>,
    /// `compatible` of the interrupt controller.
    pub gic: &'static str,
    /// `compatible` and `method` of PSCI.
    pub psci: Option<(&'static [&'static str], &'static str)>,
    /// `interrupt-names` of the timer.
    pub timer_names: Option<&'static [&'static str]>,
    /// `/chosen/stdout-path`
    pub stdout: Option<&'static str>,
    /// `/chosen/bootargs`
    pub bootargs: Option<&'static str>,
    /// `compatible` lists, addresses and sizes of the modules.
    pub modules: Vec<(&'static [&'static str], u64, u64)>,
    /// Address, size, and whether mapping is forbidden.
    pub reserved: Vec<(u64, u64, bool)>,
    /// Bases of reserved ranges that other nodes refer to.
    pub referred: Vec<u64>,
    /// The memory reservation block.
    pub reservations: Vec<(u64, u64)>,
}

pub const KERNEL: &[&str] = &["multiboot,kernel", "multiboot,module"];
pub const RAMDISK: &[&str] = &["multiboot,ramdisk", "multiboot,module"];
pub const MODULE: &[&str] = &["multiboot,module"];

impl Default for Sample {
    fn default() -> Self {
        Sample {
            memory: vec![0x4000_0000, 0x4000_0000],
            cpus: vec![0, 1, 0x100, 0x101],
            gic: "arm,gic-v3",
            psci: Some((&["arm,psci-1.0", "arm,psci-0.2", "arm,psci"], "smc")),
            timer_names: None,
            stdout: Some("/soc/bus@9000000/serial@10000:115200"),
            bootargs: Some("loglevel=debug"),
            modules: vec![(KERNEL, 0x4400_0000, 0x200_0000), (RAMDISK, 0x4c00_0000, 0x10_0000)],
            reserved: vec![(0x5000_0000, 0x20_0000, true), (0x5100_0000, 0x1000, false)],
            referred: Vec::new(),
            reservations: vec![(0x5200_0000, 0x2000)],
        }
    }
}

impl Sample {
    /// The tree.
    pub fn tree(&self) -> Vec<u8> {
        self.write().expect("a tree that vm-fdt can write")
    }

    fn write(&self) -> Result<Vec<u8>, vm_fdt::Error> {
        let reservations = self.reservations.iter();
        let reservations: Vec<_> =
            reservations.map(|r| FdtReserveEntry::new(r.0, r.1)).collect::<Result<_, _>>()?;
        let mut w = FdtWriter::new_with_mem_reserv(&reservations)?;
        let strings = |list: &[&str]| list.iter().map(|s| s.to_string()).collect::<Vec<_>>();
        let root = w.begin_node("")?;
        w.property_string("model", "sample")?;
        w.property_u32("#address-cells", 2)?;
        w.property_u32("#size-cells", 2)?;
        let node = w.begin_node("hypervisor")?;
        w.property_string("compatible", "somebody,else")?;
        w.end_node(node)?;
        let node = w.begin_node("memory@40000000")?;
        w.property_array_u64("reg", &self.memory)?;
        w.property_string("device_type", "memory")?;
        w.property_u32("numa-node-id", 0)?;
        w.end_node(node)?;
        let cpus = w.begin_node("cpus")?;
        w.property_u32("#address-cells", 2)?;
        w.property_u32("#size-cells", 0)?;
        for cpu in &self.cpus {
            let node = w.begin_node(&format!("cpu@{cpu:x}"))?;
            w.property_u64("reg", *cpu)?;
            w.property_string("device_type", "cpu")?;
            w.property_string("enable-method", "psci")?;
            w.end_node(node)?;
        }
        let node = w.begin_node("cpu-map")?;
        w.end_node(node)?;
        w.end_node(cpus)?;
        if let Some((compatible, method)) = self.psci {
            let node = w.begin_node("psci")?;
            w.property_string_list("compatible", strings(compatible))?;
            w.property_string("method", method)?;
            w.end_node(node)?;
        }
        let node = w.begin_node("timer")?;
        w.property_string_list("compatible", strings(&["arm,armv8-timer", "arm,armv7-timer"]))?;
        w.property_array_u32("interrupts", &[1, 13, 4, 1, 14, 4, 1, 11, 4, 1, 10, 4])?;
        if let Some(names) = self.timer_names {
            w.property_string_list("interrupt-names", strings(names))?;
        }
        w.property_null("always-on")?;
        w.end_node(node)?;
        let node = w.begin_node("aliases")?;
        w.property_string("serial0", "/soc/bus@9000000/serial@10000")?;
        w.property_string("loop", "loop")?;
        w.end_node(node)?;
        // A bus at 0x8000_0000 that its children see at 0, and in it one that
        // its children see at 0x9000_0000 as well.
        let soc = w.begin_node("soc")?;
        w.property_u32("#address-cells", 1)?;
        w.property_u32("#size-cells", 1)?;
        w.property_array_u32("ranges", &[0, 0, 0x8000_0000, 0x1000_0000])?;
        let bus = w.begin_node("bus@9000000")?;
        w.property_u32("#address-cells", 1)?;
        w.property_u32("#size-cells", 1)?;
        w.property_array_u32("ranges", &[0x9000_0000, 0x900_0000, 0x10_0000])?;
        let node = w.begin_node("serial@10000")?;
        w.property_string_list("compatible", strings(&["arm,pl011", "arm,primecell"]))?;
        w.property_array_u32("reg", &[0x9001_0000, 0x1000])?;
        w.end_node(node)?;
        w.end_node(bus)?;
        let node = w.begin_node("interrupt-controller@8000000")?;
        w.property_string("compatible", self.gic)?;
        w.property_u32("#redistributor-regions", 2)?;
        let reg = [0x800_0000, 0x1_0000, 0x80a_0000, 0x20_0000, 0x900_0000, 0x20_0000];
        w.property_array_u32("reg", &reg)?;
        w.property_phandle(1)?;
        w.end_node(node)?;
        let node = w.begin_node("serial@0")?;
        w.property_string("compatible", "arm,pl011")?;
        w.property_string("status", "disabled")?;
        w.property_array_u32("reg", &[0, 0x1000])?;
        w.end_node(node)?;
        w.end_node(soc)?;
        if !self.reserved.is_empty() {
            let parent = w.begin_node("reserved-memory")?;
            w.property_u32("#address-cells", 2)?;
            w.property_u32("#size-cells", 2)?;
            w.property_null("ranges")?;
            for (base, size, no_map) in &self.reserved {
                let node = w.begin_node(&format!("region@{base:x}"))?;
                w.property_array_u64("reg", &[*base, *size])?;
                if *no_map {
                    w.property_null("no-map")?;
                }
                if self.referred.contains(base) {
                    w.property_u32("phandle", *base as u32)?;
                }
                w.end_node(node)?;
            }
            let node = w.begin_node("linux,cma")?;
            w.property_u64("size", 0x100_0000)?;
            w.end_node(node)?;
            w.end_node(parent)?;
        }
        let chosen = w.begin_node("chosen")?;
        w.property_u64("kaslr-seed", 42)?;
        if let Some(path) = self.stdout {
            w.property_string("stdout-path", path)?;
        }
        if let Some(bootargs) = self.bootargs {
            w.property_string("bootargs", bootargs)?;
        }
        for (compatible, base, size) in &self.modules {
            let node = w.begin_node(&format!("module@{base:x}"))?;
            w.property_array_u64("reg", &[*base, *size])?;
            w.property_string_list("compatible", strings(compatible))?;
            if *compatible != RAMDISK {
                w.property_string("bootargs", "console=ttyAMA0 quiet")?;
            }
            w.end_node(node)?;
        }
        w.end_node(chosen)?;
        w.end_node(root)?;
        w.finish()
    }
}

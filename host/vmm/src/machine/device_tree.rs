// SPDX-License-Identifier: MIT OR Apache-2.0

//! The device tree that describes a machine to its kernel, and to the shim:
//! that finds the interrupt controller in it, the page of stolen time, and
//! which SPI an IRQFD's label means.

use vm_fdt::{Error, FdtWriter};

use super::layout::{self, Window};
use super::power_button;

/// Phandle of the interrupt controller.
const CONTROLLER: u32 = 1;
/// Phandle of the clock of the Arm peripherals.
const PERIPHERAL_CLOCK: u32 = 2;
/// Phandle of the controller of the power button.
const GPIO: u32 = 3;
/// The key's code (Linux, input-event-codes.h, KEY_POWER).
const KEY_POWER: u32 = 116;
/// First cell of `interrupts`: a shared peripheral interrupt (Linux,
/// bindings/interrupt-controller/arm,gic-v3.yaml).
const SPI: u32 = 0;
/// First cell of `interrupts`: a private peripheral interrupt.
const PPI: u32 = 1;
/// Third cell of `interrupts`.
const EDGE: u32 = 1;
/// Third cell of `interrupts`.
const LEVEL: u32 = 4;

/// The interrupt of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupt {
    /// Number of the SPI: its INTID less 32.
    pub spi: u32,
    /// Edge-triggered, not level-sensitive.
    pub edge: bool,
}

impl Interrupt {
    /// A level-sensitive SPI.
    pub const fn level(spi: u32) -> Interrupt {
        Interrupt { spi, edge: false }
    }

    /// An edge-triggered SPI.
    pub const fn edge(spi: u32) -> Interrupt {
        Interrupt { spi, edge: true }
    }

    /// The label that the shim knows it by in an IRQFD.
    pub const fn label(self) -> u32 {
        self.spi
    }

    /// Its INTID.
    pub const fn intid(self) -> u32 {
        32 + self.spi
    }

    fn cells(self) -> [u32; 3] {
        [SPI, self.spi, if self.edge { EDGE } else { LEVEL }]
    }
}

/// What a machine is made of.
#[derive(Clone, Debug, Default)]
pub struct Description<'a> {
    /// Number of vCPUs.
    pub cpus: u32,
    /// Bytes of RAM.
    pub ram: u64,
    /// The kernel's command line.
    pub cmdline: &'a str,
    /// Where the initramfs is.
    pub initrd: Option<Window>,
    /// A random number, for the kernel's place in virtual memory.
    pub place_seed: u64,
    /// Random bytes for the kernel's random number generator.
    pub generator_seed: [u8; 32],
    /// How many virtio devices there are.
    pub virtio: usize,
    /// The kernel calls PSCI by SMC, not by HVC. Linux looks for Arm's Realm Services Interface
    /// only then (`arm64_rsi_init`).
    pub calls_by_smc: bool,
}

/// The tree of a machine.
///
/// # Errors
/// The command line has a NUL in it; else the description is one that no
/// machine has.
pub fn build(machine: &Description) -> Result<Vec<u8>, Error> {
    let mut tree = FdtWriter::new()?;
    let root = tree.begin_node("")?;
    tree.property_u32("#address-cells", 2)?;
    tree.property_u32("#size-cells", 2)?;
    tree.property_string("compatible", "linux,dummy-virt")?;
    tree.property_string("model", "Escrow virtual machine")?;
    tree.property_u32("interrupt-parent", CONTROLLER)?;
    chosen(&mut tree, machine)?;
    let memory = tree.begin_node(&format!("memory@{:x}", layout::RAM))?;
    tree.property_string("device_type", "memory")?;
    tree.property_array_u64("reg", &[layout::RAM, machine.ram])?;
    tree.end_node(memory)?;
    processors(&mut tree, machine.cpus)?;
    firmware(&mut tree, machine.calls_by_smc)?;
    timer(&mut tree)?;
    controller(&mut tree, machine.cpus)?;
    peripherals(&mut tree)?;
    for n in 0..machine.virtio {
        virtio(&mut tree, n)?;
    }
    stolen_time(&mut tree)?;
    labels(&mut tree, machine.virtio)?;
    tree.end_node(root)?;
    tree.finish()
}

fn chosen(tree: &mut FdtWriter, machine: &Description) -> Result<(), Error> {
    let chosen = tree.begin_node("chosen")?;
    tree.property_string("bootargs", machine.cmdline)?;
    tree.property_string("stdout-path", &format!("/pl011@{:x}", layout::SERIAL.start))?;
    if let Some(initrd) = machine.initrd {
        tree.property_u64("linux,initrd-start", initrd.start)?;
        tree.property_u64("linux,initrd-end", initrd.end())?;
    }
    tree.property_u64("kaslr-seed", machine.place_seed)?;
    tree.property("rng-seed", &machine.generator_seed)?;
    tree.end_node(chosen)
}

fn processors(tree: &mut FdtWriter, count: u32) -> Result<(), Error> {
    let cpus = tree.begin_node("cpus")?;
    tree.property_u32("#address-cells", 1)?;
    tree.property_u32("#size-cells", 0)?;
    for id in 0..count {
        let cpu = tree.begin_node(&format!("cpu@{id:x}"))?;
        tree.property_string("device_type", "cpu")?;
        tree.property_string("compatible", "arm,armv8")?;
        tree.property_string("enable-method", "psci")?;
        // `reg` has the affinity of MPIDR_EL1.
        tree.property_u32("reg", id)?;
        tree.end_node(cpu)?;
    }
    tree.end_node(cpus)
}

fn firmware(tree: &mut FdtWriter, calls_by_smc: bool) -> Result<(), Error> {
    let psci = tree.begin_node("psci")?;
    tree.property_string_list("compatible", vec!["arm,psci-1.0".into(), "arm,psci-0.2".into()])?;
    tree.property_string("method", if calls_by_smc { "smc" } else { "hvc" })?;
    tree.end_node(psci)
}

fn timer(tree: &mut FdtWriter) -> Result<(), Error> {
    let timer = tree.begin_node("timer")?;
    tree.property_string("compatible", "arm,armv8-timer")?;
    // The order of the binding: secure physical, physical, virtual, hypervisor physical.
    let interrupts = [13, 14, 11, 10].map(|ppi| [PPI, ppi, LEVEL]);
    tree.property_array_u32("interrupts", interrupts.as_flattened())?;
    tree.property_null("always-on")?;
    tree.end_node(timer)
}

fn controller(tree: &mut FdtWriter, cpus: u32) -> Result<(), Error> {
    let (distributor, first) = (layout::DISTRIBUTOR, layout::REDISTRIBUTOR);
    let controller = tree.begin_node(&format!("intc@{:x}", distributor.start))?;
    tree.property_string("compatible", "arm,gic-v3")?;
    tree.property_u32("#interrupt-cells", 3)?;
    tree.property_null("interrupt-controller")?;
    tree.property_u32("#redistributor-regions", 1)?;
    let redistributors = u64::from(cpus) * first.size;
    let reg = [distributor.start, distributor.size, first.start, redistributors];
    tree.property_array_u64("reg", &reg)?;
    tree.property_phandle(CONTROLLER)?;
    tree.end_node(controller)
}

fn peripherals(tree: &mut FdtWriter) -> Result<(), Error> {
    let clock = tree.begin_node("apb-pclk")?;
    tree.property_string("compatible", "fixed-clock")?;
    tree.property_u32("#clock-cells", 0)?;
    tree.property_u32("clock-frequency", 24_000_000)?;
    tree.property_string("clock-output-names", "clk24mhz")?;
    tree.property_phandle(PERIPHERAL_CLOCK)?;
    tree.end_node(clock)?;

    let primecell =
        |tree: &mut FdtWriter, name: &str, window: Window, clocks: &[&str]| -> Result<_, Error> {
            let node = tree.begin_node(&format!("{name}@{:x}", window.start))?;
            let compatible = vec![format!("arm,{name}"), "arm,primecell".into()];
            tree.property_string_list("compatible", compatible)?;
            tree.property_array_u64("reg", &[window.start, window.size])?;
            tree.property_array_u32("clocks", &vec![PERIPHERAL_CLOCK; clocks.len()])?;
            let clocks = clocks.iter().map(|&name| name.to_owned()).collect();
            tree.property_string_list("clock-names", clocks)?;
            Ok(node)
        };
    let serial = primecell(tree, "pl011", layout::SERIAL, &["uartclk", "apb_pclk"])?;
    tree.property_array_u32("interrupts", &layout::SERIAL_INTERRUPT.cells())?;
    tree.end_node(serial)?;
    // The clock has no alarm, and so no interrupt.
    let clock = primecell(tree, "pl031", layout::CLOCK, &["apb_pclk"])?;
    tree.end_node(clock)?;
    let gpio = primecell(tree, "pl061", layout::GPIO, &["apb_pclk"])?;
    tree.property_array_u32("interrupts", &layout::GPIO_INTERRUPT.cells())?;
    tree.property_null("gpio-controller")?;
    tree.property_u32("#gpio-cells", 2)?;
    tree.property_null("interrupt-controller")?;
    tree.property_u32("#interrupt-cells", 2)?;
    tree.property_phandle(GPIO)?;
    tree.end_node(gpio)?;

    let keys = tree.begin_node("gpio-keys")?;
    tree.property_string("compatible", "gpio-keys")?;
    let button = tree.begin_node("poweroff")?;
    tree.property_string("label", "power button")?;
    tree.property_u32("linux,code", KEY_POWER)?;
    // Active high.
    tree.property_array_u32("gpios", &[GPIO, power_button::LINE, 0])?;
    tree.end_node(button)?;
    tree.end_node(keys)
}

fn virtio(tree: &mut FdtWriter, n: usize) -> Result<(), Error> {
    let window = layout::virtio(n);
    let node = tree.begin_node(&format!("virtio_mmio@{:x}", window.start))?;
    tree.property_string("compatible", "virtio,mmio")?;
    tree.property_array_u64("reg", &[window.start, window.size])?;
    tree.property_array_u32("interrupts", &layout::virtio_interrupt(n).cells())?;
    tree.property_null("dma-coherent")?;
    tree.end_node(node)
}

/// What only the shim reads: where EL2 is to put the page of stolen time. A
/// kernel finds it by a call (Arm DEN0057, PV_TIME_ST).
fn stolen_time(tree: &mut FdtWriter) -> Result<(), Error> {
    let Window { start, size } = layout::STOLEN_TIME;
    let node = tree.begin_node(&format!("stolen-time@{start:x}"))?;
    tree.property_string("compatible", "escrow,stolen-time")?;
    tree.property_array_u64("reg", &[start, size])?;
    tree.end_node(node)
}

/// What only the shim reads: which SPI an IRQFD's label means.
fn labels(tree: &mut FdtWriter, virtio: usize) -> Result<(), Error> {
    let config = tree.begin_node("gunyah-vm-config")?;
    let devices = tree.begin_node("vdevices")?;
    let virtio = (0..virtio).map(layout::virtio_interrupt);
    for interrupt in std::iter::once(layout::GPIO_INTERRUPT).chain(virtio) {
        let node = tree.begin_node(&format!("bell-{:x}", interrupt.label()))?;
        tree.property_string("vdevice-type", "doorbell")?;
        tree.property_u32("label", interrupt.label())?;
        tree.property_array_u32("interrupts", &interrupt.cells())?;
        tree.end_node(node)?;
    }
    tree.end_node(devices)?;
    tree.end_node(config)
}

#[cfg(test)]
mod tests {
    use dtoolkit::fdt::Fdt;
    use dtoolkit::{Node, Property};

    use super::*;
    use crate::machine::layout::{MIB, RAM};

    fn example() -> Vec<u8> {
        build(&Description {
            cpus: 3,
            ram: 512 * MIB,
            cmdline: "quiet root=/dev/vda",
            initrd: Some(Window { start: RAM + 100 * MIB, size: 5 }),
            place_seed: 0x0102_0304_0506_0708,
            generator_seed: [9; 32],
            virtio: 2,
            calls_by_smc: false,
        })
        .unwrap()
    }

    fn cells(bytes: &[u8]) -> Vec<u32> {
        bytes.as_chunks().0.iter().map(|cell| u32::from_be_bytes(*cell)).collect()
    }

    fn get(tree: &[u8], node: &str, property: &str) -> Vec<u8> {
        let tree = Fdt::new(tree).unwrap();
        let node = tree.find_node(node).unwrap_or_else(|| panic!("no {node}"));
        node.property(property).unwrap_or_else(|| panic!("no {property}")).value().to_vec()
    }

    #[test]
    fn a_kernel_finds_everything() {
        let tree = example();
        assert_eq!(get(&tree, "/chosen", "bootargs"), b"quiet root=/dev/vda\0");
        assert_eq!(get(&tree, "/chosen", "stdout-path"), b"/pl011@9000000\0");
        let end = get(&tree, "/chosen", "linux,initrd-end");
        assert_eq!(end, (RAM + 100 * MIB + 5).to_be_bytes());
        assert_eq!(get(&tree, "/chosen", "kaslr-seed"), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(get(&tree, "/chosen", "rng-seed"), [9; 32]);
        let memory = cells(&get(&tree, "/memory@40000000", "reg"));
        assert_eq!(memory, [0, 0x4000_0000, 0, 0x2000_0000]);
        assert_eq!(cells(&get(&tree, "/cpus/cpu@2", "reg")), [2]);
        assert_eq!(get(&tree, "/psci", "method"), b"hvc\0");
        let timer = cells(&get(&tree, "/timer", "interrupts"));
        assert_eq!(timer, [1, 13, 4, 1, 14, 4, 1, 11, 4, 1, 10, 4]);
        let controller = cells(&get(&tree, "/intc@8000000", "reg"));
        assert_eq!(controller, [0, 0x800_0000, 0, 0x1_0000, 0, 0x80a_0000, 0, 0x6_0000]);
        assert_eq!(cells(&get(&tree, "/pl011@9000000", "interrupts")), [0, 1, 4]);
        assert_eq!(cells(&get(&tree, "/pl031@9010000", "reg")), [0, 0x901_0000, 0, 0x1000]);
        assert_eq!(cells(&get(&tree, "/virtio_mmio@a000200", "interrupts")), [0, 17, 1]);
        assert!(Fdt::new(&tree).unwrap().find_node("/virtio_mmio@a000400").is_none());
    }

    #[test]
    fn a_kernel_of_a_protected_guest_calls_by_smc() {
        let tree = build(&Description { calls_by_smc: true, ..Description::default() }).unwrap();
        assert_eq!(get(&tree, "/psci", "method"), b"smc\0");
    }

    #[test]
    fn the_shim_finds_what_is_for_it() {
        let tree = example();
        let config = escrow_vmcore::tree::config(&tree).unwrap();
        assert_eq!(config.stolen_time, Some(0x90a_0000));
        let gic = config.gic.unwrap();
        assert_eq!((gic.distributor, gic.redistributors, gic.room), (0x800_0000, 0x80a_0000, 3));
        let bells = config.bells.iter().map(|bell| (bell.label, bell.interrupt));
        let edge = |intid| Some(escrow_vmcore::tree::Interrupt { intid, level: false });
        let expected = [(7, edge(39)), (16, edge(48)), (17, edge(49))];
        assert_eq!(bells.collect::<Vec<_>>(), expected);
        let bell = "/gunyah-vm-config/vdevices/bell-11";
        assert_eq!(cells(&get(&tree, bell, "interrupts")), [0, 17, 1]);
    }

    #[test]
    fn a_full_machine_fits_its_room() {
        let cmdline = "x".repeat(2048);
        let tree = build(&Description {
            cpus: layout::CPUS_MAX,
            ram: layout::RAM_MAX,
            cmdline: &cmdline,
            virtio: layout::VIRTIO_DEVICES,
            ..Description::default()
        });
        assert!((tree.unwrap().len() as u64) < layout::TREE_ROOM);
    }

    #[test]
    fn a_command_line_with_a_nul_is_none() {
        assert!(build(&Description { cmdline: "a\0b", ..Description::default() }).is_err());
    }
}

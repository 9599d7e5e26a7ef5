// SPDX-License-Identifier: MIT OR Apache-2.0

//! The machine of a guest that is an operating system: RAM with a kernel in it,
//! a device tree, vCPUs, and devices.

mod bus;
mod clock;
mod device;
mod device_tree;
mod devices;
mod kernel;
pub mod layout;
mod parts;
mod power_button;
mod protection;
mod ram;
mod vcpus;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};

use bus::Bus;
use clock::Clock;
pub use device::{InterruptLine, MmioDevice};
use device_tree::Description;
use devices::{Line, attach};
use layout::{MIB, RAM};
pub use parts::Parts;
pub use power_button::PowerButton;
pub use protection::Protection;
use protection::{Decision, command_line, decide};
pub use ram::{Ram, Sharing};
pub use vcpus::{Ending, Vcpus};

use crate::gunyah::{Device, Folios, Vm};
use crate::virtio::DeviceMemory;

/// What a machine is to be.
#[derive(Clone, Debug)]
pub struct Specification {
    /// The kernel's file.
    pub kernel: PathBuf,
    /// The initramfs's file.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: String,
    /// Number of vCPUs.
    pub cpus: u32,
    /// Bytes of RAM, a multiple of 2 MiB.
    pub ram: u64,
    /// How the guest has its RAM.
    pub sharing: Sharing,
    /// Whether RAM that is lent is protected, so that devices reach what the guest opens to them.
    pub protection: Protection,
    /// What RAM is made of.
    pub folios: Folios,
    /// All RAM is there before the guest starts.
    pub populate: bool,
    /// Its disks. Only a guest whose RAM is shared or protected has any.
    pub disks: Vec<Disk>,
    /// Its network devices, as its disks.
    pub nets: Vec<Net>,
    /// Its address for sockets between it and the host, as its disks.
    pub vsock: Option<u64>,
}

impl Specification {
    /// Whether it names a device that has to reach the guest's RAM.
    pub fn has_devices(&self) -> bool {
        !self.disks.is_empty() || !self.nets.is_empty() || self.vsock.is_some()
    }
}

/// A network device's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Net {
    /// What it is connected to.
    pub link: NetLink,
    /// Its address; a random one if there is none.
    pub mac: Option<Mac>,
}

/// What a network device is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetLink {
    /// A tap device of the host's, by its name.
    Tap(String),
    /// The host's network, by sockets of this user (passt).
    User,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The file, or the block device of the host.
    pub path: PathBuf,
    /// The guest may not write to it.
    pub read_only: bool,
}

/// A step of loading, for who watches.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// What is loaded.
    pub what: &'static str,
    /// Bytes so far.
    pub bytes: u64,
}

/// A machine that is about to start.
pub struct Machine {
    vm: Vm,
    ram: Ram,
    bus: Bus,
    button: PowerButton,
    cpus: u32,
    decision: Decision,
}

impl Machine {
    /// Builds it, and loads its kernel.
    pub fn build(
        device: &Device,
        specification: &Specification,
        parts: &Parts,
        progress: &mut dyn FnMut(Step),
    ) -> Result<Machine> {
        let ram = Ram::new(device, specification.ram, specification.folios)
            .context("creating the guest's RAM")?;
        if specification.populate {
            progress(Step { what: "RAM", bytes: 0 });
            ram.populate().context("making the guest's RAM")?;
        }
        let loaded = load(&ram, specification, parts, progress)?;

        let vm = device.create_vm().context("creating the VM")?;
        let decision = decide(specification, loaded.can_be_protected, || {
            vm.protect().context("making the VM a protected one")
        })?;
        let devices = match decision.has_devices() {
            true => devices::make(specification, parts)?,
            false => Vec::new(),
        };
        if devices.is_empty() {
            parts.close();
        }
        let tree_size = load_tree(&ram, specification, &decision, devices.len(), loaded.placed)?;
        ram.bind(&vm, specification.sharing).context("giving the VM its RAM")?;
        vm.set_device_tree(RAM, tree_size)?;
        vm.set_boot_pc(loaded.placed.kernel)?;

        let mut bus = Bus::default();
        bus.add(layout::CLOCK, Box::new(Clock::default()));
        let line = Line::new(&vm, layout::GPIO_INTERRUPT).context("the power button")?;
        let (gpio, button) = power_button::new(Box::new(line));
        bus.add(layout::GPIO, Box::new(gpio));
        if !devices.is_empty() {
            let memory = DeviceMemory::new(Arc::new(ram.map_all()?), decision.shared_bit());
            for (n, device) in devices.into_iter().enumerate() {
                attach(&vm, &mut bus, &memory, n, device)?;
            }
        }
        Ok(Machine { vm, ram, bus, button, cpus: specification.cpus, decision })
    }
}

/// What has been loaded.
struct Loaded {
    /// Where everything is.
    placed: layout::Placement,
    /// The kernel can be the guest of a protected VM.
    can_be_protected: bool,
}

/// Loads kernel and initramfs.
fn load(
    ram: &Ram,
    machine: &Specification,
    parts: &Parts,
    progress: &mut dyn FnMut(Step),
) -> Result<Loaded> {
    let name = machine.kernel.display();
    let mut kernel = parts.kernel().with_context(|| format!("the kernel {name}"))?;
    let initrd_name = machine.initrd.as_deref().unwrap_or(Path::new("")).display();
    let initrd = parts.initrd().with_context(|| format!("the initramfs {initrd_name}"))?;
    let header = kernel.header();
    // Kernels before 3.17 have no image_size: leave room for their BSS.
    let kernel_size = if header.image_size == 0 { 16 * MIB } else { header.image_size };
    let initrd_size = initrd.as_ref().map(|(_, size)| *size);
    let placed = layout::place(machine.ram, header.text_offset, kernel_size, initrd_size).map_err(
        |layout::TooLarge { needed }| {
            anyhow::anyhow!(
                "{} MiB of RAM are too few: this kernel{} needs at least {needed} MiB \
                 (--memory {needed}M)",
                machine.ram / MIB,
                if initrd.is_some() { " with this initramfs" } else { "" },
                needed = needed.div_ceil(MIB),
            )
        },
    )?;
    let mapped = ram.map()?;
    let room = placed.initrd.map_or(RAM + machine.ram, |initrd| initrd.start) - placed.kernel;
    mapped
        .load(placed.kernel, room, &mut kernel, &mut |bytes| {
            progress(Step { what: "kernel", bytes });
        })
        .with_context(|| format!("loading the kernel {name}"))?;
    if let (Some((mut file, size)), Some(window)) = (initrd, placed.initrd) {
        let loaded = mapped
            .load(window.start, window.size, &mut file, &mut |bytes| {
                progress(Step { what: "initramfs", bytes });
            })
            .with_context(|| format!("loading the initramfs {initrd_name}"))?;
        if loaded != size {
            bail!("loading the initramfs {initrd_name}: it has changed meanwhile");
        }
    }
    Ok(Loaded { placed, can_be_protected: kernel.can_be_protected() })
}

/// Makes the device tree, and loads it. Bytes of its pages.
fn load_tree(
    ram: &Ram,
    machine: &Specification,
    decision: &Decision,
    virtio: usize,
    placed: layout::Placement,
) -> Result<u64> {
    let mut seeds = [0; 40];
    getrandom::fill(&mut seeds).context("random numbers for the guest")?;
    let (place, generator) = seeds.split_at(8);
    let cmdline = match decision.shared_bit() {
        Some(bit) => &command_line(machine, bit)?,
        None => &machine.cmdline,
    };
    let tree = device_tree::build(&Description {
        cpus: machine.cpus,
        ram: machine.ram,
        cmdline,
        calls_by_smc: decision.shared_bit().is_some(),
        initrd: placed.initrd,
        place_seed: u64::from_le_bytes(place.try_into()?),
        generator_seed: generator.try_into()?,
        virtio,
    })
    .context("making the device tree")?;
    let room = placed.tree;
    ram.map()?.load(room.start, room.size, &mut &tree[..], &mut |_| {})?;
    Ok((tree.len() as u64).next_multiple_of(crate::gunyah::PAGE_SIZE))
}

impl Machine {
    /// What is to be said about it.
    pub fn remark(&self) -> Option<&str> {
        match &self.decision {
            Decision::Alone(remark) => remark.as_deref(),
            Decision::Shared | Decision::Protected(_) => None,
        }
    }

    /// The other end of its serial line.
    pub fn console(&self) -> Result<File> {
        let interrupt = layout::SERIAL_INTERRUPT.intid();
        let fd = self.vm.add_console(layout::SERIAL.start, interrupt);
        fd.context("creating the guest's console")
    }
}

/// A machine that runs.
pub struct Running {
    // Fields are dropped in this order: the vCPUs' threads, the VM, its memory.
    vcpus: Vcpus,
    vm: Vm,
    ram: Ram,
    button: PowerButton,
    protected: bool,
}

impl Machine {
    /// Starts it.
    pub fn start(self) -> Result<Running> {
        let Machine { vm, ram, bus, button, cpus, decision } = self;
        let protected = decision.shared_bit().is_some();
        let vcpus =
            (0..cpus).map(|id| vm.add_vcpu(id).with_context(|| format!("creating vCPU {id}")));
        let vcpus: Vec<_> = vcpus.collect::<Result<_>>()?;
        vm.start().context("starting the VM")?;
        Ok(Running { vcpus: Vcpus::run(vcpus, bus)?, vm, ram, button, protected })
    }
}

impl Running {
    /// Its vCPUs.
    pub fn vcpus(&self) -> &Vcpus {
        &self.vcpus
    }

    /// Whether it is protected.
    pub fn is_protected(&self) -> bool {
        self.protected
    }

    /// Its power button.
    pub fn button(&self) -> &PowerButton {
        &self.button
    }

    /// Its RAM.
    pub fn ram(&self) -> &Ram {
        &self.ram
    }

    /// Stops it, if it has not ended by itself, and takes everything home: how
    /// it ended, and what was its RAM.
    pub fn finish(self) -> (Ending, Ram) {
        let Running { vcpus, vm, ram, button: _, protected: _ } = self;
        let ending = vcpus.finish();
        drop(vm);
        (ending, ram)
    }
}

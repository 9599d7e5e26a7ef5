// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the device tree says of the board.

use core::fmt;

use arrayvec::ArrayVec;

use crate::fdt::{Ancestry, Cells, Fdt, Node, strings};
use crate::range::{Full, Range, RangeSet};
use crate::uart::UartKind;

/// CPUs that can be managed.
pub const MAX_CPUS: usize = 64;
/// Separate ranges of RAM.
pub const MAX_RAM: usize = 64;
/// Separate reserved ranges.
pub const MAX_RESERVED: usize = 96;
/// Separate ranges of redistributors.
pub const MAX_REDISTRIBUTORS: usize = 16;

/// The bits of `MPIDR_EL1` that name a CPU.
pub const MPIDR_AFFINITY: u64 = 0xff_00ff_ffff;

/// Why there is no way to run on a board.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BoardError {
    /// No node describes memory, or all that do are empty.
    NoMemory,
    /// There is no usable GICv3.
    NoGicv3,
    /// There is no PSCI 0.2 or newer.
    NoPsci,
    /// PSCI is there, but below EL2, by HVC.
    PsciByHvc,
    /// The tree lists no CPUs, or one without an identifier.
    NoCpus,
    /// The boot loader has left no kernel.
    NoKernel,
    /// There are two modules of this kind.
    TwoModules(&'static str),
    /// A module without an address or with size 0.
    EmptyModule(&'static str),
    /// More of these than can be managed: so many.
    TooMany(usize, &'static str),
}

impl fmt::Display for BoardError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BoardError::NoMemory => f.write_str("the device tree describes no memory"),
            BoardError::NoGicv3 => f.write_str("no GICv3 interrupt controller in the device tree"),
            BoardError::NoPsci => f.write_str("no PSCI 0.2 or newer in the device tree"),
            BoardError::PsciByHvc => f.write_str(
                "PSCI is called by HVC here: another hypervisor, or EL2 is not Escrow's to use",
            ),
            BoardError::NoCpus => f.write_str("the device tree describes no CPUs"),
            BoardError::NoKernel => {
                f.write_str("no kernel for the host (no multiboot,kernel module in /chosen)")
            }
            BoardError::TwoModules(kind) => write!(f, "more than one {kind} module in /chosen"),
            BoardError::EmptyModule(kind) => {
                write!(f, "the {kind} module in /chosen has no address or no size")
            }
            BoardError::TooMany(most, what) => {
                write!(f, "the device tree has more {what} than can be managed, {most}")
            }
        }
    }
}

impl core::error::Error for BoardError {}

/// A CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Its affinity fields as in `MPIDR_EL1`, under [`MPIDR_AFFINITY`].
    pub mpidr: u64,
}

/// The interrupt controller.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Gicv3 {
    /// The distributor's registers.
    pub distributor: Range,
    /// The redistributors' registers, each range for one or more CPUs.
    pub redistributors: ArrayVec<Range, MAX_REDISTRIBUTORS>,
}

/// What the boot loader left in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Module<'a> {
    /// Where it lies.
    pub range: Range,
    /// Its command line, without a NUL; may be empty.
    pub arguments: &'a [u8],
}

/// The nodes below the root that say what a board is, found in one pass.
pub struct Outline<'b, 'a: 'b> {
    fdt: &'b Fdt<'a>,
    root: Node<'b, 'a>,
    chosen: Option<Node<'b, 'a>>,
    cpus: Option<Node<'b, 'a>>,
    psci: Option<Node<'b, 'a>>,
    reserved: Option<Node<'b, 'a>>,
    /// The first [`MAX_RAM`] memory nodes.
    memory: ArrayVec<Node<'b, 'a>, MAX_RAM>,
    more_memory: bool,
}

impl<'b, 'a: 'b> Outline<'b, 'a> {
    /// Looks through the children of the root.
    pub fn of(fdt: &'b Fdt<'a>) -> Self {
        let root = fdt.root();
        let mut outline = Outline {
            fdt,
            root,
            chosen: None,
            cpus: None,
            psci: None,
            reserved: None,
            memory: ArrayVec::new(),
            more_memory: false,
        };
        for node in root.children() {
            let slot = match node.name() {
                b"chosen" => &mut outline.chosen,
                b"cpus" => &mut outline.cpus,
                b"psci" => &mut outline.psci,
                b"reserved-memory" => &mut outline.reserved,
                _ => {
                    if is_memory(&node) {
                        outline.more_memory |= outline.memory.try_push(node).is_err();
                    }
                    continue;
                }
            };
            slot.get_or_insert(node);
        }
        outline
    }

    /// Escrow's own command line: `/chosen`'s `bootargs`. The host's is its
    /// kernel module's.
    pub fn own_arguments(&self) -> &'a [u8] {
        self.chosen.and_then(|chosen| chosen.string(b"bootargs")).unwrap_or(&[])
    }
}

/// A board, and what its boot loader left there.
pub struct Board<'a> {
    /// The machine's name for people.
    pub model: &'a [u8],
    /// All RAM.
    pub ram: RangeSet<MAX_RAM>,
    /// RAM that firmware or a device uses: never to be moved or lent.
    pub reserved: RangeSet<MAX_RESERVED>,
    /// The part of `reserved` that CPUs must not map, for it may be secure, and that
    /// nothing in the tree needs: the host does not get it. A region with a phandle or a
    /// driver of its own is the host's, whose driver knows what it is for.
    pub withheld: RangeSet<MAX_RESERVED>,
    /// The CPUs that can be used.
    pub cpus: ArrayVec<Cpu, MAX_CPUS>,
    /// The interrupt controller.
    pub gic: Gicv3,
    /// Registers of QEMU's firmware configuration, also if the host is not to use it:
    /// they reach memory.
    pub fw_cfg: Option<Range>,
    /// The host's kernel.
    pub kernel: Module<'a>,
    /// The host's initial RAM disk.
    pub ramdisk: Option<Module<'a>>,
}

impl<'a> Board<'a> {
    /// Reads a tree.
    ///
    /// # Errors
    ///
    /// See [`BoardError`].
    pub fn read(outline: &Outline<'_, 'a>) -> Result<Self, BoardError> {
        let ram = read_ram(outline)?;
        let (reserved, withheld) = read_reserved(outline)?;
        check_psci(outline)?;
        let (kernel, ramdisk) = read_modules(&outline.chosen.ok_or(BoardError::NoKernel)?)?;
        Ok(Board {
            model: outline.root.string(b"model").unwrap_or(b"unknown machine"),
            ram,
            reserved,
            withheld,
            cpus: read_cpus(outline)?,
            gic: read_gic(outline.fdt)?,
            fw_cfg: read_fw_cfg(outline.fdt),
            kernel,
            ramdisk,
        })
    }
}

/// Whether a node of the root is memory.
pub(crate) fn is_memory(node: &Node<'_, '_>) -> bool {
    node.string(b"device_type") == Some(b"memory") && node.is_available()
}

fn read_ram(outline: &Outline<'_, '_>) -> Result<RangeSet<MAX_RAM>, BoardError> {
    const TOO_MANY: BoardError = BoardError::TooMany(MAX_RAM, "ranges of memory");
    if outline.more_memory {
        return Err(TOO_MANY);
    }
    let cells = outline.root.cells();
    let mut ram = RangeSet::new();
    for node in &outline.memory {
        for (base, size) in cells.entries(node.property(b"reg").unwrap_or(&[])) {
            // A boot loader fills in the sizes; what is still empty is not there.
            let Some(range) = Range::with_size(base, size) else { continue };
            ram.insert(range).map_err(|Full| TOO_MANY)?;
        }
    }
    if ram.as_slice().is_empty() { Err(BoardError::NoMemory) } else { Ok(ram) }
}

type Reserved = RangeSet<MAX_RESERVED>;

fn read_reserved(outline: &Outline<'_, '_>) -> Result<(Reserved, Reserved), BoardError> {
    let too_many = |Full| BoardError::TooMany(MAX_RESERVED, "reserved ranges");
    let (mut reserved, mut withheld) = (Reserved::new(), Reserved::new());
    for (base, size) in outline.fdt.reservations() {
        let Some(range) = Range::with_size(base, size) else { continue };
        reserved.insert(range).map_err(too_many)?;
    }
    let Some(parent) = outline.reserved else { return Ok((reserved, withheld)) };
    let cells = parent.cells();
    let is_nobodys = |node: &Node<'_, '_>| {
        let users: [&[u8]; 3] = [b"phandle", b"linux,phandle", b"compatible"];
        node.property(b"no-map").is_some() && users.iter().all(|name| node.property(name).is_none())
    };
    for node in parent.children().filter(Node::is_available) {
        // A node without `reg` asks the host to find a place; that is its affair.
        for (base, size) in cells.entries(node.property(b"reg").unwrap_or(&[])) {
            let Some(range) = Range::with_size(base, size) else { continue };
            reserved.insert(range).map_err(too_many)?;
            if is_nobodys(&node) {
                withheld.insert(range).map_err(too_many)?;
            }
        }
    }
    // What lies in one as well is somebody's after all.
    for node in parent.children().filter(|node| node.is_available() && !is_nobodys(node)) {
        for (base, size) in cells.entries(node.property(b"reg").unwrap_or(&[])) {
            let range = Range::with_size(base, size).and_then(|range| range.aligned_out(4096));
            withheld.remove(range.unwrap_or_default()).map_err(too_many)?;
        }
    }
    Ok((reserved, withheld))
}

fn read_cpus(outline: &Outline<'_, '_>) -> Result<ArrayVec<Cpu, MAX_CPUS>, BoardError> {
    let parent = outline.cpus.ok_or(BoardError::NoCpus)?;
    let cells = Cells { size: 0, ..parent.cells() };
    let mut cpus = ArrayVec::new();
    let nodes = parent.children().filter(|node| node.string(b"device_type") == Some(b"cpu"));
    for node in nodes.filter(Node::is_available) {
        let reg = node.property(b"reg").ok_or(BoardError::NoCpus)?;
        let (id, _) = cells.entries(reg).next().ok_or(BoardError::NoCpus)?;
        let cpu = Cpu { mpidr: id & MPIDR_AFFINITY };
        cpus.try_push(cpu).map_err(|_| BoardError::TooMany(MAX_CPUS, "CPUs"))?;
    }
    if cpus.is_empty() { Err(BoardError::NoCpus) } else { Ok(cpus) }
}

fn read_gic(fdt: &Fdt<'_>) -> Result<Gicv3, BoardError> {
    let gic = Ancestry::search(fdt, |node| node.is_compatible(b"arm,gic-v3"))
        .filter(Ancestry::is_available)
        .ok_or(BoardError::NoGicv3)?;
    let node = gic.node().ok_or(BoardError::NoGicv3)?;
    let distributor = gic.registers(0).ok_or(BoardError::NoGicv3)?;
    let regions = node.word(b"#redistributor-regions").unwrap_or(1) as usize;
    let mut redistributors = ArrayVec::new();
    for index in 1..=regions {
        let region = gic.registers(index).ok_or(BoardError::NoGicv3)?;
        redistributors
            .try_push(region)
            .map_err(|_| BoardError::TooMany(MAX_REDISTRIBUTORS, "ranges of redistributors"))?;
    }
    Ok(Gicv3 { distributor, redistributors })
}

fn read_fw_cfg(fdt: &Fdt<'_>) -> Option<Range> {
    Ancestry::search(fdt, |node| node.is_compatible(b"qemu,fw-cfg-mmio"))?.registers(0)
}

fn check_psci(outline: &Outline<'_, '_>) -> Result<(), BoardError> {
    let psci = outline.psci.ok_or(BoardError::NoPsci)?;
    let compatible = psci.property(b"compatible").unwrap_or(&[]);
    // "arm,psci" alone is version 0.1, where the tree names the functions.
    if !strings(compatible).any(|s| matches!(s, b"arm,psci-0.2" | b"arm,psci-1.0")) {
        return Err(BoardError::NoPsci);
    }
    match psci.string(b"method") {
        Some(b"smc") => Ok(()),
        Some(b"hvc") => Err(BoardError::PsciByHvc),
        _ => Err(BoardError::NoPsci),
    }
}

/// What a boot module is by its `compatible`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ModuleKind {
    Kernel,
    Ramdisk,
    Unknown,
}

fn module_kind(node: &Node<'_, '_>) -> Option<ModuleKind> {
    let compatible = node.property(b"compatible")?;
    let mut kind = None;
    for name in strings(compatible) {
        match name {
            b"multiboot,kernel" => return Some(ModuleKind::Kernel),
            b"multiboot,ramdisk" => return Some(ModuleKind::Ramdisk),
            b"multiboot,module" => kind = Some(ModuleKind::Unknown),
            _ => {}
        }
    }
    kind
}

/// Whether a child of `/chosen` is a boot module.
pub(crate) fn is_module(node: &Node<'_, '_>) -> bool {
    module_kind(node).is_some()
}

fn read_modules<'a>(chosen: &Node<'_, 'a>) -> Result<(Module<'a>, Option<Module<'a>>), BoardError> {
    let (mut kernel, mut ramdisk) = (None, None);
    for node in chosen.children() {
        let (slot, name) = match module_kind(&node) {
            Some(ModuleKind::Kernel) => (&mut kernel, "kernel"),
            Some(ModuleKind::Ramdisk) => (&mut ramdisk, "ramdisk"),
            // Boot loaders that do not name kinds put the kernel first.
            Some(ModuleKind::Unknown) if kernel.is_none() => (&mut kernel, "kernel"),
            Some(ModuleKind::Unknown) => (&mut ramdisk, "ramdisk"),
            None => continue,
        };
        let range = module_range(chosen, &node).ok_or(BoardError::EmptyModule(name))?;
        let arguments = node.string(b"bootargs").unwrap_or(&[]);
        if slot.replace(Module { range, arguments }).is_some() {
            return Err(BoardError::TwoModules(name));
        }
    }
    Ok((kernel.ok_or(BoardError::NoKernel)?, ramdisk))
}

/// Where a module lies. QEMU writes its `reg` with two words each and leaves
/// out the properties that say so, hence the look at its length.
fn module_range(chosen: &Node<'_, '_>, module: &Node<'_, '_>) -> Option<Range> {
    let reg = module.property(b"reg")?;
    let declared = chosen.property(b"#address-cells").is_some();
    let cells = match reg.len() {
        _ if declared => chosen.cells(),
        8 => Cells { address: 1, size: 1 },
        12 => Cells { address: 2, size: 1 },
        _ => Cells { address: 2, size: 2 },
    };
    let (base, size) = cells.entries(reg).next()?;
    Range::with_size(base, size).filter(|range| !range.is_empty())
}

/// A console that can be written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Console {
    /// Its registers.
    pub registers: Range,
    /// What they are.
    pub kind: UartKind,
}

impl Console {
    /// Finds the board's console: the one that `/chosen` names, or else the
    /// first that there is a driver for.
    ///
    /// Asks no more of the tree than that, so that there is a console to say
    /// what else is missing.
    pub fn find(outline: &Outline<'_, '_>) -> Option<Console> {
        let fdt = outline.fdt;
        let kind = |node: &Node<'_, '_>| UartKind::of(node);
        let usable = |place: &Ancestry<'_, '_>| {
            place.is_available() && place.node().is_some_and(|node| kind(&node).is_some())
        };
        let chosen = outline.chosen.and_then(|chosen| chosen.string(b"stdout-path"));
        let path = chosen.and_then(|value| value.split(|&byte| byte == b':').next());
        let place =
            path.and_then(|path| Ancestry::at_path(fdt, path)).filter(usable).or_else(|| {
                Ancestry::search(fdt, |node| kind(node).is_some() && node.is_available())
            })?;
        Some(Console { registers: place.registers(0)?, kind: kind(&place.node()?)? })
    }
}

#[cfg(test)]
mod tests;

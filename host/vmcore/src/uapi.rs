// SPDX-License-Identifier: MIT OR Apache-2.0

//! What crosses between user space and the shim: the ioctls of `/dev/gunyah`,
//! their structures, and the page that a vCPU shares with the program that
//! runs it.
//!
//! Numbers and layouts are those of Gunyah's Linux interface (series v17), so
//! that programs written for it run unchanged. All structures are
//! little-endian and have no implicit padding. Padding and reserved fields of v17's structures are
//! ignored, as in v17; the reserved fields of Escrow's own [`ExportDmabuf`] and [`ConsoleArg`] must
//! be zero.
//!
//! A program can get more information in two places:
//!
//! - `/proc/PID/fdinfo/FD` of a guest memory's file descriptor; see [`fdinfo`].
//! - The files in [`SYSFS_DIR`], with EL2's version and counts.

use escrow_abi::FrameState;

/// The device.
pub const DEVICE: &str = "/dev/gunyah";

/// Folder with one file for each fact that Escrow tells about itself:
/// `version` (`0.1.0`), `cpus` (a decimal number), `vms` (a decimal number;
/// the host is not counted), `pages` (a line `NAME COUNT` for each state of
/// [`FrameState`], in the order of its numbers; `NAME` is [`state_name`]).
pub const SYSFS_DIR: &str = "/sys/class/misc/gunyah/escrow";

/// Folder of files that tell what the shim has counted, one decimal number in
/// each: [`SHIM_TOTALS`] as they are, [`SHIM_EVENTS`] since it was loaded.
pub const SHIM_SYSFS_DIR: &str = "/sys/class/misc/gunyah/shim";

/// Files of [`SHIM_SYSFS_DIR`]: memories; their 4 KiB pages that the host has
/// for itself, that are lent, shared, kept by Escrow though they should be
/// home, and broken; VMs; pages that Escrow keeps VMs in; VMs that only wait for pages.
pub const SHIM_TOTALS: [&str; 9] = [
    "memories",
    "present",
    "lent",
    "shared",
    "quarantined",
    "poisoned",
    "vms",
    "metadata",
    "zombies",
];

/// Files of [`SHIM_SYSFS_DIR`], in 4 KiB pages: lent; shared; not lent because
/// somebody used them; (looks at such users again, not pages); come home; of
/// these, unlocked by guests that live on; asked back in vain.
pub const SHIM_EVENTS: [&str; 7] =
    ["lends", "shares", "refusals", "retries", "reclaims", "unlocks", "kept"];

/// Folder with a list of the memories (`memories`) and VMs (`vms`) of the
/// shim. The first line of each names the columns.
pub const DEBUGFS_DIR: &str = "/sys/kernel/debug/escrow";

/// The name of a state in [`SYSFS_DIR`]'s `pages`.
pub fn state_name(state: FrameState) -> impl Iterator<Item = u8> {
    let bytes = state.name().bytes().filter(|&byte| byte != b',');
    bytes.map(|byte| if byte == b' ' { b'-' } else { byte })
}

/// Names of the lines in a guest memory's `fdinfo`, and in a console's.
///
/// Each line is `NAME:\tVALUE`. Sizes are decimal bytes, counts decimal
/// 4 KiB pages.
pub mod fdinfo {
    /// Size of the file in bytes.
    pub const SIZE: &str = "size";
    /// Pages that are there and that the host reaches alone.
    pub const PRESENT: &str = "present";
    /// Pages lent to a guest.
    pub const LENT: &str = "lent";
    /// Pages shared with a guest.
    pub const SHARED: &str = "shared";
    /// Pages that Escrow did not give back: out of use until it does.
    pub const QUARANTINED: &str = "quarantined";
    /// Pages of folios that broke while a guest had them: out of use for good.
    pub const POISONED: &str = "poisoned";
    /// How many times a page or block was not lent because somebody used it.
    pub const REFUSALS: &str = "refusals";
    /// How many times a lend waited for a user to go away.
    pub const RETRIES: &str = "retries";
    /// The last lend that was refused, because somebody in the host uses the
    /// page: `offset=0x1000 excess=1 accessible=0`; `none` if there was none.
    ///
    /// `offset` is the page's place in the file (hexadecimal bytes), `excess`
    /// how many references nobody accounts for, `accessible` how many kernel
    /// users need to reach it.
    pub const LAST_REFUSAL: &str = "last_refusal";
    /// What was in its way, as far as it is known: names of [`HOLDER`]s, with
    /// commas between them, `a mapping`, or `a pin`; `nobody` if no lend was refused.
    pub const REFUSED_BY: &str = "refused_by";
    /// A process that maps that page, and may have the reference: its PID and name. One line
    /// for each; `0 ...` if there are more.
    pub const MAPPED_BY: &str = "mapped_by";
    /// Of a console's descriptor: characters that the guest has written and that nobody has read.
    pub const WAITING: &str = "waiting";
    /// Of a console's descriptor: characters of the guest's that were dropped, because there was no
    /// room for them and nobody read.
    pub const LOST: &str = "lost";
    /// Of a console's descriptor: characters that the guest has yet to read.
    pub const UNREAD: &str = "unread";
    /// A kernel user with safe references: `NAME offset=0x0 size=0x2000
    /// references=2 accesses=0` (offset and size in bytes). One line for each.
    pub const HOLDER: &str = "holder";
}

/// ioctl type of all calls.
pub const IOCTL_TYPE: u32 = b'G' as u32;

const fn io(nr: u32) -> u32 {
    IOCTL_TYPE << 8 | nr
}

const fn iow(nr: u32, size: usize) -> u32 {
    1 << 30 | (size as u32) << 16 | io(nr)
}

/// On the device, argument 0: creates a VM. → its file descriptor
pub const CREATE_VM: u32 = io(0x0);
/// On a VM: where the device tree is. See [`DtbConfig`].
pub const VM_SET_DTB_CONFIG: u32 = iow(0x2, size_of::<DtbConfig>());
/// On a VM: starts it; nothing happens if it runs already.
///
/// EAGAIN: somebody in the host uses a page that the guest needs to start;
/// nothing has changed, and the memory's [`fdinfo::LAST_REFUSAL`] names it.
pub const VM_START: u32 = io(0x3);
/// On a VM: adds a function. See [`FunctionDesc`]. → its file descriptor, if
/// it is a vCPU
pub const VM_ADD_FUNCTION: u32 = iow(0x4, size_of::<FunctionDesc>());
/// On a vCPU: runs it until something needs the program. The answer is in
/// the [`VcpuRun`] page.
pub const VCPU_RUN: u32 = io(0x5);
/// On a vCPU: → how many bytes of it can be mapped
pub const VCPU_MMAP_SIZE: u32 = io(0x6);
/// On a VM: takes a function away. See [`FunctionDesc`].
pub const VM_REMOVE_FUNCTION: u32 = iow(0x7, size_of::<FunctionDesc>());
/// On the device: creates a guest memory. See [`CreateMem`]. → its file
/// descriptor
pub const CREATE_GUEST_MEM: u32 = iow(0x8, size_of::<CreateMem>());
/// On a VM: binds guest addresses to a guest memory, or unbinds them. See
/// [`MapMem`].
pub const VM_MAP_MEM: u32 = iow(0x9, size_of::<MapMem>());
/// On a VM: a register that its first vCPU starts with. See [`BootContext`].
pub const VM_SET_BOOT_CONTEXT: u32 = iow(0xa, size_of::<BootContext>());

/// On a memory, and Escrow's own: the dma-buf of a part of it. See
/// [`ExportDmabuf`]. → its file descriptor
///
/// EFAULT: a guest has a page of it.
pub const MEM_EXPORT_DMABUF: u32 = iow(OWN, size_of::<ExportDmabuf>());
/// On a VM, and Escrow's own: makes it a protected one, whose guest may call Arm's Realm Services
/// Interface ([`escrow_abi::rsi`]). → how many bits the guest's addresses have
///
/// The highest of these bits is 1 in the shared half of the guest's addresses. Bindings are
/// made without it. The guest has the pages of one that is lent at its addresses in the protected half, and
/// shared, at the same addresses with the bit, those that it gives up.
///
/// EBUSY: the VM has, or had, a binding or a function, has started, or is protected already;
/// EOPNOTSUPP: EL2 does not have protected VMs.
pub const VM_PROTECT: u32 = io(OWN + 1);
/// Numbers from here on are not Gunyah's.
const OWN: u32 = 0x80;

/// [`CreateMem::flags`]: the descriptor is closed on exec.
pub const MEM_CLOEXEC: u64 = 1 << 0;
/// [`CreateMem::flags`]: the memory may be made of 2 MiB folios.
pub const MEM_ALLOW_HUGEPAGE: u64 = 1 << 1;
/// [`CreateMem::flags`], and Escrow's own: if a lend of a page was refused because the
/// page is in use, the page cannot be mapped or pinned for 250 ms, as if it were lent. So
/// one of the next tries succeeds.
pub const MEM_LEND_FIRST: u64 = 1 << 63;

/// [`ExportDmabuf::flags`]: the descriptor is closed on exec.
pub const EXPORT_CLOEXEC: u32 = 1 << 0;
/// [`ExportDmabuf::flags`]: programs may map it for writing.
pub const EXPORT_WRITE: u32 = 1 << 1;

/// [`MapMem::flags`]: lend the pages, as is the default.
pub const MAP_FORCE_LEND: u32 = 1;
/// [`MapMem::flags`]: share the pages.
pub const MAP_FORCE_SHARE: u32 = 2;
/// [`MapMem::flags`]: the guest may read.
pub const MAP_READ: u32 = 0x10;
/// [`MapMem::flags`]: the guest may write.
pub const MAP_WRITE: u32 = 0x20;
/// [`MapMem::flags`]: the guest may execute.
pub const MAP_EXEC: u32 = 0x40;
/// [`MapMem::flags`]: take the range out of the guest. Other flags that are given must
/// be those that it is bound with.
pub const MAP_UNMAP: u32 = 0x100;

/// [`FunctionDesc::kind`]: a vCPU; the argument is a [`VcpuArg`].
pub const FUNCTION_VCPU: u32 = 1;
/// [`FunctionDesc::kind`]: an eventfd that interrupts the guest, by the doorbell or the SPI that
/// its label names in the device tree; the argument is an [`IrqfdArg`].
pub const FUNCTION_IRQFD: u32 = 2;
/// [`FunctionDesc::kind`]: an eventfd that guest writes signal; the argument is
/// an [`IoeventfdArg`].
pub const FUNCTION_IOEVENTFD: u32 = 3;
/// [`FunctionDesc::kind`], and Escrow's own: a serial line, whose PL011 the shim emulates; the
/// argument is a [`ConsoleArg`]. → its file descriptor
pub const FUNCTION_CONSOLE: u32 = OWN;
/// The largest [`FunctionDesc::arg_size`], in bytes.
pub const FUNCTION_ARG_MAX: u32 = 256;

/// [`IrqfdArg::flags`]: the interrupt is level-triggered. In a VM with an interrupt controller, the
/// device tree's `interrupts` property decides that.
pub const IRQFD_LEVEL: u32 = 1;
/// [`IrqfdArg::flags`], and Escrow's own: [`IrqfdArg::resample_fd`] is an eventfd. It is signalled
/// when the guest is done with the interrupt, which is level-triggered and of a VM with an
/// interrupt controller. Then the program looks at its device again, and signals the interrupt's
/// eventfd if the device still asserts it.
pub const IRQFD_RESAMPLE: u32 = 1 << 31;
/// [`IoeventfdArg::flags`]: only writes of [`IoeventfdArg::datamatch`] count.
pub const IOEVENTFD_DATAMATCH: u32 = 1;

/// Set of [`BootContext::reg`]: X0 to X30.
pub const REG_SET_X: u32 = 0;
/// Set of [`BootContext::reg`]: the program counter, index 0.
pub const REG_SET_PC: u32 = 1;
/// Set of [`BootContext::reg`]: the stack pointer, index 0 for SP_EL0, 1 for
/// SP_EL1.
pub const REG_SET_SP: u32 = 2;

/// [`VcpuRun::exit_reason`]: nothing yet.
pub const EXIT_UNKNOWN: u32 = 0;
/// [`VcpuRun::exit_reason`]: [`MmioExit`].
pub const EXIT_MMIO: u32 = 1;
/// [`VcpuRun::exit_reason`]: [`StatusExit`].
pub const EXIT_STATUS: u32 = 2;
/// [`VcpuRun::exit_reason`]: [`PageFaultExit`].
pub const EXIT_PAGE_FAULT: u32 = 3;

/// Resume action: done; a read's value is in [`MmioExit::data`].
pub const RESUME_HANDLED: u8 = 0;
/// Resume action: inject an abort into the guest.
pub const RESUME_FAULT: u8 = 1;
/// Resume action: run the instruction again.
pub const RESUME_RETRY: u8 = 2;

/// [`StatusExit::status`]: the VM could not be started.
pub const STATUS_LOAD_FAILED: u32 = 1;
/// [`StatusExit::status`]: the guest has ended by its own wish.
pub const STATUS_EXITED: u32 = 2;
/// [`StatusExit::status`]: the guest was ended.
pub const STATUS_CRASHED: u32 = 3;

/// [`StatusExit::kind`]: PSCI SYSTEM_OFF.
pub const EXIT_TYPE_POWER_OFF: u16 = 1;
/// [`StatusExit::kind`]: PSCI SYSTEM_RESET.
pub const EXIT_TYPE_RESET: u16 = 2;
/// [`StatusExit::kind`]: the hypervisor gave up on the guest.
pub const EXIT_TYPE_HYPERVISOR_ERROR: u16 = 5;

/// Argument of [`CREATE_GUEST_MEM`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CreateMem {
    /// [`MEM_CLOEXEC`], [`MEM_ALLOW_HUGEPAGE`] and [`MEM_LEND_FIRST`].
    pub flags: u64,
    /// Size in bytes, page-aligned.
    pub size: u64,
    /// Not looked at.
    pub reserved: [u64; 6],
}

/// Argument of [`MEM_EXPORT_DMABUF`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ExportDmabuf {
    /// Where in the memory it begins, in bytes, page-aligned.
    pub offset: u64,
    /// Size in bytes, page-aligned.
    pub size: u64,
    /// [`EXPORT_CLOEXEC`] and [`EXPORT_WRITE`].
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
}

/// Argument of [`VM_SET_DTB_CONFIG`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct DtbConfig {
    /// Guest address of the device tree; the first vCPU finds it in X0.
    pub guest_phys_addr: u64,
    /// Size of its room in bytes: not 0, and at most 64 MiB, when the VM starts.
    pub size: u64,
}

/// Argument of [`VM_ADD_FUNCTION`] and [`VM_REMOVE_FUNCTION`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FunctionDesc {
    /// `FUNCTION_*` (the interface's name for it is `type`).
    pub kind: u32,
    /// Size of the argument in bytes, at most [`FUNCTION_ARG_MAX`].
    pub arg_size: u32,
    /// User address of the argument.
    pub arg: u64,
}

/// Argument of the vCPU function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct VcpuArg {
    /// The vCPU's number, also its MPIDR affinity 0.
    pub id: u32,
}

/// Argument of the IRQFD function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct IrqfdArg {
    /// File descriptor of the eventfd.
    pub fd: u32,
    /// Label of the node in the guest's device tree. One IRQFD to a label.
    pub label: u32,
    /// [`IRQFD_LEVEL`] and [`IRQFD_RESAMPLE`].
    pub flags: u32,
    /// With [`IRQFD_RESAMPLE`]: file descriptor of the eventfd for the other way. Otherwise, it is
    /// not looked at (v17 has padding here).
    pub resample_fd: u32,
}

/// Argument of the IOEVENTFD function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct IoeventfdArg {
    /// With [`IOEVENTFD_DATAMATCH`]: the value that counts.
    pub datamatch: u64,
    /// The guest address that is written to.
    pub addr: u64,
    /// Size of the write in bytes: 1, 2, 4 or 8, or 0. It counts only with
    /// [`IOEVENTFD_DATAMATCH`], and must not be 0 then; without it, a write of any size matches.
    pub len: u32,
    /// File descriptor of the eventfd.
    pub fd: i32,
    /// [`IOEVENTFD_DATAMATCH`].
    pub flags: u32,
    /// Not looked at.
    pub padding: u32,
}

/// Argument of the console function.
///
/// The function is a PL011 (r1p5, FIFOs of 32 characters) in one page of guest addresses, which has
/// no memory. The guest's accesses to this page end in the kernel. The file descriptor is the other
/// end of the line: `read` gives what the guest has written, `write` sends to the guest, `poll` and
/// O_NONBLOCK work. A read at the end of the line, after the VM has ended or the function was
/// removed, gives 0 bytes, and a write ENODEV. A console without a reader loses the oldest
/// characters ([`fdinfo::LOST`] counts them).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ConsoleArg {
    /// Guest address of the PL011, page-aligned. One console to an address.
    pub addr: u64,
    /// INTID of its interrupt, an SPI (from 32 on) that is level-sensitive; 0 if it has none. A VM
    /// without an interrupt controller has none either.
    pub interrupt: u32,
    /// Zero.
    pub flags: u32,
}

/// Argument of [`VM_MAP_MEM`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct MapMem {
    /// First guest address, page-aligned.
    pub guest_addr: u64,
    /// `MAP_*`.
    pub flags: u32,
    /// File descriptor of the guest memory.
    pub guest_mem_fd: u32,
    /// Offset in the guest memory in bytes, page-aligned.
    pub offset: u64,
    /// Size in bytes, page-aligned, not 0.
    pub size: u64,
}

/// Argument of [`VM_SET_BOOT_CONTEXT`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct BootContext {
    /// `set << 8 | index`, see [`boot_register`]; the low 16 bits count.
    pub reg: u32,
    /// Not looked at.
    pub reserved: u32,
    /// The value.
    pub value: u64,
}

/// Composes [`BootContext::reg`].
pub const fn boot_register(set: u32, index: u32) -> u32 {
    set << 8 | index
}

/// The guest touched an address where no memory is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct MmioExit {
    /// The guest address.
    pub phys_addr: u64,
    /// What is written, or what the program answers to a read; the first
    /// [`len`](Self::len) bytes count.
    pub data: [u8; 8],
    /// Bytes: 1, 2, 4 or 8.
    pub len: u32,
    /// 1 for a write, 0 for a read.
    pub is_write: u8,
    /// From the program: a `RESUME_*`. [`RESUME_HANDLED`] when it gets it.
    pub resume_action: u8,
    /// Zero.
    pub reserved: [u8; 2],
}

/// The VM has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct StatusExit {
    /// `STATUS_*`.
    pub status: u32,
    /// `EXIT_TYPE_*` (the interface's name for it is `type`).
    pub kind: u16,
    /// Zero.
    pub padding: u16,
    /// Bytes of [`reason`](Self::reason) that count.
    pub reason_size: u32,
    /// More about it.
    pub reason: [u8; 8],
}

/// A page that the guest needs could not be brought in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PageFaultExit {
    /// The guest address.
    pub phys_addr: u64,
    /// Why: a negative errno, -EAGAIN if somebody in the host uses the page.
    pub attempt: i32,
    /// From the program: a `RESUME_*`; handled and retry are the same here.
    pub resume_action: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

/// What [`VcpuRun::exit_reason`] says more about.
#[derive(Clone, Copy)]
#[repr(C)]
pub union Exit {
    /// [`EXIT_MMIO`].
    pub mmio: MmioExit,
    /// [`EXIT_STATUS`].
    pub status: StatusExit,
    /// [`EXIT_PAGE_FAULT`].
    pub page_fault: PageFaultExit,
    /// All of it, as the shim copies it.
    pub words: [u64; EXIT_WORDS],
}

/// Size of [`Exit`] in words of 8 bytes.
pub const EXIT_WORDS: usize = 3;

/// The start of the page that a vCPU's file descriptor maps at offset 0.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct VcpuRun {
    /// From the program, at any time: not 0 ends [`VCPU_RUN`] with EINTR
    /// before it enters the guest.
    pub immediate_exit: u8,
    /// Zero.
    pub padding: [u8; 7],
    /// `EXIT_*`.
    pub exit_reason: u32,
    /// Zero.
    pub reserved: u32,
    /// The rest of the answer.
    pub exit: Exit,
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<CreateMem>() == 64);
    assert!(size_of::<DtbConfig>() == 16);
    assert!(size_of::<FunctionDesc>() == 16);
    assert!(size_of::<IrqfdArg>() == 16);
    assert!(size_of::<ConsoleArg>() == 16);
    assert!(size_of::<IoeventfdArg>() == 32 && offset_of!(IoeventfdArg, fd) == 20);
    assert!(size_of::<MapMem>() == 32);
    assert!(size_of::<BootContext>() == 16);
    assert!(size_of::<Exit>() == EXIT_WORDS * 8);
    assert!(offset_of!(MmioExit, is_write) == 20 && offset_of!(MmioExit, resume_action) == 21);
    assert!(offset_of!(StatusExit, reason_size) == 8 && offset_of!(StatusExit, reason) == 12);
    assert!(offset_of!(PageFaultExit, attempt) == 8);
    assert!(offset_of!(PageFaultExit, resume_action) == 12);
    assert!(offset_of!(VcpuRun, exit_reason) == 8 && offset_of!(VcpuRun, exit) == 16);
    assert!(CREATE_GUEST_MEM == 0x4040_4708 && VM_START == 0x4703);
    assert!(MEM_EXPORT_DMABUF == 0x4018_4780);
};

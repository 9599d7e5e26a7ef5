// SPDX-License-Identifier: MIT OR Apache-2.0

//! Who pays for a guest's memory: the control group (version 2) of the process
//! that makes it, as for all memory that a kernel takes for a process.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use super::same;
use crate::access::{read, write};
use crate::guest::{Guest, Order, RAM};
use crate::gunyah::{Device, PAGE};
use escrow_shim_tests::say;

/// What a process and its kernel objects may need beside the pages in question:
/// stacks, page tables, slabs, and what each CPU has charged ahead.
const SLACK: u64 = 2 << 20;
/// How long the kernel may take to uncharge what is freed.
const SETTLE: Duration = Duration::from_secs(10);

/// A control group of this test's own.
pub(super) struct Group(PathBuf);

impl Group {
    /// Makes one and moves this process into it.
    fn enter(name: &str) -> Result<Group> {
        let group = Group::new(name)?;
        group.join()?;
        Ok(group)
    }

    /// Moves this process into it.
    fn join(&self) -> Result<()> {
        self.set("cgroup.procs", &process::id().to_string())
    }

    fn new(name: &str) -> Result<Group> {
        Group::with(name, "memory")
    }

    /// One that a controller looks after.
    pub(super) fn with(name: &str, controller: &str) -> Result<Group> {
        let root = Path::new("/sys/fs/cgroup");
        if !root.join("cgroup.controllers").exists() {
            let none = None::<&str>;
            mount(Some("cgroup2"), root, Some("cgroup2"), MsFlags::empty(), none)
                .context("mounting cgroup2")?;
        }
        fs::write(root.join("cgroup.subtree_control"), format!("+{controller}"))
            .with_context(|| format!("the {controller} controller"))?;
        let group = Group(root.join(format!("{name}-{}", process::id())));
        fs::create_dir(&group.0)?;
        Ok(group)
    }

    pub(super) fn set(&self, file: &str, value: &str) -> Result<()> {
        fs::write(self.0.join(file), value).with_context(|| format!("{file} = {value}"))
    }

    /// Whether the kernel has this file of it.
    pub(super) fn has(&self, file: &str) -> Result<bool> {
        Ok(fs::exists(self.0.join(file))?)
    }

    /// What a file of it says.
    pub(super) fn get(&self, file: &str) -> Result<String> {
        fs::read_to_string(self.0.join(file)).with_context(|| file.to_owned())
    }

    fn limit(&self, bytes: u64) -> Result<()> {
        self.set("memory.max", &bytes.to_string())
    }

    /// Bytes that are charged to it.
    fn current(&self) -> Result<u64> {
        Ok(fs::read_to_string(self.0.join("memory.current"))?.trim().parse()?)
    }

    /// Bytes of a kind of memory, by its name in `memory.stat`.
    fn stat(&self, name: &str) -> Result<u64> {
        let stat = fs::read_to_string(self.0.join("memory.stat"))?;
        let value = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(value.with_context(|| format!("memory.stat has no {name}"))?.parse()?)
    }

    /// Waits until it has at least so much more of a kind. The kernel adds up what
    /// its CPUs have counted every two seconds (`flush_memcg_stats_dwork`).
    fn grows(&self, name: &str, before: u64, by: u64) -> Result<()> {
        let deadline = Instant::now() + SETTLE;
        loop {
            let more = self.stat(name)?.saturating_sub(before);
            if more >= by {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{name} has grown by {more} bytes, not {by}");
            std::thread::yield_now();
        }
    }

    /// How often its limit made the kernel kill.
    fn kills(&self) -> Result<u64> {
        let events = fs::read_to_string(self.0.join("memory.events"))?;
        let value = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
        Ok(value.context("memory.events has no oom_kill")?.parse()?)
    }

    /// Waits until it has about what it had.
    fn settles_at(&self, before: u64) -> Result<()> {
        let deadline = Instant::now() + SETTLE;
        loop {
            let now = self.current()?;
            if now < before + SLACK {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{now} bytes are charged, {before} were");
            std::thread::yield_now();
        }
    }
}

/// Runs `life` in a child in a group of its own, where want of memory kills
/// nobody else; how that ended.
fn in_a_child(group: &Group, life: impl FnOnce() -> Result<()>) -> Result<WaitStatus> {
    // SAFETY: the tests run in a process with one thread.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Child => {
            let status = match group.join().and_then(|()| life()) {
                Ok(()) => 0,
                Err(error) => {
                    say!("{error:#}");
                    1
                }
            };
            // SAFETY: ends this process at once.
            unsafe { libc::_exit(status) }
        }
        ForkResult::Parent { child } => Ok(waitpid(child, None)?),
    }
}

/// What is populated is charged, and no longer when it is closed; a page that a
/// guest has counts as any other.
pub fn follows_the_pages() -> Result<()> {
    const PAGES: u64 = 4096;
    let device = Device::open()?;
    let group = Group::enter("follows")?;
    let before = group.current()?;

    let memory = device.memory(PAGES)?;
    let empty = group.current()?;
    ensure!(empty < before + SLACK, "a memory without pages costs {} bytes", empty - before);
    memory.fallocate(libc::FALLOC_FL_KEEP_SIZE, 0, PAGES * PAGE)?;
    let full = group.current()?;
    ensure!(
        (PAGES * PAGE..PAGES * PAGE + SLACK).contains(&(full - empty)),
        "{PAGES} pages cost {} bytes",
        full - empty
    );
    memory.punch(0, PAGES / 2)?;
    group.settles_at(full - PAGES / 2 * PAGE)?;
    drop(memory);
    group.settles_at(before)?;

    let guest = Guest::started(&device, PAGES, 0)?;
    guest.ask(Order::Visit(RAM + PAGE, PAGES - 1))?;
    let lent = group.current()?;
    ensure!(lent >= before + PAGES * PAGE, "{PAGES} lent pages cost {} bytes", lent - before);
    let Guest { memory, mapping, vm, vcpu } = guest;
    drop((vm, vcpu));
    let home = group.current()?;
    ensure!(home + SLACK > before + PAGES * PAGE, "home are {} bytes", home - before);
    drop((memory, mapping));
    group.settles_at(before)
}

/// A VM that is killed with everything lent leaves nothing charged.
pub fn ends_with_a_kill() -> Result<()> {
    const PAGES: u64 = 4096;
    let device = Device::open()?;
    let group = Group::new("kill")?;
    let before = group.current()?;
    let status = in_a_child(&group, || {
        let guest = Guest::started(&device, PAGES, 0)?;
        guest.ask(Order::Visit(RAM + PAGE, PAGES - 1))?;
        ensure!(group.current()? >= before + PAGES * PAGE, "lent pages are not charged");
        nix::sys::signal::raise(Signal::SIGKILL)?;
        Ok(())
    })?;
    ensure!(matches!(status, WaitStatus::Signaled(_, Signal::SIGKILL, _)), "{status:?}");
    group.settles_at(before)
}

/// `fallocate` beyond the limit fails and leaves what it had got, or kills;
/// whatever happens, nothing is charged in the end.
pub fn populating_has_a_limit() -> Result<()> {
    const LIMIT: u64 = 16 << 20;
    let device = Device::open()?;
    let group = Group::new("populate")?;
    let before = group.current()?;
    group.limit(before + LIMIT)?;
    let status = in_a_child(&group, || {
        let memory = device.memory(2 * LIMIT / PAGE)?;
        let refused = memory.fallocate(libc::FALLOC_FL_KEEP_SIZE, 0, 2 * LIMIT);
        same(refused, Err(Errno::ENOMEM)).context("fallocate")?;
        let present = memory.count(escrow_vmcore::uapi::fdinfo::PRESENT)?;
        ensure!(present * PAGE <= LIMIT + SLACK, "{present} pages are there");
        // There is room again.
        memory.punch(0, 2 * LIMIT / PAGE)?;
        memory.fallocate(libc::FALLOC_FL_KEEP_SIZE, 0, LIMIT / 4).context("with room again")
    })?;
    let is_killed = matches!(status, WaitStatus::Signaled(_, Signal::SIGKILL, _));
    ensure!(is_killed || matches!(status, WaitStatus::Exited(_, 0)), "{status:?}");
    same(is_killed, group.kills()? > 0).context("killed, and not for want of memory")?;
    group.settles_at(before)
}

/// A mapping that is touched, and a guest that touches: the limit holds, the
/// process is told or killed, and its guest leaves nothing behind.
pub fn touching_has_a_limit() -> Result<()> {
    const LIMIT: u64 = 16 << 20;
    const PAGES: u64 = 2 * LIMIT / PAGE;
    let device = Device::open()?;
    let group = Group::new("touch")?;
    let before = group.current()?;
    group.limit(before + LIMIT)?;
    for by_the_guest in [false, true] {
        let status = in_a_child(&group, || {
            let guest = Guest::started(&device, PAGES, 0)?;
            if by_the_guest {
                let exit = guest.order(Order::Visit(RAM + PAGE, PAGES - 1))?;
                ensure!(
                    matches!(exit, crate::gunyah::Exit::PageFault(_, Errno::ENOMEM)),
                    "the guest has all its pages: {exit:?}"
                );
            } else {
                let refused =
                    (1..PAGES).find_map(|page| write(&guest.mapping, page * PAGE, 1).err());
                ensure!(refused.is_some(), "all pages are there");
                read(&guest.mapping, 0).map(drop).or_else(|error| {
                    // The guest's program is with the guest.
                    same(error, Errno::EFAULT)
                })?;
            }
            ensure!(group.current()? <= before + LIMIT, "beyond the limit");
            Ok(())
        })?;
        let is_killed = matches!(status, WaitStatus::Signaled(_, Signal::SIGKILL, _));
        ensure!(is_killed || matches!(status, WaitStatus::Exited(_, 0)), "{status:?}");
        group.settles_at(before)?;
    }
    Ok(())
}

/// What a guest has is in the figures of its VMM, which is killed for want of memory
/// before bystanders are that have less.
pub fn the_borrower_is_killed_first() -> Result<()> {
    const LIMIT: u64 = 64 << 20;
    const BYSTANDERS: u64 = 16 << 20;
    const PAGES: u64 = 2 * LIMIT / PAGE;
    let device = Device::open()?;
    let group = Group::new("chosen")?;
    let before = group.current()?;
    group.limit(before + LIMIT)?;
    let (mut reader, mut writer) = std::io::pipe()?;
    // SAFETY: the tests run in a process with one thread.
    let bystander = match unsafe { fork() }.context("fork")? {
        ForkResult::Child => {
            drop(reader);
            let own = vec![1u8; BYSTANDERS as usize];
            if group.join().is_ok() {
                // Pages are charged to who touches them: once more, from here.
                let again = own.clone();
                let _ = writer.write_all(&again[..1]);
                loop {
                    nix::unistd::pause();
                }
            }
            // SAFETY: ends this process at once.
            unsafe { libc::_exit(1) }
        }
        ForkResult::Parent { child } => child,
    };
    drop(writer);
    reader.read_exact(&mut [0]).context("the bystander")?;
    let status = in_a_child(&group, || {
        let guest = Guest::started(&device, PAGES, 0)?;
        let exit = guest.order(Order::Visit(RAM + PAGE, PAGES - 1))?;
        ensure!(
            matches!(exit, crate::gunyah::Exit::PageFault(_, Errno::ENOMEM)),
            "the guest has all its pages: {exit:?}"
        );
        Ok(())
    })?;
    let lives = nix::sys::signal::kill(bystander, None).is_ok()
        && matches!(
            nix::sys::wait::waitpid(bystander, Some(nix::sys::wait::WaitPidFlag::WNOHANG))?,
            WaitStatus::StillAlive
        );
    if lives {
        nix::sys::signal::kill(bystander, Signal::SIGKILL)?;
        waitpid(bystander, None)?;
    }
    ensure!(lives, "the bystander was killed, the VMM's end: {status:?}");
    ensure!(matches!(status, WaitStatus::Signaled(_, Signal::SIGKILL, _)), "{status:?}");
    same(group.kills()?, 1)?;
    group.settles_at(before)
}

/// What the guest of a process had that was killed for want of memory is free when the
/// process is gone, also if somebody else has a file of that memory.
pub fn a_victim_s_memory_is_free() -> Result<()> {
    const LIMIT: u64 = 32 << 20;
    const PAGES: u64 = 2 * LIMIT / PAGE;
    let device = Device::open()?;
    let memory = device.memory(PAGES)?;
    let group = Group::new("victim")?;
    let before = group.current()?;
    group.limit(before + LIMIT)?;
    let status = in_a_child(&group, || {
        let guest = Guest::started(&device, 16, 0)?;
        let at = RAM + (1 << 30);
        guest.vm.bind(at, crate::gunyah::RWX, &memory, 0, PAGES)?;
        guest.order(Order::Visit(at, PAGES)).map(drop)
    })?;
    ensure!(matches!(status, WaitStatus::Signaled(_, Signal::SIGKILL, _)), "{status:?}");
    let count = |state| memory.count(state);
    let (present, lent) =
        (count(escrow_vmcore::uapi::fdinfo::PRESENT)?, count(escrow_vmcore::uapi::fdinfo::LENT)?);
    ensure!(present + lent <= 64, "{present} pages are present, {lent} lent");
    group.settles_at(before)
}

/// An OOM victim ends the VMs that it has created itself, and no VM of another process of which
/// it has a file.
pub fn a_victim_ends_no_other_s_vms() -> Result<()> {
    const LIMIT: u64 = 16 << 20;
    let device = Device::open()?;
    let (given, kept) = (device.vm()?, device.vm()?);
    let group = Group::new("heir")?;
    group.limit(group.current()? + LIMIT)?;
    // SAFETY: the tests run in a process with one thread.
    let heir = match unsafe { fork() }.context("fork")? {
        ForkResult::Child => {
            let mut own = Vec::new();
            while group.join().is_ok() && own.len() < 64 {
                own.push(vec![1u8; (LIMIT / 8) as usize]);
            }
            // SAFETY: ends this process at once.
            unsafe { libc::_exit(1) }
        }
        ForkResult::Parent { child } => child,
    };
    // The child has the only file of it now.
    drop(given);
    let status = waitpid(heir, None)?;
    ensure!(matches!(status, WaitStatus::Signaled(_, Signal::SIGKILL, _)), "{status:?}");
    kept.vcpu(0).map(drop).context("a VM of who lives")
}

/// A process that is killed for want of memory has made VMs, of which another one has all
/// files and closes them just as they are being ended: all of them go, and who ends them
/// waits for nobody who waits for it.
pub fn a_victim_s_vms_are_closed_meanwhile() -> Result<()> {
    const LIMIT: u64 = 8 << 20;
    const PAGES: u64 = 4096;
    const VMS: &str = "/sys/kernel/debug/escrow/vms";
    let device = Device::open()?;
    let group = Group::new("closed")?;
    group.limit(group.current()? + LIMIT)?;
    let (mut reader, mut writer) = std::io::pipe()?;
    let (mut orders, mut order) = std::io::pipe()?;
    // SAFETY: the tests run in a process with one thread.
    let victim = match unsafe { fork() }.context("fork")? {
        ForkResult::Child => {
            let mut live = || -> Result<()> {
                group.join()?;
                let vms = [device.vm()?, device.vm()?];
                let fds = [vms[0].as_fd().as_raw_fd(), vms[1].as_fd().as_raw_fd()];
                writer.write_all(fds.map(i32::to_le_bytes).as_flattened())?;
                orders.read_exact(&mut [0])?;
                drop(vms);
                writer.write_all(&[0])?;
                orders.read_exact(&mut [0])?;
                let mut own = Vec::new();
                while own.len() < 64 {
                    own.push(vec![1u8; (LIMIT / 8) as usize]);
                }
                Ok(())
            };
            let _ = live();
            // SAFETY: ends this process at once.
            unsafe { libc::_exit(1) }
        }
        ForkResult::Parent { child } => child,
    };
    drop(writer);
    let mut fds = [0; 8];
    reader.read_exact(&mut fds).context("the victim")?;
    // SAFETY: asks for descriptors, and touches no memory.
    let get = |nr, first: i64, second: i64| unsafe { libc::syscall(nr, first, second, 0) };
    // SAFETY: the kernel has just made it for us.
    let own = |fd: i64| unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let pid = own(Errno::result(get(libc::SYS_pidfd_open, victim.as_raw().into(), 0))?);
    let mut guests = Vec::new();
    for fd in fds.as_chunks().0 {
        let theirs = i32::from_le_bytes(*fd).into();
        let fd = Errno::result(get(libc::SYS_pidfd_getfd, pid.as_raw_fd().into(), theirs))?;
        let guest = Guest::in_vm(own(fd).into(), device.memory(PAGES)?, PAGES, 0)?;
        guest.vm.start()?;
        guest.ask(Order::Visit(RAM + PAGE, PAGES - 1))?;
        guests.push(guest);
    }
    order.write_all(&[0])?;
    reader.read_exact(&mut [0]).context("the victim")?;
    order.write_all(&[0])?;
    let is_ended = |line: Option<&str>| line.is_some_and(|line| line.contains(" ended "));
    for (at, guest) in guests.into_iter().enumerate() {
        let deadline = Instant::now() + SETTLE;
        loop {
            let list = fs::read_to_string(VMS)?;
            // They stand there in the order in which they were made, below a line of names.
            let mut lines = list.lines().skip(1);
            if is_ended(if at == 0 { lines.next() } else { lines.last() }) {
                break;
            }
            ensure!(Instant::now() < deadline, "VM {at} is not being ended: {list}");
        }
        let Guest { vm, vcpu, .. } = guest;
        drop((vm, vcpu));
    }
    let status = waitpid(victim, None)?;
    ensure!(matches!(status, WaitStatus::Signaled(_, Signal::SIGKILL, _)), "{status:?}");
    let deadline = Instant::now() + SETTLE;
    while fs::read_to_string(VMS)?.lines().count() > 1 {
        ensure!(Instant::now() < deadline, "still there: {}", fs::read_to_string(VMS)?);
        std::thread::yield_now();
    }
    Ok(())
}

/// What the module keeps about each page is charged as well.
pub fn counts_records() -> Result<()> {
    const PAGES: u64 = 4096;
    /// Bytes of a record, at least: a folio's state alone has 40.
    const RECORD: u64 = 40;
    let device = Device::open()?;
    let group = Group::enter("records")?;
    let start = group.current()?;
    let memory = device.memory(PAGES)?;
    let before = group.stat("slab_unreclaimable")?;
    memory.fallocate(libc::FALLOC_FL_KEEP_SIZE, 0, PAGES * PAGE)?;
    group.grows("slab_unreclaimable", before, PAGES * RECORD)?;
    drop(memory);
    group.settles_at(start)
}

/// A VM's metadata is charged as well.
pub fn counts_metadata() -> Result<()> {
    const VMS: usize = 16;
    let device = Device::open()?;
    let group = Group::enter("metadata")?;
    let before = group.stat("kernel")?;
    let start = group.current()?;
    let mut vms = Vec::new();
    for _ in 0..VMS {
        vms.push(device.vm()?);
    }
    // Four pages at least of each are in Escrow's hands.
    group.grows("kernel", before, VMS as u64 * 4 * PAGE)?;
    drop(vms);
    group.settles_at(start)
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! What one user may have, and who pays for it: nothing that programs do makes the
//! kernel's work, or its memory, grow without a bound.

use std::fs;
use std::io::{PipeReader, PipeWriter, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use escrow_vmcore::args::{BINDINGS_MAX, IOEVENTFDS_MAX};
use escrow_vmcore::uapi;
use escrow_vmcore::uapi::fdinfo;
use nix::errno::Errno;
use nix::sys::eventfd::EventFd;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Gid, Uid, fork, setgid, setresuid, setuid};

use super::{console, refused, same};
use crate::access::write;
use crate::guest::{Guest, Order, RAM};
use crate::gunyah::{Device, PAGE, RWX};
use escrow_shim_tests::runner::Lacking;
use escrow_shim_tests::say;

const NOBODY: u32 = 65534;
const PARAMETERS: &str = "/sys/module/escrow/parameters";

/// One of the module's parameters, with another value until it goes.
struct Parameter {
    path: PathBuf,
    old: String,
}

impl Parameter {
    fn set(name: &str, value: u32) -> Result<Parameter> {
        let path = PathBuf::from(PARAMETERS).join(name);
        let old = fs::read_to_string(&path)?;
        fs::write(&path, value.to_string())?;
        Ok(Parameter { path, old })
    }
}

impl Drop for Parameter {
    fn drop(&mut self) {
        if let Err(error) = fs::write(&self.path, self.old.trim()) {
            say!("{}: {error}", self.path.display());
        }
    }
}

/// Does something as a user without any capability who may lock so many bytes.
fn as_nobody(may_lock: u64, life: impl FnOnce() -> Result<()>) -> Result<()> {
    // SAFETY: the tests run in a process with one thread.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Child => {
            let become_nobody = || -> Result<()> {
                setrlimit(Resource::RLIMIT_MEMLOCK, may_lock, may_lock)?;
                setgid(Gid::from_raw(NOBODY))?;
                Ok(setuid(Uid::from_raw(NOBODY))?)
            };
            let lived = become_nobody().and_then(|()| life());
            if let Err(error) = &lived {
                say!("{error:#}");
            }
            // SAFETY: ends this process at once.
            unsafe { libc::_exit(lived.is_err().into()) }
        }
        ForkResult::Parent { child } => match waitpid(child, None)? {
            WaitStatus::Exited(_, 0) => Ok(()),
            status => bail!("nobody's process: {status:?}"),
        },
    }
}

/// A number (KiB) of a file of lines as `/proc/meminfo` has them.
fn kib(path: &str, name: &str) -> Result<u64> {
    let text = fs::read_to_string(path)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Ok(number.with_context(|| format!("{path} has no {name}"))?.trim().parse()?)
}

fn pinned() -> Result<u64> {
    kib("/proc/self/status", "VmPin")
}

/// Pages count against RLIMIT_MEMLOCK of the user who made the memory, however they
/// come to be.
pub fn of_locked_memory() -> Result<()> {
    const PAGES: u64 = 64;
    let device = Device::open()?;
    as_nobody(0, || {
        let memory = device.memory(PAGES)?;
        refused(memory.fallocate(0, 0, PAGE), Errno::ENOMEM).context("nothing is allowed")?;
        refused(write(&memory.map(0, 1)?, 0, 1), Errno::EFAULT).context("touched")?;
        refused(device.vm().map(drop), Errno::ENOMEM).context("a VM's metadata")?;
        same(pinned()?, 0)
    })?;
    as_nobody(PAGES * PAGE, || {
        let memory = device.huge_memory_if_any(1024)?;
        memory.fallocate(0, 0, PAGES * PAGE)?;
        refused(memory.fallocate(0, 0, (PAGES + 1) * PAGE), Errno::ENOMEM).context("one more")?;
        same(memory.count(fdinfo::PRESENT)?, PAGES)?;
        same(pinned()?, PAGES * PAGE / 1024)?;
        memory.punch(0, 8)?;
        same(pinned()?, (PAGES - 8) * PAGE / 1024)?;
        memory.fallocate(0, 512 * PAGE, 8 * PAGE).context("what was given back")?;
        refused(device.memory(1)?.fallocate(0, 0, PAGE), Errno::ENOMEM)
            .context("the same user's other memory")?;
        drop(memory);
        same(pinned()?, 0)
    })
}

/// Nothing is hidden of what is not limited either: also what a guest has.
pub fn are_seen() -> Result<()> {
    const PAGES: u64 = 2048;
    /// What the kernel may evict, or not, meanwhile by itself.
    const SLACK: u64 = 1024;
    let device = Device::open()?;
    let unevictable = || kib("/proc/meminfo", "Unevictable");
    let (was_pinned, before) = (pinned()?, unevictable()?);
    let Guest { memory, mapping, vm, vcpu } = {
        let guest = Guest::started(&device, PAGES, 0)?;
        guest.ask(Order::Visit(RAM + PAGE, PAGES - 1))?;
        guest
    };
    let expected = PAGES * PAGE / 1024;
    let (is_pinned, now) = (pinned()? - was_pinned, unevictable()?);
    ensure!(is_pinned >= expected && is_pinned < expected + SLACK, "VmPin grew by {is_pinned} KiB");
    ensure!(now + SLACK > before + expected, "Unevictable was {before} KiB, is {now} KiB");
    drop((vm, vcpu, memory, mapping));
    same(pinned()?, was_pinned)?;
    let after = unevictable()?;
    ensure!(after < before + SLACK, "Unevictable was {before} KiB, is {after} KiB");
    Ok(())
}

/// A user who has taken all VMs that he may leaves others theirs.
pub fn of_vms() -> Result<()> {
    const MOST: usize = 5;
    let device = Device::open()?;
    let default =
        fs::read_to_string(format!("{PARAMETERS}/vms_per_user"))?.trim().parse::<u32>()?;
    ensure!((1..63).contains(&default), "{default} VMs a user leave none");
    let parameter = Parameter::set("vms_per_user", MOST as u32)?;
    let mut vms = Vec::new();
    let errno = loop {
        ensure!(vms.len() <= MOST, "more than {MOST}");
        match device.vm() {
            Ok(vm) => vms.push(vm),
            Err(errno) => break errno,
        }
    };
    same((vms.len(), errno), (MOST, Errno::EDQUOT))?;
    as_nobody(1 << 20, || Ok(device.vm().map(drop)?)).context("another user's")?;
    vms.pop();
    vms.push(device.vm().context("one is gone")?);
    drop(parameter);
    Ok(())
}

/// The same with memories. What counts is the memory, not its descriptor.
pub fn of_memories() -> Result<()> {
    let device = Device::open()?;
    let parameter = Parameter::set("memories_per_user", 2)?;
    let (one, other) = (device.memory(1)?, device.memory(1)?);
    refused(device.memory(1).map(drop), Errno::EDQUOT)?;
    let mapping = one.map(0, 1)?;
    drop(one);
    refused(device.memory(1).map(drop), Errno::EDQUOT).context("it is mapped")?;
    as_nobody(1 << 20, || Ok(device.memory(1).map(drop)?)).context("another user's")?;
    drop(mapping);
    drop(device.memory(1)?);
    drop((other, parameter));
    Ok(())
}

/// The same with consoles. What counts is the console, which lives as long as the VM or its file.
pub fn of_consoles() -> Result<()> {
    let device = Device::open()?;
    let parameter = Parameter::set("consoles_per_user", 3)?;
    let at = |number: u64| uapi::ConsoleArg { addr: number * 0x1000, interrupt: 0, flags: 0 };
    let mut files = Vec::new();
    for number in 1..=3 {
        let vm = device.vm()?;
        files.push(console::add(&vm, &at(number))?);
        vm.remove_function(uapi::FUNCTION_CONSOLE, &at(number))?;
    }
    let vm = device.vm()?;
    refused(console::add(&vm, &at(1)).map(drop), Errno::EDQUOT).context("their VMs are gone")?;
    let other = as_nobody(1 << 20, || Ok(console::add(&device.vm()?, &at(1)).map(drop)?));
    other.context("another user's")?;
    files.pop();
    let file = console::add(&vm, &at(1)).context("one is gone")?;
    drop(file);
    refused(console::add(&vm, &at(2)).map(drop), Errno::EDQUOT).context("the VM has it")?;
    vm.remove_function(uapi::FUNCTION_CONSOLE, &at(1))?;
    drop(console::add(&vm, &at(2))?);
    drop((vm, parameter));
    Ok(())
}

/// A user that has created a namespace with other users has no higher limit with them than
/// alone.
pub fn of_users_of_a_user() -> Result<()> {
    const OWNER: u32 = 1000;
    const PAGES: u64 = 64;
    let has_namespaces = fs::exists("/proc/self/ns/user")?;
    ensure!(has_namespaces, Lacking("namespaces of users".to_owned()));
    let device = Device::open()?;
    let parameter = Parameter::set("vms_per_user", 2)?;
    let (mut from_child, mut to_parent) = std::io::pipe()?;
    let (mut from_parent, mut to_child) = std::io::pipe()?;
    let within = |from_parent: &mut PipeReader, to_parent: &mut PipeWriter| -> Result<()> {
        setrlimit(Resource::RLIMIT_MEMLOCK, PAGES * PAGE, PAGES * PAGE)?;
        setgid(Gid::from_raw(OWNER))?;
        setuid(Uid::from_raw(OWNER))?;
        // SAFETY: changes what this process is, and no memory.
        Errno::result(unsafe { libc::unshare(libc::CLONE_NEWUSER) }).context("unshare")?;
        to_parent.write_all(&[0])?;
        from_parent.read_exact(&mut [0])?;
        let become_user = |user| {
            let (user, root) = (Uid::from_raw(user), Uid::from_raw(0));
            setresuid(root, root, root).and_then(|()| setresuid(user, user, root))
        };
        let mut vms = Vec::new();
        for user in [1, 2] {
            become_user(user)?;
            vms.push(device.vm().with_context(|| format!("user {user}"))?);
        }
        become_user(3)?;
        refused(device.vm().map(drop), Errno::EDQUOT).context("VMs of all")?;
        drop(vms);
        become_user(4)?;
        let one = device.memory(PAGES)?;
        one.fallocate(0, 0, PAGES / 2 * PAGE)?;
        become_user(5)?;
        let other = device.memory(PAGES)?;
        other.fallocate(0, 0, PAGES / 2 * PAGE)?;
        refused(other.fallocate(0, 0, PAGES * PAGE), Errno::ENOMEM).context("pages of all")?;
        drop(one);
        Ok(other.fallocate(0, 0, PAGES * PAGE)?)
    };
    // SAFETY: the tests run in a process with one thread.
    let child = match unsafe { fork() }.context("fork")? {
        ForkResult::Child => {
            let lived = within(&mut from_parent, &mut to_parent);
            if let Err(error) = &lived {
                say!("{error:#}");
            }
            // SAFETY: ends this process at once.
            unsafe { libc::_exit(lived.is_err().into()) }
        }
        ForkResult::Parent { child } => child,
    };
    drop(to_parent);
    if from_child.read_exact(&mut [0]).is_ok() {
        fs::write(format!("/proc/{child}/uid_map"), format!("0 {OWNER} 1\n1 100000 16\n"))?;
        to_child.write_all(&[0])?;
    }
    match waitpid(child, None)? {
        WaitStatus::Exited(_, 0) => {}
        status => bail!("the owner's process: {status:?}"),
    }
    as_nobody(1 << 20, || Ok(device.vm().map(drop)?)).context("another user's")?;
    drop(parameter);
    Ok(())
}

/// A part of a memory is bound once, and there is a limit; the end of a VM does not
/// take longer for there being many.
pub fn of_bindings() -> Result<()> {
    const PAGES: u64 = BINDINGS_MAX as u64 + 8;
    /// With a walk of all pages for each binding it is half a minute.
    const PATIENCE: Duration = Duration::from_secs(8);
    let device = Device::open()?;
    let memory = device.memory(PAGES)?;
    memory.fallocate(0, 0, PAGES * PAGE)?;
    let vm = device.vm()?;
    // One range of guest addresses, of which EL2 has 64 at the most.
    let at = |page: u64| RAM + page * PAGE;
    vm.bind(at(0), RWX, &memory, 0, 1)?;
    for (page, pages) in [(0, 1), (0, 8)] {
        let twice = vm.bind(at(PAGES), RWX, &memory, page, pages);
        refused(twice, Errno::EEXIST).context("bound twice")?;
        let shared = vm.bind(at(PAGES), RWX | uapi::MAP_FORCE_SHARE, &memory, page, pages);
        refused(shared, Errno::EEXIST).context("bound in another way")?;
    }
    for page in 1..BINDINGS_MAX as u64 - 1 {
        vm.bind(at(page), RWX, &memory, page, 1)?;
    }
    // Four pages as one, of which the middle cannot go any more.
    vm.bind(at(PAGES - 4), RWX, &memory, PAGES - 4, 4)?;
    refused(vm.bind(at(2 * PAGES), RWX, &memory, PAGES - 8, 1), Errno::ENOSPC)
        .context("too many")?;
    refused(vm.unbind(at(PAGES - 3), &memory, PAGES - 3, 1), Errno::ENOSPC).context("cut")?;
    vm.unbind(at(1), &memory, 1, 1)?;
    vm.bind(at(1), RWX | uapi::MAP_FORCE_SHARE, &memory, 1, 1).context("again, in another way")?;
    let begin = Instant::now();
    drop(vm);
    let took = begin.elapsed();
    ensure!(took < PATIENCE, "the end of the VM took {took:?}");
    Ok(())
}

/// IRQFDs and IOEVENTFDs of a VM.
pub fn of_functions() -> Result<()> {
    const IRQFDS_MAX: u32 = 256;
    let vm = Device::open()?.vm()?;
    let event = EventFd::new()?;
    let fd = event.as_fd().as_raw_fd();
    let irqfd = |label| {
        let arg = uapi::IrqfdArg { fd: fd as u32, label, ..Default::default() };
        vm.add_function(uapi::FUNCTION_IRQFD, &arg)
    };
    (0..IRQFDS_MAX).try_for_each(irqfd)?;
    refused(irqfd(IRQFDS_MAX), Errno::ENOSPC).context("an IRQFD too many")?;
    refused(irqfd(0), Errno::EEXIST)?;
    let ioeventfd = |number: u64| {
        let arg = uapi::IoeventfdArg { fd, addr: number * 8, len: 4, ..Default::default() };
        vm.add_function(uapi::FUNCTION_IOEVENTFD, &arg)
    };
    (0..IOEVENTFDS_MAX as u64).try_for_each(ioeventfd)?;
    refused(ioeventfd(IOEVENTFDS_MAX as u64), Errno::ENOSPC).context("an IOEVENTFD too many")
}

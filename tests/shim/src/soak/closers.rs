// SPDX-License-Identifier: MIT OR Apache-2.0

//! Threads that make VMs, memories, vCPUs and the other functions, and threads
//! that close every low number meanwhile: a descriptor can be gone before the
//! call that made it returns, so the kernel must have done with the object by
//! the time that the number is there to be closed.

use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use escrow_shim_tests::guest::RAM;
use escrow_shim_tests::gunyah::{Device, PAGE, RWX, function};
use escrow_shim_tests::say;
use escrow_vmcore::uapi;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use crate::shared::Shared;

/// Numbers that are closed. All others are out of reach: the makers keep what they
/// need at [`HIGH`] numbers, so what is below is new.
const LOW: std::ops::Range<RawFd> = 3..7;
/// Numbers from here on are nobody's but the makers'.
const HIGH: RawFd = 64;
/// Threads that close.
const CLOSERS: usize = 2;

/// What was made, and what was closed by those who had not made it.
#[derive(Default)]
struct Tally {
    made: [AtomicU64; MAKERS.len()],
    closed: AtomicU64,
}

/// An ioctl of a descriptor that may be closed, or be another, by now.
fn call(fd: RawFd, request: u32, arg: u64) -> RawFd {
    // SAFETY: the arguments are numbers, or structures that live through the
    // call and that the shim reads; descriptors of other files refuse it.
    unsafe { libc::ioctl(fd, request as _, arg) }
}

fn tell<T>(fd: RawFd, request: u32, arg: &T) -> RawFd {
    call(fd, request, std::ptr::from_ref(arg) as u64)
}

/// Closes a number, whosever it is. Whether there was something.
fn close(fd: RawFd) -> bool {
    // SAFETY: nothing in this process relies on a low number.
    unsafe { libc::close(fd) == 0 }
}

/// A copy of a descriptor where nobody closes it; the old one goes.
fn keep(fd: RawFd) -> Result<RawFd> {
    // SAFETY: makes a copy.
    let high = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, HIGH) };
    close(fd);
    ensure!(high >= HIGH, "F_DUPFD: {}", nix::errno::Errno::last());
    Ok(high)
}

/// What makers work with.
#[derive(Clone, Copy)]
struct Tools {
    device: RawFd,
    vm: RawFd,
    event: RawFd,
}

impl Tools {
    fn new() -> Result<Tools> {
        let device = Device::open()?;
        let high = keep(device.as_fd().as_raw_fd())?;
        std::mem::forget(device);
        let vm = keep(call(high, uapi::CREATE_VM, 0))?;
        // SAFETY: a new descriptor.
        let event = keep(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) })?;
        Ok(Tools { device: high, vm, event })
    }
}

/// Something that gets a descriptor of its own, or makes use of one: whether it was made.
type Maker = fn(&Tools) -> bool;

const MAKERS: [(&str, Maker); 4] =
    [("VMs", vm), ("memories", memory), ("vCPUs", vcpu), ("functions", functions)];

fn vm(tools: &Tools) -> bool {
    let fd = call(tools.device, uapi::CREATE_VM, 0);
    close(fd);
    fd >= 0
}

fn memory(tools: &Tools) -> bool {
    let args = uapi::CreateMem { flags: uapi::MEM_CLOEXEC, size: 4 * PAGE, reserved: [0; 6] };
    let fd = tell(tools.device, uapi::CREATE_GUEST_MEM, &args);
    if fd < 0 {
        return false;
    }
    let binding = uapi::MapMem {
        guest_addr: RAM,
        flags: RWX,
        guest_mem_fd: fd as u32,
        offset: 0,
        size: PAGE,
    };
    // It may be closed by now, or be another.
    if tell(tools.vm, uapi::VM_MAP_MEM, &binding) >= 0 {
        tell(tools.vm, uapi::VM_MAP_MEM, &uapi::MapMem { flags: uapi::MAP_UNMAP, ..binding });
    }
    close(fd);
    true
}

fn vcpu(tools: &Tools) -> bool {
    let arg = uapi::VcpuArg { id: 0 };
    let vcpu = function(uapi::FUNCTION_VCPU, &arg);
    let fd = tell(tools.vm, uapi::VM_ADD_FUNCTION, &vcpu);
    call(fd, uapi::VCPU_MMAP_SIZE, 0);
    close(fd);
    tell(tools.vm, uapi::VM_REMOVE_FUNCTION, &vcpu);
    fd >= 0
}

fn functions(tools: &Tools) -> bool {
    let arg = uapi::IrqfdArg { fd: tools.event as u32, label: 1, ..Default::default() };
    let irqfd = function(uapi::FUNCTION_IRQFD, &arg);
    let arg = uapi::IoeventfdArg { fd: tools.event, addr: 0x1000, len: 4, ..Default::default() };
    let ioeventfd = function(uapi::FUNCTION_IOEVENTFD, &arg);
    [irqfd, ioeventfd].iter().all(|it| {
        let added = tell(tools.vm, uapi::VM_ADD_FUNCTION, it);
        added >= 0 && tell(tools.vm, uapi::VM_REMOVE_FUNCTION, it) >= 0
    })
}

/// The life of a process of such threads.
fn live(time: Duration, tally: &Tally) -> Result<()> {
    let tools = Tools::new()?;
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for ((_, make), made) in MAKERS.iter().zip(&tally.made) {
            let (tools, is_over) = (&tools, &is_over);
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    made.fetch_add(make(tools).into(), Ordering::Relaxed);
                }
            });
        }
        for _ in 0..CLOSERS {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let closed = LOW.filter(|&fd| close(fd)).count();
                    tally.closed.fetch_add(closed as u64, Ordering::Relaxed);
                }
            });
        }
        thread::sleep(time);
        is_over.store(true, Ordering::Relaxed);
    });
    Ok(())
}

/// Lets them run for so long. What was made and closed, for people.
pub fn race(time: Duration) -> Result<String> {
    let tally = Shared::new(Tally::default())?;
    // SAFETY: this process has one thread.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Child => {
            let lived = live(time, &tally);
            if let Err(error) = &lived {
                say!("FAILED: {error:#}");
            }
            // SAFETY: ends this process without what the parent set up for
            // its own end.
            unsafe { libc::_exit(lived.is_err().into()) }
        }
        ForkResult::Parent { child } => match waitpid(child, None)? {
            WaitStatus::Exited(_, 0) => {}
            status => bail!("the process of closers: {status:?}"),
        },
    }
    let made = tally.made.each_ref().map(|number| number.load(Ordering::Relaxed));
    let closed = tally.closed.load(Ordering::Relaxed);
    ensure!(made.iter().all(|&number| number > 0) && closed > 0, "not all was done: {made:?}");
    let made = MAKERS.iter().zip(made).map(|((name, _), number)| format!("{number} {name}"));
    Ok(format!("{}; {closed} closed", made.collect::<Vec<_>>().join(", ")))
}

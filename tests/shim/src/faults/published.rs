// SPDX-License-Identifier: MIT OR Apache-2.0

//! A descriptor that another thread closes as soon as its number is there, while
//! the call that made it lingers in the kernel: nothing of the object may be touched
//! after that. The kernel overwrites what is freed (`slub_debug=FP`), so who does
//! touch it does not get far.

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use escrow_shim_tests::gunyah::{Device, PAGE, Vm, function};
use escrow_shim_tests::tests;
use escrow_vmcore::uapi;

use crate::published;

tests! {
    published::vms_are,
    published::memories_are,
    published::vcpus_are,
}

/// How long (ms) a call lingers after it has published a descriptor.
const LINGER: &str = "/sys/module/escrow/parameters/fault_linger";
const ROUNDS: u32 = 5;
/// For the other thread to close what a call has made.
const PATIENCE: Duration = Duration::from_secs(10);

/// An ioctl, whose descriptor is nobody's: it may be gone by now.
fn call<T>(fd: RawFd, request: u32, arg: *const T) -> RawFd {
    // SAFETY: a number where the request wants one, or a structure that lives
    // through the call and that the shim reads.
    unsafe { libc::ioctl(fd, request as _, arg) }
}

/// Makes descriptors, each of which another thread closes meanwhile.
fn closed_at_once(make: impl Fn() -> RawFd) -> Result<()> {
    // SAFETY: finds the lowest number that is free, where the next one will be.
    let next = unsafe { libc::dup(0) };
    ensure!(next > 2, "no standard input");
    let (is_over, closed) = (AtomicBool::new(false), AtomicU32::new(0));
    // SAFETY: closes what `dup` made, and then what `make` makes there.
    let close = || unsafe { libc::close(next) == 0 };
    close();
    fs::write(LINGER, "50").context(LINGER)?;
    let made = thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                closed.fetch_add(close().into(), Ordering::Relaxed);
            }
        });
        let round = |round: u32| {
            let made = make();
            // On a slow machine the other thread may not have run during the call.
            let begin = Instant::now();
            while closed.load(Ordering::Relaxed) <= round && begin.elapsed() < PATIENCE {
                thread::yield_now();
            }
            made
        };
        let made: Vec<RawFd> = (0..ROUNDS).map(round).collect();
        is_over.store(true, Ordering::Relaxed);
        made
    });
    fs::write(LINGER, "0")?;
    close();
    ensure!(made.iter().all(|&fd| fd == next), "they were {made:?}, not {next}");
    let closed = closed.into_inner();
    ensure!(closed >= ROUNDS - 1, "{closed} of {ROUNDS} were closed meanwhile");
    Ok(())
}

/// CREATE_VM
pub fn vms_are() -> Result<()> {
    let device = Device::open()?;
    let fd = device.as_fd().as_raw_fd();
    closed_at_once(|| call(fd, uapi::CREATE_VM, std::ptr::null::<u8>()))
}

/// CREATE_GUEST_MEM
pub fn memories_are() -> Result<()> {
    let device = Device::open()?;
    let fd = device.as_fd().as_raw_fd();
    let args = uapi::CreateMem { flags: uapi::MEM_CLOEXEC, size: PAGE, reserved: [0; 6] };
    closed_at_once(|| call(fd, uapi::CREATE_GUEST_MEM, &args))
}

/// VM_ADD_FUNCTION of a vCPU, of which each VM has one.
pub fn vcpus_are() -> Result<()> {
    let device = Device::open()?;
    let vms = (0..ROUNDS).map(|_| device.vm()).collect::<Result<Vec<Vm>, _>>()?;
    let arg = uapi::VcpuArg { id: 0 };
    let vcpu = function(uapi::FUNCTION_VCPU, &arg);
    let next = AtomicU32::new(0);
    closed_at_once(|| {
        let vm = vms.get(next.fetch_add(1, Ordering::Relaxed) as usize);
        vm.map_or(-1, |vm| call(vm.as_fd().as_raw_fd(), uapi::VM_ADD_FUNCTION, &vcpu))
    })
}

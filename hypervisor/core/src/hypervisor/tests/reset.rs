// SPDX-License-Identifier: MIT OR Apache-2.0

//! The end of the machine.

use std::sync::atomic::{AtomicBool, Ordering};

use escrow_abi::{Error, call};

use super::fake::{FREE, Host};
use super::{block, page, started};
use crate::hypervisor::{Reply, Scratch};

#[test]
fn nothing_of_a_guest_outlives_the_machine() {
    let mut host = Host::new();
    let (vm, vcpu) = started(&mut host);
    host.lend(vm, &[page(FREE, 0), block(FREE + 0x20_0000, 0x20_0000)]).unwrap();
    host.share(vm, &[page(FREE + 0x1000, 0x1000)]).unwrap();
    let given = [FREE, FREE + 0x20_0000, FREE + 0x3f_f000];
    for at in given.into_iter().chain([FREE + 0x1000, FREE + 0x2000]) {
        host.escrow.machine.scribble(at);
    }
    // Not under a guest that could write more of them.
    host.run(vcpu, |escrow, run| {
        assert_eq!(escrow.close().unwrap().scrub(), Err(Error::Busy));
        assert!(run.slot().is_stopped());
    });
    assert!(!host.escrow.machine.is_zero(FREE));
    let closed = host.escrow.close().unwrap();
    closed.scrub().unwrap();
    assert!(given.iter().all(|&at| host.escrow.machine.is_zero(at)));
    assert!(!host.escrow.machine.is_zero(FREE + 0x1000), "the host's as well");
    assert!(!host.escrow.machine.is_zero(FREE + 0x2000), "the host's");
    drop(closed);
    assert_eq!(host.call(call::VCPU_RUN, &[vcpu]).unwrap_err().0, Error::HandleRevoked);
    host.reclaim(&[(FREE, 0), (FREE + 0x20_0000, 9)]).unwrap();
}

#[test]
fn poisoned_frames_are_scrubbed_too() {
    let mut host = Host::new();
    let (vm, _) = started(&mut host);
    host.lend(vm, &[page(FREE, 0), page(FREE + 0x1000, 0x1000)]).unwrap();
    host.escrow.machine.scribble(FREE);
    host.escrow.machine.scribble(FREE + 0x1000);
    // The host says that one is broken; it may lie.
    host.take(call::MEM_POISON, &[(FREE, 0)]).unwrap();
    host.escrow.close().unwrap().scrub().unwrap();
    assert!(host.escrow.machine.is_zero(FREE + 0x1000));
    assert!(host.escrow.machine.is_zero(FREE), "a guest's secret in a poisoned frame");
}

/// One CPU zeroes memory. Meanwhile another one wants to end the machine as well, gives
/// up, and a third one makes a VM.
#[test]
fn nobody_reopens_under_a_scrub() {
    let mut host = Host::new();
    let (vm, _) = started(&mut host);
    host.lend(vm, &[page(FREE, 0), block(FREE + 0x20_0000, 0x20_0000)]).unwrap();
    let pages = host.fresh_metadata(4);
    let [list, count] = host.list(&pages);
    let host: &'static Host = Box::leak(Box::new(host));
    let escrow = &host.escrow;
    let create = move || {
        let mut x = [call::VM_CREATE.into(), list, count, 0, 0, 0, 0, 0];
        assert!(matches!(escrow.host_call(&mut Scratch::new(), &mut x), Reply::Answer));
        if x[0] == 0 { Ok(()) } else { Err(Error::from_register(x[0]).unwrap()) }
    };
    let tried: &'static AtomicBool = Box::leak(Box::default());
    escrow.machine.at_work_on(FREE + 0x20_0000, move || {
        drop(escrow.close());
        assert_eq!(create(), Err(Error::Denied), "while the machine ends");
        tried.store(true, Ordering::Relaxed);
    });
    let closed = escrow.close().unwrap();
    closed.scrub().unwrap();
    assert!(tried.load(Ordering::Relaxed));
    assert_eq!(create(), Err(Error::Denied), "up to the firmware's call");
    // The firmware refuses.
    drop(closed);
    assert_eq!(create(), Ok(()));
    assert!(escrow.close().is_some());
}

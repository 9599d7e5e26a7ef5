// SPDX-License-Identifier: MIT OR Apache-2.0

//! Stolen time, as guests ask for it: Arm's "Paravirtualized Time for Arm-based Systems"
//! (DEN0057).
//!
//! Stolen time is time in which a vCPU could run and its host does not run it. EL2 measures it, from
//! the end of a run to the beginning of the next one, and writes it into a page of the VM's metadata
//! that is read-only for the guest and not mapped for the host ([`VM_PV_TIME`]).
//!
//! | a run ended | time is stolen |
//! | --- | --- |
//! | for an interrupt of the host, or with a notice for the host | from the run's end |
//! | because the guest waits | from the deadline of its timer, if that passes |
//! | otherwise: the guest waits for its host's answer, or is off | never |
//!
//! [`VM_PV_TIME`]: escrow_abi::call::VM_PV_TIME

use escrow_abi::pv_time::{STRUCTURE_SIZE, TIME};
use escrow_abi::run;

use super::context::Vcpu;
use crate::hypervisor::Hypervisor;
use crate::machine::Machine;
use crate::vm::Slot;

const NANOSECONDS: u64 = 1_000_000_000;

/// The stolen time of a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StolenTime {
    /// The guest address of the vCPU's structure.
    pub(super) at: u64,
    /// Since when time is stolen, as a value of the physical counter; all ones while none is.
    since: u64,
    /// The stolen time so far, in ticks of the counter.
    total: u64,
}

impl StolenTime {
    /// No stolen time yet, for vCPU `index` of a VM whose page is at guest address `page`.
    pub(crate) const fn new(page: u64, index: u8) -> StolenTime {
        let at = page + index as u64 * STRUCTURE_SIZE;
        StolenTime { at, since: u64::MAX, total: 0 }
    }

    /// A run begins.
    fn begin(&mut self, now: u64) {
        self.total = self.total.wrapping_add(now.saturating_sub(self.since));
        self.since = u64::MAX;
    }

    /// A run has ended, with this state for the host. `deadline` counts if the guest waits.
    fn end(&mut self, now: u64, state: u64, deadline: u64) {
        self.since = match state {
            run::READY | run::SWITCHED_ON | run::WAKE | run::SPI_DONE => now,
            run::EXPECTS_WAKEUP => deadline,
            _ => u64::MAX,
        };
    }
}

/// Ticks of a counter in nanoseconds.
fn nanoseconds(ticks: u64, per_second: u64) -> u64 {
    let (Some(seconds), Some(rest)) =
        (ticks.checked_div(per_second), ticks.checked_rem(per_second))
    else {
        return 0;
    };
    // The rest is less than the frequency, which has 32 bits.
    seconds.wrapping_mul(NANOSECONDS).wrapping_add(rest.wrapping_mul(NANOSECONDS) / per_second)
}

impl<M: Machine> Hypervisor<M> {
    /// Begins a run of a vCPU that has stolen time: writes the time into the guest's page.
    // This and the next function take a `Vcpu`, not a `Run`: that would have to be in memory for the call.
    #[cold]
    pub(crate) fn begin_timed(&self, slot: &Slot, vcpu: &mut Vcpu) {
        let (index, page) = (vcpu.index(), slot.time_page());
        let (Some(page), Some(stolen)) = (page, &mut vcpu.stolen) else { return };
        stolen.begin(self.machine.now());
        let time = nanoseconds(stolen.total, self.machine.ticks_per_second());
        self.machine.store_time(page, u64::from(index) * STRUCTURE_SIZE + TIME, time);
    }

    /// Ends such a run. `state` is the run's state for the host, `deadline` the guest's if it waits.
    #[cold]
    pub fn end_timed(&self, vcpu: &mut Vcpu, state: u64, deadline: u64) {
        let now = self.machine.now();
        if let Some(stolen) = &mut vcpu.stolen {
            stolen.end(now, state, deadline);
        }
    }
}

impl Vcpu {
    /// The guest address of this vCPU's stolen time, if it has any.
    pub(super) fn stolen_time_at(&self) -> Option<u64> {
        self.stolen.map(|stolen| stolen.at)
    }
}

#[cfg(test)]
mod tests {
    use escrow_abi::{Error, call, psci, pv_time};

    use super::*;
    use crate::hypervisor::tests::fake::Host;
    use crate::vcpu::Answer;

    const PAGE: u64 = 0x0b00_0000;
    const NOT_SUPPORTED: u64 = psci::NOT_SUPPORTED;

    /// A started VM with stolen time and some vCPUs.
    fn timed<const N: usize>(host: &mut Host, indices: [u64; N]) -> (u64, [u64; N]) {
        let (vm, _) = host.create(40);
        host.call(call::VM_PV_TIME, &[vm, PAGE]).unwrap();
        let vcpus = indices.map(|n| host.call(call::VCPU_CREATE, &[vm, n]).unwrap()[0]);
        host.call(call::VM_START, &[vm]).unwrap();
        (vm, vcpus)
    }

    /// A run that ends with `answer` after it has begun at `from` and ended at `to`. What the
    /// guest reads meanwhile.
    fn run(host: &mut Host, vm: u64, vcpu: u64, (from, to): (u64, u64), answer: Answer) -> u64 {
        host.escrow.machine.set_time(from);
        let time = host.run(vcpu, |escrow, mut run| {
            let at = run.stolen_time_at().unwrap();
            escrow.machine.set_time(to);
            escrow.end_timed(&mut run, answer[0], answer[3]);
            at + TIME
        });
        host.guest_word(vm, time)
    }

    const READY: Answer = [run::READY, 0, 0, 0];

    #[test]
    fn what_a_guest_is_told_of_it() {
        let mut host = Host::new();
        let (_, vcpus) = timed(&mut host, [0, 1, 31]);
        let features = u64::from(call::SMCCC_ARCH_FEATURES);
        for (vcpu, n) in vcpus.into_iter().zip([0, 1, 31]) {
            let mut ask = |args: &[u64]| host.guest_asks(vcpu, args)[0];
            assert_eq!(ask(&[features, pv_time::FEATURES.into()]), psci::SUCCESS);
            for function in [pv_time::FEATURES, pv_time::ST] {
                assert_eq!(ask(&[pv_time::FEATURES.into(), function.into()]), psci::SUCCESS);
            }
            // LPT is not there.
            for function in [0xC500_0022, 0, psci::VERSION] {
                assert_eq!(ask(&[pv_time::FEATURES.into(), function.into()]), NOT_SUPPORTED);
            }
            assert_eq!(ask(&[pv_time::ST.into()]), PAGE + n * 64);
        }
    }

    #[test]
    fn a_vm_without_it_has_no_such_calls() {
        let mut host = Host::new();
        let vcpu = crate::hypervisor::tests::fake::guest(&mut host);
        let mut ask = |args: &[u64]| host.guest_asks(vcpu, args)[0];
        let features = u64::from(call::SMCCC_ARCH_FEATURES);
        assert_eq!(ask(&[features, pv_time::FEATURES.into()]), NOT_SUPPORTED);
        assert_eq!(ask(&[pv_time::FEATURES.into(), pv_time::ST.into()]), NOT_SUPPORTED);
        assert_eq!(ask(&[pv_time::ST.into()]), NOT_SUPPORTED);
    }

    #[test]
    fn time_between_runs_is_stolen_and_time_in_them_is_not() {
        let mut host = Host::new();
        // 62.5 MHz: 16 ns a tick.
        let (vm, [vcpu, other]) = timed(&mut host, [0, 3]);
        assert_eq!(run(&mut host, vm, vcpu, (1000, 1100), READY), 0);
        assert_eq!(run(&mut host, vm, vcpu, (1250, 1300), READY), 150 * 16);
        assert_eq!(run(&mut host, vm, vcpu, (1300, 1310), READY), 150 * 16);
        // Each vCPU has its own.
        assert_eq!(run(&mut host, vm, other, (5000, 5001), READY), 0);
        for (state, at) in [(run::SWITCHED_ON, 2000), (run::WAKE, 3000), (run::SPI_DONE, 4000)] {
            let before = run(&mut host, vm, vcpu, (at, at + 10), [state, 1, 0, 0]);
            let after = run(&mut host, vm, vcpu, (at + 17, at + 20), READY);
            assert_eq!(after - before, 7 * 16, "{state:#x}");
        }
        // The structure's first words stay what they are: revision and attributes 0.
        assert_eq!(host.guest_word(vm, PAGE), 0);
        assert_eq!(host.guest_word(vm, PAGE + 3 * 64), 0);
    }

    #[test]
    fn a_guest_that_waits_loses_nothing() {
        let mut host = Host::new();
        let (vm, [vcpu]) = timed(&mut host, [0]);
        let waits = |deadline| [run::EXPECTS_WAKEUP, 0, 0, deadline];
        run(&mut host, vm, vcpu, (0, 10), waits(u64::MAX));
        assert_eq!(run(&mut host, vm, vcpu, (1000, 1010), waits(1500)), 0, "woken by a device");
        assert_eq!(run(&mut host, vm, vcpu, (1400, 1410), waits(1500)), 0, "before its timer");
        // From its timer on it could have run.
        assert_eq!(run(&mut host, vm, vcpu, (1530, 1540), READY), 30 * 16);
        for state in [run::MMIO_READ, run::PAGE_FAULT, run::POWERED_OFF, run::FAULT] {
            let before = run(&mut host, vm, vcpu, (2000, 2000), [state, 0, 0, 0]);
            let after = run(&mut host, vm, vcpu, (9000, 2000), READY);
            assert_eq!(after, before, "{state:#x}");
        }
    }

    #[test]
    fn who_can_have_it_and_when() {
        let mut host = Host::new();
        let (vm, _) = host.create(8);
        let give = |host: &mut Host, vm, at| {
            host.call(call::VM_PV_TIME, &[vm, at]).map(drop).map_err(|(error, ..)| error)
        };
        assert_eq!(give(&mut host, vm, PAGE + 64), Err(Error::Misaligned));
        assert_eq!(give(&mut host, vm, 1 << 39), Err(Error::AddressOverflow));
        assert_eq!(give(&mut host, 0, PAGE), Err(Error::HandleNull));
        assert_eq!(give(&mut host, vm, PAGE), Ok(()));
        assert_eq!(give(&mut host, vm, PAGE), Err(Error::Denied), "once");
        // Its address is taken.
        let entry = escrow_abi::MemEntry::new(
            crate::hypervisor::tests::fake::FREE,
            0,
            PAGE,
            escrow_abi::Rights::ALL,
        );
        assert_eq!(host.lend(vm, &[entry]).unwrap_err().0, Error::GuestMapped);
        // Not where something is.
        let (vm, _) = host.create(8);
        host.lend(vm, &[entry]).unwrap();
        assert_eq!(give(&mut host, vm, PAGE), Err(Error::GuestMapped));
        assert_eq!(give(&mut host, vm, PAGE + 0x1000), Ok(()));
        // vCPUs that are there before, before the start and after it.
        let (vm, _) = host.create(9);
        let mut vcpu = |n| host.call(call::VCPU_CREATE, &[vm, n]).unwrap()[0];
        let before = vcpu(0);
        assert_eq!(give(&mut host, vm, PAGE), Ok(()));
        let mut vcpu = |n| host.call(call::VCPU_CREATE, &[vm, n]).unwrap()[0];
        let after = vcpu(1);
        host.call(call::VM_START, &[vm]).unwrap();
        assert_eq!(give(&mut host, vm, PAGE), Err(Error::Denied), "started");
        let late = host.call(call::VCPU_CREATE, &[vm, 2]).unwrap()[0];
        for (vcpu, n) in [before, after, late].into_iter().zip(0..) {
            let [at, ..] = host.guest_asks(vcpu, &[pv_time::ST.into()]);
            assert_eq!(at, PAGE + n * 64);
        }
        let (vm, _) = host.create(9);
        host.call(call::VCPU_CREATE, &[vm, 0]).unwrap();
        host.call(call::VM_START, &[vm]).unwrap();
        assert_eq!(give(&mut host, vm, PAGE), Err(Error::Denied), "started without");
        // Two tables and the page itself.
        let (vm, pages) = host.create(3);
        let free = host.call(call::VM_INFO, &[vm]).unwrap()[3];
        assert_eq!((free, pages.len()), (2, 3));
        let missing = host.call(call::VM_PV_TIME, &[vm, PAGE]).unwrap_err();
        assert_eq!((missing.0, missing.2), (Error::NoMemory, 1));
        assert_eq!(host.call(call::VM_INFO, &[vm]).unwrap()[3], 2, "all or nothing");
    }

    /// The guest reads its page and cannot write it, and neither its host nor the guest can do
    /// anything with it but that. It comes home with the VM, as zeros.
    #[test]
    fn nobody_else_writes_it() {
        let mut host = Host::new();
        let (vm, pages) = host.create(40);
        host.call(call::VM_PV_TIME, &[vm, PAGE]).unwrap();
        let [vcpu, ..] = host.call(call::VCPU_CREATE, &[vm, 0]).unwrap();
        host.call(call::VM_START, &[vm]).unwrap();
        let frame = host.guest_frame(vm, PAGE).unwrap();
        assert_eq!(host.guest_rights(vm, PAGE), escrow_abi::Rights::READ);
        assert!(!host.reaches(frame));
        for function in [call::MEM_RECLAIM, call::MEM_UNSHARE] {
            assert_eq!(host.take(function, &[(frame, 0)]).unwrap_err().0, Error::WrongState);
        }
        for function in [call::MODIFY_PAGES, call::MEM_SHARE_BACK, call::MEM_ASK_BACK] {
            let args: &[u64] = match function {
                call::MODIFY_PAGES => &[0, PAGE, 0x1000, call::MODIFY_UNLOCK],
                _ => &[PAGE, 0x1000],
            };
            assert!(host.guest_call(vcpu, function, args).is_err(), "{function:#x}");
        }
        run(&mut host, vm, vcpu, (0, 100), READY);
        assert_ne!(run(&mut host, vm, vcpu, (900, 900), READY), 0);
        host.end(vcpu);
        host.reclaim(&pages).unwrap();
        assert!(host.reaches(frame));
        assert_eq!(host.word_of(frame + TIME), 0);
    }

    /// The next VM in the slot has none unless it is given some.
    #[test]
    fn it_ends_with_the_vm() {
        let mut host = Host::new();
        let (_, [vcpu]) = timed(&mut host, [0]);
        host.end(vcpu);
        let vcpu = crate::hypervisor::tests::fake::guest(&mut host);
        assert_eq!(host.guest_asks(vcpu, &[pv_time::ST.into()])[0], NOT_SUPPORTED);
        host.run(vcpu, |_, run| assert_eq!(run.stolen, None));
    }

    #[test]
    fn ticks_are_nanoseconds() {
        for (ticks, per_second, expected) in [
            (0, 62_500_000, 0),
            (1, 62_500_000, 16),
            (62_500_000, 62_500_000, NANOSECONDS),
            (24_000_000 * 3600 + 1, 24_000_000, 3600 * NANOSECONDS + 41),
            (u64::MAX / 2, 1_000_000_000, u64::MAX / 2),
            (7, 0, 0),
        ] {
            assert_eq!(nanoseconds(ticks, per_second), expected, "{ticks} of {per_second}");
        }
    }
}

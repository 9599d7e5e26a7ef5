// SPDX-License-Identifier: MIT OR Apache-2.0

//! Accesses of a guest to system registers that it does not have. The guest takes an undefined
//! instruction, as on a CPU without them. EL2 logs the first access of each VM: it is a frequent
//! reason for a kernel to stop early in its boot.
//!
//! There is one line for the first access, and one with their number when the VM ends, so a guest cannot
//! fill the log. A line has the register's encoding, and nothing else about the guest's state.

use super::syndrome::SystemAccess;
use crate::hypervisor::Hypervisor;
use crate::ledger::GuestId;
use crate::log::Line;
use crate::machine::Machine;
use crate::vm::{Run, Slot};

impl<M: Machine> Hypervisor<M> {
    /// A guest used a register that it does not have.
    #[cold]
    pub(super) fn note_unknown(&self, run: &Run<'_>, access: SystemAccess) {
        if !run.slot().count_unknown() {
            return;
        }
        let (op0, op1, crn, crm, op2) = access.encoding();
        let how = if access.is_read() { "reads" } else { "writes" };
        self.log(&Line::new(format_args!(
            "escrow: warning: guest {} {how} S{op0}_{op1}_C{crn}_C{crm}_{op2}, which it does not \
             have: undefined instruction; no others of it are logged",
            run.id().get(),
        )));
    }

    /// Logs how many accesses there were, when a VM's slot is about to be freed.
    pub(crate) fn sum_up_unknown(&self, id: GuestId, slot: &Slot) {
        let count = slot.unknown();
        if count > 1 {
            self.log(&Line::new(format_args!(
                "escrow: warning: guest {} used registers that it does not have {count} times",
                id.get(),
            )));
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::hypervisor::tests::fake::{Host, exit_of, guest};
    use crate::vcpu::syndrome::{Ec, IL};
    use crate::vcpu::{Exception, GuestExit, Next};

    const READ: u64 = 1;

    fn access(op0: u64, op1: u64, crn: u64, crm: u64, op2: u64) -> u64 {
        Ec::SYSTEM.bits() | IL | op0 << 20 | op2 << 17 | op1 << 14 | crn << 10 | crm << 1
    }

    fn exit(esr: u64) -> GuestExit {
        exit_of(esr, None)
    }

    /// The lines about guests.
    fn lines(host: &Host) -> Vec<String> {
        let text = host.log();
        text.lines().filter(|line| line.contains(" guest ")).map(str::to_owned).collect()
    }

    #[test]
    fn the_first_of_each_vm_is_logged_and_their_number_at_its_end() {
        let mut host = Host::new();
        let pmcr = access(3, 3, 9, 12, 0);
        for _ in 0..2 {
            let before = lines(&host).len();
            let vcpu = guest(&mut host);
            let undefined = Next::Inject(Exception::UNDEFINED);
            for esr in [pmcr, access(3, 0, 1, 2, 0) | READ, pmcr] {
                assert_eq!(host.guest_exit(vcpu, exit(esr)), undefined);
                let [.., line] = &lines(&host)[before..] else { panic!("no line") };
                assert!(line.contains("writes S3_3_C9_C12_0,"), "{line}");
                assert_eq!(lines(&host).len(), before + 1);
            }
            host.end(vcpu);
            let [_, sum] = &lines(&host)[before..] else { panic!("{:?}", lines(&host)) };
            assert!(sum.ends_with(" 3 times"), "{sum}");
        }
    }

    #[test]
    fn what_a_guest_has_is_not_logged() {
        let mut host = Host::new();
        let vcpu = guest(&mut host);
        // ID_AA64PFR0_EL1; DC CISW; a key of pointer authentication, which is the machine half's.
        for esr in [access(3, 0, 0, 4, 0) | READ, access(1, 0, 7, 14, 2), access(3, 0, 2, 1, 0)] {
            host.guest_exit(vcpu, exit(esr));
        }
        host.end(vcpu);
        assert_eq!(lines(&host), [""; 0]);
    }

    #[test]
    fn one_alone_is_not_summed_up() {
        let mut host = Host::new();
        let vcpu = guest(&mut host);
        host.guest_exit(vcpu, exit(access(3, 0, 1, 2, 0) | READ));
        host.end(vcpu);
        let [line] = &lines(&host)[..] else { panic!("{:?}", lines(&host)) };
        assert!(line.contains(" reads S3_0_C1_C2_0,"), "{line}");
    }
}

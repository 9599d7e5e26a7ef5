// SPDX-License-Identifier: MIT OR Apache-2.0

use escrow_abi::{Error, call, psci, run};

use super::context::TimerRegisters;
use super::syndrome::{Ec, IL, abort};
use super::*;
use crate::addr::Ipa;
use crate::hypervisor::tests::fake::exit_of;

const PC: u64 = 0x4000_1000;
const DATA: u64 = Ec::DATA_ABORT_LOWER.bits() | IL;
const TRANSLATION_L3: u64 = 0x7;
const PERMISSION_L3: u64 = 0xf;

fn ids() -> GuestIds {
    GuestIds::new(|_, _| 0x1111_1111_1111_1111, 40)
}

fn vcpu() -> Vcpu {
    let mut vcpu = Vcpu::new(0);
    vcpu.regs.pc = PC;
    for (n, x) in vcpu.regs.x.iter_mut().enumerate() {
        *x = 0x1111_1111_1111_1111 * (n as u64 % 15 + 1);
    }
    vcpu
}

fn decode(vcpu: &mut Vcpu, esr: u64) -> Outcome {
    decode_at(vcpu, esr, Some(Ipa(0x6000_0123)))
}

fn decode_at(vcpu: &mut Vcpu, esr: u64, ipa: Option<Ipa>) -> Outcome {
    let exit = match exit_of(esr, ipa) {
        GuestExit::Abort(abort, address) => {
            GuestExit::Abort(abort, FaultAddress { far: 0xffff_0000_0000_0123, ..address })
        }
        exit => exit,
    };
    vcpu.decode(exit, &ids())
}

/// What an instruction that waits comes to, if an interrupt is pending or not.
fn wait(vcpu: &mut Vcpu, esr: u64, interrupted: bool) -> Option<Answer> {
    let Outcome::Wait(waiting) = decode(vcpu, esr) else { panic!("{esr:#x} does not wait") };
    waiting.until.filter(|_| !(waiting.interruptible && interrupted))
}

/// The exit of an abort at 0x6000_0123, that is or is not memory.
fn settle(vcpu: &mut Vcpu, esr: u64, is_memory: bool) -> Outcome {
    match decode(vcpu, esr) {
        Outcome::Abort(abort) => vcpu.settle(&abort, is_memory),
        other => panic!("{other:?}"),
    }
}

fn exits(outcome: Outcome) -> (u64, [u64; 3]) {
    match outcome {
        Outcome::Exit([state, data0, data1, data2]) => (state, [data0, data1, data2]),
        other => panic!("{other:?}"),
    }
}

/// A data abort's syndrome for register 5.
fn access(log2_size: u64, flags: u64) -> u64 {
    DATA | abort::ISV | log2_size << 22 | 5 << 16 | flags | TRANSLATION_L3
}

fn hvc(vcpu: &mut Vcpu, args: &[u64]) -> Outcome {
    vcpu.regs.x[..args.len()].copy_from_slice(args);
    decode(vcpu, Ec::HVC64.bits() | IL)
}

#[test]
fn interrupts_end_the_run_and_change_nothing() {
    let mut vcpu = vcpu();
    let before = vcpu.clone();
    for exit in [GuestExit::Interrupt, GuestExit::SError] {
        assert_eq!(vcpu.decode(exit, &ids()), Outcome::Exit(READY));
    }
    assert_eq!((vcpu.regs, vcpu.pending), (before.regs, before.pending));
}

#[test]
fn mmio_writes_show_the_value_and_no_more() {
    let value = vcpu().regs.x[5];
    for (log2, mask) in [(0, 0xff), (1, 0xffff), (2, 0xffff_ffff), (3, u64::MAX)] {
        let mut vcpu = vcpu();
        let outcome = settle(&mut vcpu, access(log2, abort::WNR | abort::SF), false);
        assert_eq!(exits(outcome), (run::MMIO_WRITE, [0x6000_0123, 1 << log2, value & mask]));
        assert_eq!(vcpu.regs.pc, PC);
        vcpu.resume([0, run::ACTION_EMULATE, 0]).unwrap();
        assert_eq!(vcpu.regs.pc, PC + 4);
        assert_eq!(vcpu.pending, Pending::None);
    }
}

#[test]
fn mmio_reads_extend_as_the_instruction_says() {
    let raw = 0x8877_6655_8483_8281u64;
    let cases = [
        // size, sign, 64-bit register, result
        (0, false, false, 0x81),
        (0, true, false, 0xffff_ff81),
        (0, true, true, 0xffff_ffff_ffff_ff81),
        (1, false, false, 0x8281),
        (1, true, false, 0xffff_8281),
        (1, true, true, 0xffff_ffff_ffff_8281),
        (2, false, false, 0x8483_8281),
        (2, true, true, 0xffff_ffff_8483_8281),
        (3, false, true, raw),
    ];
    for (log2, sign, wide, expected) in cases {
        let mut vcpu = vcpu();
        let flags = if sign { abort::SSE } else { 0 } | if wide { abort::SF } else { 0 };
        let outcome = settle(&mut vcpu, access(log2, flags), false);
        assert_eq!(exits(outcome), (run::MMIO_READ, [0x6000_0123, 1 << log2, 0]));
        let before = vcpu.regs.clone();
        vcpu.resume([raw, run::ACTION_EMULATE, 0]).unwrap();
        assert_eq!(vcpu.regs.x[5], expected, "{log2} {sign} {wide}");
        assert_eq!(vcpu.regs.pc, PC + 4);
        assert_eq!(vcpu.regs.x[..5], before.x[..5]);
        assert_eq!(vcpu.regs.x[6..], before.x[6..]);
    }
}

#[test]
fn xzr_reads_zero_and_swallows() {
    let xzr = 31 << 16 ^ 5 << 16;
    let mut vcpu = vcpu();
    let outcome = settle(&mut vcpu, access(3, abort::WNR | abort::SF) ^ xzr, false);
    assert_eq!(exits(outcome), (run::MMIO_WRITE, [0x6000_0123, 8, 0]));
    let mut vcpu = self::vcpu();
    settle(&mut vcpu, access(3, abort::SF) ^ xzr, false);
    let before = vcpu.regs.clone();
    vcpu.resume([7, run::ACTION_EMULATE, 0]).unwrap();
    assert_eq!(vcpu.regs.x, before.x);
}

#[test]
fn a_big_endian_guest_is_served_in_its_order() {
    let mut vcpu = vcpu();
    vcpu.el1.sctlr |= 1 << 25;
    vcpu.regs.x[5] = 0x1122_3344_5566_7788;
    let outcome = settle(&mut vcpu, access(2, abort::WNR), false);
    assert_eq!(exits(outcome), (run::MMIO_WRITE, [0x6000_0123, 4, 0x8877_6655]));
    vcpu.resume([0, run::ACTION_EMULATE, 0]).unwrap();
    settle(&mut vcpu, access(1, 0), false);
    vcpu.resume([0x1234, run::ACTION_EMULATE, 0]).unwrap();
    assert_eq!(vcpu.regs.x[5], 0x3412);
}

#[test]
fn missing_memory_shows_a_page_and_the_kind_of_access() {
    let fetch = Ec::INSTRUCTION_ABORT_LOWER.bits() | IL | TRANSLATION_L3;
    let cases = [
        (access(3, 0), 0),
        (access(3, abort::WNR), run::FAULT_WRITE),
        (DATA | PERMISSION_L3 | abort::WNR, run::FAULT_WRITE),
        (DATA | TRANSLATION_L3 | abort::WNR | abort::CM, 0),
        (DATA | TRANSLATION_L3 | abort::S1PTW, 0),
        (fetch, run::FAULT_EXECUTE),
    ];
    for (esr, kind) in cases {
        for action in [run::ACTION_EMULATE, run::ACTION_RETRY] {
            let mut vcpu = vcpu();
            let before = vcpu.regs.clone();
            let outcome = settle(&mut vcpu, esr, true);
            assert_eq!(exits(outcome), (run::PAGE_FAULT, [0x6000_0000, 4096, kind]), "{esr:#x}");
            vcpu.resume([0, action, 0]).unwrap();
            assert_eq!(vcpu.regs, before);
        }
    }
}

#[test]
fn what_cannot_be_emulated_is_a_fault() {
    for esr in [
        DATA | TRANSLATION_L3,
        access(3, 0) | abort::S1PTW,
        Ec::INSTRUCTION_ABORT_LOWER.bits() | IL | TRANSLATION_L3,
    ] {
        let mut vcpu = vcpu();
        let outcome = settle(&mut vcpu, esr, false);
        assert_eq!(exits(outcome), (run::FAULT, [esr, 0x6000_0123, 0]));
        assert_eq!(vcpu.resume([0, run::ACTION_EMULATE, 0]), Err(Error::InvalidArgument));
        vcpu.resume([0, run::ACTION_RETRY, 0]).unwrap();
        assert_eq!(vcpu.regs.pc, PC);
    }
    // A TLB conflict.
    let mut vcpu = vcpu();
    let outcome = decode(&mut vcpu, DATA | 0x30);
    assert_eq!(exits(outcome).0, run::FAULT);
}

#[test]
fn a_fault_action_is_an_external_abort_in_the_guest() {
    let mut vcpu = vcpu();
    vcpu.el1.vbar = 0xffff_0000_1000_0000;
    settle(&mut vcpu, access(2, abort::WNR), false);
    vcpu.resume([0, run::ACTION_FAULT, 0]).unwrap();
    assert_eq!(vcpu.el1.esr, 0x25 << 26 | IL | abort::WNR | 0x10);
    assert_eq!(vcpu.el1.far, 0xffff_0000_0000_0123);
    assert_eq!((vcpu.el1.elr, vcpu.el1.spsr), (PC, PSTATE_RESET));
    assert_eq!(vcpu.regs.pc, 0xffff_0000_1000_0200);
}

#[test]
fn bad_resume_data_is_refused_and_changes_nothing() {
    let mut vcpu = vcpu();
    assert_eq!(vcpu.resume([1, 0, 0]), Err(Error::InvalidArgument));
    assert_eq!(vcpu.resume([0, run::ACTION_RETRY, 0]), Err(Error::InvalidArgument));
    settle(&mut vcpu, access(2, 0), false);
    let before = (vcpu.regs.clone(), vcpu.el1.clone(), vcpu.pending);
    for bad in [[0, 3, 0], [0, 0, 1], [1, run::ACTION_RETRY, 0], [1, run::ACTION_FAULT, 0]] {
        assert_eq!(vcpu.resume(bad), Err(Error::InvalidArgument), "{bad:?}");
        assert_eq!((vcpu.regs.clone(), vcpu.el1.clone(), vcpu.pending), before);
    }
    // A write takes no value.
    let mut vcpu = self::vcpu();
    settle(&mut vcpu, access(2, abort::WNR), false);
    assert_eq!(vcpu.resume([1, run::ACTION_EMULATE, 0]), Err(Error::InvalidArgument));
}

#[test]
fn cache_maintenance_of_no_memory_does_nothing() {
    let mut vcpu = vcpu();
    let outcome = settle(&mut vcpu, DATA | TRANSLATION_L3 | abort::WNR | abort::CM, false);
    assert_eq!(outcome, Outcome::Resume);
    assert_eq!(vcpu.regs.pc, PC + 4);
}

#[test]
fn an_abort_without_an_address_is_made_again() {
    let mut vcpu = vcpu();
    assert_eq!(decode_at(&mut vcpu, DATA | PERMISSION_L3, None), Outcome::Resume);
    assert_eq!(vcpu.regs.pc, PC);
}

#[test]
fn external_aborts_go_to_the_guest() {
    let mut vcpu = vcpu();
    let Outcome::Inject(exception) = decode(&mut vcpu, DATA | 0x10) else { panic!() };
    assert_eq!(exception.esr, 0x25 << 26 | IL | 0x10);
}

#[test]
fn wfi_waits_for_the_timer_and_wfe_yields() {
    let wfi = Ec::WAIT.bits() | IL;
    let mut vcpu = vcpu();
    let waits = |deadline| Some([run::EXPECTS_WAKEUP, 0, 0, deadline]);
    assert_eq!(wait(&mut vcpu, wfi, false), waits(u64::MAX));
    assert_eq!(vcpu.regs.pc, PC + 4);
    vcpu.timer = TimerRegisters { ctl: 1, cval: 1000, offset: 500 };
    assert_eq!(wait(&mut vcpu, wfi, false), waits(1500));
    // Masked: it wakes nobody.
    vcpu.timer.ctl = 0b111;
    assert_eq!(wait(&mut vcpu, wfi, false), waits(u64::MAX));
    // Expired: no wait at all.
    vcpu.timer.ctl = 0b101;
    assert_eq!(wait(&mut vcpu, wfi, false), None);
    assert_eq!(wait(&mut vcpu, wfi | 1, false), Some(READY));
    // WFIT with a limit in x3, before and after the timer.
    vcpu.timer.ctl = 0b001;
    let wfit = wfi | 0b10 | 1 << 2 | 3 << 5;
    vcpu.regs.x[3] = 900;
    assert_eq!(wait(&mut vcpu, wfit, false), waits(1400));
    vcpu.regs.x[3] = 1100;
    assert_eq!(wait(&mut vcpu, wfit, false), waits(1500));
    // Another interrupt is as good; an event is another matter.
    let pc = vcpu.regs.pc;
    assert_eq!([wait(&mut vcpu, wfi, true), wait(&mut vcpu, wfit, true)], [None; 2]);
    assert_eq!(vcpu.regs.pc, pc + 8);
    assert_eq!(wait(&mut vcpu, wfi | 1, true), Some(READY));
}

#[test]
fn id_registers_read_into_the_register_named() {
    // MRS X7, ID_AA64PFR0_EL1.
    let esr = Ec::SYSTEM.bits() | IL | 3 << 20 | 7 << 5 | 4 << 1 | 1;
    let mut vcpu = vcpu();
    assert_eq!(decode(&mut vcpu, esr), Outcome::Resume);
    assert_eq!(vcpu.regs.x[7], ids().read(4, 0));
    assert_eq!(vcpu.regs.pc, PC + 4);
}

#[test]
fn unknown_registers_and_instructions_are_undefined() {
    // SVE; AArch32 CP15; a class that does not exist yet.
    for esr in [0x19 << 26, 0x03 << 26, 0x3f << 26] {
        let mut vcpu = vcpu();
        assert_eq!(decode(&mut vcpu, esr | IL), Outcome::Inject(Exception::UNDEFINED));
        assert_eq!(vcpu.regs.pc, PC);
    }
    // MRS X0, PMCR_EL0.
    let pmcr = Ec::SYSTEM.bits() | 3 << 20 | 3 << 14 | 9 << 10 | 12 << 1 | 1;
    let mut vcpu = vcpu();
    assert!(matches!(decode(&mut vcpu, pmcr | IL), Outcome::Unknown(_)));
    assert_eq!(vcpu.regs.pc, PC);
}

#[test]
fn injecting_takes_the_guest_to_its_vector() {
    let mut vcpu = vcpu();
    vcpu.el1.vbar = 0x8_0000;
    vcpu.regs.pstate = 0x6000_0000;
    vcpu.el1.far = 77;
    vcpu.inject(Exception::UNDEFINED);
    assert_eq!(vcpu.regs.pc, 0x8_0400);
    assert_eq!(vcpu.regs.pstate, 0x6000_03c5);
    assert_eq!((vcpu.el1.elr, vcpu.el1.spsr, vcpu.el1.esr), (PC, 0x6000_0000, IL));
    assert_eq!(vcpu.el1.far, 77);
}

#[test]
fn smccc_and_identification() {
    let mut vcpu = vcpu();
    assert_eq!(hvc(&mut vcpu, &[call::SMCCC_VERSION.into()]), Outcome::Resume);
    assert_eq!(vcpu.regs.x[0], 0x10002);
    // Upper halves of the identifier do not count, HVC is behind already.
    assert_eq!(hvc(&mut vcpu, &[u64::from(call::HYP_IDENTIFY) | 1 << 40]), Outcome::Resume);
    assert_eq!(vcpu.regs.x[..4], [call::IDENTIFY_INFO, 0, 0, 0]);
    assert_eq!(vcpu.regs.pc, PC);
    hvc(&mut vcpu, &[call::VENDOR_HYP_UID.into()]);
    assert_eq!(vcpu.regs.x[..4], call::UID.map(u64::from));
    for unknown in [0u64, 0x8000_7fff, 0xC600_8065, 0xC600_8100, 0x8400_0054] {
        hvc(&mut vcpu, &[unknown]);
        assert_eq!(vcpu.regs.x[0], psci::NOT_SUPPORTED, "{unknown:#x}");
    }
}

#[test]
fn other_immediates_are_nobody_and_smc_goes_on_behind_itself() {
    let mut vcpu = vcpu();
    vcpu.regs.x[0] = psci::VERSION.into();
    assert_eq!(decode(&mut vcpu, Ec::HVC64.bits() | IL | 1), Outcome::Resume);
    assert_eq!(vcpu.regs.x[0], psci::NOT_SUPPORTED);
    vcpu.regs.x[0] = psci::VERSION.into();
    assert_eq!(decode(&mut vcpu, Ec::SMC64.bits() | IL), Outcome::Resume);
    assert_eq!((vcpu.regs.x[0], vcpu.regs.pc), (0x10001, PC + 4));
}

#[test]
fn psci_of_a_guest() {
    let mut vcpu = vcpu();
    let mut call = |args: &[u64]| {
        let outcome = hvc(&mut vcpu, args);
        (outcome, vcpu.regs.x[0])
    };
    let down = |reason| Outcome::Service(Service::Down(reason));
    assert_eq!(call(&[psci::VERSION.into()]), (Outcome::Resume, 0x10001));
    assert_eq!(call(&[psci::SYSTEM_OFF.into()]).0, down(0));
    assert_eq!(call(&[psci::SYSTEM_RESET.into()]).0, down(1));
    assert_eq!(call(&[psci::SYSTEM_RESET2_64.into(), 0, 0]).0, down(1));
    assert_eq!(call(&[psci::SYSTEM_RESET2_64.into(), 1, 0]).1, psci::INVALID_PARAMETERS);
    assert_eq!(call(&[psci::MIGRATE_INFO_TYPE.into()]).1, 2);
    assert_eq!(call(&[psci::SYSTEM_SUSPEND_64.into()]).1, psci::NOT_SUPPORTED);
    for (function, there) in [
        (psci::CPU_ON_64, psci::SUCCESS),
        (psci::SYSTEM_OFF, psci::SUCCESS),
        (call::SMCCC_VERSION, psci::SUCCESS),
        (psci::SYSTEM_SUSPEND_64, psci::NOT_SUPPORTED),
        (call::HYP_IDENTIFY, psci::NOT_SUPPORTED),
    ] {
        assert_eq!(call(&[psci::FEATURES.into(), function.into()]).1, there, "{function:#x}");
    }
    let on = Service::CpuOn { target: 1, entry: 0x4000, context: 9 };
    assert_eq!(call(&[psci::CPU_ON_64.into(), 1, 0x4000, 9]).0, Outcome::Service(on));
    assert_eq!(call(&[psci::CPU_OFF.into()]).0, Outcome::Service(Service::CpuOff));
    let affinity = |level| [psci::AFFINITY_INFO_64.into(), 0x10_0000_0102, level];
    for level in 0..=3 {
        let asked = Service::AffinityInfo { target: 0x10_0000_0102, level: level as u32 };
        assert_eq!(call(&affinity(level)).0, Outcome::Service(asked));
    }
    for level in [4, 0xffff_ffff] {
        assert_eq!(call(&affinity(level)), (Outcome::Resume, psci::INVALID_PARAMETERS));
    }
    // The 32-bit convention has 32 bits of each argument, and of the level there are never more.
    let asked = Service::AffinityInfo { target: 0x102, level: 1 };
    let narrow = [psci::AFFINITY_INFO_32.into(), 7 << 32 | 0x102, 7 << 32 | 1];
    assert_eq!(call(&narrow).0, Outcome::Service(asked));
}

/// What a PSCI 1.1 need not have, and what it may not say that it has (DEN0022).
#[test]
fn psci_that_is_not_there() {
    let mut vcpu = vcpu();
    // CPU_FREEZE, CPU_DEFAULT_SUSPEND, NODE_HW_STATE, PSCI_SET_SUSPEND_MODE, PSCI_STAT_RESIDENCY
    // and _COUNT, MEM_PROTECT and _CHECK_RANGE, MIGRATE, MIGRATE_INFO_UP_CPU, SYSTEM_OFF2.
    for number in [0xb, 0xc, 0xd, 0xf, 0x10, 0x11, 0x13, 0x14, 0x5, 0x7, 0x15, 0x16, 0x1f] {
        for function in [0x8400_0000 | number, 0xC400_0000 | number] {
            for args in [[function, 0], [psci::FEATURES.into(), function]] {
                assert_eq!(hvc(&mut vcpu, &args), Outcome::Resume);
                assert_eq!(vcpu.regs.x[0], psci::NOT_SUPPORTED, "{args:#x?}");
            }
        }
    }
    // Those without arguments have no 64-bit form.
    for function in [psci::VERSION, psci::CPU_OFF, psci::SYSTEM_OFF, psci::SYSTEM_RESET] {
        hvc(&mut vcpu, &[psci::FEATURES.into(), u64::from(function) | 1 << 30]);
        assert_eq!(vcpu.regs.x[0], psci::NOT_SUPPORTED, "{function:#x}");
    }
    // The original format of power states, and no OS-initiated mode.
    for function in [psci::CPU_SUSPEND_32, psci::CPU_SUSPEND_64] {
        hvc(&mut vcpu, &[psci::FEATURES.into(), function.into()]);
        assert_eq!(vcpu.regs.x[0], 0);
    }
    // Vendors' resets, and architectural ones that are reserved.
    for kind in [1, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff] {
        for function in [psci::SYSTEM_RESET2_32, psci::SYSTEM_RESET2_64] {
            assert_eq!(hvc(&mut vcpu, &[function.into(), kind, 0]), Outcome::Resume);
            assert_eq!(vcpu.regs.x[0], psci::INVALID_PARAMETERS, "{kind:#x}");
        }
    }
}

#[test]
fn suspends_wait_and_reserved_states_are_refused() {
    let waits = Service::Suspend([run::EXPECTS_WAKEUP, 0, 0, u64::MAX]);
    for function in [psci::CPU_SUSPEND_32, psci::CPU_SUSPEND_64] {
        // Standby and power-down, of a core and of more; the state's number.
        for state in [0, 0xffff, 1 << 16, 1 << 16 | 1 << 24, 3 << 24, 7 << 32] {
            let mut vcpu = vcpu();
            let outcome = hvc(&mut vcpu, &[function.into(), state, 0x4000, 9]);
            assert_eq!((outcome, vcpu.regs.x[0]), (Outcome::Service(waits), psci::SUCCESS));
        }
        for bit in (17..24).chain(26..32) {
            let mut vcpu = vcpu();
            let outcome = hvc(&mut vcpu, &[function.into(), 1 << bit, 0, 0]);
            assert_eq!((outcome, vcpu.regs.x[0]), (Outcome::Resume, psci::INVALID_PARAMETERS));
        }
    }
}

#[test]
fn what_smccc_says_of_the_architecture_s_calls() {
    let mut vcpu = vcpu();
    // SMCCC_ARCH_SOC_ID, WORKAROUND_2 and _4, FEATURE_AVAILABILITY, random numbers, a vendor's.
    for function in [0x8000_0002, 0x8000_7fff, 0x8000_0004, 0x8000_0003, 0x8400_0050, 0xC600_0000] {
        for args in [[call::SMCCC_ARCH_FEATURES.into(), function], [function, 0]] {
            if args[0] != 0x8400_0050 {
                assert_eq!(hvc(&mut vcpu, &args), Outcome::Resume);
                assert_eq!(vcpu.regs.x[0], psci::NOT_SUPPORTED, "{args:#x?}");
            }
        }
    }
}

#[test]
fn the_guests_own_call_carries_its_arguments() {
    let mut vcpu = vcpu();
    let args = [call::MODIFY_PAGES.into(), 0, 0x4000_0000, 0x1000, 3, 5, 6, 7];
    assert_eq!(hvc(&mut vcpu, &args), Outcome::Service(Service::Memory));
    assert_eq!(vcpu.regs.x[..8], args);
}

#[test]
fn affinities_are_told_apart() {
    let all: std::collections::BTreeSet<_> = (0..32).map(Vcpu::affinity_of).collect();
    assert_eq!(all.len(), 32);
    for index in 0..32 {
        let vcpu = Vcpu::new(index);
        assert_eq!((vcpu.index(), vcpu.affinity()), (index, Vcpu::affinity_of(index)));
        // MPIDR_EL1: RES1, one of several (U 0), not multithreaded (MT 0); 16 a cluster, so that
        // ICC_SGI1R_EL1's target list reaches each (IHI 0069, Aff0).
        let (place, cluster) = (u64::from(index) % 16, u64::from(index) / 16);
        assert_eq!(vcpu.vmpidr, 1 << 31 | cluster << 8 | place);
    }
    assert_eq!(Vcpu::new(17).affinity(), 0x101);
}

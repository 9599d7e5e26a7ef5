// SPDX-License-Identifier: MIT OR Apache-2.0

//! The registers of a guest and of its host, kept apart.

use core::arch::asm;

use escrow_abi::{call, run};
use escrow_payloads::guest::{Agent, Exit, MAILBOX, Routine, routine};
use escrow_payloads::host::refused;
use escrow_payloads::{Failure, Host, Outcome, Test, check, check_eq, hvc, mmu, tests};

pub const TESTS: &[Test] = tests![
    vectors_survive_on_both_sides,
    two_guests_vectors_are_apart,
    a_guest_starts_with_zeroed_vectors,
    fp_control_is_kept_apart,
    system_registers_are_kept_apart,
    the_rest_is_kept_apart,
    what_a_guest_defers_stays_with_it,
    the_host_s_system_registers_survive,
    a_host_s_mmu_stays_off,
    start_values_are_as_set,
];

fn pattern(salt: u128) -> [u128; 32] {
    core::array::from_fn(|n| {
        ((n as u128 + 1) * 0x0123_4567_89ab_cdef_fedc_ba98_7654_3211) ^ (salt << 96) ^ salt
    })
}

fn vectors_survive_on_both_sides(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    // The guest loads its own; the host has others all the time.
    agent.set_vectors(&pattern(1));
    agent.command(routine::load_vectors(), &[]);
    let mut vectors = pattern(2);
    check_eq!(agent.run_with_vectors(&mut vectors)?, Exit::DOORBELL);
    check!(vectors == pattern(2), "the guest changed the host's");
    // A run in which the guest uses none, and one that gives them back.
    agent.command(routine::current_el(), &[]);
    let mut vectors = pattern(3);
    check_eq!(agent.run_with_vectors(&mut vectors)?, Exit::DOORBELL);
    check!(vectors == pattern(3), "a guest without vectors changed the host's");
    agent.set_vectors(&[0; 32]);
    agent.command(routine::store_vectors(), &[]);
    let mut vectors = pattern(4);
    check_eq!(agent.run_with_vectors(&mut vectors)?, Exit::DOORBELL);
    check!(vectors == pattern(4), "the guest changed the host's");
    check!(agent.vectors() == pattern(1), "the host changed the guest's");
    host.end(agent.vm)
}

fn two_guests_vectors_are_apart(host: &mut Host) -> Outcome {
    let agents = [Agent::start(host)?, Agent::start(host)?];
    for (agent, salt) in agents.iter().zip([1, 2]) {
        agent.set_vectors(&pattern(salt));
        agent.call(routine::load_vectors(), &[])?;
    }
    for (agent, salt) in agents.iter().zip([1, 2]) {
        agent.set_vectors(&[0; 32]);
        agent.call(routine::store_vectors(), &[])?;
        check!(agent.vectors() == pattern(salt), "guest {salt}");
    }
    for agent in agents {
        host.end(agent.vm)?;
    }
    Ok(())
}

fn a_guest_starts_with_zeroed_vectors(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    agent.set_vectors(&pattern(9));
    agent.command(routine::store_vectors(), &[]);
    let mut vectors = pattern(5);
    check_eq!(agent.run_with_vectors(&mut vectors)?, Exit::DOORBELL);
    check!(agent.vectors() == [0; 32], "the host's show: {:x?}", agent.vectors()[0]);
    check!(vectors == pattern(5));
    host.end(agent.vm)
}

/// `FPCR` and `FPSR` of the host.
fn fp_control() -> (u64, u64) {
    let (fpcr, fpsr);
    // SAFETY: reading them has no effect.
    unsafe {
        asm!(
            ".arch armv8-a+fp",
            "mrs {}, fpcr",
            "mrs {}, fpsr",
            out(reg) fpcr,
            out(reg) fpsr,
            options(nomem, nostack)
        );
    }
    (fpcr, fpsr)
}

fn fp_control_is_kept_apart(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    let (fpcr, fpsr) = (3 << 22 | 1 << 25, 0x9f);
    // SAFETY: compiled code does not use floating point on this target.
    unsafe {
        asm!(".arch armv8-a+fp", "msr fpcr, {}", "msr fpsr, {}", in(reg) fpcr, in(reg) fpsr);
    }
    agent.call(routine::load_vectors(), &[])?;
    let kept = fp_control();
    // SAFETY: as above.
    unsafe { asm!(".arch armv8-a+fp", "msr fpcr, xzr", "msr fpsr, xzr") };
    check_eq!(kept, (fpcr, fpsr));
    host.end(agent.vm)
}

const VALUES: [u64; 8] = [
    0x1111_2222_3333_4444,
    0x5555_6666_7777_8888,
    0x9999_aaaa,
    0x00ff_44bb_0400_00ff,
    0x0001_0000_4123_4000,
    0x0000_0000_4000_0001,
    0xcafe_f00d_1234_5678,
    0x0bad_cafe_0000_0008,
];

fn system_registers_are_kept_apart(host: &mut Host) -> Outcome {
    let agents = [Agent::start(host)?, Agent::start(host)?];
    let values = |n: u64| VALUES.map(|value| value ^ (n * 0x40_0000));
    for (agent, n) in agents.iter().zip([0, 1]) {
        agent.call(routine::set_registers(), &values(n))?;
    }
    for (agent, n) in agents.iter().zip([0, 1]) {
        let seen = agent.call(routine::get_registers(), &[])?.x;
        // PAR_EL1 has reserved bits; its address bits must be there.
        for (register, (seen, set)) in seen.iter().zip(values(n)).enumerate() {
            let mask = if register == 5 { 0xffff_f000 } else { u64::MAX };
            check_eq!(seen & mask, set & mask, "register {register} of guest {n}");
        }
    }
    for agent in agents {
        host.end(agent.vm)?;
    }
    Ok(())
}

/// Routines that set and get registers, and values for two guests. Both guests' stage 1 is off, so
/// that anything may stand in what it would go by: the first one's walks are on, the
/// second one's off (`TCR_EL1.EPD0`, `EPD1`).
const OTHERS: [(Routines, [[u64; 7]; 2]); 2] = [
    (
        (routine::set_translation, routine::get_translation),
        [
            [0x1_b510_3510, 0x4000_1000, 0x30d0_1800, 3 << 20, 0x2, 0x4123_4560, 0x3],
            [0x5_b590_3590, 0x4fff_f000, 0x30d0_0808, 1 << 20, 0x0, 0x4765_4320, 0x203],
        ],
    ),
    (
        (routine::set_exception, routine::get_exception),
        [
            [0x4000_0800, 0x4242_4240, 0x3c5, 0x5600_0007, 0x1111_2222_3333_4444, 0, 0],
            [0x4001_0000, 0x1234_5678_9abc, 0x6000_0005, 0x9200_0046, 0x5555, 0, 0],
        ],
    ),
];

type Routines = (fn() -> Routine, fn() -> Routine);

fn the_rest_is_kept_apart(host: &mut Host) -> Outcome {
    for ((set, get), values) in OTHERS {
        let agents = [Agent::start(host)?, Agent::start(host)?];
        for (agent, values) in agents.iter().zip(values) {
            agent.call(set(), &values)?;
        }
        for (n, (agent, values)) in agents.iter().zip(values).enumerate() {
            check_eq!(agent.call(get(), &[])?.x[..7], values[..], "of guest {n}");
        }
        for agent in agents {
            host.end(agent.vm)?;
        }
    }
    Ok(())
}

/// `DISR_EL1` is there with FEAT_RAS, also for a guest, from which that is hidden: nothing
/// traps it.
fn what_a_guest_defers_stays_with_it(host: &mut Host) -> Outcome {
    let pfr0: u64;
    // SAFETY: reading it has no effect.
    unsafe { asm!("mrs {}, id_aa64pfr0_el1", out(reg) pfr0, options(nomem, nostack)) };
    if pfr0 >> 28 & 0xf == 0 {
        return Err(Failure::Skipped("no FEAT_RAS"));
    }
    let [writer, reader] = [Agent::start(host)?, Agent::start(host)?];
    let secret = 1 << 31 | 0xabc;
    writer.call(routine::set_disr(), &[secret])?;
    check_eq!(reader.call(routine::get_disr(), &[])?.x[0], 0);
    let hosts: u64;
    // SAFETY: reading it has no effect.
    unsafe { asm!("mrs {}, s3_0_c12_c1_1", out(reg) hosts, options(nomem, nostack)) };
    check_eq!(hosts, 0);
    // Nor is it the next guest's whose vCPU is in the same page.
    host.end(reader.vm)?;
    writer.call(routine::set_disr(), &[secret])?;
    host.end(writer.vm)?;
    let next = Agent::start(host)?;
    check_eq!(next.call(routine::get_disr(), &[])?.x[0], 0);
    host.end(next.vm)
}

macro_rules! host_registers {
    ($($name:literal),+ $(,)?) => {
        /// System registers of the host's, by name.
        fn host_registers() -> [(&'static str, u64); [$($name),+].len()] {
            [$(($name, {
                let value: u64;
                // SAFETY: reading it has no effect.
                unsafe { asm!(concat!("mrs {}, ", $name), out(reg) value, options(nomem, nostack)) };
                value
            })),+]
        }
    };
}

host_registers![
    "sctlr_el1",
    "cpacr_el1",
    "ttbr0_el1",
    "ttbr1_el1",
    "tcr_el1",
    "mair_el1",
    "amair_el1",
    "vbar_el1",
    "elr_el1",
    "spsr_el1",
    "esr_el1",
    "far_el1",
    "par_el1",
    "contextidr_el1",
    "tpidr_el0",
    "tpidrro_el0",
    "tpidr_el1",
    "sp_el0",
    "cntkctl_el1",
    "csselr_el1",
    "mdscr_el1",
    "afsr0_el1",
    "afsr1_el1",
    "mpidr_el1",
    "midr_el1",
    "id_aa64pfr0_el1",
    "cntv_ctl_el0",
    "cntv_cval_el0",
    "cntp_ctl_el0",
];

fn the_host_s_system_registers_survive(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    // SAFETY: the payload has no use for these.
    unsafe {
        asm!(
            "msr tpidr_el0, {0}",
            "msr tpidrro_el0, {0}",
            "msr contextidr_el1, {0}",
            "msr sp_el0, {0}",
            "msr cntv_cval_el0, {0}",
            in(reg) 0x7654_3210_u64,
        );
    }
    let before = host_registers();
    agent.call(routine::set_registers(), &VALUES)?;
    agent.call(routine::set_timer(), &[u64::MAX, 1])?;
    for ((set, _), values) in OTHERS {
        agent.call(set(), &values[1])?;
    }
    let after = host_registers();
    for (before, after) in before.iter().zip(after) {
        check_eq!(after, *before);
    }
    host.end(agent.vm)
}

/// A host may run a guest before it switches its MMU on; neither's is on then.
fn a_host_s_mmu_stays_off(host: &mut Host) -> Outcome {
    let agent = Agent::start(host)?;
    agent.command(routine::get_translation(), &[]);
    let exit = loop {
        let mut x = [call::VCPU_RUN.into(), agent.vcpu, 0, 0, 0, 0, 0, 0];
        let [set, found] = mmu::call_without_mmu(&mut x);
        check_eq!(found, set, "the host's SCTLR_EL1");
        check_eq!(x[0], 0, "VCPU_RUN");
        if x[1] != run::READY {
            break x[1];
        }
    };
    check_eq!(exit, run::MMIO_WRITE);
    check_eq!(agent.results().x[2] & 1, 0, "the guest's MMU is off as well");
    host.end(agent.vm)
}

fn start_values_are_as_set(host: &mut Host) -> Outcome {
    // The agent asks for its registers at its first store: X0 is the mailbox,
    // X1 the doorbell. SP_EL0 is kept from before the start.
    let agent = Agent::create(host)?;
    let set = |register: u64, value: u64| {
        hvc::call(call::VCPU_SET_REGISTER, &[agent.vcpu, register, value])
            .map_err(refused("VCPU_SET_REGISTER"))
    };
    set(2 << 8, 0x5005_0000)?;
    set(2 << 8 | 1, 0x5115_0000)?;
    hvc::call(call::VM_START, &[agent.vm]).map_err(refused("VM_START"))?;
    check_eq!(agent.run([0; 3])?, Exit::MmioWrite(0x0900_0000, 8, MAILBOX));
    check_eq!(agent.call(routine::get_registers(), &[])?.x[6], 0x5005_0000);
    check_eq!(agent.call(routine::current_el(), &[])?.x[0], 1 << 2);
    host.end(agent.vm)
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! A guest that means harm: it finds what a CPU would give it, or it ends, and nobody else
//! notices. Its host and a second guest look at their registers and memory afterwards.
//!
//! `seed=` on the command line is for other histories, `rounds=` for longer ones.

use core::arch::global_asm;

use arrayvec::ArrayVec;
use escrow_abi::{MemEntry, ORDER_PAGE, PAGE_SIZE, Rights, call, psci, run, trng};
use escrow_payloads::guest::{Agent, CODE, DOORBELL, Exit, FREE, Routine, routine, run_once};
use escrow_payloads::host::{fill, is_filled, page_at, peek, refused};
use escrow_payloads::random::Random;
use escrow_payloads::{
    Host, Outcome, Test, check, check_eq, cpus, fail, hvc, interrupts, mmu, println, tests,
};

pub const TESTS: &[Test] = tests![
    every_system_instruction,
    any_instruction,
    any_call,
    mmio_of_any_kind,
    caches_of_missing_memory,
    a_wild_pc,
    tables_in_missing_memory,
    storms,
];

// Carries out instructions that the host names, one after the other, and counts what comes of
// them: at 0x800 of a page with the vectors in its first half, in a guest whose MMU is off.
//
// x0: instruction, x1: what is added to it for the next, x2: how many, x3: a page to put them
// into, x4: what is in x0 when one is carried out, x5: where the results go: how many did no
// harm, how many were undefined, the classes of all exceptions as bits.
global_asm!(
    r#"
        .text
        .balign 4096
harm_begin:
        .rept   16
        .balign 128
        b       7f
        .endr
        .balign 2048
harm_start:
        mov     x19, x0
        mov     x20, x1
        mov     x21, x2
        mov     x22, x3
        mov     x23, x4
        mov     x24, x5
        mov     x25, xzr
        mov     x26, xzr
        mov     x27, xzr
        adr     x28, harm_begin
        movz    w29, #0xd65f, lsl #16           // RET
        movk    w29, #0x03c0
        // What the last one may have changed of all that this relies on.
1:      movz    x1, #0x30d0, lsl #16
        movk    x1, #0x0800
        msr     sctlr_el1, x1
        msr     vbar_el1, x28
        msr     spsel, #1
        msr     daifset, #0xf
        isb
        cbz     x21, 9f
        stp     w19, w29, [x22]
        dc      cvau, x22
        dsb     ish
        ic      ivau, x22
        dsb     ish
        isb
        mov     x0, x23
        blr     x22
        add     x25, x25, #1
8:      add     w19, w19, w20
        sub     x21, x21, #1
        b       1b
        // An exception. x1 to x18 are nobody's.
7:      mrs     x1, esr_el1
        lsr     x1, x1, #26
        mov     x2, #1
        lsl     x2, x2, x1
        orr     x27, x27, x2
        cbnz    x1, 6f
        add     x26, x26, #1
6:      adr     x1, 8b
        msr     elr_el1, x1
        mov     x1, #0x3c5
        msr     spsr_el1, x1
        eret
9:      stp     x25, x26, [x24]
        str     x27, [x24, #16]
        mov     x1, #{DOORBELL}
        str     xzr, [x1]
        b       9b
harm_end:
"#,
    DOORBELL = const DOORBELL,
);

unsafe extern "C" {
    static harm_begin: u8;
    static harm_end: u8;
}

/// Where the guest begins, what it writes instructions to, and where it leaves results.
const START: u64 = CODE + 0x800;
const SLOT: u64 = FREE;
const RESULTS: u64 = FREE + PAGE_SIZE;
/// Memory of which there is nothing.
const MISSING: u64 = FREE + 2 * PAGE_SIZE;
/// No memory.
const NOWHERE: u64 = 0x0a00_0000;
/// Where guests' addresses end, at the least and at the most.
const ENDS: [u64; 3] = [1 << 32, 1 << 39, 1 << 48];
/// Runs that may end before that is a failure, or a guest is given up.
const PATIENCE: u32 = 200_000;

/// Pages for one guest at a time.
#[derive(Clone, Copy)]
struct Room(u64);

impl Room {
    const PAGES: u64 = 15;

    fn new(host: &mut Host) -> Room {
        const { assert!(Agent::PAGES <= Room::PAGES) };
        Room(host.arena.pages(Room::PAGES))
    }

    fn agent(self, host: &Host) -> Outcome<Agent> {
        Agent::start_with(&host.lists, self.0)
    }

    /// Ends the guest.
    fn end(self, host: &Host, vm: u64) -> Outcome {
        hvc::call(call::VM_DESTROY, &[vm]).map_err(refused("VM_DESTROY"))?;
        host.lists.bring_home(self.0..self.0 + Room::PAGES * PAGE_SIZE)
    }
}

/// A guest whose code its host has written, and that may write to its code.
struct Victim {
    vm: u64,
    vcpu: u64,
    /// The page with its results, shared.
    results: u64,
}

/// What came of instructions.
#[derive(Clone, Copy, Debug, Default)]
struct Harvest {
    done: u64,
    undefined: u64,
    /// The classes of the exceptions, a bit each.
    classes: u64,
}

impl Victim {
    /// A guest that begins at `pc`, with some registers, and with this in the page at [`SLOT`].
    fn create(
        host: &Host,
        Room(pages): Room,
        pc: u64,
        registers: impl IntoIterator<Item = (u64, u64)>,
        code: impl IntoIterator<Item = u32>,
    ) -> Outcome<Victim> {
        let vm = host.lists.vm_of(pages, 12)?;
        let [harm, slot, results] = [12, 13, 14].map(|n| pages + n * PAGE_SIZE);
        let source = &raw const harm_begin;
        let size = &raw const harm_end as usize - source as usize;
        check!(size <= PAGE_SIZE as usize);
        // SAFETY: the page is the arena's, and the code fits.
        unsafe { core::ptr::copy_nonoverlapping(source, harm as *mut u8, size) };
        for (at, word) in (slot..slot + PAGE_SIZE).step_by(4).zip(code) {
            // SAFETY: the page is the arena's.
            unsafe { (at as *mut u32).write_volatile(word) };
        }
        mmu::clean(harm, PAGE_SIZE);
        mmu::clean(slot, PAGE_SIZE);
        let entries = [
            MemEntry::new(harm, ORDER_PAGE, CODE, Rights::READ_EXECUTE),
            MemEntry::new(slot, ORDER_PAGE, SLOT, Rights::ALL),
        ];
        host.lists.lend(vm, &entries).map_err(refused("MEM_LEND"))?;
        let entry = MemEntry::new(results, ORDER_PAGE, RESULTS, Rights::READ_WRITE);
        host.lists.share(vm, &[entry]).map_err(refused("MEM_SHARE"))?;
        declare(vm, MISSING, PAGE_SIZE)?;
        let [vcpu, ..] = hvc::call(call::VCPU_CREATE, &[vm, 0]).map_err(refused("VCPU_CREATE"))?;
        for (register, value) in registers.into_iter().chain([(1 << 8, pc)]) {
            hvc::call(call::VCPU_SET_REGISTER, &[vcpu, register, value])
                .map_err(refused("VCPU_SET_REGISTER"))?;
        }
        hvc::call(call::VM_START, &[vm]).map_err(refused("VM_START"))?;
        Ok(Victim { vm, vcpu, results })
    }

    /// Has a guest carry out `count` instructions, `step` apart, with `x0` in X0, and ends it.
    fn sweep(
        host: &Host,
        room: Room,
        (first, step, count): (u32, u32, u64),
        x0: u64,
    ) -> Outcome<Harvest> {
        let arguments = [first.into(), step.into(), count, SLOT, x0, RESULTS];
        let victim = Victim::create(host, room, START, (0..).zip(arguments), [])?;
        let mut resume = [0; 3];
        for _ in 0..PATIENCE {
            let exit = run_once(victim.vcpu, resume).map_err(refused("VCPU_RUN"))?;
            if exit == Exit::MmioWrite(DOORBELL, 8, 0) {
                let [done, undefined, classes] = [0, 8, 16].map(|at| peek(victim.results + at));
                room.end(host, victim.vm)?;
                return Ok(Harvest { done, undefined, classes });
            }
            resume = indifferent(exit)?;
        }
        fail!("it does not come to its end: {first:#x}")
    }
}

fn declare(vm: u64, at: u64, size: u64) -> Outcome {
    hvc::call(call::VM_CONFIGURE, &[vm, call::CONFIGURE_MEMORY_ADD, at, size])
        .map_err(refused("VM_CONFIGURE"))?;
    Ok(())
}

/// How a host resumes after an exit that it makes nothing of.
fn indifferent(exit: Exit) -> Outcome<[u64; 3]> {
    Ok(match exit {
        Exit::MmioRead(..) => [0x5a5a, run::ACTION_EMULATE, 0],
        Exit::PageFault(..) | Exit::Fault(..) => [0, run::ACTION_FAULT, 0],
        Exit::Unknown(answer) => fail!("{answer:x?}"),
        _ => [0; 3],
    })
}

/// A guest beside it, and pages of its own and of the host's.
struct Bystanders {
    agent: Agent,
    page: u64,
}

impl Bystanders {
    fn new(host: &mut Host) -> Outcome<Bystanders> {
        let agent = Agent::start(host)?;
        let lent = host.page();
        host.lists.lend(agent.vm, &[page_at(lent, FREE)]).map_err(refused("MEM_LEND"))?;
        agent.store(FREE, 0x5ec7e7)?;
        agent.call(routine::set_registers(), &[1, 2, 3, 4, 5 << 12, 6, 7, 8])?;
        let page = host.page();
        fill(page, 3);
        Ok(Bystanders { agent, page })
    }

    /// They have noticed nothing.
    fn check(&self) -> Outcome {
        check_eq!(self.agent.load(FREE)?, 0x5ec7e7);
        let x = self.agent.call(routine::get_registers(), &[])?.x;
        check_eq!(x[..5], [1, 2, 3, 4, 5 << 12]);
        check!(is_filled(self.page, 3), "the host's page");
        Ok(())
    }

    fn end(self, host: &mut Host) -> Outcome {
        self.check()?;
        host.end(self.agent.vm)
    }
}

fn seed(host: &Host) -> u64 {
    host.board.number("seed").unwrap_or(1)
}

fn rounds(host: &Host, by_default: u64) -> u64 {
    host.board.number("rounds").unwrap_or(by_default)
}

/// MSR and MRS, SYS and SYSL, and those without a general register: every op0, op1, CRn, CRm
/// and op2, with an address in X0 that is no memory. One in seven of them, unless `rounds=7`
/// asks for all.
fn every_system_instruction(host: &mut Host) -> Outcome {
    const NEXT: u32 = 1 << 5;
    const SHARES: u64 = 7;
    let others = Bystanders::new(host)?;
    let room = Room::new(host);
    for (what, first, count) in [
        ("without a register", 0xd500_001f, 0x4000),
        ("SYS", 0xd508_0000, 0x4000),
        ("MSR", 0xd510_0000, 0x8000),
        ("SYSL", 0xd528_0000, 0x4000),
        ("MRS", 0xd530_0000, 0x8000),
    ] {
        let (mut all, mut done, mut undefined, mut classes) = (0, 0, 0, 0);
        for share in (seed(host)..).take(rounds(host, 1).min(SHARES) as usize) {
            let from = share % SHARES;
            let count = (count - from).div_ceil(SHARES);
            let sweep = (first + from as u32 * NEXT, SHARES as u32 * NEXT, count);
            let harvest = Victim::sweep(host, room, sweep, NOWHERE)?;
            all += count;
            done += harvest.done;
            undefined += harvest.undefined;
            classes |= harvest.classes;
        }
        println!("note: {what}: {all}: {done} done, {undefined} undefined, {classes:#x}");
        // Undefined; what the guest's own CPACR_EL1 traps, of FP, SVE and SME; aborts of cache
        // maintenance; and a class that QEMU has for some registers of which EL1 has no use.
        let allowed = 1 << 0x00 | 1 << 0x07 | 1 << 0x18 | 1 << 0x19 | 1 << 0x1d | 1 << 0x25;
        check_eq!(classes & !allowed, 0, "{what}");
        // No SYSL is for EL1: what reads anything is EL2's doing.
        check_eq!(done == 0, what == "SYSL", "{what}");
        check!(undefined > done && done + undefined <= all, "{what}");
        others.check()?;
    }
    others.end(host)
}

/// Pages of random words, carried out with whatever they leave in registers. A guest of that kind
/// is given up after a while.
fn any_instruction(host: &mut Host) -> Outcome {
    let others = Bystanders::new(host)?;
    let room = Room::new(host);
    let mut random = Random::new(seed(host));
    let (mut ended, mut exits) = (0, 0);
    for _ in 0..rounds(host, 60) {
        let known = [CODE, SLOT, RESULTS, MISSING, NOWHERE, 0, u64::MAX, 1 << 39];
        let registers: ArrayVec<(u64, u64), 31> = (0..31)
            .map(|n| {
                let value = random.draw();
                let offset = random.draw() & 0xfff;
                (n, if value & 3 == 0 { value } else { known[value as usize >> 2 & 7] + offset })
            })
            .collect();
        let mut words = random.clone();
        random.draw();
        // Half of them are loads and stores or system instructions.
        let code = core::iter::from_fn(move || {
            let word = words.draw();
            Some(match word >> 32 & 7 {
                0 | 1 => word as u32 & 0x003f_ffff | 0xd500_0000,
                2 => word as u32 & 0xf3ff_ffff | 0x0800_0000,
                3 => word as u32 & 0x001f_ffff | 0xd400_0000,
                _ => word as u32,
            })
        });
        let victim = Victim::create(host, room, SLOT, registers, code.take(1024))?;
        let mut resume = [0; 3];
        for _ in 0..40 {
            interrupts::start_timer(300);
            let exit = run_once(victim.vcpu, resume).map_err(refused("VCPU_RUN"));
            interrupts::stop_timer();
            let exit = exit?;
            exits += 1;
            if matches!(exit, Exit::SystemDown(_) | Exit::PoweredOff) {
                ended += 1;
                break;
            }
            resume = indifferent(exit)?;
        }
        room.end(host, victim.vm)?;
    }
    println!("note: {exits} exits, {ended} ended by themselves");
    others.end(host)
}

/// HVC and SMC with any immediate, and any function with any arguments.
fn any_call(host: &mut Host) -> Outcome {
    let others = Bystanders::new(host)?;
    let room = Room::new(host);
    // What is in X0 is no function.
    for (what, first) in [("HVC", 0xd400_0002), ("SMC", 0xd400_0003)] {
        let harvest = Victim::sweep(host, room, (first, 13 << 5, 0x1_0000 / 13), NOWHERE)?;
        check_eq!((harvest.done, harvest.undefined), (0x1_0000 / 13, 0), "{what}");
    }
    let mut random = Random::new(seed(host) ^ 0xca11);
    let mut agents = 0;
    let mut agent: Option<Agent> = None;
    for _ in 0..rounds(host, 3000) {
        let caller = match agent {
            Some(agent) => agent,
            None => {
                agents += 1;
                room.agent(host)?
            }
        };
        let draw = random.draw();
        let low = draw >> 8 & 0x7f;
        let function = match draw & 7 {
            0 | 1 => u64::from(psci::VERSION) | low & 0x1f | draw << 15 & 1 << 30,
            2 => u64::from(trng::VERSION) | low & 7 | draw << 15 & 1 << 30,
            3 => u64::from(call::MODIFY_PAGES) & !0xff | draw >> 8 & 0x1ff,
            4 => 0x8000_0000 | draw >> 8 & 0x4000_ffff,
            5 => 0x8500_0000 | draw >> 8 & 0x4000_003f,
            6 => u64::from(call::VM_CREATE) & !0xff | draw >> 8 & 0xff,
            _ => random.draw(),
        };
        let known = [0, 1, CODE, FREE, MISSING, NOWHERE, u64::MAX, 1 << 39, psci::VERSION.into()];
        let arguments: [u64; 8] = core::array::from_fn(|n| match (n, random.draw()) {
            (0, _) => function,
            (_, draw) if draw & 3 == 0 => draw,
            (_, draw) => known[draw as usize % known.len()],
        });
        let conduit = if draw >> 60 == 0 { routine::smc() } else { routine::hvc() };
        caller.command(conduit, &arguments);
        let mut resume = [0; 3];
        let mut back = false;
        for _ in 0..20 {
            interrupts::start_timer(1000);
            let exit = run_once(caller.vcpu, resume).map_err(refused("VCPU_RUN"));
            interrupts::stop_timer();
            let exit = exit?;
            if exit == Exit::DOORBELL {
                back = caller.results().exception.is_none();
                break;
            }
            resume = indifferent(exit)?;
        }
        agent = if back {
            Some(caller)
        } else {
            // It is off, or has given its own code away.
            room.end(host, caller.vm)?;
            None
        };
    }
    if let Some(agent) = agent {
        room.end(host, agent.vm)?;
    }
    println!("note: {agents} guests");
    others.end(host)
}

/// Loads and stores of every size, at every alignment, with a syndrome and without, in pages that
/// are no memory, that are missing, and over the edge between the two.
fn mmio_of_any_kind(host: &mut Host) -> Outcome {
    let others = Bystanders::new(host)?;
    let room = Room::new(host);
    let agent = room.agent(host)?;
    declare(agent.vm, MISSING, PAGE_SIZE)?;
    let plain: [(Routine, u64); 4] = [
        (routine::ldrb_w(), 1),
        (routine::ldrsh_x(), 2),
        (routine::ldr_w(), 4),
        (routine::ldr_x(), 8),
    ];
    let stores = [(routine::strb(), 1), (routine::strh(), 2), (routine::str_xzr(), 8)];
    let without = [
        (routine::ldp(), 8),
        (routine::stp(), 8),
        (routine::ldr_post(), 8),
        (routine::ldr_q(), 16),
    ];
    for base in [NOWHERE, MISSING, MISSING + PAGE_SIZE - 16, (1 << 38) - 16] {
        for offset in 0..32 {
            let at = base + offset;
            for (routine, size) in plain.into_iter().chain(stores).chain(without) {
                agent.command(routine, &[7, at, 9]);
                let mut resume = [0; 3];
                for _ in 0..8 {
                    let exit = agent.run(resume)?;
                    match exit {
                        Exit::DOORBELL => break,
                        Exit::MmioRead(a, n) | Exit::MmioWrite(a, n, _) => {
                            check_eq!((a, n), (at, size), "{routine:?}");
                        }
                        Exit::Fault(_, a) => check!(a.abs_diff(at) < 16, "{a:#x}, {at:#x}"),
                        Exit::PageFault(a, PAGE_SIZE, _) => check_eq!(a, MISSING),
                        other => fail!("{other:x?}"),
                    }
                    resume = indifferent(exit)?;
                }
                let results = agent.results();
                if let Some(exception) = results.exception {
                    // An external abort of its host's, or an alignment fault of its own: with the
                    // MMU off, all data is device memory.
                    check_eq!(exception.esr >> 26, 0x25, "{routine:?}");
                    check!(matches!(exception.esr & 0x3f, 0x10 | 0x21), "{exception:x?}");
                }
            }
        }
    }
    room.end(host, agent.vm)?;
    others.end(host)
}

/// Cache maintenance and the like, of memory that is missing, of none, and of none at all.
fn caches_of_missing_memory(host: &mut Host) -> Outcome {
    let others = Bystanders::new(host)?;
    let room = Room::new(host);
    // SYS with CRn 7: caches, and address translation.
    let crn7 = |op1: u32| (0xd508_7000 | op1 << 16, 1 << 5, 0x80);
    for at in [MISSING, MISSING + 0xff8, NOWHERE, RESULTS].into_iter().chain(ENDS).chain([u64::MAX])
    {
        for op1 in [0, 3] {
            let harvest = Victim::sweep(host, room, crn7(op1), at)?;
            check_eq!(harvest.classes & !(1 << 0x00 | 1 << 0x25), 0, "{op1}, {at:#x}");
            check!(harvest.done > 0, "{op1}, {at:#x}");
        }
    }
    others.end(host)
}

fn a_wild_pc(host: &mut Host) -> Outcome {
    let others = Bystanders::new(host)?;
    let room = Room::new(host);
    let mut random = Random::new(seed(host) ^ 0x9c);
    let known = [MISSING, MISSING + 0xffc, NOWHERE, SLOT + 2, 0, u64::MAX, 1 << 55];
    let wild = core::iter::from_fn(|| Some(random.draw())).take(16);
    for pc in known.into_iter().chain(ENDS).chain(wild) {
        let victim = Victim::create(host, room, pc, [], [0xd503_201f; 16])?;
        let mut resume = [0; 3];
        let mut told = 0;
        for _ in 0..20 {
            interrupts::start_timer(300);
            let exit = run_once(victim.vcpu, resume).map_err(refused("VCPU_RUN"));
            interrupts::stop_timer();
            let exit = exit?;
            // Its vectors are nowhere either: what the host is told is where it fetches.
            told += u32::from(!matches!(exit, Exit::Ready));
            check!(
                matches!(exit, Exit::Ready | Exit::Fault(..) | Exit::PageFault(_, PAGE_SIZE, 2)),
                "{pc:#x}: {exit:x?}"
            );
            resume = indifferent(exit)?;
        }
        check!(told > 0, "{pc:#x}");
        room.end(host, victim.vm)?;
    }
    others.end(host)
}

/// Stage 1 with its tables where there is no memory, where it is missing, and in the guest's own
/// code.
fn tables_in_missing_memory(host: &mut Host) -> Outcome {
    const SCTLR: u64 = 0x30d0_0800 | 1;
    let others = Bystanders::new(host)?;
    let room = Room::new(host);
    // T0SZ, and what goes with it: 25 to 39 bits of address, 4 and 64 KiB pages, walks as device
    // memory.
    let tcrs = [25 | 0x3500, 39 | 0x3500, 16 | 0x3500, 25 | 0x3500 | 1 << 14, 25, u64::MAX];
    for tcr in tcrs {
        for ttbr in [MISSING, NOWHERE, CODE, RESULTS].into_iter().chain(ENDS).chain([u64::MAX]) {
            let agent = room.agent(host)?;
            declare(agent.vm, MISSING, PAGE_SIZE)?;
            agent.command(routine::mmu_on(), &[ttbr, tcr | 2 << 32, SCTLR]);
            let mut resume = [0; 3];
            for _ in 0..12 {
                interrupts::start_timer(300);
                let exit = run_once(agent.vcpu, resume).map_err(refused("VCPU_RUN"));
                interrupts::stop_timer();
                let exit = exit?;
                check!(
                    !matches!(exit, Exit::SystemDown(_) | Exit::Unknown(_)),
                    "{ttbr:#x}, {tcr:#x}: {exit:x?}"
                );
                resume = indifferent(exit)?;
            }
            room.end(host, agent.vm)?;
        }
    }
    others.end(host)
}

/// A guest that does one thing for ever costs its host what it lets the guest run: the host's
/// timer interrupt comes when it is due.
fn storms(host: &mut Host) -> Outcome {
    const BACK: u32 = 0x17ff_ffff;
    let others = Bystanders::new(host)?;
    let room = Room::new(host);
    for (what, instruction, x0) in [
        ("nothing", 0xd503_201f, 0),
        ("WFE", 0xd503_205f, 0),
        ("WFI", 0xd503_207f, 0),
        ("HVC", 0xd400_0002, u64::from(psci::VERSION)),
        ("SMC", 0xd400_0003, u64::from(call::SMCCC_VERSION)),
        ("HVC #1", 0xd400_0022, 0),
        ("random numbers", 0xd400_0002, u64::from(trng::RND_64)),
        ("MRS, ID_AA64PFR0_EL1", 0xd538_0401, 0),
        ("MSR, OSLAR_EL1", 0xd510_1080, 0),
        ("DC CISW", 0xd508_7e40, 0),
        ("TLBI VMALLE1IS", 0xd508_831f, 0),
        ("IC IALLUIS", 0xd508_711f, 0),
        ("ISB", 0xd503_3fdf, 0),
        ("STR, to a device", 0xf900_0041, 0),
        // Of an instruction that is undefined, with vectors in the same page.
        ("exceptions", 0x0000_0000, 0),
    ] {
        let code = (0..1024).map(|n| if n % 2 == 0 { instruction } else { BACK });
        let registers = [(0, x0), (1, 64), (2, NOWHERE)];
        let victim = Victim::create(host, room, SLOT, registers, code)?;
        let mut resume = [0; 3];
        for _ in 0..20 {
            interrupts::start_timer(200);
            let limit = cpus::deadline(1);
            while !interrupts::is_pending() {
                let exit = run_once(victim.vcpu, resume).map_err(refused("VCPU_RUN"))?;
                resume = indifferent(exit)?;
            }
            check!(!cpus::is_past(limit), "{what}: the host's timer came late");
            interrupts::stop_timer();
            cpus::wait_until(|| !interrupts::is_pending(), "the interrupt stays")?;
        }
        room.end(host, victim.vm)?;
        others.check()?;
    }
    others.end(host)
}

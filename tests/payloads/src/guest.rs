// SPDX-License-Identifier: MIT OR Apache-2.0

//! Guests: a VM with one vCPU that runs the agent (`guest.S`).

use core::arch::global_asm;

use escrow_abi::{MemEntry, ORDER_PAGE, PAGE_SIZE, Rights, call, psci, run};

use crate::host::{Host, Lists, peek, poke, refused};
use crate::hvc::{Refusal, call, call_with_vectors};
use crate::{Outcome, check, check_eq, fail, mmu};

global_asm!(include_str!("guest.S"), DOORBELL = const DOORBELL);

/// Where the guest has the agent's code.
pub const CODE: u64 = 0x4000_0000;
/// Where the guest has the mailbox, shared with the host.
pub const MAILBOX: u64 = 0x4000_8000;
/// Where the guest rings when it wants a command: no memory.
pub const DOORBELL: u64 = 0x0900_0000;
/// Where tests may map pages of their own without another table.
pub const FREE: u64 = 0x4001_0000;
/// Where tests may map blocks of their own without another table.
pub const FREE_BLOCK: u64 = 0x4020_0000;

/// Metadata pages of an agent's VM: its root table, two more, the vCPU, and
/// some to spare.
const METADATA: u64 = 12;
/// Words of the mailbox, in bytes from its begin; see `guest.S`.
const MAIL_ROUTINE: u64 = 0;
const MAIL_ARGUMENTS: u64 = 8;
const MAIL_RESULTS: u64 = 72;
const MAIL_ESR: u64 = 136;
const MAIL_INTERRUPTS: u64 = 168;
const MAIL_CALL: u64 = 176;
const MAIL_ANSWER: u64 = 208;
const MAIL_VECTORS: u64 = 256;
/// Runs that may end with nothing to tell before that is a failure.
const PATIENCE: u32 = 10_000;

unsafe extern "C" {
    static agent_begin: u8;
    static agent_end: u8;
}

/// A routine of the agent's.
#[derive(Clone, Copy, Debug)]
pub struct Routine(u64);

impl Routine {
    /// Where it is, from [`CODE`] on.
    pub fn offset(self) -> u64 {
        self.0
    }
}

macro_rules! routines {
    ($($name:ident = $symbol:ident),+ $(,)?) => {
        unsafe extern "C" {
            $(static $symbol: u8;)+
        }
        $(
            #[doc = concat!("`", stringify!($symbol), "` of `guest.S`.")]
            pub fn $name() -> Routine {
                Routine(&raw const $symbol as u64 - &raw const agent_begin as u64)
            }
        )+
    };
}

/// The agent's routines.
pub mod routine {
    use super::{Routine, agent_begin};

    routines! {
        ldrb_w = agent_ldrb_w, ldrh_w = agent_ldrh_w, ldr_w = agent_ldr_w, ldr_x = agent_ldr_x,
        ldrsb_w = agent_ldrsb_w, ldrsb_x = agent_ldrsb_x, ldrsh_w = agent_ldrsh_w,
        ldrsh_x = agent_ldrsh_x, ldrsw_x = agent_ldrsw_x, ldr_xzr = agent_ldr_xzr,
        strb = agent_strb, strh = agent_strh, str_w = agent_str_w, str_x = agent_str_x,
        str_xzr = agent_str_xzr, ldp = agent_ldp, stp = agent_stp, ldr_post = agent_ldr_post,
        ldr_q = agent_ldr_q, hvc = agent_hvc, hvc1 = agent_hvc1, smc = agent_smc,
        wfi = agent_wfi, wfe = agent_wfe, jump = agent_jump, svc = agent_svc, brk = agent_brk,
        current_el = agent_current_el, id = agent_id, mrs_isar0 = agent_mrs_isar0, mrs_el2 = agent_mrs_el2,
        mrs_implementation_defined = agent_mrs_implementation_defined,
        mrs_unallocated = agent_mrs_unallocated, msr_unallocated = agent_msr_unallocated,
        mrs_pmcr = agent_mrs_pmcr, mrs_zcr = agent_mrs_zcr, mrs_oslsr = agent_mrs_oslsr,
        mrs_pmscr = agent_mrs_pmscr, msr_mdscr = agent_msr_mdscr, msr_dbgbcr = agent_msr_dbgbcr, msr_dbgbvr = agent_msr_dbgbvr,
        msr_oslar = agent_msr_oslar, work = agent_work, unmasked_work = agent_unmasked_work, counter = agent_counter, set_timer = agent_set_timer,
        get_timer = agent_get_timer, set_registers = agent_set_registers,
        get_registers = agent_get_registers, set_disr = agent_set_disr,
        get_disr = agent_get_disr,
        set_translation = agent_set_translation, get_translation = agent_get_translation,
        set_exception = agent_set_exception, get_exception = agent_get_exception,
        spin = agent_spin, hold_secrets = agent_hold_secrets, poll = agent_poll, mmu_on = agent_mmu_on,
        pending = agent_pending, hvc_pending = agent_hvc_pending,
        keys_pending = agent_keys_pending, unmask = agent_unmask, r#await = agent_await,
        load_vectors = agent_load_vectors, store_vectors = agent_store_vectors,
    }
}

/// What a run of a vCPU ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Nothing that is the guest's.
    Ready,
    /// It waits for an interrupt; the counter value at which its timer fires.
    Wakeup(u64),
    /// It is switched off.
    PoweredOff,
    /// It reads MMIO: address, bytes.
    MmioRead(u64, u64),
    /// It writes MMIO: address, bytes, value.
    MmioWrite(u64, u64, u64),
    /// It lacks memory: address, missing bytes, kind of access.
    PageFault(u64, u64, u64),
    /// It has switched on the vCPU with this index.
    SwitchedOn(u64),
    /// It is down: 0 off, 1 reset.
    SystemDown(u64),
    /// It asks its host to lose sight of pages: address, bytes.
    TakeBack(u64, u64),
    /// It did what cannot be emulated: syndrome, address.
    Fault(u64, u64),
    /// vCPUs are to be run, a bit each.
    Wake(u64),
    /// It is done with an SPI, and vCPUs are to be run.
    SpiDone(u64),
    /// No state that the interface has.
    Unknown([u64; 4]),
}

impl Exit {
    fn decode(answer: [u64; 4]) -> Exit {
        let [state, a, b, c] = answer;
        match state {
            run::READY => Exit::Ready,
            run::EXPECTS_WAKEUP => Exit::Wakeup(c),
            run::POWERED_OFF => Exit::PoweredOff,
            run::MMIO_READ => Exit::MmioRead(a, b),
            run::MMIO_WRITE => Exit::MmioWrite(a, b, c),
            run::PAGE_FAULT => Exit::PageFault(a, b, c),
            run::SYSTEM_DOWN => Exit::SystemDown(a),
            run::SWITCHED_ON => Exit::SwitchedOn(a),
            run::FAULT => Exit::Fault(a, b),
            run::TAKE_BACK => Exit::TakeBack(a, b),
            run::WAKE => Exit::Wake(a),
            run::SPI_DONE => Exit::SpiDone(a),
            _ => Exit::Unknown(answer),
        }
    }

    /// The store to its doorbell of the agent with its mailbox at [`MAILBOX`].
    pub const DOORBELL: Exit = Exit::doorbell(MAILBOX);

    /// The store to its doorbell of an agent with its mailbox somewhere else.
    pub const fn doorbell(mailbox_at: u64) -> Exit {
        Exit::MmioWrite(DOORBELL, 8, mailbox_at)
    }
}

/// Runs a vCPU once.
///
/// # Errors
/// Escrow refuses.
pub fn run_once(vcpu: u64, resume: [u64; 3]) -> Result<Exit, Refusal> {
    let [a, b, c] = resume;
    call(call::VCPU_RUN, &[vcpu, a, b, c]).map(Exit::decode)
}

/// What a routine of the agent's left.
#[derive(Clone, Copy, Debug)]
pub struct Results {
    /// X0 to X7.
    pub x: [u64; 8],
    /// The exception that it took, if it did.
    pub exception: Option<Exception>,
}

/// An exception that the guest took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// `ESR_EL1`.
    pub esr: u64,
    /// `FAR_EL1`.
    pub far: u64,
    /// `ELR_EL1`.
    pub elr: u64,
    /// `SPSR_EL1`.
    pub spsr: u64,
}

/// A guest that runs the agent.
#[derive(Clone, Copy, Debug)]
pub struct Agent {
    /// The VM.
    pub vm: u64,
    /// Its vCPU.
    pub vcpu: u64,
    /// The page with the agent's code, lent.
    pub code: u64,
    /// The page of the mailbox, shared.
    pub mailbox: u64,
    /// Where the guest has it.
    pub mailbox_at: u64,
}

impl Agent {
    /// Makes a VM with an agent that waits for its first command.
    ///
    /// # Errors
    /// Escrow refuses, or the agent does not come up.
    pub fn start(host: &mut Host) -> Outcome<Agent> {
        let pages = host.arena.pages(METADATA + 2);
        Self::start_with(&host.lists, pages)
    }

    /// The pages that [`Self::start_with`] needs.
    pub const PAGES: u64 = METADATA + 2;

    /// [`Self::start`] with [`Self::PAGES`] pages from `pages` on, lists by `lists`.
    ///
    /// # Errors
    /// Escrow refuses, or the agent does not come up.
    pub fn start_with(lists: &Lists, pages: u64) -> Outcome<Agent> {
        let agent = Self::create_with(lists, pages, |_| Ok(()))?;
        call(call::VM_START, &[agent.vm]).map_err(refused("VM_START"))?;
        check_eq!(agent.run([0; 3])?, Exit::DOORBELL, "the agent comes up");
        Ok(agent)
    }

    /// Makes a VM that is ready to be started.
    ///
    /// # Errors
    /// Escrow refuses.
    pub fn create(host: &mut Host) -> Outcome<Agent> {
        Self::create_prepared(host, |_| Ok(()))
    }

    /// The same; `prepare` is done to the VM before it has memory or a vCPU.
    ///
    /// # Errors
    /// Escrow refuses.
    pub fn create_prepared(
        host: &mut Host,
        prepare: impl FnOnce(u64) -> Outcome,
    ) -> Outcome<Agent> {
        let pages = host.arena.pages(Self::PAGES);
        Self::create_with(&host.lists, pages, prepare)
    }

    fn create_with(
        lists: &Lists,
        pages: u64,
        prepare: impl FnOnce(u64) -> Outcome,
    ) -> Outcome<Agent> {
        let vm = lists.vm_of(pages, METADATA)?;
        prepare(vm)?;
        let [code, mailbox] = [METADATA, METADATA + 1].map(|n| pages + n * PAGE_SIZE);
        Self::install(code)?;
        lists
            .lend(vm, &[MemEntry::new(code, ORDER_PAGE, CODE, Rights::READ_EXECUTE)])
            .map_err(refused("MEM_LEND of the agent"))?;
        lists
            .share(vm, &[MemEntry::new(mailbox, ORDER_PAGE, MAILBOX, Rights::READ_WRITE)])
            .map_err(refused("MEM_SHARE of the mailbox"))?;
        let [vcpu, ..] = call(call::VCPU_CREATE, &[vm, 0]).map_err(refused("VCPU_CREATE"))?;
        Self::aim(vcpu)?;
        Ok(Agent { vm, vcpu, code, mailbox, mailbox_at: MAILBOX })
    }

    /// Copies the agent into a page, which the guest is to have at [`CODE`].
    ///
    /// # Errors
    /// It does not fit.
    pub fn install(code: u64) -> Outcome {
        let source = &raw const agent_begin;
        let size = &raw const agent_end as usize - source as usize;
        check!(size <= PAGE_SIZE as usize, "the agent has {size} bytes");
        // SAFETY: the page is the arena's, and the agent fits.
        unsafe { core::ptr::copy_nonoverlapping(source, code as *mut u8, size) };
        mmu::clean(code, PAGE_SIZE);
        Ok(())
    }

    /// Sets a vCPU up to run the agent, with its mailbox at [`MAILBOX`].
    ///
    /// # Errors
    /// Escrow refuses.
    pub fn aim(vcpu: u64) -> Outcome {
        for (register, value) in [(1 << 8, CODE), (0, MAILBOX), (1, DOORBELL)] {
            call(call::VCPU_SET_REGISTER, &[vcpu, register, value])
                .map_err(refused("VCPU_SET_REGISTER"))?;
        }
        Ok(())
    }

    /// Gives a VM that is not yet started one more vCPU, which has the page `mailbox`
    /// at `mailbox_at`. [`Self::wake`] switches it on.
    ///
    /// # Errors
    /// Escrow refuses.
    pub fn add_vcpu(
        &self,
        lists: &Lists,
        index: u64,
        mailbox: u64,
        mailbox_at: u64,
    ) -> Outcome<Agent> {
        lists
            .share(self.vm, &[MemEntry::new(mailbox, ORDER_PAGE, mailbox_at, Rights::READ_WRITE)])
            .map_err(refused("MEM_SHARE of a mailbox"))?;
        let [vcpu, ..] =
            call(call::VCPU_CREATE, &[self.vm, index]).map_err(refused("VCPU_CREATE"))?;
        Ok(Agent { vcpu, mailbox, mailbox_at, ..*self })
    }

    /// Has the first vCPU switch on `other`, number `index`, which then waits for its
    /// first command.
    ///
    /// # Errors
    /// Escrow refuses, or it does not come up.
    pub fn wake(&self, other: &Agent, index: u64) -> Outcome {
        let on = [psci::CPU_ON_64 as u64, index, CODE, other.mailbox_at];
        check_eq!(self.switch_on(&on)?, Exit::SwitchedOn(index));
        check_eq!(other.run([0; 3])?, Exit::doorbell(other.mailbox_at), "vCPU {index} comes up");
        Ok(())
    }

    /// Has the vCPU make a CPU_ON that succeeds; returns what its run ended with.
    ///
    /// # Errors
    /// Escrow refuses, or the call does not succeed.
    pub fn switch_on(&self, arguments: &[u64]) -> Outcome<Exit> {
        let exit = self.begin(routine::hvc(), arguments)?;
        check_eq!(self.finish([0; 3])?.x[0], psci::SUCCESS);
        Ok(exit)
    }

    /// Runs the vCPU until it ends with something.
    ///
    /// # Errors
    /// Escrow refuses, or it never does.
    pub fn run(&self, resume: [u64; 3]) -> Outcome<Exit> {
        let mut resume = resume;
        for _ in 0..PATIENCE {
            let exit = run_once(self.vcpu, resume).map_err(refused("VCPU_RUN"))?;
            if exit != Exit::Ready {
                return Ok(exit);
            }
            resume = [0; 3];
        }
        fail!("the guest makes no progress")
    }

    /// Writes a command into the mailbox.
    pub fn command(&self, routine: Routine, arguments: &[u64]) {
        poke(self.mailbox + MAIL_ROUTINE, routine.0);
        for n in 0..8 {
            let value = arguments.get(n).copied().unwrap_or(0);
            poke(self.mailbox + MAIL_ARGUMENTS + n as u64 * 8, value);
        }
    }

    /// Gives a command to the agent, which waits at its doorbell, and runs it
    /// until it ends with something.
    ///
    /// # Errors
    /// Escrow refuses.
    pub fn begin(&self, routine: Routine, arguments: &[u64]) -> Outcome<Exit> {
        self.command(routine, arguments);
        self.run([0; 3])
    }

    /// What the last command left.
    pub fn results(&self) -> Results {
        let word = |at: u64| peek(self.mailbox + at);
        let [esr, far, elr, spsr] = [0, 8, 16, 24].map(|n| word(MAIL_ESR + n));
        Results {
            x: core::array::from_fn(|n| word(MAIL_RESULTS + n as u64 * 8)),
            exception: (esr != 0).then_some(Exception { esr, far, elr, spsr }),
        }
    }

    /// Goes on after an exit; the agent must come back to its doorbell.
    ///
    /// # Errors
    /// Escrow refuses, or the guest ends with something else.
    pub fn finish(&self, resume: [u64; 3]) -> Outcome<Results> {
        check_eq!(self.run(resume)?, Exit::doorbell(self.mailbox_at), "the agent comes back");
        Ok(self.results())
    }

    /// Gives a command that the agent can do without its host.
    ///
    /// # Errors
    /// Escrow refuses, or the guest ends with something else.
    pub fn call(&self, routine: Routine, arguments: &[u64]) -> Outcome<Results> {
        self.command(routine, arguments);
        self.finish([0; 3])
    }

    /// The guest loads a word of its memory.
    ///
    /// # Errors
    /// It cannot.
    pub fn load(&self, at: u64) -> Outcome<u64> {
        let results = self.call(routine::ldr_x(), &[0, at])?;
        check!(results.exception.is_none(), "{results:x?}");
        Ok(results.x[0])
    }

    /// The guest stores a word to its memory.
    ///
    /// # Errors
    /// It cannot.
    pub fn store(&self, at: u64, value: u64) -> Outcome {
        let results = self.call(routine::str_x(), &[0, at, value])?;
        check!(results.exception.is_none(), "{results:x?}");
        Ok(())
    }

    /// The guest makes a call; X0 of the answer.
    ///
    /// # Errors
    /// It does not return.
    pub fn hvc(&self, arguments: &[u64]) -> Outcome<u64> {
        let results = self.call(routine::hvc(), arguments)?;
        check!(results.exception.is_none(), "{results:x?}");
        Ok(results.x[0])
    }

    /// From here on counts interrupts from 0, and makes a call with X0 to X3 at each, or none
    /// and masks them.
    pub fn at_interrupts(&self, arguments: Option<[u64; 4]>) {
        poke(self.mailbox + MAIL_INTERRUPTS, 0);
        for (n, value) in (0..).zip(arguments.unwrap_or_default()) {
            poke(self.mailbox + MAIL_CALL + n * 8, value);
        }
    }

    /// How many interrupts came since, and X0 and X1 of the last call made at one.
    pub fn interrupts(&self) -> (u64, [u64; 2]) {
        let word = |at: u64| peek(self.mailbox + at);
        (word(MAIL_INTERRUPTS), [word(MAIL_ANSWER), word(MAIL_ANSWER + 8)])
    }

    /// The vectors in the mailbox.
    pub fn vectors(&self) -> [u128; 32] {
        core::array::from_fn(|n| {
            let at = self.mailbox + MAIL_VECTORS + n as u64 * 16;
            peek(at) as u128 | (peek(at + 8) as u128) << 64
        })
    }

    /// Puts vectors into the mailbox.
    pub fn set_vectors(&self, vectors: &[u128; 32]) {
        for (n, value) in (0..).zip(vectors) {
            let at = self.mailbox + MAIL_VECTORS + n * 16;
            poke(at, *value as u64);
            poke(at + 8, (*value >> 64) as u64);
        }
    }

    /// Runs the vCPU once with the host's V0 to V31 in `vectors`.
    ///
    /// # Errors
    /// Escrow refuses.
    pub fn run_with_vectors(&self, vectors: &mut [u128; 32]) -> Outcome<Exit> {
        call_with_vectors(call::VCPU_RUN, &[self.vcpu], vectors)
            .map(Exit::decode)
            .map_err(refused("VCPU_RUN"))
    }
}

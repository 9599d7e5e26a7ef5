// SPDX-License-Identifier: MIT OR Apache-2.0

//! Guests with a GIC, which do what a script says (`gic_guest.S`).

use core::arch::global_asm;
use core::sync::atomic::{AtomicBool, Ordering};

use aarch64_cpu::registers::{CNTFRQ_EL0, CNTVCT_EL0, Readable as _};
use arrayvec::ArrayVec;
use escrow_abi::{MemEntry, ORDER_PAGE, PAGE_SIZE, Rights, call, psci};

use crate::cpus::{self, MAX_CPUS};
use crate::guest::{Exit, run_once};
use crate::host::{Host, Lists, peek, poke, refused};
use crate::hvc::call;
use crate::{Outcome, check, check_eq, fail, interrupts, mmu};

global_asm!(include_str!("gic_guest.S"), DOORBELL = const DOORBELL);

/// Where the guest has its code.
const CODE: u64 = 0x4000_0000;
/// Where its mailboxes begin, one of two pages for each vCPU.
const MAILBOXES: u64 = 0x4001_0000;
const MAILBOX_SIZE: u64 = 0x2000;
/// The end of a script.
const DOORBELL: u64 = 0x0900_0000;
/// A device.
const DEVICE: u64 = DOORBELL + 8;
/// GICD.
pub const GICD: u64 = 0x0800_0000;
/// GICR of vCPU 0.
pub const GICR: u64 = 0x080a_0000;

const METADATA: u64 = 32;
const MAIL_EXCEPTION: u64 = 8;
/// A word of the mailbox for scripts to use.
const MAIL_WORD: u64 = 0x40;
const MAIL_ARGUMENTS: u64 = 0x80;
const MAIL_SCRIPT: u64 = 0x100;
const MAIL_HANDLER: u64 = 0xa00;
const MAIL_NOTES: u64 = 0xc00;
const NOTES: u64 = 64;
const PATIENCE: u32 = 10_000;
/// Loops that a guest waits for an interrupt before it gives up.
const LOOPS: u64 = 50_000_000;

unsafe extern "C" {
    static gic_guest_begin: u8;
    static gic_guest_end: u8;
}

/// A register that a guest reads.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)] // The names are the architecture's.
#[repr(u64)]
pub enum Read {
    Iar1,
    Hppir1,
    Rpr,
    Pmr,
    Ctlr,
    Igrpen1,
    Bpr1,
    CntvCtl,
    CntvCval,
    Cntvct,
    Pfr0,
    Sre,
    Isr,
    Mpidr,
    CntpCtl,
    CntpCval,
    CntpTval,
    Cntpct,
}

/// A register that a guest writes.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)] // The names are the architecture's.
#[repr(u64)]
pub enum Write {
    Eoir1,
    Dir,
    Sgi1r,
    Pmr,
    Ctlr,
    Igrpen1,
    Bpr1,
    CntvCtl,
    CntvCval,
    CntvTval,
    Sgi0r,
    Asgi1r,
    CntpCtl,
    CntpCval,
    CntpTval,
}

/// A step of a script: what to do, two arguments, and what the result is before.
#[derive(Clone, Copy, Debug)]
pub struct Step([u64; 4]);

#[allow(missing_docs)] // The instructions are what they are called.
impl Step {
    pub const fn load(at: u64) -> Step {
        Step([1, at, 0, 0])
    }

    pub const fn store(at: u64, value: u64) -> Step {
        Step([2, at, value, 0])
    }

    pub const fn load_x(at: u64) -> Step {
        Step([3, at, 0, 0])
    }

    pub const fn store_x(at: u64, value: u64) -> Step {
        Step([4, at, value, 0])
    }

    pub const fn load_b(at: u64) -> Step {
        Step([5, at, 0, 0])
    }

    pub const fn store_b(at: u64, value: u64) -> Step {
        Step([6, at, value, 0])
    }

    pub const fn read(register: Read) -> Step {
        Step([7, register as u64, 0, 0])
    }

    pub const fn write(register: Write, value: u64) -> Step {
        Step([8, register as u64, value, 0])
    }

    pub const UNMASK: Step = Step([9, 0, 0, 0]);
    pub const MASK: Step = Step([10, 0, 0, 0]);
    pub const WFI: Step = Step([11, 0, 0, 0]);

    /// Until so many interrupts came; the result is how many came.
    pub const fn until_interrupts(count: u64) -> Step {
        Step([12, count, LOOPS, 0])
    }

    /// Some loops.
    pub const fn loops(count: u64) -> Step {
        Step([14, count, 0, 0])
    }

    /// Until the timer's condition is met, whether or not it interrupts.
    pub const UNTIL_TIMER: Step = Step([21, 0, 0, 0]);

    /// In a handler: leaves out so many steps if the interrupt is another one.
    pub const fn if_intid(intid: u64, steps: u64) -> Step {
        Step([15, intid, steps, 0])
    }

    /// In a handler: writes `ICC_EOIR1_EL1`.
    pub const END: Step = Step([16, 0, 0, 0]);
    /// In a handler: writes `ICC_DIR_EL1`.
    pub const DEACTIVATE: Step = Step([17, 0, 0, 0]);

    /// Until the word of a vCPU's mailbox is at least a number; the result is the word.
    pub const fn until_word(vcpu: u64, at_least: u64) -> Step {
        Step([18, word_of(vcpu), LOOPS, at_least])
    }

    /// Adds to the word of a vCPU's mailbox.
    pub const fn add_word(vcpu: u64, value: u64) -> Step {
        Step([19, word_of(vcpu), value, 0])
    }

    /// Stores a value to the device: its host is told.
    pub const fn device(value: u64) -> Step {
        Step([20, 0, value, 0])
    }
}

const fn mailbox_at(vcpu: u64) -> u64 {
    MAILBOXES + vcpu * MAILBOX_SIZE
}

const fn word_of(vcpu: u64) -> u64 {
    mailbox_at(vcpu) + MAIL_WORD
}

/// An interrupt that a guest has acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// What `ICC_IAR1_EL1` said.
    pub intid: u32,
    /// The running priority then.
    pub priority: u32,
}

/// A vCPU of such a guest.
#[derive(Clone, Copy, Debug)]
pub struct GicVcpu {
    /// Its handle.
    pub vcpu: u64,
    index: u64,
    mailbox: u64,
}

/// A guest with a GIC.
#[derive(Clone, Debug)]
pub struct GicGuest {
    /// The VM.
    pub vm: u64,
    /// Its vCPUs.
    pub vcpus: ArrayVec<GicVcpu, MAX_CPUS>,
}

impl GicGuest {
    /// Makes a guest with so many vCPUs and SPIs. The first has begun and waits for a script.
    ///
    /// # Errors
    /// Escrow refuses, or the guest does not begin.
    pub fn start(host: &mut Host, vcpus: u64, spis: u64) -> Outcome<GicGuest> {
        let pages = host.arena.pages(METADATA + 1 + vcpus * 2);
        let vm = host.lists.vm_of(pages, METADATA)?;
        call(call::VM_VGIC, &[vm, GICD, GICR, spis]).map_err(refused("VM_VGIC"))?;
        let code = pages + METADATA * PAGE_SIZE;
        install(code)?;
        host.lists
            .lend(vm, &[MemEntry::new(code, ORDER_PAGE, CODE, Rights::READ_EXECUTE)])
            .map_err(refused("MEM_LEND of the guest's code"))?;
        let mut guest = GicGuest { vm, vcpus: ArrayVec::new() };
        for index in 0..vcpus {
            let mailbox = code + (1 + 2 * index) * PAGE_SIZE;
            guest.add(&host.lists, index, mailbox)?;
        }
        for (register, value) in [(1 << 8, CODE), (0, mailbox_at(0))] {
            call(call::VCPU_SET_REGISTER, &[guest.vcpus[0].vcpu, register, value])
                .map_err(refused("VCPU_SET_REGISTER"))?;
        }
        call(call::VM_START, &[vm]).map_err(refused("VM_START"))?;
        guest.vcpus[0].ends()?;
        Ok(guest)
    }

    fn add(&mut self, lists: &Lists, index: u64, mailbox: u64) -> Outcome {
        for n in 0..2 {
            let (page, at) = (mailbox + n * PAGE_SIZE, mailbox_at(index) + n * PAGE_SIZE);
            lists
                .share(self.vm, &[MemEntry::new(page, ORDER_PAGE, at, Rights::READ_WRITE)])
                .map_err(refused("MEM_SHARE of a mailbox"))?;
        }
        let [vcpu, ..] =
            call(call::VCPU_CREATE, &[self.vm, index]).map_err(refused("VCPU_CREATE"))?;
        self.vcpus.push(GicVcpu { vcpu, index, mailbox });
        Ok(())
    }

    /// Has the first vCPU switch the others on, which then wait for scripts.
    ///
    /// # Errors
    /// Escrow refuses, or one does not come.
    pub fn switch_on_others(&self) -> Outcome {
        for vcpu in &self.vcpus[1..] {
            let first = self.vcpus[0];
            poke(first.mailbox + MAIL_ARGUMENTS, vcpu.index);
            poke(first.mailbox + MAIL_ARGUMENTS + 8, CODE);
            let arguments = mailbox_at(0) + MAIL_ARGUMENTS;
            let on = Step([13, psci::CPU_ON_64.into(), arguments, mailbox_at(vcpu.index)]);
            first.write_script(&[on], &[]);
            check_eq!(first.run()?, Exit::SwitchedOn(vcpu.index));
            first.ends()?;
            check_eq!(first.result(0), psci::SUCCESS);
            vcpu.ends()?;
        }
        Ok(())
    }

    /// Sets the input of an SPI; vCPUs to run.
    ///
    /// # Errors
    /// Escrow refuses.
    pub fn input(&self, intid: u64, input: u64) -> Outcome<u64> {
        let [asleep, ..] =
            call(call::SPI_INPUT, &[self.vm, intid, input]).map_err(refused("SPI_INPUT"))?;
        Ok(asleep)
    }

    /// Runs all vCPUs, each on a CPU of its own, until the scripts of all are at their ends. One that waits
    /// runs again when it is to be woken, or when its timer fires.
    ///
    /// # Errors
    /// Escrow refuses, or one ends with something else.
    pub fn run_all(&self) -> Outcome {
        cpus::need(self.vcpus.len())?;
        self.run_in_turn()
    }

    /// The same on as many CPUs as there are: vCPUs that share one run one after the other, so none may wait
    /// for another.
    ///
    /// # Errors
    /// As those of [`Self::run_all`].
    pub fn run_in_turn(&self) -> Outcome {
        let woken: [AtomicBool; MAX_CPUS] = [const { AtomicBool::new(false) }; MAX_CPUS];
        let wake = |mask: u64| {
            for (n, woken) in woken.iter().enumerate().filter(|(n, _)| mask & 1 << n != 0) {
                check!(n < self.vcpus.len(), "vCPU {n} is to be woken");
                woken.store(true, Ordering::SeqCst);
            }
            Ok(())
        };
        let run = |vcpu: &GicVcpu| vcpu.ends_and_wakes(&woken[vcpu.index as usize], wake);
        cpus::try_on_all(|n| self.vcpus.iter().skip(n).step_by(cpus::count()).try_for_each(run))
    }

    /// Runs the first vCPU until its script is at its end, on this CPU, whoever is to be woken.
    ///
    /// # Errors
    /// As those of [`Self::run_all`].
    pub fn run_alone(&self) -> Outcome {
        self.vcpus[0].ends_and_wakes(&AtomicBool::new(false), |_| Ok(()))
    }

    /// Takes an SPI that is done; 0 if there is none.
    ///
    /// # Errors
    /// Escrow refuses.
    pub fn done(&self) -> Outcome<u64> {
        let [intid, ..] = call(call::SPI_DONE, &[self.vm]).map_err(refused("SPI_DONE"))?;
        Ok(intid)
    }

    /// Has each vCPU set its GIC up: groups enabled, all priorities let through, EOImode. The
    /// distributor is enabled.
    ///
    /// # Errors
    /// The guest does something else.
    pub fn set_up(&self, eoi_mode: u64) -> Outcome {
        for vcpu in &self.vcpus {
            vcpu.script(
                &[
                    Step::store(GICD, 0x13),
                    Step::store(GICR + vcpu.index * 0x2_0000 + 0x1_0080, u64::from(u32::MAX)),
                    Step::write(Write::Pmr, 0xf0),
                    Step::write(Write::Ctlr, eoi_mode << 1),
                    Step::write(Write::Igrpen1, 1),
                ],
                &[],
            )?;
        }
        Ok(())
    }
}

/// How far the counter gets in some milliseconds.
pub fn milliseconds(n: u64) -> u64 {
    n * CNTFRQ_EL0.get() / 1000
}

/// The host's counter, which the guest's timer is compared with.
pub fn counter() -> u64 {
    CNTVCT_EL0.get()
}

/// Copies the guest's code into a page.
fn install(code: u64) -> Outcome {
    let source = &raw const gic_guest_begin;
    let size = &raw const gic_guest_end as usize - source as usize;
    check!(size <= PAGE_SIZE as usize, "the guest has {size} bytes");
    // SAFETY: the page is the arena's, and the code fits.
    unsafe { core::ptr::copy_nonoverlapping(source, code as *mut u8, size) };
    mmu::clean(code, PAGE_SIZE);
    Ok(())
}

impl GicVcpu {
    /// SGI_base of its redistributor.
    pub fn private(&self) -> u64 {
        GICR + self.index * 0x2_0000 + 0x1_0000
    }

    /// Writes a script, and that of the handler, and forgets what came.
    pub fn write_script(&self, script: &[Step], handler: &[Step]) {
        let steps = |at: u64, steps: &[Step], most: u64| {
            assert!((steps.len() as u64) < most, "too many steps");
            for (n, step) in steps.iter().chain([&Step([0; 4])]).enumerate() {
                for (word, value) in step.0.iter().enumerate() {
                    poke(at + n as u64 * 32 + word as u64 * 8, *value);
                }
            }
        };
        steps(self.mailbox + MAIL_SCRIPT, script, (MAIL_HANDLER - MAIL_SCRIPT) / 32);
        steps(self.mailbox + MAIL_HANDLER, handler, (MAIL_NOTES - MAIL_HANDLER) / 32);
        for word in [0, MAIL_EXCEPTION, MAIL_WORD] {
            poke(self.mailbox + word, 0);
        }
    }

    /// Runs it until it ends with something that is not its host's own.
    ///
    /// # Errors
    /// Escrow refuses, or it never does.
    pub fn run(&self) -> Outcome<Exit> {
        for _ in 0..PATIENCE {
            let exit = run_once(self.vcpu, [0; 3]).map_err(refused("VCPU_RUN"))?;
            interrupts::drain();
            if exit != Exit::Ready {
                return Ok(exit);
            }
        }
        fail!("the guest makes no progress")
    }

    /// Goes on until the script is at its end.
    ///
    /// # Errors
    /// Escrow refuses, or something else comes first.
    pub fn ends(&self) -> Outcome {
        check_eq!(self.run()?, Exit::MmioWrite(DOORBELL, 8, mailbox_at(self.index)));
        check_eq!(self.exception(), None);
        Ok(())
    }

    /// The same, with others that are to be woken meanwhile, as it is itself when it waits.
    fn ends_and_wakes(&self, woken: &AtomicBool, wake: impl Fn(u64) -> Outcome) -> Outcome {
        loop {
            // Before the run: whoever wakes it after that is heard.
            woken.store(false, Ordering::SeqCst);
            match self.run()? {
                Exit::Wakeup(deadline) => cpus::wait_until(
                    || woken.load(Ordering::SeqCst) || counter() >= deadline,
                    "a vCPU is not woken",
                )?,
                Exit::Wake(mask) | Exit::SpiDone(mask) => wake(mask)?,
                exit => {
                    check_eq!(exit, Exit::MmioWrite(DOORBELL, 8, mailbox_at(self.index)));
                    check_eq!(self.exception(), None);
                    return Ok(());
                }
            }
        }
    }

    /// Gives it a script, and goes on until that is at its end.
    ///
    /// # Errors
    /// Escrow refuses, or something else comes first.
    pub fn script(&self, script: &[Step], handler: &[Step]) -> Outcome {
        self.write_script(script, handler);
        self.ends()
    }

    /// The store to the device that it ends with.
    ///
    /// # Errors
    /// It ends with something else.
    pub fn device(&self, value: u64) -> Outcome {
        check_eq!(self.run()?, Exit::MmioWrite(DEVICE, 8, value));
        Ok(())
    }

    /// The result of a step.
    pub fn result(&self, step: u64) -> u64 {
        peek(self.mailbox + MAIL_SCRIPT + step * 32 + 24)
    }

    /// Its word.
    pub fn word(&self) -> u64 {
        peek(self.mailbox + MAIL_WORD)
    }

    /// The exception that it took: `ESR_EL1`, `ELR_EL1`.
    pub fn exception(&self) -> Option<[u64; 2]> {
        let [esr, elr] = [0, 8].map(|n| peek(self.mailbox + MAIL_EXCEPTION + n));
        (esr != 0).then_some([esr, elr])
    }

    /// How many interrupts it took.
    pub fn count(&self) -> u64 {
        peek(self.mailbox)
    }

    /// The interrupts that it took, the last [`NOTES`] of them.
    pub fn taken(&self) -> ArrayVec<Taken, { NOTES as usize }> {
        let count = self.count();
        (count.saturating_sub(NOTES)..count)
            .map(|n| {
                let note = peek(self.mailbox + MAIL_NOTES + n % NOTES * 8);
                Taken { intid: note as u32, priority: (note >> 32) as u32 }
            })
            .collect()
    }
}

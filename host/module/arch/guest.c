// SPDX-License-Identifier: GPL-2.0-only
/*
 * Floor 0: what Linux has to know and to do when a thread enters a guest: what KVM's
 * vCPU loop does (kvm_arch_vcpu_ioctl_run() in arch/arm64/kvm/arm.c).
 */

#include <linux/errno.h>
#include <linux/irqflags.h>
#include <linux/percpu.h>
#include <linux/perf_event.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/task_work.h>
#include <linux/tick.h>
#include <linux/vtime.h>

#include <asm/barrier.h>
#include <asm/daifflags.h>

#include "arch/arch.h"

/* Since 6.18. */
#ifdef CONFIG_VIRT_XFER_TO_GUEST_WORK
#include <linux/entry-virt.h>

static int escrow_xfer_handle_work(void)
{
	return xfer_to_guest_mode_handle_work();
}

static bool escrow_xfer_work_pending(void)
{
	return xfer_to_guest_mode_work_pending();
}

#else

/*
 * Before 6.18 xfer_to_guest_mode_handle_work() writes into a vCPU of KVM's when there is a
 * signal, and kernels without KVM lack it. No module can do task work itself: it is left
 * to the way to user space, from where the program calls again. TIF_NOTIFY_RESUME alone is
 * no reason to: restartable sequences set it whenever the thread was preempted, and they
 * concern user space only. (Throttling by cpu.max is task work since 6.18.)
 */
static bool escrow_xfer_must_return(void)
{
#ifdef CONFIG_MEMCG
	/* The cgroup is beyond memory.high: the thread is throttled on its way to user space. */
	if (current->memcg_nr_pages_over_high)
		return true;
#endif
	return signal_pending(current) || task_work_pending(current);
}

static int escrow_xfer_handle_work(void)
{
	if (need_resched())
		schedule();
	return escrow_xfer_must_return() ? -EINTR : 0;
}

static bool escrow_xfer_work_pending(void)
{
	return need_resched() || escrow_xfer_must_return();
}

#endif

/* For perf: an interrupt on this CPU has interrupted a guest. */
static DEFINE_PER_CPU(bool, escrow_is_in_guest);

/*
 * Does what Linux otherwise does on the way to user space, since a thread that runs a guest
 * may stay away from there: it gives the CPU to other threads, and does task work (which
 * throttles a cgroup that has used up its time, for example). -EINTR: there is a signal.
 */
int escrow_guest_do_work(void)
{
	return escrow_xfer_handle_work();
}

/* Whether there is such work. Interrupts are disabled, so that none can add any until the entry. */
bool escrow_guest_must_work(void)
{
	tick_nohz_user_enter_prepare();
	return escrow_xfer_work_pending();
}

/*
 * Runs a guest once. With interrupts and preemption disabled; enables interrupts for a moment.
 *
 * vtime_account_guest_enter() and _exit() write PF_VCPU in current->flags. A thread alone
 * writes its flags, and others read them without a lock (prepare_signal() for one): that is
 * Linux's way, so KCSAN has nothing to find here.
 */
void __no_kcsan escrow_guest_run(const u64 registers[8], u64 results[5])
{
	vtime_account_guest_enter();
	__this_cpu_write(escrow_is_in_guest, true);
	/*
	 * With pseudo-NMIs, Linux masks interrupts by ICC_PMR_EL1. That would also hide
	 * them from EL2, and they must end the guest's run. So they are masked by PSTATE
	 * here instead; pmr_sync() waits until the redistributor has seen the new priority.
	 */
	local_daif_mask();
	pmr_sync();
	escrow_hvc_enter_guest(registers, results);
	local_daif_restore(DAIF_PROCCTX_NOIRQ);
	/*
	 * The interrupt that has ended the run is taken here, while this CPU still counts
	 * as in the guest: the tick and perf charge their sample to the guest. The ISB
	 * makes the CPU take the interrupt before the next instruction masks it again.
	 */
	local_irq_enable();
	isb();
	local_irq_disable();
	__this_cpu_write(escrow_is_in_guest, false);
	vtime_account_guest_exit();
}

#ifdef CONFIG_GUEST_PERF_EVENTS

static unsigned int escrow_perf_state(void)
{
	return __this_cpu_read(escrow_is_in_guest) ? PERF_GUEST_ACTIVE : 0;
}

/* The guest's PC is secret. */
static unsigned long escrow_perf_get_ip(void)
{
	return 0;
}

static struct perf_guest_info_callbacks escrow_perf = {
	.state = escrow_perf_state,
	.get_ip = escrow_perf_get_ip,
};

/* The callbacks have one user at a time. KVM, the other one, does not register any without EL2. */
void escrow_guest_init(void)
{
	perf_register_guest_info_callbacks(&escrow_perf);
}

void escrow_guest_exit(void)
{
	perf_unregister_guest_info_callbacks(&escrow_perf);
}

#else

void escrow_guest_init(void)
{
}

void escrow_guest_exit(void)
{
}

#endif

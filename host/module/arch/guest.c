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
	/* It is to be slowed down, because its cgroup is beyond memory.high. */
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

/* For perf: whether what interrupts this CPU has interrupted a guest. */
static DEFINE_PER_CPU(bool, escrow_is_in_guest);

/*
 * What a thread has to do before it enters a guest, since it would have to before it
 * returns to user space: give its CPU to others, and task work, such as to stop for
 * as long as its cgroup has used up its time. A signal ends the run: -EINTR.
 */
int escrow_guest_do_work(void)
{
	return escrow_xfer_handle_work();
}

/* Whether there is such work. With interrupts disabled, which bring more of it. */
bool escrow_guest_must_work(void)
{
	tick_nohz_user_enter_prepare();
	return escrow_xfer_work_pending();
}

/* Runs a guest once. With interrupts and preemption disabled; it enables interrupts meanwhile. */
void escrow_guest_run(const u64 registers[8], u64 results[5])
{
	vtime_account_guest_enter();
	__this_cpu_write(escrow_is_in_guest, true);
	/*
	 * Interrupts have to be masked in PSTATE only: EL2 must see those that a
	 * priority mask (pseudo-NMIs) would hide, and the redistributor must have been
	 * told before.
	 */
	local_daif_mask();
	pmr_sync();
	escrow_hvc_enter_guest(registers, results);
	local_daif_restore(DAIF_PROCCTX_NOIRQ);
	/*
	 * The interrupt that has ended the run is handled here, so that the tick and
	 * perf's count for the guest. The barrier makes sure that it is not later.
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

/* The host is not to know where a guest is. */
static unsigned long escrow_perf_get_ip(void)
{
	return 0;
}

static struct perf_guest_info_callbacks escrow_perf = {
	.state = escrow_perf_state,
	.get_ip = escrow_perf_get_ip,
};

/* KVM, the other one who has these, has no guests without EL2. */
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

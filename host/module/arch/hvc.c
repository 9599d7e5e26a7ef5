// SPDX-License-Identifier: GPL-2.0-only
/* Floor 0: calls to EL2, and entries of guests. */

#include <linux/context_tracking.h>
#include <linux/ftrace.h>
#include <linux/instrumentation.h>
#include <linux/irqflags.h>
#include <linux/jiffies.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>

#include "arch/arch.h"

/*
 * arm_smccc_1_2_hvc() moves 18 registers each way through memory, and
 * arm_smccc_1_1_hvc() has no fifth result. SMCCC 1.2 (Arm DEN0028, 2.6): a
 * call preserves x18 and up.
 */
static __always_inline void __escrow_hvc(const u64 args[8], u64 results[5])
{
	/*
	 * The arrays are read before the first register variable is set, and written after
	 * the last one is read: KASAN and KCSAN turn each access into a function call, which
	 * would overwrite the registers.
	 */
	u64 a0 = args[0], a1 = args[1], a2 = args[2], a3 = args[3];
	u64 a4 = args[4], a5 = args[5], a6 = args[6], a7 = args[7];
	register u64 x0 asm("x0") = a0;
	register u64 x1 asm("x1") = a1;
	register u64 x2 asm("x2") = a2;
	register u64 x3 asm("x3") = a3;
	register u64 x4 asm("x4") = a4;
	register u64 x5 asm("x5") = a5;
	register u64 x6 asm("x6") = a6;
	register u64 x7 asm("x7") = a7;

	asm volatile("hvc #0"
		     : "+r" (x0), "+r" (x1), "+r" (x2), "+r" (x3),
		       "+r" (x4), "+r" (x5), "+r" (x6), "+r" (x7)
		     :
		     : "x8", "x9", "x10", "x11", "x12", "x13", "x14", "x15",
		       "x16", "x17", "cc", "memory");
	a0 = x0;
	a1 = x1;
	a2 = x2;
	a3 = x3;
	a4 = x4;
	results[0] = a0;
	results[1] = a1;
	results[2] = a2;
	results[3] = a3;
	results[4] = a4;
}

void escrow_hvc(const u64 args[8], u64 results[5])
{
	__escrow_hvc(args, results);
}

/* The jiffy in which this CPU has reported a quiescent state, and the thread that it was of. */
static DEFINE_PER_CPU(unsigned long, escrow_quiet);
static DEFINE_PER_CPU(struct task_struct *, escrow_quiet_thread);

/*
 * Reports a quiescent state to RCU, once a jiffy and thread, so that it need not force one: RCU
 * asks CPUs, Tasks RCU asks threads. KVM does so at each entry. But RCU looks for quiescent
 * states at ticks, and what begins to wait for one after a report has the next by the end of the
 * next tick, or sooner if it asks this CPU to reschedule: then the guest is left. Interrupts are
 * disabled.
 */
static __always_inline void escrow_note_quiescence(void)
{
	unsigned long now = jiffies;

	if (likely(__this_cpu_read(escrow_quiet) == now &&
		   __this_cpu_read(escrow_quiet_thread) == current))
		return;
	instrumentation_begin();
	__this_cpu_write(escrow_quiet, now);
	__this_cpu_write(escrow_quiet_thread, current);
	rcu_virt_note_context_switch();
	instrumentation_end();
}

/*
 * The call that enters a guest. With interrupts disabled.
 *
 * To RCU and to context tracking a guest is what user space is: this CPU is in an
 * extended quiescent state meanwhile, so that grace periods end without it, also
 * where it has no tick (nohz_full). Lockdep and the tracers are told that interrupts
 * are enabled, because the guest's run ends with the first one. This is what KVM's
 * guest_state_enter_irqoff() and guest_state_exit_irqoff() do, which only KVM's
 * headers have. What is called in between must use no RCU, so nothing in here is
 * instrumented, and the caller's arrays are on its stack.
 */
noinstr void escrow_hvc_enter_guest(const u64 args[8], u64 results[5])
{
	instrumentation_begin();
	trace_hardirqs_on_prepare();
	lockdep_hardirqs_on_prepare();
	instrumentation_end();
	/* Without context tracking, the quiescent state has to be reported to RCU. */
	if (!context_tracking_guest_enter())
		escrow_note_quiescence();
	lockdep_hardirqs_on(CALLER_ADDR0);

	__escrow_hvc(args, results);

	lockdep_hardirqs_off(CALLER_ADDR0);
	/* After a run that lasted beyond a tick, again, as KVM does. */
	if (!context_tracking_guest_exit())
		escrow_note_quiescence();
	instrumentation_begin();
	trace_hardirqs_off_finish();
	instrumentation_end();
}

// SPDX-License-Identifier: GPL-2.0-only
/* Floor 3: wakes and interrupts the threads that run a VM's vCPUs. */

#include <linux/bitops.h>
#include <linux/sched.h>
#include <linux/spinlock.h>
#include <linux/wait.h>

#include "vm/vm.h"

/*
 * EL2 has changed something that vCPU @id may be asleep for. None of this is
 * lost. The sleeper did these in this order, one after the other as all CPUs
 * see it:
 *
 *   1. is_woken = false
 *   2. it entered EL2, which looked at its state and found nothing to do
 *   3. it queued itself and looked at is_woken
 *
 * and the caller of this function:
 *
 *   a. EL2 changed the state
 *   b. is_woken = true
 *   c. it woke the queue
 *
 * As 2 did not see a, 1 came before b, so is_woken stays true until the next
 * entry. If 3 did not see it, the sleeper was queued before b, and c finds it.
 *
 * A vCPU that runs its guest meanwhile is interrupted, and sees the state when
 * it enters EL2 again. From any context.
 */
void escrow_vm_wake(struct escrow_vm *vm, u32 id)
{
	struct escrow_waiter *waiter;
	unsigned long flags;

	/* Orders a before b: neither HVC nor ERET is a barrier. */
	smp_mb();
	spin_lock_irqsave(&vm->vcpus_lock, flags);
	waiter = vm->vcpus[id];
	if (waiter) {
		WRITE_ONCE(waiter->is_woken, true);
		wake_up(&waiter->queue);
		if (waiter->runner)
			kick_process(waiter->runner);
	}
	spin_unlock_irqrestore(&vm->vcpus_lock, flags);
}

/* Wakes each vCPU that has its bit set in @vcpus, as EL2 returned it. */
void escrow_vm_wake_some(struct escrow_vm *vm, u32 vcpus)
{
	while (vcpus) {
		escrow_vm_wake(vm, __ffs(vcpus));
		vcpus &= vcpus - 1;
	}
}

/* Wakes all vCPUs, after a change that concerns each. */
void escrow_vm_wake_all(struct escrow_vm *vm)
{
	u32 id;

	for (id = 0; id < ESCROW_VCPUS_MAX; id++)
		escrow_vm_wake(vm, id);
}

/* The guest has lost the page at an address: one of the next runs says so. */
void escrow_vm_lose(struct escrow_vm *vm, u64 guest)
{
	spin_lock_irq(&vm->vcpus_lock);
	escrow_rs_losses_add(&vm->losses, guest);
	WRITE_ONCE(vm->has_losses, true);
	spin_unlock_irq(&vm->vcpus_lock);
}

/* Takes a loss that has not been reported yet, as @exit. → whether there was one */
bool escrow_vm_tell_loss(struct escrow_vm *vm, struct escrow_exit *exit)
{
	bool told;

	spin_lock_irq(&vm->vcpus_lock);
	told = escrow_rs_losses_tell(&vm->losses, exit);
	if (!told)
		WRITE_ONCE(vm->has_losses, false);
	spin_unlock_irq(&vm->vcpus_lock);
	return told;
}

/* Sets the thread that is woken as vCPU @id from now on; NULL: none. */
void escrow_vm_set_vcpu(struct escrow_vm *vm, u32 id, struct escrow_waiter *waiter)
{
	lockdep_assert_held_write(&vm->lock);
	spin_lock_irq(&vm->vcpus_lock);
	vm->vcpus[id] = waiter;
	spin_unlock_irq(&vm->vcpus_lock);
}

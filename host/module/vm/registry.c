// SPDX-License-Identifier: GPL-2.0-only
/*
 * Floor 3: all VMs: whether a new one may be created, and how all of them end before the
 * machine does.
 *
 * escrow_vms.lock guards the list and the gate. No other lock is taken under it. To
 * change a VM, take a reference to it under the lock, and release the lock first. A VM is
 * on the list from before EL2 gets its first page until it is freed. So if the list is
 * empty, or has only VMs in state home, no page is away.
 */

#include <linux/errno.h>
#include <linux/freezer.h>
#include <linux/jiffies.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/wait.h>

#include "vm/vm.h"

/* How long the machine's end waits for VMs that others are ending. */
#define ESCROW_PATIENCE (2 * HZ)

enum escrow_gate {
	ESCROW_OPEN,
	ESCROW_SUSPENDED, /* tasks that create a VM wait */
	ESCROW_SHUT, /* no VM is created any more */
};

struct escrow_list escrow_vms = {
	.lock = __MUTEX_INITIALIZER(escrow_vms.lock),
	.head = LIST_HEAD_INIT(escrow_vms.head),
};

static enum escrow_gate gate;
/* VMs on the list of which EL2 has something; written under the lock. */
static unsigned int away;
/* Woken when the gate changes, and when EL2 has nothing of a VM any more. */
static DECLARE_WAIT_QUEUE_HEAD(changes);

static void escrow_registry_changed(void)
{
	wake_up_all(&changes);
}

/* Puts a new VM on the list, before Escrow gets anything for it. */
int escrow_registry_add(struct escrow_vm *vm)
{
	int err;

	for (;;) {
		enum escrow_gate now;

		mutex_lock(&escrow_vms.lock);
		now = gate;
		if (now == ESCROW_OPEN) {
			__escrow_listing_add(&escrow_vms, &vm->listing);
			WRITE_ONCE(away, away + 1);
		}
		mutex_unlock(&escrow_vms.lock);
		if (now == ESCROW_OPEN)
			return 0;
		if (now == ESCROW_SHUT)
			return -ENODEV;
		err = wait_event_freezable(changes, READ_ONCE(gate) != ESCROW_SUSPENDED);
		if (err)
			return err;
	}
}

void escrow_registry_remove(struct escrow_vm *vm)
{
	escrow_listing_remove(&escrow_vms, &vm->listing);
	escrow_registry_changed();
}

/* EL2 has nothing of the VM any more, for good: @event says why. */
void escrow_registry_came_home(struct escrow_vm *vm, enum escrow_vm_event event)
{
	mutex_lock(&escrow_vms.lock);
	if (escrow_vm_state(vm) != ESCROW_VM_HOME) {
		escrow_vm_advance(vm, event);
		WRITE_ONCE(away, away - 1);
	}
	mutex_unlock(&escrow_vms.lock);
	escrow_registry_changed();
}

/* The VM with that handle, with a reference, or NULL. */
struct escrow_vm *escrow_registry_find(u64 handle)
{
	struct escrow_vm *vm, *found = NULL;

	mutex_lock(&escrow_vms.lock);
	list_for_each_entry(vm, &escrow_vms.head, listing.link) {
		if (READ_ONCE(vm->borrower.handle) == handle && kref_get_unless_zero(&vm->ref)) {
			found = vm;
			break;
		}
	}
	mutex_unlock(&escrow_vms.lock);
	return found;
}

/*
 * Closes the gate, if no page is away. What was lent cannot be saved, and a
 * guest's contents would not outlive a memory that loses power; so Linux does
 * not sleep while there is a guest.
 */
bool escrow_registry_suspend(void)
{
	bool home;

	mutex_lock(&escrow_vms.lock);
	home = !away;
	if (home && gate == ESCROW_OPEN)
		WRITE_ONCE(gate, ESCROW_SUSPENDED);
	mutex_unlock(&escrow_vms.lock);
	return home;
}

void escrow_registry_resume(void)
{
	mutex_lock(&escrow_vms.lock);
	if (gate == ESCROW_SUSPENDED)
		WRITE_ONCE(gate, ESCROW_OPEN);
	mutex_unlock(&escrow_vms.lock);
	escrow_registry_changed();
}

bool escrow_registry_is_shut(void)
{
	return READ_ONCE(gate) == ESCROW_SHUT;
}

/*
 * A VM that has an open file and is not shut down, with a reference; if @mm is not NULL,
 * one that the process with this mm has created.
 */
static struct escrow_vm *escrow_registry_next(const struct mm_struct *mm)
{
	struct escrow_vm *vm, *found = NULL;

	mutex_lock(&escrow_vms.lock);
	list_for_each_entry(vm, &escrow_vms.head, listing.link) {
		if ((!mm || vm->payer.mm == mm) && !escrow_vm_is_closed(vm) &&
		    kref_get_unless_zero(&vm->ref)) {
			found = vm;
			break;
		}
	}
	mutex_unlock(&escrow_vms.lock);
	return found;
}

/* Shuts the gate: no VM can be created any more. */
void escrow_registry_shut(void)
{
	mutex_lock(&escrow_vms.lock);
	WRITE_ONCE(gate, ESCROW_SHUT);
	mutex_unlock(&escrow_vms.lock);
	escrow_registry_changed();
}

/* Shuts the gate, and ends all VMs, also those with open files. */
void escrow_registry_shut_down(void)
{
	struct escrow_vm *vm;

	escrow_registry_shut();
	/* escrow_registry_next() skips a VM that has been shut down, so the loop ends. */
	while ((vm = escrow_registry_next(NULL))) {
		escrow_vm_shut_down(vm);
		escrow_vm_put(vm);
	}
	/* Other VMs may be ending just now, because their last files were closed. */
	escrow_vm_flush_zombies();
	if (!wait_event_timeout(changes, !READ_ONCE(away), ESCROW_PATIENCE))
		pr_err("Escrow keeps pages of guests: what runs next must not touch them\n");
}

/* Ends the VMs of a process that is killed for want of memory, and frees what they had. */
void escrow_registry_end_victims(const struct mm_struct *mm)
{
	struct escrow_vm *vm;

	while ((vm = escrow_registry_next(mm))) {
		WRITE_ONCE(vm->is_victims, true);
		escrow_vm_shut_down(vm);
		escrow_vm_put_later(vm);
	}
}

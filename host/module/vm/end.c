// SPDX-License-Identifier: GPL-2.0-only
/* Floor 3: how a VM ends, and what happens if EL2 keeps pages of it. */

#include <linux/delay.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/workqueue.h>

#include "vm/vm.h"

/* How long the end of a VM waits for CPUs to leave its vCPUs, in ms. */
#define DESTROY_PATIENCE 500
/* How often the end of a zombie (a VM of which EL2 keeps pages) is tried again. */
#define ZOMBIES_PERIOD HZ

static void escrow_zombies_work(struct work_struct *work);

static DEFINE_MUTEX(zombies_lock);
static LIST_HEAD(zombies);
static DECLARE_DELAYED_WORK(zombies_work, escrow_zombies_work);

/* Takes back what the VM has of all its memories. → the first error */
static int escrow_vm_reclaim(struct escrow_vm *vm, int how, bool quarantine)
{
	const struct escrow_filter filter = {
		.vm = vm->borrower.handle,
		.how = how,
		.drop = READ_ONCE(vm->is_victims),
	};
	struct escrow_binding binding;
	u64 lacks;
	int err = 0;
	size_t i;

	/* Without a core, the VM's creation has failed half-way: it has no bindings. */
	if (!vm->core)
		return 0;
	for (i = 0; !escrow_rs_vm_binding(vm->core, i, &binding); i++) {
		int one = escrow_mem_reclaim(binding.mem, binding.offset, binding.size, &filter,
					     quarantine, &lacks);

		err = err ?: one;
	}
	return err;
}

/* While the VM lives, shared pages come home with their contents. */
static void escrow_vm_unshare(struct escrow_vm *vm)
{
	int err;

	/* -ENOMEM: EL2 needs a page for a table, to unmap a part of a block. */
	do {
		err = escrow_vm_reclaim(vm, ESCROW_SHARED, false);
	} while (err == -ENOMEM && !escrow_vm_top_up(vm, 1));
	/* Quarantine what EL2 keeps all the same, and take the rest. */
	if (err)
		escrow_vm_reclaim(vm, ESCROW_SHARED, true);
}

static int escrow_vm_destroy(struct escrow_vm *vm)
{
	unsigned int waited, pause = 1;
	int err;

	if (escrow_vm_state(vm) >= ESCROW_VM_DESTROYED)
		return 0;
	escrow_vm_unshare(vm);
	for (waited = 0; ; waited += pause, pause *= 2) {
		err = escrow_rs_vm_destroy(vm->borrower.handle);
		if (err != -EBUSY || waited >= DESTROY_PATIENCE)
			break;
		/* EL2 answers "busy" while a vCPU runs: interrupt its CPU to end the run. */
		escrow_vm_wake_all(vm);
		msleep(pause);
	}
	if (!err)
		escrow_vm_advance(vm, ESCROW_EVENT_DESTROYED);
	return err;
}

/*
 * Ends the VM, which is closed, and brings its pages home. false: EL2 keeps some of them; they
 * stay in their memories' counts, and are not used.
 */
static bool escrow_vm_end(struct escrow_vm *vm)
{
	enum escrow_vm_event event = ESCROW_EVENT_HOME;

	if (!vm->borrower.handle) {
		/* The creation has failed: of this VM's pages EL2 has only broken ones. */
		if (!escrow_vm_reclaim_metadata(vm))
			return false;
		event = ESCROW_EVENT_UNBORN;
	} else if (escrow_vm_state(vm) != ESCROW_VM_HOME) {
		if (escrow_vm_destroy(vm))
			return false;
		if (escrow_vm_reclaim(vm, -1, true))
			return false;
		if (!escrow_vm_reclaim_metadata(vm))
			return false;
	}
	escrow_registry_came_home(vm, event);
	return true;
}

/*
 * Ends the VM while others have files of it: from then on these answer ENODEV,
 * those of consoles the end of the file, and closing them finds nothing left to
 * do. The caller has a reference, and no lock. What others do with the VM they do
 * under vm->lock, so with it for writing the VM is ours; a vCPU that runs its
 * guest has no lock, and EL2 ends its run when the VM is destroyed.
 */
void escrow_vm_shut_down(struct escrow_vm *vm)
{
	const struct escrow_fn_ops *const *ops;

	escrow_vm_advance(vm, ESCROW_EVENT_CLOSE);
	escrow_vm_wake_all(vm);
	down_write(&vm->lock);
	for (ops = vm->functions; *ops; ops++) {
		if ((*ops)->shut_down)
			(*ops)->shut_down(vm);
	}
	if (!escrow_vm_end(vm))
		pr_err("VM %#llx: Escrow keeps pages of it\n", vm->borrower.handle);
	up_write(&vm->lock);
}

static void escrow_vm_free(struct escrow_vm *vm)
{
	escrow_registry_remove(vm);
	/* This also frees the bindings, which drop their references to memories. */
	escrow_rs_vm_free(vm->core);
	escrow_batch_free(vm->batch);
	mmu_notifier_unregister(&vm->notifier, vm->payer.mm);
	escrow_payer_end(&vm->payer);
	kfree(vm);
	module_put(THIS_MODULE);
}

static void escrow_vm_end_functions(struct escrow_vm *vm)
{
	const struct escrow_fn_ops *const *ops;

	for (ops = vm->functions; *ops; ops++) {
		if ((*ops)->end)
			(*ops)->end(vm);
	}
}

/* Makes the VM a zombie: its end is tried again until EL2 has given all back. */
static void escrow_vm_set_aside(struct escrow_vm *vm)
{
	mutex_lock(&zombies_lock);
	list_add_tail(&vm->zombie, &zombies);
	mutex_unlock(&zombies_lock);
	schedule_delayed_work(&zombies_work, ZOMBIES_PERIOD);
}

static void escrow_vm_last(struct kref *ref)
{
	struct escrow_vm *vm = container_of(ref, struct escrow_vm, ref);

	escrow_vm_advance(vm, ESCROW_EVENT_CLOSE);
	escrow_vm_end_functions(vm);
	if (escrow_vm_end(vm)) {
		escrow_vm_free(vm);
		return;
	}
	pr_warn("VM %#llx: Escrow keeps pages of it; they are set aside\n", vm->borrower.handle);
	escrow_vm_advance(vm, ESCROW_EVENT_ABANDON);
	escrow_vm_set_aside(vm);
}

/* The same for callers within an mmu_notifier: freeing a VM waits for these to return. */
static void escrow_vm_last_later(struct kref *ref)
{
	struct escrow_vm *vm = container_of(ref, struct escrow_vm, ref);

	escrow_vm_end_functions(vm);
	escrow_vm_set_aside(vm);
}

/* For a notifier that has shut the VM down. */
void escrow_vm_put_later(struct escrow_vm *vm)
{
	kref_put(&vm->ref, escrow_vm_last_later);
}

void escrow_vm_put(struct escrow_vm *vm)
{
	kref_put(&vm->ref, escrow_vm_last);
}

/*
 * Ends those that are set aside, without the lock: freeing one waits for all mmu_notifiers
 * that run, and one of these may be about to set another VM aside.
 */
static void escrow_zombies_work(struct work_struct *work)
{
	struct escrow_vm *vm, *next;
	LIST_HEAD(asked);
	bool left;

	mutex_lock(&zombies_lock);
	list_splice_init(&zombies, &asked);
	mutex_unlock(&zombies_lock);
	list_for_each_entry_safe(vm, next, &asked, zombie) {
		if (!escrow_vm_end(vm))
			continue;
		pr_info("VM %#llx: all pages are home\n", vm->borrower.handle);
		list_del(&vm->zombie);
		escrow_vm_free(vm);
	}
	mutex_lock(&zombies_lock);
	list_splice(&asked, &zombies);
	left = !list_empty(&zombies);
	mutex_unlock(&zombies_lock);
	if (left)
		schedule_delayed_work(&zombies_work, ZOMBIES_PERIOD);
}

/* Tries to end all zombies, now. */
void escrow_vm_flush_zombies(void)
{
	cancel_delayed_work(&zombies_work);
	schedule_delayed_work(&zombies_work, 0);
	flush_delayed_work(&zombies_work);
}

void escrow_vm_exit(void)
{
	/* No VM is left, since each holds the module. The work may still be about to return. */
	cancel_delayed_work_sync(&zombies_work);
}

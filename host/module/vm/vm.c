// SPDX-License-Identifier: GPL-2.0-only
/* Floor 3: VMs as objects: made, referenced, locked. How they end is in end.c. */

#include <linux/bug.h>
#include <linux/err.h>
#include <linux/module.h>
#include <linux/mmu_notifier.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>

#include "vm/vm.h"

struct escrow_vm *escrow_vm_get(struct escrow_vm *vm)
{
	kref_get(&vm->ref);
	return vm;
}

void escrow_vm_advance(struct escrow_vm *vm, enum escrow_vm_event event)
{
	WARN_ON_ONCE(!escrow_rs_vm_advance(&vm->life, event));
}

/* For an ioctl: -EINTR, or -ENODEV if there is no VM any more. */
int escrow_vm_lock(struct escrow_vm *vm)
{
	if (down_write_killable(&vm->lock))
		return -EINTR;
	if (!escrow_vm_is_closed(vm))
		return 0;
	up_write(&vm->lock);
	return -ENODEV;
}

static int escrow_vm_lacks(struct escrow_borrower *borrower, u64 pages)
{
	return escrow_vm_top_up(container_of(borrower, struct escrow_vm, borrower), pages);
}

/*
 * The address space of the process that created the VM ends. If the process is a victim
 * of the OOM killer, the killer waits for this, and kills another process if it frees
 * too little. The victim's files are closed only later. So its VMs end now.
 */
static void escrow_vm_mm_release(struct mmu_notifier *notifier, struct mm_struct *mm)
{
	/*
	 * The notifier is also called when a VM is freed, maybe by another process than the
	 * one that created it. If that process is an OOM victim, it has another mm.
	 */
	if (current->signal->oom_mm == mm)
		escrow_registry_end_victims(mm);
}

static const struct mmu_notifier_ops escrow_vm_mm_ops = {
	.release = escrow_vm_mm_release,
};

/*
 * A VM that EL2 knows nothing of yet, with a reference. Others see it in the
 * list, and may end it at once. For an ioctl: its file keeps the module.
 */
struct escrow_vm *escrow_vm_new(const struct escrow_fn_ops *const *functions)
{
	struct escrow_vm *vm;
	int err;

	vm = kzalloc(sizeof(*vm), GFP_KERNEL_ACCOUNT);
	if (!vm)
		return ERR_PTR(-ENOMEM);
	err = escrow_payer_init(&vm->payer, ESCROW_KIND_VM);
	if (err) {
		kfree(vm);
		return ERR_PTR(err);
	}
	kref_init(&vm->ref);
	init_rwsem(&vm->lock);
	spin_lock_init(&vm->vcpus_lock);
	mutex_init(&vm->metadata_lock);
	INIT_LIST_HEAD(&vm->metadata_folios);
	INIT_LIST_HEAD(&vm->irqfds);
	INIT_LIST_HEAD(&vm->consoles);
	vm->functions = functions;
	vm->borrower.top_up = escrow_vm_lacks;
	vm->notifier.ops = &escrow_vm_mm_ops;
	err = mmu_notifier_register(&vm->notifier, current->mm);
	if (err)
		goto err_payer;
	err = escrow_registry_add(vm);
	if (err)
		goto err_notifier;
	/*
	 * The VM's own reference to the module, as the VM may outlive its files. Whoever drops
	 * it has another one, or is work that the module's exit waits for.
	 */
	__module_get(THIS_MODULE);
	return vm;

err_notifier:
	mmu_notifier_unregister(&vm->notifier, vm->payer.mm);
err_payer:
	escrow_payer_end(&vm->payer);
	kfree(vm);
	return ERR_PTR(err);
}

/* Creates the VM at EL2. With vm->lock for writing. */
int escrow_vm_set_up(struct escrow_vm *vm)
{
	int err;

	vm->batch = escrow_batch_alloc(ESCROW_BATCH);
	if (!vm->batch)
		return -ENOMEM;
	err = escrow_vm_top_up(vm, escrow_rs_metadata_initial());
	if (err)
		return err;
	vm->core = escrow_rs_vm_new(vm->borrower.handle);
	return vm->core ? 0 : -ENOMEM;
}

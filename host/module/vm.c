// SPDX-License-Identifier: GPL-2.0-only
/* VMs: memory bindings, start and end, and the pages that EL2 keeps them in. */

#include <linux/anon_inodes.h>
#include <linux/cpumask.h>
#include <linux/delay.h>
#include <linux/file.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/uaccess.h>
#include <linux/workqueue.h>

#include "escrow.h"

/* How long the end of a VM waits for CPUs to leave its vCPUs, in ms. */
#define DESTROY_PATIENCE 500
/* How often the remains of VMs are looked after. */
#define REMAINS_PERIOD HZ

static void escrow_remains_work(struct work_struct *work);

static DEFINE_MUTEX(remains_lock);
static LIST_HEAD(remains);
static DECLARE_DELAYED_WORK(remains_work, escrow_remains_work);

struct escrow_vm *escrow_vm_hold(struct escrow_vm *vm)
{
	kref_get(&vm->ref);
	return vm;
}

/* Hands @count pages to EL2 in one call. With the metadata_lock. */
static int escrow_vm_give_metadata(struct escrow_vm *vm, u32 count)
{
	struct escrow_batch *batch = vm->batch;
	struct escrow_folio *ef;
	u32 done = 0, given = 0, i;
	int err = 0;

	escrow_batch_reset(batch);
	while (batch->count < count) {
		struct escrow_report report = {};
		struct escrow_refusal refusal;

		ef = escrow_folio_alloc(&vm->metadata_counts, 0);
		if (!ef) {
			err = -ENOMEM;
			break;
		}
		err = escrow_rs_folio_begin_give(&ef->state, &vm->metadata_counts, ef->folio,
						 ESCROW_LENT, vm->handle, 0, &report, &refusal);
		if (err) {
			escrow_folio_free(ef, &vm->metadata_counts);
			break;
		}
		escrow_batch_add(batch, ef, 0, 0, &report);
	}
	if (!err && !vm->handle)
		err = escrow_rs_vm_create(batch->address, batch->count, &vm->handle);
	else if (!err)
		err = escrow_rs_vm_top_up(vm->handle, batch->address, batch->count, &done);

	for (i = 0; i < batch->count; i++) {
		/* What a long call had done when it ended is EL2's, and what broke nobody's. */
		bool gone = !err || i < done;

		ef = batch->folios[i];
		if (!gone)
			gone = !escrow_rs_is_home(PFN_PHYS(folio_pfn(ef->folio)), 1);
		WARN_ON_ONCE(escrow_rs_folio_end_give(&ef->state, &vm->metadata_counts,
						      ef->folio, gone));
		if (gone)
			list_add_tail(&ef->link, &vm->metadata_folios);
		else
			escrow_folio_free(ef, &vm->metadata_counts);
		given += gone;
	}
	if (given)
		escrow_rs_metadata_gave(&vm->metadata, given);
	return err;
}

int escrow_vm_donate(struct escrow_vm *vm, u64 pages)
{
	int left, err = 0;

	mutex_lock(&vm->metadata_lock);
	left = escrow_rs_metadata_plan(&vm->metadata, pages);
	if (left < 0)
		err = left;
	while (left > 0 && !err) {
		u32 count = min_t(u32, left, vm->batch->capacity);

		err = escrow_vm_give_metadata(vm, count);
		left -= count;
	}
	mutex_unlock(&vm->metadata_lock);
	return err;
}

/* Whether all of the metadata is home. */
static bool escrow_vm_reclaim_metadata(struct escrow_vm *vm)
{
	static const struct escrow_report none;
	struct escrow_batch *batch = vm->batch;
	struct escrow_folio *ef, *next;
	LIST_HEAD(kept);

	mutex_lock(&vm->metadata_lock);
	while (!list_empty(&vm->metadata_folios)) {
		LIST_HEAD(asked);

		escrow_batch_reset(batch);
		list_for_each_entry_safe(ef, next, &vm->metadata_folios, link) {
			if (batch->count == batch->capacity)
				break;
			list_move_tail(&ef->link, &asked);
			if (escrow_rs_folio_begin_take_back(&ef->state, &vm->metadata_counts) >= 0)
				escrow_batch_add(batch, ef, 0, 0, &none);
		}
		batch->how = ESCROW_LENT;
		escrow_batch_take_back(batch, NULL, &vm->metadata_counts, true);
		list_for_each_entry_safe(ef, next, &asked, link) {
			if (!escrow_rs_folio_is_reachable(&ef->state)) {
				list_move_tail(&ef->link, &kept);
				continue;
			}
			list_del(&ef->link);
			escrow_folio_free(ef, &vm->metadata_counts);
			escrow_rs_metadata_got_back(&vm->metadata, 1);
		}
		cond_resched();
	}
	list_splice(&kept, &vm->metadata_folios);
	mutex_unlock(&vm->metadata_lock);
	return list_empty(&vm->metadata_folios);
}

/* Takes back what the VM has of all its memories. */
static int escrow_vm_take_back(struct escrow_vm *vm, int how, bool quarantine)
{
	const struct escrow_whose whose = { .vm = vm->handle, .how = how };
	struct escrow_place place;
	int err = 0;
	size_t i;

	/* Its creation may have failed half-way. */
	if (!vm->core)
		return 0;
	for (i = 0; !escrow_rs_vm_binding(vm->core, i, &place); i++) {
		int one = escrow_mem_take_back(place.mem, place.offset, place.size, &whose,
					       quarantine);

		err = err ?: one;
	}
	return err;
}

static int escrow_vm_destroy(struct escrow_vm *vm)
{
	unsigned int waited, pause = 1;
	int err;

	if (vm->is_destroyed)
		return 0;
	/* While the VM lives, shared pages come home with their contents. */
	escrow_vm_take_back(vm, ESCROW_SHARED, false);
	for (waited = 0; ; waited += pause, pause *= 2) {
		err = escrow_rs_vm_destroy(vm->handle);
		if (err != -EBUSY || waited >= DESTROY_PATIENCE)
			break;
		/* An interrupt ends the run that keeps it busy. */
		kick_all_cpus_sync();
		msleep(pause);
	}
	vm->is_destroyed = !err;
	return err;
}

/*
 * Ends the VM and brings its pages home. false: EL2 keeps some of them; they
 * stay where they are accounted for, and nobody uses them.
 */
static bool escrow_vm_end(struct escrow_vm *vm)
{
	/* Without a handle, its creation failed before EL2 got anything. */
	if (vm->handle && !vm->is_home) {
		if (escrow_vm_destroy(vm))
			return false;
		if (escrow_vm_take_back(vm, -1, true))
			return false;
		if (!escrow_vm_reclaim_metadata(vm))
			return false;
	}
	WRITE_ONCE(vm->is_home, true);
	escrow_vms_changed();
	return true;
}

/*
 * Ends the VM while others have files of it: from then on these answer ENODEV,
 * and closing them finds nothing left to do. The caller has a reference, and
 * no lock. What others do with the VM they do under vm->lock, so with it for
 * writing the VM is ours; a vCPU that runs its guest has no lock, and EL2 ends
 * its run when the VM is destroyed.
 */
void escrow_vm_shut_down(struct escrow_vm *vm)
{
	WRITE_ONCE(vm->is_closed, true);
	WRITE_ONCE(vm->is_down, true);
	escrow_vcpu_wake_all(vm);
	down_write(&vm->lock);
	if (!escrow_vm_end(vm))
		pr_err("VM %#llx: Escrow keeps pages of it\n", vm->handle);
	up_write(&vm->lock);
}

/* For an ioctl: -EINTR, or -ENODEV if there is no VM any more. */
int escrow_vm_lock(struct escrow_vm *vm)
{
	if (down_write_killable(&vm->lock))
		return -EINTR;
	if (!vm->is_closed)
		return 0;
	up_write(&vm->lock);
	return -ENODEV;
}

static void escrow_vm_free(struct escrow_vm *vm)
{
	escrow_vms_leave(vm);
	/* The bindings let go of their memories. */
	escrow_rs_vm_free(vm->core);
	escrow_batch_free(vm->batch);
	kfree(vm);
}

static void escrow_vm_last(struct kref *ref)
{
	struct escrow_vm *vm = container_of(ref, struct escrow_vm, ref);

	escrow_functions_end(vm);
	if (escrow_vm_end(vm)) {
		escrow_vm_free(vm);
		return;
	}
	pr_warn("VM %#llx: Escrow keeps pages of it; they are set aside\n", vm->handle);
	__module_get(THIS_MODULE);
	WRITE_ONCE(vm->is_left, true);
	mutex_lock(&remains_lock);
	list_add_tail(&vm->remains, &remains);
	mutex_unlock(&remains_lock);
	schedule_delayed_work(&remains_work, REMAINS_PERIOD);
}

void escrow_vm_release(struct escrow_vm *vm)
{
	kref_put(&vm->ref, escrow_vm_last);
}

static void escrow_remains_work(struct work_struct *work)
{
	struct escrow_vm *vm, *next;
	bool left;

	mutex_lock(&remains_lock);
	list_for_each_entry_safe(vm, next, &remains, remains) {
		if (!escrow_vm_end(vm))
			continue;
		pr_info("VM %#llx: all pages are home\n", vm->handle);
		list_del(&vm->remains);
		escrow_vm_free(vm);
		module_put(THIS_MODULE);
	}
	left = !list_empty(&remains);
	mutex_unlock(&remains_lock);
	if (left)
		schedule_delayed_work(&remains_work, REMAINS_PERIOD);
}

/* Looks after all remains once, now. */
void escrow_vm_flush_remains(void)
{
	cancel_delayed_work(&remains_work);
	schedule_delayed_work(&remains_work, 0);
	flush_delayed_work(&remains_work);
}

void escrow_vm_exit(void)
{
	/* Whatever is left holds the module; this waits for the work's return. */
	cancel_delayed_work_sync(&remains_work);
}

static int escrow_vm_set_dtb(struct escrow_vm *vm, void __user *argp)
{
	struct gunyah_vm_dtb_config config;
	int err;

	if (copy_from_user(&config, argp, sizeof(config)))
		return -EFAULT;
	err = escrow_vm_lock(vm);
	if (err)
		return err;
	err = escrow_rs_vm_set_dtb(vm->core, &config);
	up_write(&vm->lock);
	return err;
}

static int escrow_vm_set_boot_context(struct escrow_vm *vm, void __user *argp)
{
	struct gunyah_vm_boot_context context;
	int err;

	if (copy_from_user(&context, argp, sizeof(context)))
		return -EFAULT;
	err = escrow_vm_lock(vm);
	if (err)
		return err;
	err = escrow_rs_vm_set_boot_context(vm->core, &context);
	up_write(&vm->lock);
	return err;
}

static int escrow_vm_unbind(struct escrow_vm *vm, const struct escrow_map_request *request,
			    struct escrow_mem *mem)
{
	/* The same pages may be with the guest by another binding, too. */
	const struct escrow_whose whose = {
		.vm = vm->handle,
		.how = -1,
		.bound = true,
		.shift = request->guest - request->offset,
	};
	int err;

	err = escrow_rs_vm_begin_unbind(vm->core, request, mem);
	if (err)
		return err;
	/* With vm->lock held, no vCPU fetches a page back. */
	do {
		err = escrow_mem_take_back(mem, request->offset, request->size, &whose, false);
	} while (escrow_mem_feed(mem, err));
	if (err)
		return err;
	return escrow_rs_vm_end_unbind(vm->core, vm, request);
}

static int escrow_vm_map(struct escrow_vm *vm, void __user *argp)
{
	struct escrow_map_request request = {};
	struct gunyah_map_mem_args args;
	struct escrow_mem *mem;
	struct file *file;
	int err;

	if (copy_from_user(&args, argp, sizeof(args)))
		return -EFAULT;
	err = escrow_rs_map_check(&args, &request);
	if (err)
		return err;
	file = fget(args.guest_mem_fd);
	if (!file)
		return -EBADF;
	mem = escrow_mem_of(file);
	if (!mem) {
		err = -EINVAL;
	} else {
		err = escrow_vm_lock(vm);
		if (!err) {
			err = request.unbind ?
				escrow_vm_unbind(vm, &request, mem) :
				escrow_rs_vm_bind(vm->core, vm, &request, mem);
			up_write(&vm->lock);
		}
	}
	fput(file);
	return err;
}

static int escrow_vm_start(struct escrow_vm *vm)
{
	struct escrow_place place;
	u64 guest, size;
	bool unmapped;
	int err;

	err = escrow_vm_lock(vm);
	if (err)
		return err;
	err = escrow_rs_vm_check_start(vm->core, num_online_cpus(), &place, &guest, &size,
				       &unmapped);
	if (err > 0) {
		/*
		 * What is lent cannot be asked back from a guest that has not
		 * run, so all that can fail comes before. The start needs no
		 * memory, and a VM with a vCPU.
		 */
		err = escrow_doorbells_configure(vm, &place);
		if (!err)
			err = escrow_irqfds_connect(vm);
		if (!err)
			err = escrow_rs_vm_set_registers(vm->core);
		if (!err)
			err = escrow_mem_give(vm, &place, guest, size, unmapped);
		if (!err)
			err = escrow_rs_vm_start(vm->core, vm);
	}
	up_write(&vm->lock);
	return err;
}

static long escrow_vm_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct escrow_vm *vm = file->private_data;
	void __user *argp = (void __user *)arg;

	switch (cmd) {
	case GUNYAH_VM_SET_DTB_CONFIG:
		return escrow_vm_set_dtb(vm, argp);
	case GUNYAH_VM_START:
		return escrow_vm_start(vm);
	case GUNYAH_VM_ADD_FUNCTION:
		return escrow_function_add(vm, argp);
	case GUNYAH_VM_REMOVE_FUNCTION:
		return escrow_function_remove(vm, argp);
	case GUNYAH_VM_MAP_MEM:
		return escrow_vm_map(vm, argp);
	case GUNYAH_VM_SET_BOOT_CONTEXT:
		return escrow_vm_set_boot_context(vm, argp);
	default:
		return -ENOTTY;
	}
}

static int escrow_vm_close(struct inode *inode, struct file *file)
{
	escrow_vm_release(file->private_data);
	return 0;
}

static const struct file_operations escrow_vm_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = escrow_vm_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.release = escrow_vm_close,
};

/* Creates the VM at EL2 and a file for it, which has the caller's reference. */
static int escrow_vm_set_up(struct escrow_vm *vm)
{
	int err;

	vm->batch = escrow_batch_alloc(ESCROW_BATCH);
	if (!vm->batch)
		return -ENOMEM;
	err = escrow_vm_donate(vm, escrow_rs_metadata_initial());
	if (err)
		return err;
	vm->core = escrow_rs_vm_new(vm->handle);
	if (!vm->core)
		return -ENOMEM;
	return anon_inode_getfd("[gunyah-vm]", &escrow_vm_fops, vm, O_RDWR | O_CLOEXEC);
}

int escrow_vm_create(void)
{
	struct escrow_vm *vm;
	int err;

	vm = kzalloc(sizeof(*vm), GFP_KERNEL_ACCOUNT);
	if (!vm)
		return -ENOMEM;
	kref_init(&vm->ref);
	init_rwsem(&vm->lock);
	spin_lock_init(&vm->vcpus_lock);
	mutex_init(&vm->metadata_lock);
	INIT_LIST_HEAD(&vm->metadata_folios);
	INIT_LIST_HEAD(&vm->irqfds);
	err = escrow_vms_enter(vm);
	if (err) {
		kfree(vm);
		return err;
	}
	/* Others see it in the list, and may end it at once. */
	err = escrow_vm_lock(vm);
	if (!err) {
		err = escrow_vm_set_up(vm);
		up_write(&vm->lock);
	}
	if (err >= 0)
		return err;
	escrow_vm_release(vm);
	return err;
}

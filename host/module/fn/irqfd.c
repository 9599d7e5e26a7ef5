// SPDX-License-Identifier: GPL-2.0-only
/*
 * Floor 4: Eventfds that ring a doorbell of the guest's.
 *
 * An eventfd calls us about a signal with the spinlock of its wait queue held, so
 * that callback can neither sleep nor take vm->lock. irqfd->lock orders it and the
 * code that connects the doorbell.
 */

#include <linux/err.h>
#include <linux/eventfd.h>
#include <linux/file.h>
#include <linux/list.h>
#include <linux/poll.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/wait.h>

#include "fn/fn.h"

/* Of one VM; each is looked for in a list. */
#define ESCROW_IRQFDS_MAX 256

struct escrow_irqfd {
	struct list_head link; /* in vm->irqfds */
	struct escrow_vm *vm; /* outlives it */
	u32 label;
	bool level;
	struct eventfd_ctx *event;
	wait_queue_entry_t wait;
	poll_table poll;
	spinlock_t lock; /* of the following; taken with interrupts off */
	u64 bell; /* 0 while there is none */
	bool is_rung; /* meanwhile */
};

static int escrow_irqfd_signalled(wait_queue_entry_t *wait, unsigned int mode, int sync,
				  void *key)
{
	struct escrow_irqfd *irqfd = container_of(wait, struct escrow_irqfd, wait);
	unsigned long flags;

	/* EPOLLHUP, when the last descriptor is closed, changes nothing. */
	if (!(key_to_poll(key) & EPOLLIN))
		return 0;
	spin_lock_irqsave(&irqfd->lock, flags);
	if (irqfd->bell)
		escrow_doorbell_ring(irqfd->vm, irqfd->bell, irqfd->label);
	else
		irqfd->is_rung = true;
	spin_unlock_irqrestore(&irqfd->lock, flags);
	return 0;
}

static void escrow_irqfd_queue(struct file *file, wait_queue_head_t *head, poll_table *poll)
{
	struct escrow_irqfd *irqfd = container_of(poll, struct escrow_irqfd, poll);

	add_wait_queue_priority(head, &irqfd->wait);
}

/* Its doorbell may be there by now. With vm->lock for writing. */
static int escrow_irqfd_connect(struct escrow_irqfd *irqfd)
{
	struct escrow_vm *vm = irqfd->vm;
	u64 bell = escrow_rs_vm_bell(vm->core, irqfd->label);
	int err = 0;

	/*
	 * A level-triggered interrupt ends when it is not asserted any more. An eventfd
	 * does not tell when: so EL2 clears the flag when the doorbell rings.
	 */
	if (bell && irqfd->level)
		err = escrow_rs_bell_set_mask(bell, 1, 1);
	if (err)
		return err;
	spin_lock_irq(&irqfd->lock);
	irqfd->bell = bell;
	if (bell && irqfd->is_rung) {
		irqfd->is_rung = false;
		escrow_doorbell_ring(vm, bell, irqfd->label);
	}
	spin_unlock_irq(&irqfd->lock);
	return 0;
}

/*
 * The doorbells are there. An error leaves some connected, which the next try
 * connects again. With vm->lock for writing.
 */
static int escrow_irqfds_connect(struct escrow_vm *vm)
{
	struct escrow_irqfd *irqfd;
	int err;

	list_for_each_entry(irqfd, &vm->irqfds, link) {
		err = escrow_irqfd_connect(irqfd);
		if (err)
			return err;
		if (!irqfd->bell)
			pr_info_ratelimited("VM %#llx: its device tree has no doorbell %u\n",
					    vm->borrower.handle, irqfd->label);
	}
	return 0;
}

static struct escrow_irqfd *escrow_irqfd_find(struct escrow_vm *vm, u32 label)
{
	struct escrow_irqfd *irqfd;

	list_for_each_entry(irqfd, &vm->irqfds, link) {
		if (irqfd->label == label)
			return irqfd;
	}
	return NULL;
}

/*
 * The reference is to the eventfd's context: if the last descriptor is closed, the context
 * stays, and is not signalled, until the function is removed or the VM ends.
 */
static int escrow_irqfd_add(struct escrow_vm *vm, const struct escrow_function *function,
			    const struct gunyah_fn_desc *desc, const union escrow_fn_arg *arg)
{
	struct escrow_irqfd *irqfd;
	struct file *file;
	int err;

	irqfd = kzalloc(sizeof(*irqfd), GFP_KERNEL_ACCOUNT);
	if (!irqfd)
		return -ENOMEM;
	irqfd->vm = vm;
	irqfd->label = function->id;
	irqfd->level = function->level;
	spin_lock_init(&irqfd->lock);
	init_waitqueue_func_entry(&irqfd->wait, escrow_irqfd_signalled);
	init_poll_funcptr(&irqfd->poll, escrow_irqfd_queue);

	file = fget(function->fd);
	if (!file) {
		err = -EBADF;
		goto err_free;
	}
	irqfd->event = eventfd_ctx_fileget(file);
	if (IS_ERR(irqfd->event)) {
		err = PTR_ERR(irqfd->event);
		goto err_file;
	}
	err = escrow_vm_lock(vm);
	if (err)
		goto err_event;
	if (escrow_irqfd_find(vm, irqfd->label)) {
		err = -EEXIST;
	} else if (vm->irqfd_count >= ESCROW_IRQFDS_MAX) {
		pr_warn_ratelimited("VM %#llx has %u IRQFDs, the most that a VM can have\n",
				    vm->borrower.handle, vm->irqfd_count);
		err = -ENOSPC;
	} else {
		err = escrow_irqfd_connect(irqfd);
	}
	if (err) {
		up_write(&vm->lock);
		goto err_event;
	}
	list_add_tail(&irqfd->link, &vm->irqfds);
	vm->irqfd_count++;
	/* Puts it into the queue, and says what was before that. */
	if (vfs_poll(file, &irqfd->poll) & EPOLLIN)
		escrow_irqfd_signalled(&irqfd->wait, 0, 0, poll_to_key(EPOLLIN));
	up_write(&vm->lock);
	fput(file);
	return 0;

err_event:
	eventfd_ctx_put(irqfd->event);
err_file:
	fput(file);
err_free:
	kfree(irqfd);
	return err;
}

static void escrow_irqfd_free(struct escrow_irqfd *irqfd)
{
	u64 count;

	list_del(&irqfd->link);
	irqfd->vm->irqfd_count--;
	/* Once it is out of the queue, no callback is running or will run. */
	eventfd_ctx_remove_wait_queue(irqfd->event, &irqfd->wait, &count);
	/* The next one may be of the other kind. The VM may be dead. */
	if (irqfd->bell && irqfd->level)
		escrow_rs_bell_set_mask(irqfd->bell, U64_MAX, 0);
	eventfd_ctx_put(irqfd->event);
	kfree(irqfd);
}

static int escrow_irqfd_remove(struct escrow_vm *vm, const struct escrow_function *function,
			       const struct gunyah_fn_desc *desc, const union escrow_fn_arg *arg)
{
	struct escrow_irqfd *irqfd;
	int err;

	err = escrow_vm_lock(vm);
	if (err)
		return err;
	irqfd = escrow_irqfd_find(vm, function->id);
	if (irqfd)
		escrow_irqfd_free(irqfd);
	else
		err = -ENOENT;
	up_write(&vm->lock);
	return err;
}

/* The last reference to the VM is gone. */
static void escrow_irqfds_end(struct escrow_vm *vm)
{
	struct escrow_irqfd *irqfd, *next;

	list_for_each_entry_safe(irqfd, next, &vm->irqfds, link)
		escrow_irqfd_free(irqfd);
}

const struct escrow_fn_ops escrow_irqfd_ops = {
	.type = GUNYAH_FN_IRQFD,
	.add = escrow_irqfd_add,
	.remove = escrow_irqfd_remove,
	.start = escrow_irqfds_connect,
	.end = escrow_irqfds_end,
};

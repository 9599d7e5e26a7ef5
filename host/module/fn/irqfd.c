// SPDX-License-Identifier: GPL-2.0-only
/*
 * Floor 4: Eventfds that interrupt the guest: by an SPI, or by a doorbell where it has no
 * interrupt controller.
 *
 * An eventfd calls us about a signal with the spinlock of its wait queue held and
 * interrupts off, so that callback can neither sleep nor take vm->lock. It may make the
 * calls to EL2 that a line needs, which are short, and wake vCPUs. irqfd->lock orders it
 * and the code that connects the line.
 */

#include <linux/err.h>
#include <linux/eventfd.h>
#include <linux/file.h>
#include <linux/list.h>
#include <linux/minmax.h>
#include <linux/poll.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/wait.h>

#include "fn/fn.h"

/* IRQFDs of one VM: they are searched in a list. */
#define ESCROW_IRQFDS_MAX 256
/* SPIs that are told under one hold of the VM's lock. */
#define ESCROW_IRQFDS_PART 16

struct escrow_irqfd {
	struct list_head link; /* in vm->irqfds */
	struct escrow_vm *vm; /* outlives the IRQFD */
	u32 label;
	struct eventfd_ctx *event;
	struct eventfd_ctx *resample; /* NULL: the IRQFD has no resample event */
	wait_queue_entry_t wait;
	poll_table poll;
	spinlock_t lock; /* protects line; taken with interrupts off */
	struct escrow_line line;
};

/* Handles the result of a call about the line: wakes vCPUs, or logs the error. */
static void escrow_irqfd_told(const struct escrow_irqfd *irqfd, int err, u32 wake)
{
	struct escrow_vm *vm = irqfd->vm;

	/* -ENODEV is no error: an eventfd may be signalled after the VM's end. */
	if (err < 0 && err != -ENODEV)
		pr_warn_ratelimited("VM %#llx: the interrupt of label %u is not set: %d\n",
				    vm->borrower.handle, irqfd->label, err);
	escrow_vm_wake_some(vm, wake);
}

static int escrow_irqfd_signalled(wait_queue_entry_t *wait, unsigned int mode, int sync,
				  void *key)
{
	struct escrow_irqfd *irqfd = container_of(wait, struct escrow_irqfd, wait);
	unsigned long flags;
	u32 wake = 0;
	int err;

	/* EPOLLHUP (the last descriptor was closed) is no signal. */
	if (!(key_to_poll(key) & EPOLLIN))
		return 0;
	spin_lock_irqsave(&irqfd->lock, flags);
	err = escrow_rs_line_signal(&irqfd->line, irqfd->vm->borrower.handle, &wake);
	escrow_irqfd_told(irqfd, err, wake);
	spin_unlock_irqrestore(&irqfd->lock, flags);
	return 0;
}

static void escrow_irqfd_queue(struct file *file, wait_queue_head_t *head, poll_table *poll)
{
	struct escrow_irqfd *irqfd = container_of(poll, struct escrow_irqfd, poll);

	add_wait_queue_priority(head, &irqfd->wait);
}

/*
 * Connects the IRQFD to the doorbell or SPI that its label names. 1: it is connected, 0: there
 * is none with this label yet. With vm->lock for writing.
 */
static int escrow_irqfd_connect(struct escrow_irqfd *irqfd)
{
	struct escrow_vm *vm = irqfd->vm;
	u32 wake = 0;
	int ret;

	spin_lock_irq(&irqfd->lock);
	ret = escrow_rs_line_connect(&irqfd->line, vm->core, irqfd->label, &wake);
	escrow_vm_wake_some(vm, wake);
	spin_unlock_irq(&irqfd->lock);
	return ret;
}

/*
 * Connects all IRQFDs, once the device tree is known. After an error some are connected; the
 * next attempt connects these again. With vm->lock for writing.
 */
static int escrow_irqfds_connect(struct escrow_vm *vm)
{
	struct escrow_irqfd *irqfd;
	int ret;

	list_for_each_entry(irqfd, &vm->irqfds, link) {
		ret = escrow_irqfd_connect(irqfd);
		if (ret < 0)
			return ret;
		if (!ret)
			pr_info_ratelimited("VM %#llx: its device tree has no interrupt for label %u\n",
					    vm->borrower.handle, irqfd->label);
	}
	return 0;
}

/* The guest is done with an SPI, which may be the IRQFD's. With vm->lock. */
static void escrow_irqfd_done(struct escrow_irqfd *irqfd, u32 intid)
{
	u32 wake = 0;
	int ret;

	spin_lock_irq(&irqfd->lock);
	ret = escrow_rs_line_done(&irqfd->line, irqfd->vm->borrower.handle, intid, &wake);
	escrow_irqfd_told(irqfd, ret, wake);
	spin_unlock_irq(&irqfd->lock);
	/* Signal without the lock: the eventfd may be the event of an IRQFD, even of this one. */
	if (ret > 0)
		eventfd_signal(irqfd->resample);
}

/* What is done of the first @count SPIs that EL2 names: 0 if that was all. */
static int escrow_irqfds_done_some(struct escrow_vm *vm, unsigned int count)
{
	struct escrow_irqfd *irqfd;
	int intid = 0;

	down_read(&vm->lock);
	while (count--) {
		intid = escrow_rs_spi_done(vm->borrower.handle);
		if (intid <= 0)
			break;
		list_for_each_entry(irqfd, &vm->irqfds, link)
			escrow_irqfd_done(irqfd, intid);
	}
	up_read(&vm->lock);
	return intid;
}

/*
 * The guest is done with level-sensitive SPIs: their levels are low at EL2, until somebody
 * says again that they are high. Other vCPUs may end some as fast as they are told here, so
 * who waits for the lock gets it now and then, and who is killed goes.
 */
void escrow_irqfds_done(struct escrow_vm *vm)
{
	int ret;

	do {
		ret = escrow_irqfds_done_some(vm, ESCROW_IRQFDS_PART);
		cond_resched();
	} while (ret > 0 && !fatal_signal_pending(current));
	if (ret < 0 && ret != -ENODEV)
		pr_warn_ratelimited("VM %#llx: EL2 does not say which interrupts are done: %d\n",
				    vm->borrower.handle, ret);
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
	escrow_rs_line_init(&irqfd->line, function->level, function->resamples);
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
	if (function->resamples) {
		irqfd->resample = eventfd_ctx_fdget(function->resample_fd);
		if (IS_ERR(irqfd->resample)) {
			err = PTR_ERR(irqfd->resample);
			goto err_event;
		}
	}
	err = escrow_vm_lock(vm);
	if (err)
		goto err_resample;
	if (escrow_irqfd_find(vm, irqfd->label)) {
		err = -EEXIST;
	} else if (vm->irqfd_count >= ESCROW_IRQFDS_MAX) {
		pr_warn_ratelimited("VM %#llx has %u IRQFDs, the most that a VM can have\n",
				    vm->borrower.handle, vm->irqfd_count);
		err = -ENOSPC;
	} else {
		err = min(escrow_irqfd_connect(irqfd), 0);
	}
	if (err) {
		up_write(&vm->lock);
		goto err_resample;
	}
	list_add_tail(&irqfd->link, &vm->irqfds);
	vm->irqfd_count++;
	/* vfs_poll() adds the IRQFD to the eventfd's queue, and tells of a signal before that. */
	if (vfs_poll(file, &irqfd->poll) & EPOLLIN)
		escrow_irqfd_signalled(&irqfd->wait, 0, 0, poll_to_key(EPOLLIN));
	up_write(&vm->lock);
	fput(file);
	return 0;

err_resample:
	if (irqfd->resample)
		eventfd_ctx_put(irqfd->resample);
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
	u32 wake = 0;
	int err;

	list_del(&irqfd->link);
	irqfd->vm->irqfd_count--;
	/* After this, no callback is running or will run. */
	eventfd_ctx_remove_wait_queue(irqfd->event, &irqfd->wait, &count);
	/* -ENODEV, which escrow_irqfd_told() ignores, means that the VM is dead. */
	err = escrow_rs_line_disconnect(&irqfd->line, irqfd->vm->borrower.handle, &wake);
	escrow_irqfd_told(irqfd, err, wake);
	eventfd_ctx_put(irqfd->event);
	if (irqfd->resample)
		eventfd_ctx_put(irqfd->resample);
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

/* Called when the last reference to the VM is gone. */
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

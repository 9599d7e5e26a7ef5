// SPDX-License-Identifier: GPL-2.0-only
/*
 * Floor 4: Consoles: a PL011 for the guest, whose accesses end here, and a file for the
 * program. Rust has the registers, and what waits for either side.
 *
 * A console belongs to its VM, and to its file. The file does not keep the VM: once the
 * VM has ended, a program reads what is left, and then the end of the file. Without the
 * file, the guest's accesses go on ending here, and what it writes is lost.
 */

#include <linux/anon_inodes.h>
#include <linux/err.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/jiffies.h>
#include <linux/kref.h>
#include <linux/list.h>
#include <linux/minmax.h>
#include <linux/mutex.h>
#include <linux/poll.h>
#include <linux/rculist.h>
#include <linux/rcupdate.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/timer.h>
#include <linux/uaccess.h>
#include <linux/uio.h>
#include <linux/wait.h>

#include <asm/ioctls.h>

#include "fn/fn.h"

/* Consoles of one VM; each takes 72 KiB. */
#define ESCROW_CONSOLES_MAX 4
/* A PL011 has one page of guest addresses. */
#define ESCROW_CONSOLE_SIZE 0x1000
/* Characters that are copied at once. */
#define ESCROW_CONSOLE_PART 256

struct escrow_console {
	struct kref ref; /* held by the VM's list and by the file */
	struct escrow_owner owner;
	struct list_head link; /* in vm->consoles */
	u64 address;
	u32 interrupt; /* INTID, 0 if it has none */
	spinlock_t lock; /* protects vm, is_wired and core */
	struct escrow_vm *vm; /* NULL: the VM has ended, or the function is removed */
	bool is_wired; /* the VM has a GICv3 with this SPI */
	struct escrow_console_core *core;
	struct mutex read_lock; /* one reader at a time */
	wait_queue_head_t queue; /* of readers, writers and pollers */
	struct timer_list timer; /* wakes readers of a part of a line */
	struct rcu_head rcu;
};

/* Sets the interrupt's level. With console->lock. */
static void escrow_console_set_level(struct escrow_console *console, bool high)
{
	struct escrow_vm *vm = console->vm;
	u32 wake = 0;
	int err;

	if (!vm || !console->is_wired)
		return;
	err = escrow_rs_spi_level(vm->borrower.handle, console->interrupt, high, &wake);
	/* -ENODEV is no error: the file may be written to while its VM ends. */
	if (err && err != -ENODEV)
		pr_warn_ratelimited("VM %#llx: a console's interrupt %u is not set: %d\n",
				    vm->borrower.handle, console->interrupt, err);
	escrow_vm_wake_some(vm, wake);
}

/* Handles events: sets the interrupt, wakes readers and writers. With console->lock. */
static void escrow_console_tell(struct escrow_console *console, u32 events)
{
	if (events & ESCROW_CONSOLE_LINE)
		escrow_console_set_level(console, events & ESCROW_CONSOLE_HIGH);
	if (events & ESCROW_CONSOLE_READABLE)
		wake_up_interruptible_poll(&console->queue, EPOLLIN | EPOLLRDNORM);
	else if (events & ESCROW_CONSOLE_READABLE_SOON)
		mod_timer(&console->timer, jiffies + 1);
	if (events & ESCROW_CONSOLE_WRITABLE)
		wake_up_interruptible_poll(&console->queue, EPOLLOUT | EPOLLWRNORM);
}

/*
 * A guest writes character by character, and waking the readers for each would cost the
 * guest's thread more than all else. So the end of a line wakes them, and this timer for a
 * part of a line.
 */
static void escrow_console_timer(struct timer_list *timer)
{
	struct escrow_console *console = container_of(timer, struct escrow_console, timer);

	wake_up_interruptible_poll(&console->queue, EPOLLIN | EPOLLRDNORM);
}

static void escrow_console_free(struct kref *ref)
{
	struct escrow_console *console = container_of(ref, struct escrow_console, ref);

	timer_shutdown_sync(&console->timer);
	escrow_rs_console_free(console->core);
	escrow_owner_end(&console->owner);
	/* A guest's access may have found it before it left its VM: escrow_console_answers(). */
	kfree_rcu(console, rcu);
}

/* The events (enum escrow_console_event) that hold now. */
static u32 escrow_console_state(struct escrow_console *console, bool *has_ended)
{
	u32 state;

	spin_lock(&console->lock);
	*has_ended = !console->vm;
	state = escrow_rs_console_state(console->core);
	spin_unlock(&console->lock);
	return state;
}

static bool escrow_console_is(struct escrow_console *console, u32 event)
{
	bool has_ended;
	u32 state = escrow_console_state(console, &has_ended);

	return has_ended || state & event;
}

/* Waits for @event or the end; -EAGAIN if the call must not wait. */
static int escrow_console_wait(struct escrow_console *console, const struct kiocb *iocb, u32 event)
{
	if (iocb->ki_filp->f_flags & O_NONBLOCK || iocb->ki_flags & IOCB_NOWAIT)
		return -EAGAIN;
	return wait_event_interruptible(console->queue, escrow_console_is(console, event));
}

/* Copies what there is. With console->read_lock. */
static ssize_t escrow_console_copy(struct escrow_console *console, struct iov_iter *to)
{
	u8 text[ESCROW_CONSOLE_PART];
	size_t count, copied;
	ssize_t done = 0;
	u64 position;

	for (;;) {
		spin_lock(&console->lock);
		count = escrow_rs_console_peek(console->core, text,
					       min(sizeof(text), iov_iter_count(to)), &position);
		spin_unlock(&console->lock);
		if (!count)
			return done;
		copied = copy_to_iter(text, count, to);
		/* The ring may have overrun meanwhile: the take skips what was overwritten. */
		spin_lock(&console->lock);
		escrow_rs_console_take(console->core, position + copied);
		spin_unlock(&console->lock);
		done += copied;
		if (copied < count)
			return done ?: -EFAULT;
	}
}

static ssize_t escrow_console_read(struct kiocb *iocb, struct iov_iter *to)
{
	struct escrow_console *console = iocb->ki_filp->private_data;
	bool has_ended;
	ssize_t done;
	int err;

	for (;;) {
		/* Read this before the ring: after the end nothing is added to it. */
		escrow_console_state(console, &has_ended);
		/* Another reader holds the lock only while it copies, not while it waits. */
		if (mutex_lock_killable(&console->read_lock))
			return -EINTR;
		done = escrow_console_copy(console, to);
		mutex_unlock(&console->read_lock);
		if (done || has_ended || !iov_iter_count(to))
			return done;
		err = escrow_console_wait(console, iocb, ESCROW_CONSOLE_READABLE);
		if (err)
			return err;
	}
}

/* How many of @size characters have room, or -ENODEV. */
static ssize_t escrow_console_send(struct escrow_console *console, const u8 *text, size_t size)
{
	size_t sent = 0;
	bool has_ended;

	spin_lock(&console->lock);
	has_ended = !console->vm;
	if (!has_ended)
		escrow_console_tell(console, escrow_rs_console_send(console->core, text, size,
								    &sent));
	spin_unlock(&console->lock);
	return has_ended ? -ENODEV : sent;
}

static ssize_t escrow_console_write(struct kiocb *iocb, struct iov_iter *from)
{
	struct escrow_console *console = iocb->ki_filp->private_data;
	u8 text[ESCROW_CONSOLE_PART];
	ssize_t done = 0;

	while (iov_iter_count(from)) {
		size_t at = 0, count = copy_from_iter(text, sizeof(text), from);

		if (!count)
			return done ?: -EFAULT;
		while (at < count) {
			ssize_t ret = escrow_console_send(console, text + at, count - at);

			if (ret > 0)
				at += ret;
			else if (!ret)
				ret = escrow_console_wait(console, iocb, ESCROW_CONSOLE_WRITABLE);
			if (ret < 0) {
				iov_iter_revert(from, count - at);
				done += at;
				return done ?: ret;
			}
		}
		done += count;
	}
	return done;
}

static __poll_t escrow_console_poll(struct file *file, poll_table *wait)
{
	struct escrow_console *console = file->private_data;
	__poll_t events = 0;
	bool has_ended;
	u32 state;

	poll_wait(file, &console->queue, wait);
	state = escrow_console_state(console, &has_ended);
	if (state & ESCROW_CONSOLE_READABLE)
		events |= EPOLLIN | EPOLLRDNORM;
	if (has_ended)
		events |= EPOLLIN | EPOLLRDNORM | EPOLLHUP;
	else if (state & ESCROW_CONSOLE_WRITABLE)
		events |= EPOLLOUT | EPOLLWRNORM;
	return events;
}

static long escrow_console_send_break(struct escrow_console *console)
{
	bool has_ended, sent = false;

	spin_lock(&console->lock);
	has_ended = !console->vm;
	if (!has_ended)
		escrow_console_tell(console, escrow_rs_console_send_break(console->core, &sent));
	spin_unlock(&console->lock);
	if (has_ended)
		return -ENODEV;
	return sent ? 0 : -EAGAIN;
}

static void escrow_console_count(struct escrow_console *console, u64 counts[3])
{
	spin_lock(&console->lock);
	escrow_rs_console_counts(console->core, counts);
	spin_unlock(&console->lock);
}

/* The ioctls of a terminal that make sense for a serial line without one. */
static long escrow_console_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct escrow_console *console = file->private_data;
	u64 counts[3];

	switch (cmd) {
	case TCSBRK:
	case TCSBRKP:
		return escrow_console_send_break(console);
	case FIONREAD:
		escrow_console_count(console, counts);
		return put_user((int)counts[0], (int __user *)arg);
	default:
		return -ENOTTY;
	}
}

static void escrow_console_show_fdinfo(struct seq_file *to, struct file *file)
{
	u64 counts[3];

	escrow_console_count(file->private_data, counts);
	seq_printf(to, "waiting:\t%llu\nlost:\t%llu\nunread:\t%llu\n", counts[0], counts[1],
		   counts[2]);
}

static int escrow_console_close(struct inode *inode, struct file *file)
{
	struct escrow_console *console = file->private_data;

	kref_put(&console->ref, escrow_console_free);
	return 0;
}

static const struct file_operations escrow_console_fops = {
	.owner = THIS_MODULE,
	.read_iter = escrow_console_read,
	.write_iter = escrow_console_write,
	.poll = escrow_console_poll,
	.unlocked_ioctl = escrow_console_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.show_fdinfo = escrow_console_show_fdinfo,
	.release = escrow_console_close,
};

static struct escrow_console *escrow_console_new(const struct escrow_function *function)
{
	struct escrow_console *console = kzalloc(sizeof(*console), GFP_KERNEL_ACCOUNT);
	int err;

	if (!console)
		return ERR_PTR(-ENOMEM);
	/* A file may outlive its VM: the limit of VMs is none of consoles. */
	err = escrow_owner_init(&console->owner, ESCROW_KIND_CONSOLE);
	if (err)
		goto err_free;
	console->core = escrow_rs_console_new();
	if (!console->core) {
		err = -ENOMEM;
		goto err_owner;
	}
	kref_init(&console->ref);
	console->address = function->address;
	console->interrupt = function->id;
	spin_lock_init(&console->lock);
	mutex_init(&console->read_lock);
	init_waitqueue_head(&console->queue);
	timer_setup(&console->timer, escrow_console_timer, 0);
	return console;

err_owner:
	escrow_owner_end(&console->owner);
err_free:
	kfree(console);
	return ERR_PTR(err);
}

/* With vm->lock, or in a read-side critical section of RCU: so a guest's accesses take no lock. */
static struct escrow_console *escrow_console_find(const struct escrow_vm *vm, u64 address)
{
	struct escrow_console *console;

	list_for_each_entry_rcu(console, &vm->consoles, link, lockdep_is_held(&vm->lock)) {
		if (address - console->address < ESCROW_CONSOLE_SIZE)
			return console;
	}
	return NULL;
}

/*
 * Connects the interrupt, if the VM has an interrupt controller. The guest has not used the
 * console, so its level is low. With vm->lock for writing.
 */
static int escrow_console_connect(struct escrow_vm *vm, struct escrow_console *console)
{
	int ret;

	if (!console->interrupt)
		return 0;
	ret = escrow_rs_vm_has_spi(vm->core, console->interrupt);
	spin_lock(&console->lock);
	console->is_wired = ret > 0;
	spin_unlock(&console->lock);
	return min(ret, 0);
}

static int escrow_consoles_connect(struct escrow_vm *vm)
{
	struct escrow_console *console;
	int err;

	list_for_each_entry(console, &vm->consoles, link) {
		err = escrow_console_connect(vm, console);
		if (err)
			return err;
	}
	return 0;
}

/* The highest INTID of a console, or 0. With vm->lock. */
u32 escrow_consoles_highest(const struct escrow_vm *vm)
{
	struct escrow_console *console;
	u32 highest = 0;

	list_for_each_entry(console, &vm->consoles, link)
		highest = max(highest, console->interrupt);
	return highest;
}

/* Adds the console to the VM's list. With vm->lock for writing. */
static int escrow_console_join(struct escrow_vm *vm, struct escrow_console *console)
{
	int err;

	if (escrow_console_find(vm, console->address))
		return -EEXIST;
	if (vm->console_count >= ESCROW_CONSOLES_MAX) {
		pr_warn_ratelimited("VM %#llx has %u consoles, the most that a VM can have\n",
				    vm->borrower.handle, vm->console_count);
		return -ENOSPC;
	}
	err = escrow_console_connect(vm, console);
	if (err)
		return err;
	kref_get(&console->ref);
	console->vm = vm;
	list_add_tail_rcu(&console->link, &vm->consoles);
	vm->console_count++;
	return 0;
}

/* Adds a console to the VM and returns its file descriptor. */
static int escrow_console_add(struct escrow_vm *vm, const struct escrow_function *function,
			      const struct gunyah_fn_desc *desc, const union escrow_fn_arg *arg)
{
	struct escrow_console *console;
	struct file *file;
	int fd, err;

	console = escrow_console_new(function);
	if (IS_ERR(console))
		return PTR_ERR(console);
	file = anon_inode_getfile("[escrow-console]", &escrow_console_fops, console, O_RDWR);
	if (IS_ERR(file)) {
		kref_put(&console->ref, escrow_console_free);
		return PTR_ERR(file);
	}
	/* The reference of kref_init() now belongs to the file: its release drops it. */
	stream_open(file_inode(file), file);
	fd = get_unused_fd_flags(O_CLOEXEC);
	if (fd < 0) {
		err = fd;
		goto err_file;
	}
	err = escrow_vm_lock(vm);
	if (err)
		goto err_fd;
	err = escrow_console_join(vm, console);
	up_write(&vm->lock);
	if (err)
		goto err_fd;
	fd_install(fd, file);
	return fd;

err_fd:
	put_unused_fd(fd);
err_file:
	fput(file);
	return err;
}

/*
 * Ends the file: readers get its end, writers ENODEV. With vm->lock for writing, or without
 * users of the VM.
 */
static void escrow_console_cut(struct escrow_console *console)
{
	spin_lock(&console->lock);
	/* Lower the line, so that the next device with this INTID starts with it low. */
	escrow_console_set_level(console, false);
	console->vm = NULL;
	spin_unlock(&console->lock);
	wake_up_interruptible_poll(&console->queue, EPOLLIN | EPOLLHUP);
}

/* Takes the console off the VM, likewise. The caller puts the VM's reference. */
static void escrow_console_leave(struct escrow_vm *vm, struct escrow_console *console)
{
	list_del_rcu(&console->link);
	vm->console_count--;
	escrow_console_cut(console);
}

static int escrow_console_remove(struct escrow_vm *vm, const struct escrow_function *function,
				 const struct gunyah_fn_desc *desc,
				 const union escrow_fn_arg *arg)
{
	struct escrow_console *console;
	int err;

	err = escrow_vm_lock(vm);
	if (err)
		return err;
	console = escrow_console_find(vm, function->address);
	if (console && console->address == function->address)
		escrow_console_leave(vm, console);
	else
		err = -ENOENT;
	up_write(&vm->lock);
	/* Not under the lock: it may free the console, for which it waits for other users. */
	if (!err)
		kref_put(&console->ref, escrow_console_free);
	return err;
}

/* Called when the VM has ended while others have files of it. With vm->lock for writing. */
static void escrow_consoles_shut_down(struct escrow_vm *vm)
{
	struct escrow_console *console;

	list_for_each_entry(console, &vm->consoles, link)
		escrow_console_cut(console);
}

/* Called when the last reference to the VM is gone. */
static void escrow_consoles_end(struct escrow_vm *vm)
{
	struct escrow_console *console, *next;

	list_for_each_entry_safe(console, next, &vm->consoles, link) {
		escrow_console_leave(vm, console);
		kref_put(&console->ref, escrow_console_free);
	}
}

/*
 * Whether a console answers a guest that has found it: it may have left the VM since, and only its
 * lock is still there. If so, with console->lock, until escrow_console_answered().
 */
static __always_inline bool escrow_console_answers(struct escrow_console *console)
{
	spin_lock(&console->lock);
	if (likely(console->vm))
		return true;
	spin_unlock(&console->lock);
	return false;
}

static __always_inline void escrow_console_answered(struct escrow_console *console, u32 events)
{
	if (events)
		escrow_console_tell(console, events);
	spin_unlock(&console->lock);
}

/* A guest's read. true: it is a console's, and is done. */
bool escrow_console_guest_reads(const struct escrow_vm *vm, u64 address, u32 size, u64 *value)
{
	struct escrow_console *console;
	bool done = false;
	u32 events;

	rcu_read_lock();
	console = escrow_console_find(vm, address);
	if (console && escrow_console_answers(console)) {
		events = escrow_rs_console_guest_reads(console->core, address - console->address,
						       size, value);
		escrow_console_answered(console, events);
		done = true;
	}
	rcu_read_unlock();
	return done;
}

/* The same for a write. */
bool escrow_console_guest_writes(const struct escrow_vm *vm, u64 address, u64 value)
{
	struct escrow_console *console;
	bool done = false;
	u32 events;

	rcu_read_lock();
	console = escrow_console_find(vm, address);
	if (console && escrow_console_answers(console)) {
		events = escrow_rs_console_guest_writes(console->core, address - console->address,
							value);
		escrow_console_answered(console, events);
		done = true;
	}
	rcu_read_unlock();
	return done;
}

const struct escrow_fn_ops escrow_console_ops = {
	.type = ESCROW_FN_CONSOLE,
	.add = escrow_console_add,
	.remove = escrow_console_remove,
	.start = escrow_consoles_connect,
	.shut_down = escrow_consoles_shut_down,
	.end = escrow_consoles_end,
};

// SPDX-License-Identifier: GPL-2.0-only
/* Floor 4: vCPUs: a thread of the host calls VCPU_RUN, and EL2 runs the guest in it. */

#include <linux/anon_inodes.h>
#include <linux/clocksource.h>
#include <linux/file.h>
#include <linux/irq_work.h>
#include <linux/irqflags.h>
#include <linux/ktime.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/preempt.h>
#include <linux/sched.h>
#include <linux/slab.h>

#include <asm/arch_timer.h>

#include "fn/fn.h"

/* Whether the VM or the vCPU has ended, so that no run may begin. */
static bool escrow_vcpu_has_ended(struct escrow_vcpu *vcpu)
{
	return READ_ONCE(vcpu->is_removed) || escrow_vm_state(vcpu->vm) != ESCROW_VM_LIVE;
}

/* Does nothing: the interrupt itself has ended the guest's run. */
static void escrow_vcpu_interrupted(struct irq_work *work)
{
}

/*
 * With interrupts disabled, before an entry of a VM with losses to report. If the program
 * has answered the last exit, EL2 has to get that answer first: then an interrupt ends the
 * run as soon as EL2 has taken it. → whether the run must not begin at all
 */
static noinline bool escrow_vcpu_tells_first(struct escrow_vcpu *vcpu)
{
	if (!escrow_rs_vcpu_has_answer(&vcpu->core))
		return true;
	irq_work_queue(&vcpu->interrupt);
	return false;
}

/*
 * Runs the guest once. -EINTR: it did not run, as the program asked for this thread to
 * return. -EAGAIN: it did not run, as there is other work to do first.
 */
static int escrow_vcpu_enter(struct escrow_vcpu *vcpu, const u64 registers[8], u64 results[5])
{
	int err = 0;

	/*
	 * No event is missed: who has an event for this thread (the scheduler,
	 * escrow_vm_wake(), also for lost pages) writes it first and interrupts this CPU then.
	 * Interrupts are disabled from here on. So if the checks below do not see an event, its
	 * interrupt is pending when the guest is entered, and ends the run at once. Preemption
	 * is disabled for one run, which the host's tick ends at the latest.
	 */
	preempt_disable();
	local_irq_disable();
	/* Clear it before EL2 looks for wake-ups; escrow_vm_wake() has the other order. */
	smp_store_mb(vcpu->waiter.is_woken, false);
	if (READ_ONCE(vcpu->run->immediate_exit))
		err = -EINTR;
	else if (escrow_guest_must_work() || escrow_vcpu_has_ended(vcpu))
		err = -EAGAIN;
	else if (unlikely(READ_ONCE(vcpu->vm->has_losses)) && escrow_vcpu_tells_first(vcpu))
		err = -EAGAIN;
	else
		escrow_guest_run(registers, results);
	local_irq_enable();
	preempt_enable();
	return err;
}

/* Whether a vCPU that waits (WFI) has a reason to run again. */
static bool escrow_vcpu_must_go_on(struct escrow_vcpu *vcpu)
{
	return READ_ONCE(vcpu->waiter.is_woken) || escrow_vcpu_has_ended(vcpu) ||
	       READ_ONCE(vcpu->vm->has_losses) || READ_ONCE(vcpu->run->immediate_exit);
}

static void escrow_vcpu_sleep(struct escrow_vcpu *vcpu, u64 nanoseconds)
{
	/* The caller's loop checks why the sleep ended, before the next run. */
	if (nanoseconds >= KTIME_MAX)
		wait_event_interruptible(vcpu->waiter.queue, escrow_vcpu_must_go_on(vcpu));
	else
		(void)wait_event_interruptible_hrtimeout(vcpu->waiter.queue,
							 escrow_vcpu_must_go_on(vcpu),
							 ns_to_ktime(nanoseconds));
}

static int escrow_vcpu_bring(struct escrow_vcpu *vcpu, u64 guest, u64 access)
{
	struct escrow_vm *vm = vcpu->vm;
	struct escrow_attempt *attempt = &vcpu->attempt;
	struct escrow_binding binding;
	int err;

	do {
		escrow_down_read(&vm->lock);
		err = escrow_vm_is_closed(vm) ? -ENODEV :
			escrow_rs_vm_find(vm->core, guest, access, &binding);
		if (!err && unlikely(vm->borrower.is_protected))
			err = escrow_mem_bring_protected(&vm->borrower, &binding,
							 round_down(guest, PAGE_SIZE),
							 vcpu->batch, attempt);
		else if (!err)
			err = escrow_mem_lend_one(&vm->borrower, &binding,
						  round_down(guest, PAGE_SIZE), vcpu->batch,
						  attempt);
		up_read(&vm->lock);
	} while (unlikely(err == -EAGAIN) && escrow_attempt_again(attempt));
	escrow_attempt_end(attempt);
	return err;
}

/* EL2 lacks pages for a call that the guest makes again. */
static int escrow_vcpu_top_up(struct escrow_vcpu *vcpu, u64 pages)
{
	struct escrow_vm *vm = vcpu->vm;
	int err;

	down_read(&vm->lock);
	err = escrow_vm_is_closed(vm) ? -ENODEV : escrow_vm_top_up(vm, pages);
	up_read(&vm->lock);
	return err;
}

static void escrow_vcpu_down(struct escrow_vcpu *vcpu, u32 kind)
{
	struct escrow_vm *vm = vcpu->vm;

	down_read(&vm->lock);
	escrow_rs_vm_down(vm->core, kind);
	up_read(&vm->lock);
	escrow_vm_advance(vm, ESCROW_EVENT_DOWN);
	escrow_vm_wake_all(vm);
}

/* Whether the VM can run. 1: it is down, @exit says why. */
static int escrow_vcpu_check(struct escrow_vcpu *vcpu, struct escrow_exit *exit)
{
	struct escrow_vm *vm = vcpu->vm;
	int ret = 0;

	/*
	 * The fast path, without a lock: once the VM runs, nothing else can refuse a run, and
	 * each of these changes only once. Who changes one also ends the run that is under way.
	 */
	if (vcpu->has_run && escrow_vm_state(vm) == ESCROW_VM_LIVE &&
	    !READ_ONCE(vcpu->is_removed))
		return 0;
	down_read(&vm->lock);
	if (escrow_vm_is_closed(vm) || vcpu->is_removed || !escrow_rs_vm_is_started(vm->core))
		ret = -ENODEV;
	else if (escrow_rs_vm_status(vm->core, exit))
		ret = 1;
	else
		vcpu->has_run = true;
	up_read(&vm->lock);
	return ret;
}

static void escrow_vcpu_tell(struct escrow_vcpu *vcpu, const struct escrow_exit *exit)
{
	struct gunyah_vcpu_run *run = vcpu->run;
	int i;

	for (i = 0; i < GUNYAH_EXIT_WORDS; i++)
		WRITE_ONCE(run->exit[i], exit->words[i]);
	WRITE_ONCE(run->exit_reason, exit->reason);
}

static noinline bool escrow_vcpu_tell_next_loss(struct escrow_vcpu *vcpu)
{
	struct escrow_exit exit;

	if (!escrow_vm_tell_loss(vcpu->vm, &exit))
		return false;
	escrow_vcpu_tell(vcpu, &exit);
	return true;
}

/* Tells the program of a loss, if there is one. → whether it did */
static __always_inline bool escrow_vcpu_tell_loss(struct escrow_vcpu *vcpu)
{
	return unlikely(READ_ONCE(vcpu->vm->has_losses)) && escrow_vcpu_tell_next_loss(vcpu);
}

/*
 * Handles a guest's access to an address without memory, if it belongs to an IOEVENTFD or a
 * console. All other accesses are the program's to answer.
 */
static void escrow_vcpu_emulate(struct escrow_vcpu *vcpu, struct escrow_step *step)
{
	struct escrow_vm *vm = vcpu->vm;
	u64 value;
	bool done;

	if (step->kind == ESCROW_STEP_WRITE)
		done = escrow_ioeventfd_write(vm, step->at, step->down, step->access) ||
		       escrow_console_guest_writes(vm, step->at, step->access);
	else
		done = escrow_console_guest_reads(vm, step->at, step->down, &value);
	if (!done) {
		step->kind = ESCROW_STEP_EXIT;
		return;
	}
	if (step->kind == ESCROW_STEP_WRITE)
		escrow_rs_vcpu_write_done(&vcpu->core);
	else
		escrow_rs_vcpu_read_done(&vcpu->core, value);
	step->kind = ESCROW_STEP_AGAIN;
}

static long escrow_vcpu_run(struct escrow_vcpu *vcpu)
{
	u64 answer[GUNYAH_EXIT_WORDS], registers[8], results[5];
	struct escrow_exit exit = {};
	struct escrow_step step = {};
	bool is_checked = false;
	int err, i;

	for (;;) {
		/*
		 * escrow_vcpu_enter() looks at all of this as well, where interrupts are disabled,
		 * and refuses to enter; so a turn that follows a run need not.
		 */
		if (!is_checked) {
			err = escrow_guest_do_work();
			if (err)
				return err;
			err = escrow_vcpu_check(vcpu, &exit);
			if (err < 0)
				return err;
			if (err) {
				escrow_vcpu_tell(vcpu, &exit);
				return 0;
			}
			is_checked = true;
		}

		/* User space may write to the page at any time, so each word is read once. */
		for (i = 0; i < GUNYAH_EXIT_WORDS; i++)
			answer[i] = READ_ONCE(vcpu->run->exit[i]);
		err = escrow_rs_vcpu_resume(&vcpu->core, answer, registers);
		if (err)
			return err;
		err = escrow_vcpu_enter(vcpu, registers, results);
		if (err == -EAGAIN) {
			is_checked = false;
			if (!escrow_rs_vcpu_has_answer(&vcpu->core) &&
			    escrow_vcpu_tell_loss(vcpu))
				return 0;
			continue;
		}
		if (!err)
			err = escrow_rs_vcpu_ended(&vcpu->core, results, &step);
		if (err)
			return err;

		if (step.kind == ESCROW_STEP_BRING) {
			u64 guest = step.at;

			err = escrow_vcpu_bring(vcpu, guest, step.access);
			if (err)
				escrow_rs_vcpu_page_brought(&vcpu->core, guest, err, &step);
			else
				step.kind = ESCROW_STEP_AGAIN;
		}
		if (step.kind == ESCROW_STEP_WRITE || step.kind == ESCROW_STEP_READ)
			escrow_vcpu_emulate(vcpu, &step);
		switch (step.kind) {
		case ESCROW_STEP_SLEEP:
			escrow_vcpu_sleep(vcpu, step.at == U64_MAX ? U64_MAX :
				escrow_rs_nanoseconds_until(__arch_counter_get_cntvct(), step.at,
							    arch_timer_get_cntfrq()));
			break;
		case ESCROW_STEP_OFF:
			escrow_vcpu_sleep(vcpu, U64_MAX);
			break;
		case ESCROW_STEP_WAKE:
			escrow_vm_wake_some(vcpu->vm, step.at);
			break;
		case ESCROW_STEP_SPI_DONE:
			escrow_vm_wake_some(vcpu->vm, step.at);
			escrow_irqfds_done(vcpu->vm);
			break;
		case ESCROW_STEP_TOP_UP:
			/* The guest has not changed: a run that follows goes on with it. */
			err = escrow_vcpu_top_up(vcpu, step.at);
			if (err)
				return err;
			break;
		case ESCROW_STEP_DOWN:
			escrow_vcpu_down(vcpu, step.down);
			break;
		case ESCROW_STEP_EXIT:
			escrow_vcpu_tell(vcpu, &step.exit);
			return 0;
		default:
			break;
		}
		/* A loss can be told here, as no exit waits for the program's answer. */
		if (escrow_vcpu_tell_loss(vcpu))
			return 0;
	}
}

static void escrow_vcpu_set_runner(struct escrow_vcpu *vcpu, struct task_struct *runner)
{
	spin_lock_irq(&vcpu->vm->vcpus_lock);
	vcpu->waiter.runner = runner;
	spin_unlock_irq(&vcpu->vm->vcpus_lock);
}

static long escrow_vcpu_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct escrow_vcpu *vcpu = file->private_data;
	long ret;

	switch (cmd) {
	/* These two take no argument, so @arg is not checked: callers leave anything there. */
	case GUNYAH_VCPU_RUN:
		if (mutex_lock_interruptible(&vcpu->run_lock))
			return -EINTR;
		escrow_vcpu_set_runner(vcpu, current);
		ret = escrow_vcpu_run(vcpu);
		escrow_vcpu_set_runner(vcpu, NULL);
		mutex_unlock(&vcpu->run_lock);
		return ret;
	case GUNYAH_VCPU_MMAP_SIZE:
		return PAGE_SIZE;
	default:
		return -ENOTTY;
	}
}

static vm_fault_t escrow_vcpu_fault(struct vm_fault *vmf)
{
	struct escrow_vcpu *vcpu = vmf->vma->vm_file->private_data;

	if (vmf->pgoff)
		return VM_FAULT_SIGBUS;
	vmf->page = virt_to_page(vcpu->run);
	get_page(vmf->page);
	return 0;
}

static const struct vm_operations_struct escrow_vcpu_vm_ops = {
	.fault = escrow_vcpu_fault,
};

static int escrow_vcpu_mmap(struct file *file, struct vm_area_struct *vma)
{
	if (!(vma->vm_flags & VM_MAYSHARE))
		return -EINVAL;
	vma->vm_ops = &escrow_vcpu_vm_ops;
	return 0;
}

static void escrow_vcpu_free(struct escrow_vcpu *vcpu)
{
	irq_work_sync(&vcpu->interrupt);
	escrow_vm_put(vcpu->vm);
	escrow_batch_free(vcpu->batch);
	free_page((unsigned long)vcpu->run);
	kfree(vcpu);
}

static int escrow_vcpu_close(struct inode *inode, struct file *file)
{
	struct escrow_vcpu *vcpu = file->private_data;
	struct escrow_vm *vm = vcpu->vm;

	down_write(&vm->lock);
	if (!vcpu->is_removed)
		escrow_vm_set_vcpu(vm, vcpu->id, NULL);
	up_write(&vm->lock);
	escrow_vcpu_free(vcpu);
	return 0;
}

static const struct file_operations escrow_vcpu_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = escrow_vcpu_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.mmap = escrow_vcpu_mmap,
	.release = escrow_vcpu_close,
};

/* Adds a vCPU to the VM and returns its file descriptor. */
static int escrow_vcpu_add(struct escrow_vm *vm, const struct escrow_function *function,
			   const struct gunyah_fn_desc *desc, const union escrow_fn_arg *arg)
{
	struct escrow_vcpu *vcpu;
	u32 id = function->id;
	struct file *file;
	int fd, err;

	vcpu = kzalloc(sizeof(*vcpu), GFP_KERNEL_ACCOUNT);
	if (!vcpu)
		return -ENOMEM;
	vcpu->vm = escrow_vm_get(vm);
	vcpu->id = id;
	vcpu->interrupt = IRQ_WORK_INIT_HARD(escrow_vcpu_interrupted);
	mutex_init(&vcpu->run_lock);
	init_waitqueue_head(&vcpu->waiter.queue);
	vcpu->run = (void *)get_zeroed_page(GFP_KERNEL_ACCOUNT);
	vcpu->batch = escrow_batch_alloc(1);
	if (!vcpu->run || !vcpu->batch) {
		err = -ENOMEM;
		goto err_free;
	}
	fd = get_unused_fd_flags(O_CLOEXEC);
	if (fd < 0) {
		err = fd;
		goto err_free;
	}

	err = escrow_vm_lock(vm);
	if (err)
		goto err_fd;
	err = escrow_rs_vm_add_vcpu(vm->core, &vm->borrower, id, &vcpu->core);
	if (!err) {
		file = anon_inode_getfile("[gunyah-vcpu]", &escrow_vcpu_fops, vcpu, O_RDWR);
		if (IS_ERR(file)) {
			err = PTR_ERR(file);
			WARN_ON_ONCE(escrow_rs_vm_remove_vcpu(vm->core, id));
		} else {
			escrow_vm_set_vcpu(vm, id, &vcpu->waiter);
		}
	}
	up_write(&vm->lock);
	if (err)
		goto err_fd;
	fd_install(fd, file);
	return fd;

err_fd:
	put_unused_fd(fd);
err_free:
	escrow_vcpu_free(vcpu);
	return err;
}

static int escrow_vcpu_remove(struct escrow_vm *vm, const struct escrow_function *function,
			      const struct gunyah_fn_desc *desc, const union escrow_fn_arg *arg)
{
	struct escrow_waiter *waiter;
	u32 id = function->id;
	int err;

	err = escrow_vm_lock(vm);
	if (err)
		return err;
	err = escrow_rs_vm_remove_vcpu(vm->core, id);
	waiter = err ? NULL : vm->vcpus[id];
	if (waiter) {
		WRITE_ONCE(container_of(waiter, struct escrow_vcpu, waiter)->is_removed, true);
		escrow_vm_wake(vm, id);
		escrow_vm_set_vcpu(vm, id, NULL);
	}
	up_write(&vm->lock);
	return err;
}

const struct escrow_fn_ops escrow_vcpu_ops = {
	.type = GUNYAH_FN_VCPU,
	.add = escrow_vcpu_add,
	.remove = escrow_vcpu_remove,
};

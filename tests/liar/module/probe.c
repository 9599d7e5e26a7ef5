// SPDX-License-Identifier: GPL-2.0-only
/* Accesses, in all the ways of a kernel. */

#include <linux/atomic.h>
#include <linux/kthread.h>
#include <linux/sched/task.h>
#include <linux/stringhash.h>
#include <linux/uaccess.h>

#include <asm/sysreg.h>
#include <asm/word-at-a-time.h>

#include "liar.h"

/*
 * The plain ones have functions of their own, whose names the kernel's report
 * of their end has.
 */
static noinline u64 liar_load(u64 at)
{
	return READ_ONCE(*(u64 *)at);
}

static noinline void liar_store(u64 at, u64 value)
{
	WRITE_ONCE(*(u64 *)at, value);
}

static noinline void liar_atomic(u64 at)
{
	atomic64_inc((atomic64_t *)at);
}

static noinline void liar_call(u64 at)
{
	((void (*)(void))at)();
}

static noinline u64 liar_translate(u64 at)
{
	u64 par;

	preempt_disable();
	asm volatile("at s1e0r, %0" : : "r"(at));
	isb();
	par = read_sysreg_par();
	preempt_enable();
	return par;
}

struct liar_thread {
	u64 at;
	bool is_done;
};

static int liar_thread(void *data)
{
	struct liar_thread *this = data;

	liar_load(this->at);
	this->is_done = true;
	return 0;
}

/* 0 if the thread got through, -EINTR if it died of its load. */
static int liar_thread_load(u64 at)
{
	struct liar_thread this = { .at = at };
	struct task_struct *thread = kthread_create(liar_thread, &this, "liar");

	if (IS_ERR(thread))
		return PTR_ERR(thread);
	get_task_struct(thread);
	wake_up_process(thread);
	/* Until it is done, or dead: it is not asked whether it should stop. */
	while (!READ_ONCE(this.is_done) && !READ_ONCE(thread->exit_state))
		schedule_timeout_uninterruptible(1);
	if (this.is_done)
		kthread_stop(thread);
	put_task_struct(thread);
	return this.is_done ? 0 : -EINTR;
}

static void liar_reach(struct liar_probe *probe)
{
	void *kernel = (void *)probe->at;
	void __user *user = (void __user *)probe->at;
	u8 bytes[LIAR_LENGTH_MAX] = {};
	u64 word = probe->value;

	switch (probe->kind) {
	case LIAR_LOAD:
		word = liar_load(probe->at);
		break;
	case LIAR_STORE:
		liar_store(probe->at, word);
		break;
	case LIAR_ATOMIC:
		liar_atomic(probe->at);
		break;
	case LIAR_CALL:
		liar_call(probe->at);
		break;
	case LIAR_THREAD_LOAD:
		probe->result = liar_thread_load(probe->at);
		break;
	case LIAR_NOFAULT:
		probe->result = copy_from_kernel_nofault(&word, kernel, sizeof(word));
		break;
	case LIAR_GET_NOFAULT:
		probe->result = get_kernel_nofault(word, (u64 *)kernel);
		break;
	case LIAR_ZEROPAD:
		word = load_unaligned_zeropad(kernel);
		break;
	case LIAR_HASH:
		word = full_name_hash(NULL, kernel, probe->length);
		break;
	case LIAR_COPY_FROM_USER:
		probe->result = copy_from_user(bytes, user, probe->length);
		break;
	case LIAR_COPY_TO_USER:
		probe->result = copy_to_user(user, bytes, probe->length);
		break;
	case LIAR_CLEAR_USER:
		probe->result = clear_user(user, probe->length);
		break;
	case LIAR_GET_USER:
		probe->result = get_user(word, (u64 __user *)user);
		break;
	case LIAR_PUT_USER:
		probe->result = put_user(word, (u64 __user *)user);
		break;
	case LIAR_STRNCPY_FROM_USER:
		probe->result = strncpy_from_user(bytes, user, probe->length);
		break;
	case LIAR_STRNLEN_USER:
		probe->result = strnlen_user(user, probe->length);
		break;
	case LIAR_FROM_USER_NOFAULT:
		probe->result = copy_from_user_nofault(bytes, user, probe->length);
		break;
	case LIAR_TRANSLATE:
		word = liar_translate(probe->at);
		break;
	default:
		probe->result = -ENOTTY;
		break;
	}
	probe->value = word;
}

int liar_probe(struct liar_probe *probe)
{
	if (probe->length > LIAR_LENGTH_MAX)
		return -EINVAL;
	probe->result = 0;
	liar_reach(probe);
	return 0;
}

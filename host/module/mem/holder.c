// SPDX-License-Identifier: GPL-2.0-only
/*
 * Floor 2: safe references of kernel users to a range of a memory, and how they
 * are told to let go. The interface is in <linux/escrow.h>.
 *
 * A reference to a folio and its count change together, under the folio lock,
 * as a transition of the folio would. Accesses are counted without a lock: an
 * access increments the count and then looks at the state, a lend changes the
 * state and then looks at the count (escrow_rs_folio_access).
 */

#include <linux/bsearch.h>
#include <linux/err.h>
#include <linux/export.h>
#include <linux/fs.h>
#include <linux/jiffies.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/pagemap.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/string_helpers.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include <linux/escrow.h>

#include "mem/mem.h"

/* Holders of one memory: lends walk their list under a spinlock. */
#define ESCROW_HOLDERS_MAX 256
/* How long a lend waits for holders that were told to let go, in ms. */
#define ESCROW_LET_GO_PATIENCE 200

/* One folio of a holder's range. */
struct escrow_hold {
	struct escrow_folio *ef;
	atomic_t accesses; /* begun by this holder, and not ended */
	u32 told; /* when @let_go was last called (escrow_rs_moment()); 0: never */
};

struct escrow_holder {
	struct escrow_mem *mem; /* with a reference */
	struct escrow_ref *ref; /* what the holder's module knows it by */
	const struct escrow_ref_ops *ops;
	struct list_head link; /* in mem->holders, until its references are dropped */
	bool is_leaving; /* @let_go is not called any more; under mem->holders_lock */
	char name[ESCROW_NAME_SIZE];
	pgoff_t first;
	pgoff_t last;
	atomic_t accesses; /* the sum over its folios */
	struct work_struct work; /* calls @let_go */
	struct task_struct *teller; /* the worker that is calling it now */
	bool is_released; /* @let_go has released the reference: @teller frees this */
	pgoff_t tell_first; /* the pages to call @let_go for; under mem->holders_lock */
	pgoff_t tell_last;
	u32 count;
	struct escrow_hold folios[] __counted_by(count);
};

static struct workqueue_struct *tellers;

static int escrow_hold_compare(const void *key, const void *element)
{
	const pgoff_t index = *(const pgoff_t *)key;
	const struct escrow_hold *hold = element;

	if (index < hold->ef->index)
		return -1;
	return index >= escrow_folio_next(hold->ef);
}

/* The folio of a page within the holder's range. */
static struct escrow_hold *escrow_holder_find(struct escrow_holder *holder, pgoff_t index)
{
	return bsearch(&index, holder->folios, holder->count, sizeof(holder->folios[0]),
		       escrow_hold_compare);
}

static bool escrow_holder_has(const struct escrow_holder *holder, pgoff_t first, pgoff_t last)
{
	return holder->first <= last && first <= holder->last;
}

/* Whether the holder accesses one of these pages. */
static bool escrow_holder_accesses(struct escrow_holder *holder, pgoff_t first, pgoff_t last)
{
	struct escrow_hold *hold, *end = holder->folios + holder->count;

	if (!escrow_holder_has(holder, first, last) || !atomic_read(&holder->accesses))
		return false;
	hold = escrow_holder_find(holder, max(first, holder->first));
	for (; hold && hold < end && hold->ef->index <= last; hold++) {
		if (atomic_read(&hold->accesses))
			return true;
	}
	return false;
}

/* Whether somebody has safe references to one of these pages. */
bool escrow_mem_is_held(struct escrow_mem *mem, pgoff_t first, pgoff_t last)
{
	struct escrow_holder *holder;
	bool held = false;

	spin_lock(&mem->holders_lock);
	list_for_each_entry(holder, &mem->holders, link)
		held |= escrow_holder_has(holder, first, last);
	spin_unlock(&mem->holders_lock);
	return held;
}

static bool escrow_mem_is_accessed(struct escrow_mem *mem, pgoff_t first, pgoff_t last)
{
	struct escrow_holder *holder;
	bool accessed = false;

	spin_lock(&mem->holders_lock);
	list_for_each_entry(holder, &mem->holders, link)
		accessed |= escrow_holder_accesses(holder, first, last);
	spin_unlock(&mem->holders_lock);
	return accessed;
}

/*
 * Names the holders that access pages, or else those that have safe references to them,
 * as far as there is room. Without any, the result is empty.
 */
void escrow_mem_name_holders(struct escrow_mem *mem, pgoff_t first, pgoff_t last, char *names,
			     size_t size)
{
	struct escrow_holder *holder;
	bool accessed = escrow_mem_is_accessed(mem, first, last);
	size_t at = 0;

	names[0] = 0;
	spin_lock(&mem->holders_lock);
	list_for_each_entry(holder, &mem->holders, link) {
		if (accessed ? !escrow_holder_accesses(holder, first, last) :
			       !escrow_holder_has(holder, first, last))
			continue;
		at += scnprintf(names + at, size - at, "%s%s", at ? "," : "", holder->name);
	}
	spin_unlock(&mem->holders_lock);
}

/* A line for each holder: for fdinfo, or as debugfs has it. */
void escrow_mem_show_holders(struct seq_file *m, struct escrow_mem *mem, bool fdinfo)
{
	struct escrow_holder *holder;

	spin_lock(&mem->holders_lock);
	list_for_each_entry(holder, &mem->holders, link) {
		u64 offset = (u64)holder->first << PAGE_SHIFT;
		u64 size = (u64)(holder->last - holder->first + 1) << PAGE_SHIFT;
		int accesses = atomic_read(&holder->accesses);

		if (fdinfo)
			seq_printf(m, "holder:\t%s offset=%#llx size=%#llx references=%u accesses=%d\n",
				   holder->name, offset, size, holder->count, accesses);
		else
			seq_printf(m, "%llu %llu %llu %u %d %s\n", escrow_mem_id(mem), offset,
				   size, holder->count, accesses, holder->name);
	}
	spin_unlock(&mem->holders_lock);
}

/*
 * Has a worker call a holder's @let_go about these pages. For ESCROW_LET_GO_PATIENCE no
 * access to them begins. With the holders_lock.
 */
static void escrow_holder_tell(struct escrow_holder *holder, pgoff_t first, pgoff_t last)
{
	struct escrow_hold *hold, *end = holder->folios + holder->count;
	u32 now = escrow_rs_moment(jiffies);

	first = max(first, holder->first);
	last = min(last, holder->last);
	hold = escrow_holder_find(holder, first);
	for (; hold && hold < end && hold->ef->index <= last; hold++)
		WRITE_ONCE(hold->told, now);
	holder->tell_first = min(holder->tell_first, first);
	holder->tell_last = max(holder->tell_last, last);
	queue_work(tellers, &holder->work);
}

/*
 * Tells the holders that access these pages to let go, and waits until they have, for
 * ESCROW_LET_GO_PATIENCE at most. 1: they have, 0: they have not, -EOPNOTSUPP: one of
 * them has no @let_go, and none was told. Without locks.
 */
int escrow_mem_let_go(struct escrow_mem *mem, pgoff_t first, pgoff_t last)
{
	struct escrow_holder *holder;
	bool is_static = false;

	spin_lock(&mem->holders_lock);
	list_for_each_entry(holder, &mem->holders, link) {
		if (escrow_holder_accesses(holder, first, last))
			is_static |= !holder->ops->let_go;
	}
	list_for_each_entry(holder, &mem->holders, link) {
		if (!is_static && !holder->is_leaving &&
		    escrow_holder_accesses(holder, first, last))
			escrow_holder_tell(holder, first, last);
	}
	spin_unlock(&mem->holders_lock);
	if (is_static)
		return -EOPNOTSUPP;
	return wait_event_interruptible_timeout(mem->let_go,
						!escrow_mem_is_accessed(mem, first, last),
						msecs_to_jiffies(ESCROW_LET_GO_PATIENCE)) > 0;
}

static void escrow_holder_free(struct escrow_holder *holder)
{
	struct module *owner = holder->ops->owner;

	escrow_mem_put(holder->mem);
	kvfree(holder);
	module_put(owner);
}

static void escrow_holder_work(struct work_struct *work)
{
	struct escrow_holder *holder = container_of(work, struct escrow_holder, work);
	struct escrow_mem *mem = holder->mem;
	pgoff_t first, last;

	spin_lock(&mem->holders_lock);
	first = holder->tell_first;
	last = holder->tell_last;
	holder->tell_first = ULONG_MAX;
	holder->tell_last = 0;
	spin_unlock(&mem->holders_lock);
	if (first > last)
		return;
	WRITE_ONCE(holder->teller, current);
	holder->ops->let_go(holder->ref, (u64)first << PAGE_SHIFT,
			    (u64)(last - first + 1) << PAGE_SHIFT);
	if (holder->is_released)
		escrow_holder_free(holder);
	else
		WRITE_ONCE(holder->teller, NULL);
}

static void escrow_hold_end(struct escrow_holder *holder, struct escrow_hold *hold)
{
	escrow_rs_folio_end_access(&hold->ef->state);
	atomic_dec(&holder->accesses);
}

/* Gives up the references to the first @count folios. Under the shared invalidate_lock. */
static void escrow_holder_empty(struct escrow_holder *holder, u32 count)
{
	while (count--) {
		struct escrow_folio *ef = holder->folios[count].ef;

		folio_lock(ef->folio);
		WARN_ON_ONCE(escrow_rs_folio_unhold(&ef->state, ef->folio));
		folio_unlock(ef->folio);
		cond_resched();
	}
}

/*
 * Puts a holder on the list of ranges that must not become holes. The caller has the
 * invalidate_lock shared, as it has while references are taken and released. A hole has
 * that lock exclusively, so it finds either no reference or the holder.
 */
static int escrow_holder_enlist(struct escrow_holder *holder)
{
	struct escrow_mem *mem = holder->mem;
	int err = -ENOSPC;

	spin_lock(&mem->holders_lock);
	if (mem->holders_count < ESCROW_HOLDERS_MAX) {
		escrow_mem_get(mem);
		mem->holders_count++;
		list_add_tail(&holder->link, &mem->holders);
		err = 0;
	}
	spin_unlock(&mem->holders_lock);
	return err;
}

/* Undoes escrow_holder_enlist(), after the references have been dropped. */
static void escrow_holder_drop(struct escrow_holder *holder)
{
	struct escrow_mem *mem = holder->mem;
	struct address_space *mapping = escrow_mapping(mem);

	filemap_invalidate_lock_shared(mapping);
	escrow_holder_empty(holder, holder->count);
	spin_lock(&mem->holders_lock);
	list_del(&holder->link);
	mem->holders_count--;
	spin_unlock(&mem->holders_lock);
	filemap_invalidate_unlock_shared(mapping);
}

/* Takes references to all folios of the range. Under the shared invalidate_lock. */
static int escrow_holder_fill(struct escrow_holder *holder)
{
	pgoff_t index = holder->first;
	u32 i;
	int err;

	for (i = 0; i < holder->count; i++) {
		struct escrow_folio *ef = escrow_mem_find(holder->mem, index);

		folio_lock(ef->folio);
		err = escrow_folio_is_poisoned(ef->folio) ? -EHWPOISON :
			escrow_rs_folio_hold(&ef->state, ef->folio);
		folio_unlock(ef->folio);
		if (err)
			break;
		holder->folios[i].ef = ef;
		index = escrow_folio_next(ef);
		cond_resched();
	}
	if (i == holder->count)
		return 0;
	escrow_holder_empty(holder, i);
	return err;
}

/* Allocates missing folios of the range. Returns the number of its folios. Under the same lock. */
static long escrow_mem_count(struct escrow_mem *mem, pgoff_t first, pgoff_t last)
{
	struct escrow_folio *ef;
	pgoff_t index;
	long count = 0;

	for (index = first; index <= last; index = escrow_folio_next(ef)) {
		if (fatal_signal_pending(current))
			return -EINTR;
		ef = escrow_mem_make(mem, index);
		if (IS_ERR(ef))
			return PTR_ERR(ef);
		count++;
		cond_resched();
	}
	return count;
}

/**
 * escrow_ref_take - take a safe reference to a range of a guest memory
 * @ref: what stands for it, which holds nothing yet
 * @memory: the guest memory, a file of GUNYAH_CREATE_GUEST_MEM
 * @offset: where the range begins, in bytes; a multiple of the size of a page
 * @size: of the range, likewise
 * @ops: how the holder is told to let go; lives as long as the reference
 * @name: of the holder, for fdinfo, debugfs and refused_by. At most 31 bytes are
 *	kept; blanks and newlines become underscores
 *
 * Pages are allocated where the range has none. The reference keeps the memory
 * and its file alive. Holes and a shorter size over the range fail with EBUSY.
 * The range may contain pages that a guest has; the guest keeps them.
 *
 * Context: may sleep. It takes locks of the memory, so do not call it with
 * mmap_lock held for writing, nor in a page fault.
 * Return: 0; -EBADF: @memory is no guest memory; -ENODEV: @ops->owner is being
 * unloaded; -EINVAL: the range is empty,
 * not page-aligned or beyond the end; -EHWPOISON: memory in it is broken;
 * -ENOMEM; -ENOSPC: the memory has 256 holders; -EINTR: the task is being
 * killed; -EBUSY: @ref holds a reference already.
 */
int escrow_ref_take(struct escrow_ref *ref, struct file *memory, u64 offset, u64 size,
		    const struct escrow_ref_ops *ops, const char *name)
{
	struct escrow_mem *mem = escrow_mem_of(memory);
	struct escrow_holder *holder;
	struct address_space *mapping;
	pgoff_t first, last;
	long count;
	int err;

	if (!mem)
		return -EBADF;
	if (READ_ONCE(ref->holder))
		return -EBUSY;
	if (!size || !PAGE_ALIGNED(offset | size) || offset + size < offset)
		return -EINVAL;
	if (!try_module_get(ops->owner))
		return -ENODEV;
	first = offset >> PAGE_SHIFT;
	last = (offset + size - 1) >> PAGE_SHIFT;
	mapping = escrow_mapping(mem);
	filemap_invalidate_lock_shared(mapping);
	err = -EINVAL;
	if (offset + size > i_size_read(mapping->host))
		goto err_unlock;
	count = escrow_mem_count(mem, first, last);
	err = count;
	if (count < 0)
		goto err_unlock;
	/* A count beyond what can be allocated is the caller's error: no warning in the log. */
	holder = kvzalloc(struct_size(holder, folios, count), GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
	err = -ENOMEM;
	if (!holder)
		goto err_unlock;
	holder->count = count;
	holder->mem = mem;
	holder->ref = ref;
	holder->ops = ops;
	holder->first = first;
	holder->last = last;
	holder->tell_first = ULONG_MAX;
	INIT_WORK(&holder->work, escrow_holder_work);
	/* Lists in debugfs separate names by blanks and lines. */
	strscpy(holder->name, name, sizeof(holder->name));
	strreplace(strreplace(holder->name, ' ', '_'), '\n', '_');
	err = escrow_holder_fill(holder);
	if (err)
		goto err_free;
	err = escrow_holder_enlist(holder);
	if (err)
		goto err_empty;
	filemap_invalidate_unlock_shared(mapping);
	WRITE_ONCE(ref->holder, holder);
	return 0;

err_empty:
	escrow_holder_empty(holder, count);
err_free:
	kvfree(holder);
err_unlock:
	filemap_invalidate_unlock_shared(mapping);
	module_put(ops->owner);
	return err;
}
EXPORT_SYMBOL_GPL(escrow_ref_take);

/**
 * escrow_ref_release - give a safe reference up
 * @ref: the reference; nobody else uses it any more
 *
 * Ends all accesses through it. When it returns, the callback is not called any
 * more; the callback itself may call it. A second release of the same reference
 * does nothing but write a line to the log.
 *
 * Context: may sleep, for as long as the callback does; see escrow_ref_take().
 */
void escrow_ref_release(struct escrow_ref *ref)
{
	struct escrow_holder *holder = xchg(&ref->holder, NULL);
	bool by_callback;
	u32 i;

	if (!holder) {
		pr_warn_ratelimited("a safe reference is released that nobody holds: %ps\n",
				    __builtin_return_address(0));
		return;
	}
	/*
	 * From here on @let_go is not called. The holder stays on the list until it has dropped
	 * its references, since holes are refused where a holder has some.
	 */
	spin_lock(&holder->mem->holders_lock);
	holder->is_leaving = true;
	spin_unlock(&holder->mem->holders_lock);
	by_callback = READ_ONCE(holder->teller) == current;
	if (by_callback)
		cancel_work(&holder->work);
	else
		cancel_work_sync(&holder->work);

	for (i = 0; i < holder->count; i++) {
		while (atomic_dec_if_positive(&holder->folios[i].accesses) >= 0)
			escrow_hold_end(holder, &holder->folios[i]);
	}
	wake_up_all(&holder->mem->let_go);
	escrow_holder_drop(holder);
	if (by_callback)
		holder->is_released = true;
	else
		escrow_holder_free(holder);
}
EXPORT_SYMBOL_GPL(escrow_ref_release);

/*
 * Begins an access to a folio that is on its way, or with a guest: waits for
 * the end of the transition, and asks for it as a page fault does.
 */
static int escrow_hold_begin_slowly(struct escrow_mem *mem, struct escrow_folio *ef)
{
	struct address_space *mapping = escrow_mapping(mem);
	u64 lacks = 0;
	int err;

again:
	filemap_invalidate_lock_shared(mapping);
	folio_lock(ef->folio);
	err = escrow_rs_folio_is_broken(&ef->state) ? -EHWPOISON : 0;
	if (!err && !escrow_rs_folio_is_reachable(&ef->state))
		err = escrow_mem_reclaim_folio(mem, ef, &lacks);
	if (!err)
		err = escrow_rs_folio_access(&ef->state);
	folio_unlock(ef->folio);
	filemap_invalidate_unlock_shared(mapping);
	if (escrow_mem_top_up(mem, err, lacks))
		goto again;
	return err == -EBUSY || err == -ENOENT ? -EFAULT : err;
}

static int escrow_hold_begin(struct escrow_holder *holder, struct escrow_hold *hold, pgoff_t first,
			     pgoff_t last)
{
	struct escrow_folio *ef = hold->ef;
	pgoff_t index, end = min(last, escrow_folio_next(ef) - 1);
	int err;

	/* A lend has asked the holder to let go: it must not begin an access. */
	if (escrow_rs_moment_is_within(READ_ONCE(hold->told), jiffies,
				       msecs_to_jiffies(ESCROW_LET_GO_PATIENCE)))
		return -EAGAIN;
	err = escrow_rs_folio_access(&ef->state);
	if (err)
		err = escrow_hold_begin_slowly(holder->mem, ef);
	if (err)
		return err;
	for (index = max(first, ef->index); index <= end; index++) {
		if (PageHWPoison(folio_page(ef->folio, index - ef->index))) {
			escrow_rs_folio_end_access(&ef->state);
			return -EHWPOISON;
		}
	}
	atomic_inc(&hold->accesses);
	atomic_inc(&holder->accesses);
	return 0;
}

/* Whether all of a part was accessed, and is not any more, from @hold on. */
static bool escrow_holder_end(struct escrow_holder *holder, struct escrow_hold *hold, pgoff_t last)
{
	struct escrow_hold *end = holder->folios + holder->count;
	bool all = true;

	for (; hold < end && hold->ef->index <= last; hold++) {
		if (atomic_dec_if_positive(&hold->accesses) < 0)
			all = false;
		else
			escrow_hold_end(holder, hold);
	}
	if (wq_has_sleeper(&holder->mem->let_go))
		wake_up_all(&holder->mem->let_go);
	return all;
}

/* The folio where a part of a holder's range begins, or NULL. */
static struct escrow_hold *escrow_holder_part(struct escrow_holder *holder, u64 offset, u64 size,
					      pgoff_t *last)
{
	pgoff_t first = offset >> PAGE_SHIFT;

	if (!holder || !size || offset + size < offset)
		return NULL;
	*last = (offset + size - 1) >> PAGE_SHIFT;
	if (first < holder->first || *last > holder->last)
		return NULL;
	return escrow_holder_find(holder, first);
}

/**
 * escrow_ref_begin_access - begin to read or write pages
 * @ref: a safe reference
 * @offset: of the first byte, in the memory
 * @size: in bytes; within the range of @ref
 *
 * Until escrow_ref_end_access(), no guest gets the pages that these bytes are
 * in. Accesses nest. Keep them short, or end them in the callback.
 *
 * Context: may sleep.
 * Return: 0; -EFAULT: a guest has one of the pages, and keeps it; -EHWPOISON:
 * one is broken; -EAGAIN: the callback was called within the last 200 ms;
 * -ENOMEM; -EINVAL: not within the range. On an error no access has begun.
 */
int escrow_ref_begin_access(struct escrow_ref *ref, u64 offset, u64 size)
{
	struct escrow_holder *holder = READ_ONCE(ref->holder);
	struct escrow_hold *first, *hold;
	pgoff_t last;
	int err;

	first = escrow_holder_part(holder, offset, size, &last);
	if (!first)
		return -EINVAL;
	for (hold = first; hold < holder->folios + holder->count && hold->ef->index <= last;
	     hold++) {
		err = escrow_hold_begin(holder, hold, offset >> PAGE_SHIFT, last);
		if (err) {
			if (hold > first)
				escrow_holder_end(holder, first, hold->ef->index - 1);
			return err;
		}
		cond_resched();
	}
	return 0;
}
EXPORT_SYMBOL_GPL(escrow_ref_begin_access);

/**
 * escrow_ref_end_access - end what escrow_ref_begin_access() began
 * @ref: the same
 * @offset: the same
 * @size: the same
 *
 * If no such access has begun, it does nothing but write a line to the log.
 *
 * Context: any but NMIs and, for its wake-up, with runqueue locks.
 */
void escrow_ref_end_access(struct escrow_ref *ref, u64 offset, u64 size)
{
	struct escrow_holder *holder = READ_ONCE(ref->holder);
	struct escrow_hold *first;
	pgoff_t last;

	first = escrow_holder_part(holder, offset, size, &last);
	if (!first || !escrow_holder_end(holder, first, last))
		pr_warn_ratelimited("an access ends that has not begun: %ps\n",
				    __builtin_return_address(0));
}
EXPORT_SYMBOL_GPL(escrow_ref_end_access);

/**
 * escrow_ref_page - a page of the range
 * @ref: a safe reference
 * @offset: of a byte of the page, in the memory
 *
 * Its contents may be used only during an access.
 *
 * Context: any.
 * Return: the page, without a reference of its own; NULL: not within the range.
 */
struct page *escrow_ref_page(struct escrow_ref *ref, u64 offset)
{
	struct escrow_hold *hold;
	pgoff_t last;

	hold = escrow_holder_part(READ_ONCE(ref->holder), offset, 1, &last);
	return hold ? folio_page(hold->ef->folio, last - hold->ef->index) : NULL;
}
EXPORT_SYMBOL_GPL(escrow_ref_page);

int __init escrow_holders_init(void)
{
	tellers = alloc_workqueue("escrow", WQ_UNBOUND, 0);
	return tellers ? 0 : -ENOMEM;
}

/* No holder is left: modules that use these functions keep this one loaded. */
void escrow_holders_exit(void)
{
	destroy_workqueue(tellers);
}

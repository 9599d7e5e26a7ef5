// SPDX-License-Identifier: GPL-2.0-only
/*
 * Floor 2: lends that were refused because a folio is in use: they are tried again,
 * and the last refusal is kept for fdinfo and debugfs.
 *
 * A lend that waits here holds no lock: the user of the folio may need any of them
 * to let go.
 */

#include <linux/delay.h>
#include <linux/fs.h>
#include <linux/jiffies.h>
#include <linux/mm.h>
#include <linux/rbtree.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/seq_file.h>
#include <linux/string.h>
#include <linux/string_helpers.h>

#include "arch/events.h"
#include "mem/mem.h"

/* MEM_LEND_FIRST: for how long after a refusal the folio cannot be mapped, in ms. */
#define ESCROW_WANTED_MS 250

/*
 * Records that a lend of a folio was refused. With an @attempt the lend may be tried again;
 * without, the refusal is final. @by: who is in the way; NULL: holders of safe references.
 * The folio is locked, or nobody else has it.
 */
void escrow_mem_refused(struct escrow_mem *mem, struct escrow_folio *ef,
			const struct escrow_refusal *refusal, const char *by,
			struct escrow_attempt *attempt)
{
	struct escrow_attempt last = {
		.mem = mem,
		.offset = (u64)ef->index << PAGE_SHIFT,
		.pages = folio_nr_pages(ef->folio),
		.refusal = *refusal,
		.by = by,
	};

	if (!attempt) {
		escrow_mem_give_up(&last);
		return;
	}
	if (mem->lend_first)
		WRITE_ONCE(ef->wanted, escrow_rs_moment(jiffies));
	/* Keep the time limit of the first refusal, and whether holders have been told. */
	last.retry = attempt->retry;
	last.is_told = attempt->is_told;
	last.is_refused = true;
	if (attempt->mem != mem) {
		escrow_attempt_end(attempt);
		escrow_mem_get(mem);
	}
	*attempt = last;
}

/* Whether a lend goes before new mappings of the folio. With the folio locked. */
bool escrow_folio_is_wanted(const struct escrow_folio *ef)
{
	u32 wanted = READ_ONCE(ef->wanted);

	return unlikely(wanted) &&
	       escrow_rs_moment_is_within(wanted, jiffies, msecs_to_jiffies(ESCROW_WANTED_MS));
}

/* Ends the attempt: counts and traces the refusal. */
void escrow_mem_give_up(const struct escrow_attempt *attempt)
{
	struct escrow_mem *mem = attempt->mem;
	pgoff_t first = attempt->offset >> PAGE_SHIFT;
	char by[ESCROW_NAMES_SIZE];

	if (attempt->by)
		strscpy(by, attempt->by);
	else
		escrow_mem_name_holders(mem, first, first + attempt->pages - 1, by, sizeof(by));
	spin_lock(&mem->refusal_lock);
	mem->was_refused = true;
	mem->refused_offset = attempt->offset;
	mem->refusal = attempt->refusal;
	strscpy(mem->refused_by, by);
	spin_unlock(&mem->refusal_lock);
	escrow_rs_counts_refused(&mem->counts);
	escrow_note_refusal(escrow_mem_id(mem), attempt->offset, attempt->pages,
			    attempt->refusal.excess, attempt->refusal.accessible, -EAGAIN);
}

/*
 * After -EAGAIN: waits until a lend is worth another try. false: it is not; then
 * the refusal has been told. Without locks.
 */
bool escrow_attempt_again(struct escrow_attempt *attempt)
{
	struct escrow_mem *mem = attempt->mem;
	pgoff_t first = attempt->offset >> PAGE_SHIFT;
	u32 microseconds;
	int gone;

	/* Without a refusal, the -EAGAIN is EL2's: there is nobody to wait for. */
	if (!attempt->is_refused)
		return false;
	attempt->is_refused = false;
	if (fatal_signal_pending(current))
		goto give_up;
	if (attempt->refusal.accessible && !attempt->is_told) {
		attempt->is_told = true;
		gone = escrow_mem_let_go(mem, first, first + attempt->pages - 1);
		if (gone > 0)
			return true;
		if (!gone)
			goto give_up;
	}
	microseconds = escrow_rs_retry(&attempt->retry, &attempt->refusal, &mem->counts);
	if (microseconds) {
		escrow_count(ESCROW_RETRIES, 1);
		usleep_range(microseconds, microseconds + microseconds / 2);
		return true;
	}
give_up:
	escrow_mem_give_up(attempt);
	return false;
}

/* Limits of the lines mapped_by: mappings that are examined, processes that are listed. */
#define ESCROW_MAPPERS_LOOKS 4096
#define ESCROW_MAPPERS_SHOWN 64

/* Tells of one process that maps the page, if it is known. Under the i_mmap_lock. */
static void escrow_vma_show(struct seq_file *m, struct vm_area_struct *vma)
{
#ifdef CONFIG_MEMCG
	char comm[TASK_COMM_LEN];
	struct task_struct *task;
	pid_t pid = 0;

	rcu_read_lock();
	task = rcu_dereference(vma->vm_mm->owner);
	if (task) {
		pid = task_tgid_vnr(task);
		strscpy(comm, task->comm);
	}
	rcu_read_unlock();
	if (!task)
		return;
	seq_printf(m, "mapped_by:\t%d ", pid);
	seq_escape(m, comm, " \t\n\\");
	seq_putc(m, '\n');
#endif
}

/*
 * Lists the processes that map a page now, in the order of i_mmap. If there are more than
 * the limits, the last line says so.
 */
static void escrow_mem_show_mappers(struct seq_file *m, struct escrow_mem *mem, pgoff_t index)
{
	struct address_space *mapping = escrow_mapping(mem);
	struct mm_struct *last = NULL;
	unsigned int looks = 0, shown = 0;
	struct rb_node *node;

	i_mmap_lock_read(mapping);
	for (node = rb_first_cached(&mapping->i_mmap); node; node = rb_next(node)) {
		struct vm_area_struct *vma = rb_entry(node, struct vm_area_struct, shared.rb);

		/* A folio can have any number of mappings: end after some. */
		if (looks++ == ESCROW_MAPPERS_LOOKS || shown == ESCROW_MAPPERS_SHOWN) {
			seq_puts(m, "mapped_by:\t0 ...\n");
			break;
		}
		if (index < vma->vm_pgoff || index >= vma->vm_pgoff + vma_pages(vma) ||
		    vma->vm_mm == last)
			continue;
		last = vma->vm_mm;
		shown++;
		escrow_vma_show(m, vma);
	}
	i_mmap_unlock_read(mapping);
}

/* Prints the last refusal of a memory, in the format of fdinfo or of debugfs. */
void escrow_mem_show_refusal(struct seq_file *m, struct escrow_mem *mem, bool fdinfo)
{
	struct escrow_refusal refusal;
	char by[ESCROW_NAMES_SIZE];
	bool was_refused;
	u64 offset;

	spin_lock(&mem->refusal_lock);
	was_refused = mem->was_refused;
	offset = mem->refused_offset;
	refusal = mem->refusal;
	strscpy(by, mem->refused_by);
	spin_unlock(&mem->refusal_lock);
	if (!fdinfo && !was_refused)
		return;
	if (!fdinfo) {
		seq_printf(m, "%llu %llu %lld %u ", escrow_mem_id(mem), offset, refusal.excess,
			   refusal.accessible);
		seq_escape(m, by, " \t\n\\");
		seq_putc(m, '\n');
		return;
	}
	if (!was_refused) {
		seq_puts(m, "last_refusal:\tnone\nrefused_by:\tnobody\n");
		return;
	}
	seq_printf(m, "last_refusal:\toffset=%#llx excess=%lld accessible=%u\nrefused_by:\t%s\n",
		   offset, refusal.excess, refusal.accessible, by);
	escrow_mem_show_mappers(m, mem, offset >> PAGE_SHIFT);
}

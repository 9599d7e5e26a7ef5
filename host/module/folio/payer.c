// SPDX-License-Identifier: GPL-2.0-only
/*
 * Floor 1: who pays for folios, and how many objects a user may have.
 *
 * Linux neither swaps out nor reclaims the folios of memories and of VMs' metadata.
 * Like all memory that a driver pins for a process, they count against RLIMIT_MEMLOCK
 * of the user who created the object, unless the process has CAP_IPC_LOCK. They are in
 * VmPin of the process that created it, and in Unevictable of their node.
 *
 * A user may create a user namespace with many other users (subuid(5)). All of them
 * together, with their owner, have the limit of one user.
 */

#include <linux/capability.h>
#include <linux/cred.h>
#include <linux/err.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/moduleparam.h>
#include <linux/mutex.h>
#include <linux/percpu_counter.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/sched/user.h>
#include <linux/slab.h>
#include <linux/uidgid.h>
#include <linux/user_namespace.h>
#include <linux/vmstat.h>

#include "folio/folio.h"

/*
 * What one user may have at once. EL2 has room for 63 VMs, unless its option
 * guests= says otherwise; one user must not take all of them.
 */
static unsigned int escrow_most[ESCROW_KINDS] = {
	[ESCROW_KIND_MEMORY] = 1024,
	[ESCROW_KIND_VM] = 32,
	/* 72 KiB each. A program may keep one longer than its VM. */
	[ESCROW_KIND_CONSOLE] = 128,
};
module_param_named(memories_per_user, escrow_most[ESCROW_KIND_MEMORY], uint, 0644);
MODULE_PARM_DESC(memories_per_user, "guest memories that one user may have at once");
module_param_named(vms_per_user, escrow_most[ESCROW_KIND_VM], uint, 0644);
MODULE_PARM_DESC(vms_per_user, "VMs that one user may have at once");
module_param_named(consoles_per_user, escrow_most[ESCROW_KIND_CONSOLE], uint, 0644);
MODULE_PARM_DESC(consoles_per_user, "consoles that one user may have at once");

static const char *const escrow_kind_names[ESCROW_KINDS] = {
	[ESCROW_KIND_MEMORY] = "guest memories (memories_per_user)",
	[ESCROW_KIND_VM] = "VMs (vms_per_user)",
	[ESCROW_KIND_CONSOLE] = "consoles (consoles_per_user)",
};

/* A user that has objects, or to whom objects of other users are accounted. */
struct escrow_user {
	struct list_head link; /* in users */
	kuid_t uid;
	unsigned int objects[ESCROW_KINDS];
	atomic_long_t pages; /* against the limit; with those of users accounted to this one */
};

static DEFINE_MUTEX(users_lock);
static LIST_HEAD(users);

static struct escrow_user *escrow_user_find(kuid_t uid)
{
	struct escrow_user *it;

	list_for_each_entry(it, &users, link) {
		if (uid_eq(it->uid, uid))
			return it;
	}
	it = kzalloc(sizeof(*it), GFP_KERNEL_ACCOUNT);
	if (!it)
		return NULL;
	it->uid = uid;
	list_add(&it->link, &users);
	return it;
}

static void escrow_user_forget_if_idle(struct escrow_user *it)
{
	int kind;

	for (kind = 0; kind < ESCROW_KINDS; kind++) {
		if (it->objects[kind])
			return;
	}
	list_del(&it->link);
	kfree(it);
}

/* Counts one more object of a user, whose record stays until the object is gone. */
static struct escrow_user *escrow_user_add(kuid_t uid, enum escrow_kind kind)
{
	struct escrow_user *it;
	unsigned int most = READ_ONCE(escrow_most[kind]);
	int err = 0;

	mutex_lock(&users_lock);
	it = escrow_user_find(uid);
	if (!it) {
		err = -ENOMEM;
	} else if (it->objects[kind] >= most) {
		err = -EDQUOT;
		escrow_user_forget_if_idle(it);
	} else {
		it->objects[kind]++;
	}
	mutex_unlock(&users_lock);
	if (err == -EDQUOT)
		pr_warn_ratelimited("user %u may have no more than %u %s\n",
				    from_kuid(&init_user_ns, uid), most,
				    escrow_kind_names[kind]);
	return err ? ERR_PTR(err) : it;
}

static void escrow_user_remove(struct escrow_user *it, enum escrow_kind kind)
{
	mutex_lock(&users_lock);
	if (!WARN_ON_ONCE(!it->objects[kind])) {
		it->objects[kind]--;
		escrow_user_forget_if_idle(it);
	}
	mutex_unlock(&users_lock);
}

/*
 * The user that this process's objects are accounted to: in a user namespace, the owner
 * of the outermost one around it. In a namespace of root (a container that root has
 * started, say) each user is accounted alone.
 */
static kuid_t escrow_user_answerable(void)
{
	const struct user_namespace *ns = current_user_ns();

	if (ns == &init_user_ns)
		return current_uid();
	while (ns->parent != &init_user_ns)
		ns = ns->parent;
	return uid_eq(ns->owner, GLOBAL_ROOT_UID) ? current_uid() : ns->owner;
}

/* The process that makes an object has it. -EDQUOT: it has too many of them. */
int escrow_owner_init(struct escrow_owner *owner, enum escrow_kind kind)
{
	kuid_t answerable = escrow_user_answerable();
	struct escrow_user *who, *self = NULL;

	who = escrow_user_add(answerable, kind);
	if (IS_ERR(who))
		return PTR_ERR(who);
	if (!uid_eq(answerable, current_uid())) {
		self = escrow_user_add(current_uid(), kind);
		if (IS_ERR(self)) {
			escrow_user_remove(who, kind);
			return PTR_ERR(self);
		}
	}
	owner->answerable = who;
	owner->self = self;
	owner->kind = kind;
	return 0;
}

void escrow_owner_end(struct escrow_owner *owner)
{
	if (owner->self)
		escrow_user_remove(owner->self, owner->kind);
	escrow_user_remove(owner->answerable, owner->kind);
}

/* The process that makes an object pays for it. -EDQUOT: it has too many of them. */
int escrow_payer_init(struct escrow_payer *payer, enum escrow_kind kind)
{
	int err;

	err = escrow_owner_init(&payer->owner, kind);
	if (err)
		return err;
	spin_lock_init(&payer->away_lock);
	payer->user = get_uid(current_user());
	payer->mm = current->mm;
	mmgrab(payer->mm);
	if (!capable(CAP_IPC_LOCK))
		payer->task = get_task_struct(current->group_leader);
	return 0;
}

/*
 * Counts pages that guests have, and that are in no page table, in the RSS (as shared
 * memory) of the process that created the memory. The OOM killer chooses by the RSS, and
 * would kill other processes first without this. It does what add_mm_counter() does, but
 * for its trace event, which modules cannot use. The mm is not freed, and its counters are
 * not checked, before the payer's end has set this to 0.
 */
static void escrow_payer_set_away(struct escrow_payer *payer, long pages)
{
	percpu_counter_add(&payer->mm->rss_stat[MM_SHMEMPAGES], pages - payer->away);
	payer->away = pages;
}

/*
 * Sets the figures from the counts. They are read under the lock: whoever changes the
 * counts calls this afterwards, so the last call sees the last change.
 */
void escrow_payer_show_away(struct escrow_payer *payer, const struct escrow_counts *counts)
{
	u64 now[ESCROW_COUNTS];

	spin_lock(&payer->away_lock);
	escrow_rs_counts(counts, now);
	/* Guests have the lent pages, and EL2 keeps the quarantined ones. */
	escrow_payer_set_away(payer, now[ESCROW_COUNT_LENT] + now[ESCROW_COUNT_QUARANTINED]);
	spin_unlock(&payer->away_lock);
}

static void escrow_payer_add(struct escrow_payer *payer, long pages)
{
	atomic_long_add(pages, &payer->pages);
	atomic64_add(pages, &payer->mm->pinned_vm);
}

/* Takes pages off the figures that RLIMIT_MEMLOCK limits. */
static void escrow_payer_unlock(struct escrow_payer *payer, long pages)
{
	atomic_long_sub(pages, &payer->user->locked_vm);
	atomic_long_sub(pages, &payer->owner.answerable->pages);
}

/* Also ends a payer that escrow_payer_init() has not initialised, if it is all zero. */
void escrow_payer_end(struct escrow_payer *payer)
{
	long lost = atomic_long_read(&payer->pages);

	if (!payer->user)
		return;
	escrow_payer_set_away(payer, 0);
	/* Pages that EL2 keeps for good no longer count against the user's limit. */
	escrow_payer_add(payer, -lost);
	if (payer->task) {
		escrow_payer_unlock(payer, lost);
		put_task_struct(payer->task);
	}
	mmdrop(payer->mm);
	escrow_owner_end(&payer->owner);
	free_uid(payer->user);
}

static unsigned long escrow_payer_limit(const struct escrow_payer *payer)
{
	return task_rlimit(payer->task, RLIMIT_MEMLOCK) >> PAGE_SHIFT;
}

/* Whether the limit allows another page. */
bool escrow_payer_has_room(const struct escrow_payer *payer)
{
	return !payer->task ||
	       (atomic_long_read(&payer->user->locked_vm) < escrow_payer_limit(payer) &&
		atomic_long_read(&payer->owner.answerable->pages) < escrow_payer_limit(payer));
}

/* Charges a folio that is about to be allocated. false: that would exceed the limit. */
bool escrow_payer_charge(struct escrow_payer *payer, long pages)
{
	if (payer->task) {
		unsigned long limit = escrow_payer_limit(payer);
		unsigned long user = atomic_long_add_return(pages, &payer->user->locked_vm);
		unsigned long all = atomic_long_add_return(pages, &payer->owner.answerable->pages);

		if (user > limit || all > limit) {
			kuid_t uid = user > limit ? payer->user->uid : payer->owner.answerable->uid;

			escrow_payer_unlock(payer, pages);
			pr_warn_ratelimited("RLIMIT_MEMLOCK of user %u (%lu KiB) allows no more guest memory\n",
					    from_kuid(&init_user_ns, uid),
					    limit << (PAGE_SHIFT - 10));
			return false;
		}
	}
	escrow_payer_add(payer, pages);
	return true;
}

void escrow_payer_uncharge(struct escrow_payer *payer, long pages)
{
	escrow_payer_add(payer, -pages);
	if (payer->task)
		escrow_payer_unlock(payer, pages);
}

/* Adds the folio to the node's figure of unevictable pages, or takes it off. */
void escrow_payer_show(const struct folio *folio, bool is_there)
{
	long pages = folio_nr_pages(folio);

	mod_node_page_state(folio_pgdat(folio), NR_UNEVICTABLE, is_there ? pages : -pages);
}

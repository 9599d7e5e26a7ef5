// SPDX-License-Identifier: GPL-2.0-only
/*
 * Floor 0: failures on purpose: see inject.h. Controlled in /sys/module/escrow/parameters:
 *
 *   fault_arm	 KINDS NTH TIMES ERROR FUNCTION TGID: of the points of these
 *		 kinds (enum escrow_inject_kind) that this process (0: anybody)
 *		 passes, the NTH and those after it, TIMES in all, fail. Escrow's
 *		 calls answer ERROR without being made, if they are this FUNCTION
 *		 (0: any). 0 0 0 0 0 0 ends it.
 *   fault_state what was passed since then, how many failed, and how many
 *		 blocks of memory the module has
 *   fault_break FUNCTION BREAK: when FUNCTION is called next, the first page of its list
 *		 breaks before: BREAK, of that page, says so to EL2. 0 0 ends it
 *   fault_surplus how many references too many a folio is frozen with: the mistake
 *		 of a host that has lost count
 *   fault_linger for how long (ms) a call stays in the kernel after it has published
 *		 a file descriptor
 *   fault_sites each place: file, line, name, how often passed, how often failed
 */

#include <linux/delay.h>
#include <linux/io.h>
#include <linux/kernel.h>
#include <linux/moduleparam.h>
#include <linux/sched.h>
#include <linux/spinlock.h>
#include <linux/string.h>

#include "arch/arch.h"
#include "arch/inject.h"

static DEFINE_RAW_SPINLOCK(lock);
static struct escrow_inject_site *sites;
static atomic_long_t blocks;

static struct {
	u32 kinds;
	u32 nth;
	u32 times;
	u64 error;
	u32 function;
	pid_t tgid;
	u32 passed;
	u32 failed;
} plan;

/* Whether this point must fail. Under the lock. */
static bool escrow_inject_is_due(u32 kind, u32 function)
{
	if (!(plan.kinds & kind) || (plan.tgid && plan.tgid != current->tgid))
		return false;
	if (plan.function && plan.function != function)
		return false;
	plan.passed++;
	if (plan.passed < plan.nth || plan.failed == plan.times)
		return false;
	plan.failed++;
	return true;
}

static bool escrow_inject_ask(struct escrow_inject_site *site, u32 function, u64 *error)
{
	unsigned long flags;
	bool fails;

	/* Points on the way into a guest are passed with interrupts masked. */
	raw_spin_lock_irqsave(&lock, flags);
	if (!site->is_listed) {
		site->is_listed = true;
		site->next = sites;
		sites = site;
	}
	fails = escrow_inject_is_due(site->kind, function);
	site->passed++;
	site->failed += fails;
	*error = plan.error;
	raw_spin_unlock_irqrestore(&lock, flags);
	return fails;
}

bool escrow_inject_fails(struct escrow_inject_site *site)
{
	u64 error;

	return escrow_inject_ask(site, 0, &error);
}

static bool escrow_hvc_fails(struct escrow_inject_site *site, const u64 args[8], u64 results[5])
{
	u64 error;

	if (!escrow_inject_ask(site, args[0], &error))
		return false;
	results[0] = error;
	results[1] = 0;
	results[2] = 0;
	results[3] = 0;
	results[4] = 0;
	return true;
}

static u32 breaks_at, break_function;

/* Whether the page must break in this call. True once for each write to fault_break. */
static bool escrow_inject_breaks(const u64 args[8])
{
	unsigned long flags;
	bool is_due;

	raw_spin_lock_irqsave(&lock, flags);
	is_due = breaks_at && args[0] == breaks_at;
	if (is_due)
		breaks_at = 0;
	raw_spin_unlock_irqrestore(&lock, flags);
	return is_due;
}

/* EL2 reads the list where it is. What a lend says beside the frame is no part of this call. */
static void escrow_inject_break(struct escrow_entry *entry, u64 results[5])
{
	u64 call[8] = { break_function, virt_to_phys(entry), 1 };
	struct escrow_entry whole = *entry;

	memset(&entry->opaque[1], 0, sizeof(*entry) - sizeof(entry->opaque[0]));
	escrow_real_hvc(call, results);
	*entry = whole;
	if (results[0])
		pr_err("no page breaks: %#llx\n", results[0]);
}

void escrow_hvc(const u64 args[8], u64 results[5])
{
	static struct escrow_inject_site site __section("escrow_faults") __aligned(8) = {
		.file = __FILE_NAME__, .what = "hvc", .line = __LINE__, .kind = ESCROW_INJECT_HVC,
	};

	if (escrow_hvc_fails(&site, args, results))
		return;
	if (escrow_inject_breaks(args))
		escrow_inject_break(phys_to_virt(args[1]), results);
	escrow_real_hvc(args, results);
}

void escrow_hvc_enter_guest(const u64 args[8], u64 results[5])
{
	static struct escrow_inject_site site __section("escrow_faults") __aligned(8) = {
		.file = __FILE_NAME__, .what = "hvc", .line = __LINE__, .kind = ESCROW_INJECT_HVC,
	};

	if (!escrow_hvc_fails(&site, args, results))
		escrow_real_hvc_enter_guest(args, results);
}

static uint surplus;

/* Fails as it would if somebody had one more reference for a moment. */
bool escrow_folio_freeze(struct folio *folio, u32 at, u32 *count)
{
	if (ESCROW_FAILS(ESCROW_INJECT_REFERENCE, "escrow_folio_freeze")) {
		*count = at + 1;
		return false;
	}
	return escrow_real_folio_freeze(folio, at + READ_ONCE(surplus), count);
}

void *escrow_inject_got(void *block)
{
	if (block)
		atomic_long_inc(&blocks);
	return block;
}

const void *escrow_inject_gives_up(const void *block)
{
	if (block)
		atomic_long_dec(&blocks);
	return block;
}

static unsigned int linger;
module_param_named(fault_linger, linger, uint, 0600);

void escrow_inject_linger(void)
{
	if (READ_ONCE(linger))
		msleep(READ_ONCE(linger));
}

static int escrow_inject_arm(const char *text, const struct kernel_param *param)
{
	u32 kinds, nth, times, function;
	unsigned long flags;
	u64 error;
	int tgid;

	if (sscanf(text, "%u %u %u %llu %u %d", &kinds, &nth, &times, &error, &function,
		   &tgid) != 6)
		return -EINVAL;
	raw_spin_lock_irqsave(&lock, flags);
	plan.kinds = kinds;
	plan.nth = nth;
	plan.times = times;
	plan.error = error;
	plan.function = function;
	plan.tgid = tgid;
	plan.passed = 0;
	plan.failed = 0;
	raw_spin_unlock_irqrestore(&lock, flags);
	return 0;
}

static int escrow_inject_set_break(const char *text, const struct kernel_param *param)
{
	unsigned long flags;
	u32 at, function;

	if (sscanf(text, "%u %u", &at, &function) != 2)
		return -EINVAL;
	raw_spin_lock_irqsave(&lock, flags);
	break_function = function;
	breaks_at = at;
	raw_spin_unlock_irqrestore(&lock, flags);
	return 0;
}

static int escrow_inject_state(char *text, const struct kernel_param *param)
{
	unsigned long flags;
	u32 passed, failed;

	raw_spin_lock_irqsave(&lock, flags);
	passed = plan.passed;
	failed = plan.failed;
	raw_spin_unlock_irqrestore(&lock, flags);
	return sysfs_emit(text, "passed %u\nfailed %u\nblocks %ld\n", passed, failed,
			  atomic_long_read(&blocks));
}

static int escrow_inject_sites(char *text, const struct kernel_param *param)
{
	struct escrow_inject_site *site;
	unsigned long flags;
	int at = 0;

	raw_spin_lock_irqsave(&lock, flags);
	for (site = sites; site; site = site->next)
		at += sysfs_emit_at(text, at, "%s:%u %s %u %u\n", site->file, site->line,
				    site->what, site->passed, site->failed);
	raw_spin_unlock_irqrestore(&lock, flags);
	return at;
}

static const struct kernel_param_ops escrow_inject_arm_ops = { .set = escrow_inject_arm };
static const struct kernel_param_ops escrow_inject_break_ops = { .set = escrow_inject_set_break };
static const struct kernel_param_ops escrow_inject_state_ops = { .get = escrow_inject_state };
static const struct kernel_param_ops escrow_inject_sites_ops = { .get = escrow_inject_sites };

module_param_named(fault_surplus, surplus, uint, 0600);
module_param_cb(fault_arm, &escrow_inject_arm_ops, NULL, 0200);
module_param_cb(fault_break, &escrow_inject_break_ops, NULL, 0200);
module_param_cb(fault_state, &escrow_inject_state_ops, NULL, 0400);
module_param_cb(fault_sites, &escrow_inject_sites_ops, NULL, 0400);

// SPDX-License-Identifier: GPL-2.0-only
/*
 * Floor 5: sleep, and the end of the machine. The host does not sleep while a guest has
 * pages of it. All VMs end before a reboot or kexec, so that the next kernel can use all
 * memory.
 */

#include <linux/notifier.h>
#include <linux/reboot.h>
#include <linux/string.h>
#include <linux/suspend.h>

#include "dev/dev.h"

static const char *escrow_sleep_name(unsigned long event)
{
	switch (event) {
	case PM_SUSPEND_PREPARE:
		return "suspend";
	case PM_HIBERNATION_PREPARE:
		return "hibernate";
	case PM_RESTORE_PREPARE:
		return "restore a hibernated kernel";
	default:
		return NULL;
	}
}

static int escrow_pm_notify(struct notifier_block *block, unsigned long event, void *data)
{
	const char *name = escrow_sleep_name(event);
	u64 totals[ESCROW_TOTALS];

	switch (event) {
	case PM_POST_SUSPEND:
	case PM_POST_HIBERNATION:
	case PM_POST_RESTORE:
		escrow_registry_resume();
		return NOTIFY_DONE;
	}
	if (!name || escrow_registry_suspend())
		return NOTIFY_DONE;
	escrow_totals(totals);
	pr_warn("cannot %s: %llu VMs have %llu pages of this host, Escrow %llu for them\n",
		name, totals[ESCROW_TOTAL_VMS],
		totals[ESCROW_TOTAL_LENT] + totals[ESCROW_TOTAL_SHARED],
		totals[ESCROW_TOTAL_METADATA] + totals[ESCROW_TOTAL_QUARANTINED]);
	pr_warn("stop these guests first\n");
	return notifier_from_errno(-EBUSY);
}

static struct notifier_block escrow_pm = {
	.notifier_call = escrow_pm_notify,
};

/* What kernel_kexec() calls its restart; the kernel does not export kexec_in_progress. */
static bool escrow_is_kexec(unsigned long event, const char *command)
{
	return event == SYS_RESTART && command && !strcmp(command, "kexec reboot");
}

/*
 * For restart, power-off, halt and kexec, while programs still run. The next
 * kernel does not know what is lent, and would take it for its own. A crash
 * (panic, emergency restart) does not come by here: a reset is Escrow's to
 * clean up after, and a crash kernel stays in memory that was reserved for it.
 * What was lent before a crash nobody can end any more, and a kexec out of the
 * crash kernel is not allowed: it is made a reset.
 */
static int escrow_reboot_notify(struct notifier_block *block, unsigned long event, void *data)
{
	u64 vms = 0;

	escrow_registry_shut_down();
	if (!escrow_is_kexec(event, data))
		return NOTIFY_DONE;
	escrow_rs_info_vms(&vms);
	if (vms) {
		pr_emerg("%llu VMs have memory that the next kernel would use: a reset in the place of kexec\n",
			 vms);
		emergency_restart();
	}
	return NOTIFY_DONE;
}

static struct notifier_block escrow_reboot = {
	.notifier_call = escrow_reboot_notify,
};

int escrow_power_init(void)
{
	int err;

	err = register_pm_notifier(&escrow_pm);
	if (err)
		return err;
	err = register_reboot_notifier(&escrow_reboot);
	if (err)
		unregister_pm_notifier(&escrow_pm);
	return err;
}

void escrow_power_exit(void)
{
	unregister_reboot_notifier(&escrow_reboot);
	unregister_pm_notifier(&escrow_pm);
}

/* SPDX-License-Identifier: GPL-2.0-only */
/* Floor 4: what a VM can have beside memory: vCPUs, IRQFDs, IOEVENTFDs, consoles. */
#ifndef ESCROW_FN_H
#define ESCROW_FN_H

#include <linux/irq_work.h>
#include <linux/mutex.h>
#include <linux/types.h>

#include "vm/vm.h"

struct escrow_vcpu {
	struct escrow_vm *vm;
	u32 id;
	bool is_removed; /* set once, under vm->lock */
	bool has_run; /* under run_lock: of a VM that has been started */
	struct escrow_waiter waiter;
	struct irq_work interrupt; /* of its own CPU: a run that is to end at once */
	struct mutex run_lock; /* one VCPU_RUN at a time */
	struct escrow_vcpu_core core; /* under run_lock */
	struct escrow_batch *batch; /* under run_lock: for the page that a run needs */
	struct escrow_attempt attempt; /* under run_lock: likewise */
	struct gunyah_vcpu_run *run; /* shared with user space */
};

/* function.c */
extern const struct escrow_fn_ops *const escrow_functions[];

int escrow_function_add(struct escrow_vm *vm, void __user *argp);
int escrow_function_remove(struct escrow_vm *vm, void __user *argp);

/* vcpu.c */
extern const struct escrow_fn_ops escrow_vcpu_ops;

/* irqfd.c */
extern const struct escrow_fn_ops escrow_irqfd_ops;

void escrow_irqfds_done(struct escrow_vm *vm);

/* ioeventfd.c */
extern const struct escrow_fn_ops escrow_ioeventfd_ops;

bool escrow_ioeventfd_write(struct escrow_vm *vm, u64 address, u32 size, u64 data);

/* console.c */
extern const struct escrow_fn_ops escrow_console_ops;

bool escrow_console_guest_reads(const struct escrow_vm *vm, u64 address, u32 size, u64 *value);
bool escrow_console_guest_writes(const struct escrow_vm *vm, u64 address, u64 value);
u32 escrow_consoles_highest(const struct escrow_vm *vm);

/* tree.c */
int escrow_tree_configure(struct escrow_vm *vm, const struct escrow_binding *binding);

#endif

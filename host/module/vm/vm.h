/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Floor 3: VMs. It knows a VM's functions (vCPUs and the like) by their table of
 * operations.
 *
 * All locks of the module, in the order in which they are taken:
 *
 *   vm->lock		bindings, vCPUs, start; read by vCPUs that fetch pages
 *   invalidate_lock	of a memory's mapping: its folios come and go under the
 *			exclusive lock, are looked up, made and lent singly
 *			under the shared one
 *   mem->make_lock	one task makes a folio, where it may be a large one
 *   folio lock		transitions of one folio, unless the invalidate_lock is
 *			exclusive; and its user mappings. A page fault keeps it
 *			when it has left the invalidate_lock, and takes nothing
 *			further
 *   vm->metadata_lock	top-ups of one VM
 *   irqfd->lock	the line of an eventfd; taken with interrupts off, and
 *			inside of the lock of the eventfd's queue
 *   console->lock	a PL011, its line, and what waits on both sides
 *   vm->vcpus_lock	which vCPUs can be woken; taken with interrupts off
 *   list->lock		of escrow_memories and escrow_vms
 *
 * and, outside of all of these, mmap_lock (page faults), vcpu->run_lock and
 * console->read_lock.
 * mem->refusal_lock is a spinlock inside of everything.
 */
#ifndef ESCROW_VM_H
#define ESCROW_VM_H

#include <linux/kref.h>
#include <linux/list.h>
#include <linux/mmu_notifier.h>
#include <linux/mutex.h>
#include <linux/rwsem.h>
#include <linux/spinlock.h>
#include <linux/types.h>
#include <linux/wait.h>

#include "arch/listing.h"
#include "mem/mem.h"

#define ESCROW_VCPUS_MAX 32

struct escrow_vm;

/*
 * A type of function that a VM can have (VM_ADD_FUNCTION). The VM calls what is
 * not NULL, with vm->lock for writing or alone with the VM.
 */
struct escrow_fn_ops {
	u32 type; /* GUNYAH_FN_* */
	/* Without vm->lock. 0 or more: what the ioctl answers */
	int (*add)(struct escrow_vm *vm, const struct escrow_function *function,
		   const struct gunyah_fn_desc *desc, const union escrow_fn_arg *arg);
	int (*remove)(struct escrow_vm *vm, const struct escrow_function *function,
		      const struct gunyah_fn_desc *desc, const union escrow_fn_arg *arg);
	/* Before the VM starts; may be called again if the start fails. */
	int (*start)(struct escrow_vm *vm);
	/* Others have files of the VM, which ends. With vm->lock for writing. */
	void (*shut_down)(struct escrow_vm *vm);
	/* The VM's last reference is gone; this comes before all else that ends it. */
	void (*end)(struct escrow_vm *vm);
};

/* Where a vCPU waits for its guest, and how it is woken. */
struct escrow_waiter {
	bool is_woken; /* something has changed at EL2 since its last entry */
	struct task_struct *runner; /* under vm->vcpus_lock: who is inside VCPU_RUN */
	wait_queue_head_t queue; /* where it sleeps */
};

struct escrow_vm {
	struct kref ref;
	struct rw_semaphore lock;
	struct escrow_vm_core *core;
	struct escrow_borrower borrower;
	bool is_victims; /* set once: an OOM victim created it, and its memory is to be freed */
	struct escrow_lifecycle life; /* home is set in the registry alone */
	bool has_losses; /* that a run is to tell of */
	struct escrow_losses losses; /* pages that broke; under vcpus_lock */
	spinlock_t vcpus_lock; /* with vm->lock: who changes vcpus; alone: who wakes */
	struct escrow_waiter *vcpus[ESCROW_VCPUS_MAX]; /* no references */

	const struct escrow_fn_ops *const *functions; /* the last one is NULL */
	struct escrow_ioeventfds *ioeventfds; /* NULL until there is one */
	struct list_head irqfds;
	unsigned int irqfd_count;
	struct list_head consoles;
	unsigned int console_count;

	struct mutex metadata_lock; /* top-ups, and what follows */
	struct escrow_payer payer;
	struct mmu_notifier notifier; /* of the payer's mm, for its end */
	struct escrow_metadata metadata;
	struct escrow_counts metadata_counts;
	struct list_head metadata_folios;
	struct escrow_batch *batch; /* under metadata_lock */

	struct list_head zombie; /* in the list of zombies and stuck VMs */
	struct escrow_listing listing; /* in escrow_vms, until it is freed */
};

static inline enum escrow_vm_state escrow_vm_state(const struct escrow_vm *vm)
{
	return READ_ONCE(vm->life.state);
}

/* Nobody uses it any more, whoever still has a file. */
static inline bool escrow_vm_is_closed(const struct escrow_vm *vm)
{
	return escrow_vm_state(vm) >= ESCROW_VM_CLOSED;
}

/* Nobody has a file, and EL2 keeps something. */
static inline bool escrow_vm_is_zombie(const struct escrow_vm *vm)
{
	enum escrow_vm_state state = escrow_vm_state(vm);

	return state == ESCROW_VM_STUCK || state == ESCROW_VM_ZOMBIE;
}

/* vm.c */
void escrow_vm_advance(struct escrow_vm *vm, enum escrow_vm_event event);
struct escrow_vm *escrow_vm_new(const struct escrow_fn_ops *const *functions);
int escrow_vm_set_up(struct escrow_vm *vm);
struct escrow_vm *escrow_vm_get(struct escrow_vm *vm);
int escrow_vm_lock(struct escrow_vm *vm);

/* bind.c */
int escrow_vm_bind(struct escrow_vm *vm, const struct escrow_map_request *request,
		   struct escrow_mem *mem);
int escrow_vm_unbind(struct escrow_vm *vm, const struct escrow_map_request *request,
		     struct escrow_mem *mem);

int escrow_vm_lend_present(struct escrow_vm *vm, struct escrow_attempt *attempt);

/* metadata.c */
int escrow_vm_top_up(struct escrow_vm *vm, u64 pages);
int escrow_vm_top_up_handle(u64 handle);
bool escrow_vm_reclaim_metadata(struct escrow_vm *vm);

/* end.c */
void escrow_vm_put(struct escrow_vm *vm);
void escrow_vm_put_later(struct escrow_vm *vm);
void escrow_vm_shut_down(struct escrow_vm *vm);
void escrow_vm_flush_zombies(void);
void escrow_vm_exit(void);

/* registry.c */
extern struct escrow_list escrow_vms;

int escrow_registry_add(struct escrow_vm *vm);
void escrow_registry_remove(struct escrow_vm *vm);
struct escrow_vm *escrow_registry_find(u64 handle);
void escrow_registry_came_home(struct escrow_vm *vm, enum escrow_vm_event event);
bool escrow_registry_suspend(void);
void escrow_registry_resume(void);
void escrow_registry_shut(void);
void escrow_registry_shut_down(void);
void escrow_registry_end_victims(const struct mm_struct *mm);
bool escrow_registry_is_shut(void);

/* wake.c */
void escrow_vm_wake(struct escrow_vm *vm, u32 id);
void escrow_vm_wake_some(struct escrow_vm *vm, u32 vcpus);
void escrow_vm_wake_all(struct escrow_vm *vm);
void escrow_vm_lose(struct escrow_vm *vm, u64 guest);
bool escrow_vm_tell_loss(struct escrow_vm *vm, struct escrow_exit *exit);
void escrow_vm_set_vcpu(struct escrow_vm *vm, u32 id, struct escrow_waiter *waiter);

#endif

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The shim: Linux's side of Escrow.
 *
 * C locks, allocates, maps and sleeps; Rust (escrow_rs_*) decides. Locks, in
 * the order in which they are taken:
 *
 *   vm->lock		bindings, vCPUs, start; read by vCPUs that fetch pages
 *   invalidate_lock	of a memory's mapping: its folios come and go under the
 *			exclusive lock, are looked up, made and given away
 *			singly under the shared one
 *   mem->make_lock	one task makes a folio, where it may be a large one
 *   folio lock		transitions of one folio, unless the invalidate_lock is
 *			exclusive; and its user mappings. A page fault keeps it
 *			when it has left the invalidate_lock, and takes nothing
 *			further
 *   vm->metadata_lock	donations of one VM
 *   irqfd->lock		the doorbell that an eventfd rings; taken with interrupts
 *			off, and inside of the lock of the eventfd's queue
 *   vm->vcpus_lock	who is there to be woken; taken with interrupts off
 *
 * and, outside of all of these, mmap_lock (page faults) and vcpu->run_lock.
 * mem->refusal_lock is a spinlock inside of everything.
 */
#ifndef ESCROW_H
#define ESCROW_H

#include <linux/bits.h>
#include <linux/fs.h>
#include <linux/kref.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/rwsem.h>
#include <linux/spinlock.h>
#include <linux/types.h>
#include <linux/wait.h>
#include <linux/xarray.h>

#include "gunyah_uapi.h"
#include "stats.h"

#undef pr_fmt
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#define ESCROW_VCPUS_MAX 32

/* The way in which a guest has a page. */
enum escrow_how {
	ESCROW_LENT = 0,
	ESCROW_SHARED = 1,
};

/* State of Rust's that lives in objects of C's. Zero bytes are a valid start. */
struct escrow_folio_state {
	u64 opaque[5];
};

#define ESCROW_COUNTS 7

struct escrow_counts {
	u64 opaque[ESCROW_COUNTS];
};

struct escrow_metadata {
	u64 opaque;
};

struct escrow_vcpu_core {
	u64 opaque[2];
};

/* Rust's alone. */
struct escrow_vm_core;
struct escrow_ioeventfds;

/* A function's argument, with zeros behind its end. */
union escrow_fn_arg {
	u64 words[4];
	struct gunyah_fn_vcpu_arg vcpu;
	struct gunyah_fn_irqfd_arg irqfd;
	struct gunyah_fn_ioeventfd_arg ioeventfd;
};

/* A checked function. */
struct escrow_function {
	u32 type;
	u32 id; /* a vCPU's number, an IRQFD's label */
	s32 fd; /* of what is to be added */
	bool level;
	u8 reserved[3];
};

/* An entry of a list that goes to EL2. */
struct escrow_entry {
	u64 opaque[4];
};

struct escrow_report {
	u32 refcount;
	u32 safe;
	u32 accessible;
};

struct escrow_refusal {
	s64 excess;
	u32 accessible;
	u32 reserved;
};

struct escrow_map_request {
	u64 guest;
	u64 size;
	u64 offset;
	u32 how;
	u32 rights;
	bool unbind;
	u8 reserved[7];
};

struct escrow_mem;
struct eventfd_ctx;

/* A binding: guest addresses and the memory behind them. */
struct escrow_place {
	struct escrow_mem *mem;
	u64 guest;
	u64 size;
	u64 offset;
	u32 how;
	u32 rights;
};

struct escrow_exit {
	u32 reason;
	u32 reserved;
	u64 words[GUNYAH_EXIT_WORDS];
};

enum escrow_step_kind {
	ESCROW_STEP_AGAIN = 0,
	ESCROW_STEP_SLEEP = 1,
	ESCROW_STEP_OFF = 2,
	ESCROW_STEP_BRING = 3,
	ESCROW_STEP_DOWN = 4,
	ESCROW_STEP_EXIT = 5,
	ESCROW_STEP_WRITE = 6,
	ESCROW_STEP_WAKE = 7,
};

struct escrow_step {
	u32 kind;
	u32 down; /* of WRITE: the size */
	u64 at;
	u64 access; /* of WRITE: the value */
	struct escrow_exit exit;
};

static_assert(sizeof(struct escrow_folio_state) == 40);
static_assert(sizeof(struct escrow_counts) == 56);
/* EL2's pages are the host's; arm64 has kernels with others. */
static_assert(PAGE_SIZE == 4096);
static_assert(sizeof(struct escrow_metadata) == 8);
static_assert(sizeof(struct escrow_vcpu_core) == 16);
static_assert(sizeof(struct escrow_entry) == 32);
static_assert(sizeof(struct escrow_report) == 12);
static_assert(sizeof(struct escrow_refusal) == 16);
static_assert(sizeof(struct escrow_map_request) == 40);
static_assert(sizeof(struct escrow_place) == 40);
static_assert(sizeof(struct escrow_exit) == 32);
static_assert(sizeof(struct escrow_step) == 56);
static_assert(sizeof(struct gunyah_vcpu_run) == 40);
static_assert(sizeof(union escrow_fn_arg) == 32);
static_assert(sizeof(struct escrow_function) == 16);

/* Large folios are what one descriptor of a level-2 table maps. */
#define ESCROW_HUGE_ORDER 9
#define ESCROW_HUGE_PAGES BIT(ESCROW_HUGE_ORDER)

/* One folio, of a memory or of a VM's metadata. */
struct escrow_folio {
	struct escrow_folio_state state;
	struct folio *folio;
	u32 home; /* whole pages of a broken large folio that came home */
	union {
		pgoff_t index; /* of a memory: of its first page */
		struct list_head link; /* of metadata: in vm->metadata_folios */
	};
};

/* Index of the page behind a folio of a memory. */
static inline pgoff_t escrow_folio_next(const struct escrow_folio *ef)
{
	return ef->index + folio_nr_pages(ef->folio);
}

/* Which of the folios that are away are meant. */
struct escrow_whose {
	u64 vm; /* 0: anybody's */
	int how; /* negative: either way */
	bool bound; /* only those at the guest addresses of one binding: */
	u64 shift; /* guest address less offset */
};

/* Folios on their way to or from EL2 in one call. */
struct escrow_batch {
	struct escrow_entry *list;
	u64 address; /* the list's, as EL2 wants it */
	u32 capacity;
	u32 count;
	u32 pages;
	u64 vm;
	int how;
	struct escrow_folio *folios[] __counted_by(capacity);
};

static inline void escrow_batch_reset(struct escrow_batch *batch)
{
	batch->count = 0;
	batch->pages = 0;
}

#define ESCROW_BATCH ESCROW_HUGE_PAGES
/* Pages that one call takes back at the most. */
#define ESCROW_CALL_PAGES 16384

/* A guest memory: what its file's private_data points to. */
struct escrow_mem {
	struct file *file;
	bool huge; /* may be made of large folios */
	struct xarray folios; /* of struct escrow_folio, by their first page */
	struct mutex make_lock; /* makes folios, where they may be large */
	struct escrow_counts counts;
	struct escrow_batch *batch; /* under the exclusive invalidate_lock */
	u64 needy; /* a VM that lacked memory to give something back, or 0 */
	loff_t zap_end; /* of the last mappings that went with others */
	u32 zap_size; /* of these, in bytes */
	spinlock_t refusal_lock;
	bool was_refused;
	u64 refused_offset;
	struct escrow_refusal refusal;
	struct escrow_listing listing; /* in escrow_memories */
};

/* In vm->broken, for addresses are those of pages. */
#define ESCROW_BROKEN 1

struct escrow_vcpu;

struct escrow_vm {
	struct kref ref;
	struct rw_semaphore lock;
	struct escrow_vm_core *core;
	u64 handle;
	bool is_down; /* set once; the core knows why, unless it is closed */
	bool is_closed; /* set once, before is_down: shut down from outside */
	bool is_destroyed;
	bool is_left; /* nobody has a file, but EL2 has pages */
	bool is_home; /* EL2 has nothing of it any more, and gets nothing */
	u64 broken; /* address that the guest has lost, with ESCROW_BROKEN; or 0 */
	spinlock_t vcpus_lock; /* with vm->lock: who changes vcpus; alone: who wakes */
	struct escrow_vcpu *vcpus[ESCROW_VCPUS_MAX]; /* no references */
	struct escrow_ioeventfds *ioeventfds; /* NULL until there is one */
	struct list_head irqfds;

	struct mutex metadata_lock; /* donations, and what follows */
	struct escrow_metadata metadata;
	struct escrow_counts metadata_counts;
	struct list_head metadata_folios;
	struct escrow_batch *batch; /* under metadata_lock */

	struct list_head remains;
	struct escrow_listing listing; /* in escrow_vms, until it is freed */
};

struct escrow_vcpu {
	struct escrow_vm *vm;
	u32 id;
	bool is_removed; /* set once, under vm->lock */
	bool has_run; /* under run_lock: of a VM that has been started */
	bool is_woken; /* something has changed at EL2 since its last entry */
	struct task_struct *runner; /* under vm->vcpus_lock: who is inside VCPU_RUN */
	wait_queue_head_t wait; /* where it sleeps for its guest */
	struct mutex run_lock;
	struct escrow_vcpu_core core; /* under run_lock */
	struct escrow_batch *batch; /* under run_lock: for the page that a run needs */
	struct gunyah_vcpu_run *run; /* shared with user space */
};

/* folio.c */
struct escrow_folio *escrow_folio_alloc(struct escrow_counts *counts, unsigned int order);
void escrow_folio_free(struct escrow_folio *ef, struct escrow_counts *counts);

/* ram.c */
void escrow_ram_init(void);
struct page *escrow_ram_or_other(struct page *page, gfp_t gfp, unsigned int order);
void *escrow_ram_or_other_exact(void *pages, size_t size);
bool escrow_ram_is_short(void);

/* batch.c */
struct escrow_batch *escrow_batch_alloc(u32 capacity);
void escrow_batch_free(struct escrow_batch *batch);
bool escrow_batch_is_full(const struct escrow_batch *batch, const struct escrow_folio *ef);
void escrow_batch_add(struct escrow_batch *batch, struct escrow_folio *ef, u64 guest, u32 rights,
		      const struct escrow_report *report);
int escrow_batch_take_back(struct escrow_batch *batch, struct escrow_mem *mem,
			   struct escrow_counts *counts, bool quarantine);

/* mem.c */
int escrow_mem_create(const struct gunyah_create_guest_mem_args *args);
struct escrow_mem *escrow_mem_of(struct file *file);

static inline struct address_space *escrow_mapping(struct escrow_mem *mem)
{
	return mem->file->f_mapping;
}

/* What people know a memory by: its inode's number. */
static inline u64 escrow_mem_id(struct escrow_mem *mem)
{
	return file_inode(mem->file)->i_ino;
}

/* hold.c */
struct escrow_folio *escrow_mem_find(struct escrow_mem *mem, pgoff_t index);
pgoff_t escrow_mem_head(struct escrow_mem *mem, pgoff_t index);
struct escrow_folio *escrow_mem_make(struct escrow_mem *mem, pgoff_t index);
int escrow_mem_split(struct escrow_mem *mem, struct escrow_folio *ef);
void escrow_mem_drop(struct escrow_mem *mem, pgoff_t first, pgoff_t last);

/* lend.c */
int escrow_mem_fetch(struct escrow_mem *mem, struct escrow_folio *ef);
void escrow_mem_refused(struct escrow_mem *mem, const struct escrow_folio *ef,
			const struct escrow_refusal *refusal);
int escrow_mem_give(struct escrow_vm *vm, const struct escrow_place *place, u64 guest, u64 size,
		    bool unmapped);
int escrow_mem_give_one(struct escrow_vm *vm, const struct escrow_place *place, u64 guest,
			struct escrow_batch *batch);
int __escrow_mem_take_back(struct escrow_mem *mem, pgoff_t first, pgoff_t last,
			   const struct escrow_whose *whose, bool quarantine);
int escrow_mem_take_back(struct escrow_mem *mem, u64 offset, u64 size,
			 const struct escrow_whose *whose, bool quarantine);
bool escrow_mem_feed(struct escrow_mem *mem, int err);

/* vm.c */
int escrow_vm_create(void);
struct escrow_vm *escrow_vm_hold(struct escrow_vm *vm);
void escrow_vm_release(struct escrow_vm *vm);
int escrow_vm_lock(struct escrow_vm *vm);
void escrow_vm_shut_down(struct escrow_vm *vm);
void escrow_vm_flush_remains(void);
void escrow_vm_exit(void);

/* vms.c */
int escrow_vms_enter(struct escrow_vm *vm);
void escrow_vms_leave(struct escrow_vm *vm);
struct escrow_vm *escrow_vms_find(u64 handle);
void escrow_vms_changed(void);
bool escrow_vms_suspend(void);
void escrow_vms_resume(void);
void escrow_vms_shut_down(void);
bool escrow_vms_are_shut_down(void);

/* vcpu.c */
int escrow_vcpu_add(struct escrow_vm *vm, u32 id);
int escrow_vcpu_remove(struct escrow_vm *vm, u32 id);
void escrow_vcpu_wake(struct escrow_vm *vm, u32 id);
void escrow_vcpu_wake_all(struct escrow_vm *vm);

/* function.c */
int escrow_function_add(struct escrow_vm *vm, void __user *argp);
int escrow_function_remove(struct escrow_vm *vm, void __user *argp);
void escrow_functions_end(struct escrow_vm *vm);

/* ioeventfd.c */
int escrow_ioeventfd_add(struct escrow_vm *vm, s32 fd, const struct gunyah_fn_desc *desc,
			 const union escrow_fn_arg *arg);
int escrow_ioeventfd_remove(struct escrow_vm *vm, const struct gunyah_fn_desc *desc,
			    const union escrow_fn_arg *arg);
bool escrow_ioeventfd_write(struct escrow_vm *vm, u64 address, u32 size, u64 data);

/* irqfd.c */
int escrow_irqfd_add(struct escrow_vm *vm, const struct escrow_function *function);
int escrow_irqfd_remove(struct escrow_vm *vm, u32 label);
int escrow_irqfds_connect(struct escrow_vm *vm);
void escrow_irqfds_end(struct escrow_vm *vm);

/* doorbell.c */
int escrow_doorbells_configure(struct escrow_vm *vm, const struct escrow_place *place);
void escrow_doorbell_ring(struct escrow_vm *vm, u64 bell, u32 label);

/* poison.c */
void escrow_poison_init(void);
void escrow_poison_exit(void);
bool escrow_poison_take_rest(struct escrow_mem *mem, struct escrow_folio *ef);

/* sysfs.c */
extern const struct attribute_group *escrow_groups[];

/* debugfs.c */
void escrow_debugfs_init(void);
void escrow_debugfs_exit(void);

/* power.c */
int escrow_power_init(void);
void escrow_power_exit(void);

/* What Rust calls. */
void *escrow_alloc(size_t size);
void escrow_free(void *block);
void __noreturn escrow_panic(const char *file, size_t length, u32 line);
void escrow_hvc(const u64 args[8], u64 results[5]);
bool escrow_folio_freeze(struct folio *folio, u32 at, u32 *count);
void escrow_folio_unfreeze(struct folio *folio, u32 to);
bool escrow_folio_is_poisoned(struct folio *folio);
bool escrow_pause(u32 microseconds);
int escrow_vm_donate(struct escrow_vm *vm, u64 pages);
void escrow_mem_get(struct escrow_mem *mem);
void escrow_mem_put(struct escrow_mem *mem);
void escrow_event_signal(struct eventfd_ctx *event);
void escrow_event_put(struct eventfd_ctx *event);

/*
 * What Rust offers; documented there, in src/. Pointers are not NULL. All
 * return 0 or a negative errno, unless they say otherwise.
 */

/*
 * Folios: with the folio locked or the memory to oneself, or alone with the
 * folio.
 */
int escrow_rs_folio_populate(struct escrow_folio_state *ef, u32 order,
			     struct escrow_counts *counts);
int escrow_rs_folio_remove(struct escrow_folio_state *ef, struct escrow_counts *counts);
bool escrow_rs_folio_is_reachable(const struct escrow_folio_state *ef);
/* enum escrow_how, or -1 */
int escrow_rs_folio_borrower(const struct escrow_folio_state *ef, u64 *vm, u64 *guest);
int escrow_rs_folio_access(struct escrow_folio_state *ef);
void escrow_rs_folio_end_access(struct escrow_folio_state *ef);
/* 0, or 1: there already */
int escrow_rs_folio_begin_give(struct escrow_folio_state *ef, struct escrow_counts *counts,
			       struct folio *folio, u32 how, u64 vm, u64 guest,
			       struct escrow_report *report, struct escrow_refusal *refusal);
int escrow_rs_folio_end_give(struct escrow_folio_state *ef, struct escrow_counts *counts,
			     struct folio *folio, bool done);
/* enum escrow_how */
int escrow_rs_folio_begin_take_back(struct escrow_folio_state *ef, struct escrow_counts *counts);
int escrow_rs_folio_taken_back(struct escrow_folio_state *ef, struct escrow_counts *counts,
			       struct folio *folio);
/* Out of use for good. */
int escrow_rs_folio_broken(struct escrow_folio_state *ef, struct escrow_counts *counts);
bool escrow_rs_folio_is_broken(const struct escrow_folio_state *ef);
int escrow_rs_folio_kept(struct escrow_folio_state *ef, struct escrow_counts *counts,
			 bool quarantine);
/*
 * present, lent, shared, quarantined, poisoned (in pages), refusals, retries;
 * at any time
 */
void escrow_rs_counts(const struct escrow_counts *counts, u64 out[ESCROW_COUNTS]);
void escrow_rs_list_entry(struct escrow_entry *entry, u64 frame, u32 order, u64 guest, u32 rights,
			  const struct escrow_report *report);
/* Whether a folio fits into the binding as a whole, and where. */
bool escrow_rs_place_takes(const struct escrow_place *place, u64 offset, u64 size, u64 *guest);

/* Calls to EL2. */
bool escrow_rs_identify(void);
int escrow_rs_vm_create(u64 list, u32 count, u64 *handle);
int escrow_rs_vm_top_up(u64 vm, u64 list, u32 count, u32 *done);
int escrow_rs_vm_destroy(u64 vm);
/* state, pages within the guest's reach, metadata pages, those that are free */
int escrow_rs_vm_info(u64 vm, u64 out[4]);
int escrow_rs_mem_give(struct escrow_vm *donor, u64 vm, u32 how, u64 list,
		       const struct escrow_entry *first, u32 count, u64 *index, u64 *detail,
		       u32 *done);
int escrow_rs_mem_take_back(u32 how, u64 list, u32 count, u32 *done);
bool escrow_rs_is_home(u64 frame, u32 pages);
int escrow_rs_mem_poison(u64 list, u32 count);
int escrow_rs_info_version(u64 *value);
int escrow_rs_info_cpus(u64 *value);
int escrow_rs_info_vms(u64 *value);
int escrow_rs_info_errata(u64 *value);
int escrow_rs_info_hardening(u64 *value);
int escrow_rs_info_pages(u64 state, u8 name[32], u64 *value);
/* Bytes of text; position is where they begin then. */
int escrow_rs_log_read(u64 *position, u8 text[24]);

/* Metadata: under vm->metadata_lock. */
u32 escrow_rs_metadata_initial(void);
/* How many pages. */
int escrow_rs_metadata_plan(const struct escrow_metadata *metadata, u64 needed);
void escrow_rs_metadata_gave(struct escrow_metadata *metadata, u64 pages);
void escrow_rs_metadata_got_back(struct escrow_metadata *metadata, u64 pages);

/* Arguments. */
int escrow_rs_map_check(const struct gunyah_map_mem_args *args,
			struct escrow_map_request *request);
#define ESCROW_MEM_CLOEXEC 1
#define ESCROW_MEM_HUGE 2
/* ESCROW_MEM_* */
int escrow_rs_create_mem_check(const struct gunyah_create_guest_mem_args *args);
int escrow_rs_function_to_add(const struct gunyah_fn_desc *desc,
			      const union escrow_fn_arg *arg, struct escrow_function *function);
int escrow_rs_function_to_remove(const struct gunyah_fn_desc *desc,
				 const union escrow_fn_arg *arg,
				 struct escrow_function *function);

/* IOEVENTFDs: under vm->lock, for writing unless const. */
struct escrow_ioeventfds *escrow_rs_ioeventfds_new(void);
void escrow_rs_ioeventfds_free(struct escrow_ioeventfds *events); /* may be NULL */
/* Takes the reference over, also when it fails. */
int escrow_rs_ioeventfd_add(struct escrow_ioeventfds *events, const struct gunyah_fn_desc *desc,
			    const union escrow_fn_arg *arg, struct eventfd_ctx *event);
int escrow_rs_ioeventfd_remove(struct escrow_ioeventfds *events,
			       const struct gunyah_fn_desc *desc,
			       const union escrow_fn_arg *arg);
/* Whether there was an event for it. */
bool escrow_rs_ioeventfd_write(const struct escrow_ioeventfds *events, u64 address, u32 size,
			       u64 data);

/* Doorbells: calls to EL2. */
int escrow_rs_bell_send(u64 bell, u64 flags);
int escrow_rs_bell_set_mask(u64 bell, u64 enabled, u64 acknowledged);
/* 0: no tree begins like this */
u32 escrow_rs_tree_size(const u8 head[8]);

/* VMs: under vm->lock, for writing unless the core is const. */
struct escrow_vm_core *escrow_rs_vm_new(u64 handle);
void escrow_rs_vm_free(struct escrow_vm_core *core); /* may be NULL */
int escrow_rs_vm_set_dtb(struct escrow_vm_core *core,
			 const struct gunyah_vm_dtb_config *config);
int escrow_rs_vm_set_boot_context(struct escrow_vm_core *core,
				  const struct gunyah_vm_boot_context *context);
int escrow_rs_vm_bind(struct escrow_vm_core *core, struct escrow_vm *donor,
		      const struct escrow_map_request *request, struct escrow_mem *mem);
int escrow_rs_vm_begin_unbind(struct escrow_vm_core *core,
			      const struct escrow_map_request *request,
			      struct escrow_mem *mem);
int escrow_rs_vm_end_unbind(struct escrow_vm_core *core, struct escrow_vm *donor,
			    const struct escrow_map_request *request);
int escrow_rs_vm_find(const struct escrow_vm_core *core, u64 guest, u64 access,
		      struct escrow_place *place);
int escrow_rs_vm_binding(const struct escrow_vm_core *core, size_t index,
			 struct escrow_place *place);
int escrow_rs_vm_add_vcpu(struct escrow_vm_core *core, struct escrow_vm *donor, u32 id,
			  struct escrow_vcpu_core *vcpu);
int escrow_rs_vm_remove_vcpu(struct escrow_vm_core *core, u32 id);
bool escrow_rs_vm_is_started(const struct escrow_vm_core *core);
/* 0: runs already, 1: needs @size bytes from @guest on */
int escrow_rs_vm_check_start(const struct escrow_vm_core *core, u32 cpus,
			     struct escrow_place *place, u64 *guest, u64 *size, bool *unmapped);
bool escrow_rs_vm_dtb(const struct escrow_vm_core *core, u64 *guest, u64 *size);
int escrow_rs_vm_configure_bells(struct escrow_vm_core *core, const u8 *tree, size_t size);
/* 0: there is none */
u64 escrow_rs_vm_bell(const struct escrow_vm_core *core, u32 label);
int escrow_rs_vm_set_registers(const struct escrow_vm_core *core);
int escrow_rs_vm_start(struct escrow_vm_core *core, struct escrow_vm *donor);
void escrow_rs_vm_down(const struct escrow_vm_core *core, u32 kind);
bool escrow_rs_vm_status(const struct escrow_vm_core *core, struct escrow_exit *exit);

/* vCPUs: under vcpu->run_lock. */
void escrow_rs_exit_broken(struct escrow_exit *exit, u64 guest);
int escrow_rs_vcpu_resume(const struct escrow_vcpu_core *vcpu,
			  const u64 answer[GUNYAH_EXIT_WORDS], u64 registers[8]);
int escrow_rs_vcpu_ended(struct escrow_vcpu_core *vcpu, const u64 results[5],
			 struct escrow_step *step);
void escrow_rs_vcpu_write_done(struct escrow_vcpu_core *vcpu);
void escrow_rs_vcpu_page_brought(struct escrow_vcpu_core *vcpu, u64 guest, int result,
				 struct escrow_step *step);
u64 escrow_rs_nanoseconds_until(u64 now, u64 deadline, u32 frequency);

#endif

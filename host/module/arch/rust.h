/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Floor 0: the Rust half of the module as C sees it. What Rust keeps in objects
 * of C's, what both read and write, and the functions that decide.
 */
#ifndef ESCROW_RUST_H
#define ESCROW_RUST_H

#include <linux/build_bug.h>
#include <linux/stddef.h>
#include <linux/types.h>

#include "arch/gunyah_uapi.h"

struct escrow_borrower;
struct folio;

/* The way in which a guest has a page. */
enum escrow_how {
	ESCROW_LENT = 0,
	ESCROW_SHARED = 1,
};

/* State of Rust's that lives in objects of C's. Zero bytes are a valid start. */
struct escrow_folio_state {
	u64 opaque[5];
};

/* What a CREATE_GUEST_MEM asks for. */
enum escrow_mem_flags {
	ESCROW_MEM_CLOEXEC = 1,
	ESCROW_MEM_HUGE = 2, /* may be made of large folios */
	ESCROW_MEM_LEND_FIRST = 4, /* lends go before new mappings */
};

/* What a MEM_EXPORT_DMABUF asks for. */
enum escrow_export_flags {
	ESCROW_EXPORT_CLOEXEC = 1,
	ESCROW_EXPORT_WRITE = 2, /* programs may write to it */
};

/* What is counted of a memory; in pages, but for the last two. */
enum escrow_count {
	ESCROW_COUNT_PRESENT = 0,
	ESCROW_COUNT_LENT = 1,
	ESCROW_COUNT_SHARED = 2,
	ESCROW_COUNT_QUARANTINED = 3,
	ESCROW_COUNT_POISONED = 4,
	ESCROW_COUNT_REFUSALS = 5,
	ESCROW_COUNT_RETRIES = 6,
	ESCROW_COUNTS = 7
};

struct escrow_counts {
	u64 opaque[ESCROW_COUNTS];
};

struct escrow_metadata {
	u64 opaque;
};

/* Which pages a guest of a protected VM gets with the one that it touches. */
struct escrow_ahead {
	u64 opaque[2];
};

struct escrow_vcpu_core {
	u64 opaque[3];
};

/* The line from an IRQFD's eventfd to the guest. */
struct escrow_line {
	u64 opaque[2];
};

struct escrow_losses {
	u64 opaque[18];
};

/* Where a VM is in its life (escrow_vmcore::lifecycle has what leads where). */
enum escrow_vm_state {
	ESCROW_VM_LIVE = 0,
	ESCROW_VM_DOWN = 1, /* its guest has ended by itself */
	ESCROW_VM_CLOSED = 2, /* from here on, nobody uses it */
	ESCROW_VM_STUCK = 3, /* nobody has a file, and EL2 did not destroy it */
	ESCROW_VM_DESTROYED = 4,
	ESCROW_VM_ZOMBIE = 5, /* the same, and EL2 keeps pages of it */
	ESCROW_VM_HOME = 6, /* EL2 has nothing of it, and gets nothing */
};

enum escrow_vm_event {
	ESCROW_EVENT_DOWN = 0,
	ESCROW_EVENT_CLOSE = 1,
	ESCROW_EVENT_DESTROYED = 2,
	ESCROW_EVENT_ABANDON = 3,
	ESCROW_EVENT_HOME = 4,
	ESCROW_EVENT_UNBORN = 5, /* EL2 never got anything for it */
};

/* Written by escrow_rs_vm_advance() alone. */
struct escrow_lifecycle {
	u32 state; /* enum escrow_vm_state */
};

/* Rust's alone. */
struct escrow_vm_core;
struct escrow_ioeventfds;
struct escrow_console_core;

/* A function's argument, with zeros behind its end. */
union escrow_fn_arg {
	u64 words[4];
	struct gunyah_fn_vcpu_arg vcpu;
	struct gunyah_fn_irqfd_arg irqfd;
	struct gunyah_fn_ioeventfd_arg ioeventfd;
	struct escrow_fn_console_arg console;
};

/* A checked function. */
struct escrow_function {
	u32 type;
	u32 id; /* a vCPU's number, an IRQFD's label, a console's INTID or 0 */
	s32 fd; /* of what is to be added */
	s32 resample_fd; /* of an IRQFD, if it resamples */
	u64 address; /* of a console */
	bool level;
	bool resamples;
	u8 reserved[6];
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

/* Results of a lend that did not happen, beside errors. */
enum escrow_lend {
	ESCROW_LEND_THERE = 1, /* the guest has it already */
	ESCROW_LEND_REFUSED = 2, /* somebody uses it, and the refusal is written */
	ESCROW_LEND_OUT_OF_TURN = 3, /* a bug */
};

/* How many pauses one lend has made. */
struct escrow_retry {
	u32 pauses;
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
struct escrow_binding {
	struct escrow_mem *mem;
	u64 guest;
	u64 size;
	u64 offset;
	u32 how;
	u32 rights;
};

/* What EL2 says of a VM. */
struct escrow_vm_info {
	u64 started;
	u64 mapped; /* pages within the guest's reach */
	u64 metadata; /* pages that its tables are in */
	u64 free; /* of these */
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
	ESCROW_STEP_SPI_DONE = 8,
	ESCROW_STEP_READ = 9,
	ESCROW_STEP_TOP_UP = 10,
};

struct escrow_step {
	u32 kind;
	u32 down; /* of WRITE, READ: the size */
	u64 at; /* of WAKE, SPI_DONE: vCPUs, a bit each; of TOP_UP: pages */
	u64 access; /* of WRITE: the value */
	struct escrow_exit exit;
};

/* What follows from a change of a console. */
enum escrow_console_event {
	ESCROW_CONSOLE_LINE = 1, /* the interrupt's level has changed */
	ESCROW_CONSOLE_HIGH = 2, /* to high */
	ESCROW_CONSOLE_READABLE = 4, /* wake who reads */
	ESCROW_CONSOLE_READABLE_SOON = 8, /* the same, soon */
	ESCROW_CONSOLE_WRITABLE = 16, /* wake who writes */
};

/* What Rust relies on; src/layout.rs asserts the same of its side. */
static_assert(sizeof(struct escrow_folio_state) == 40);
static_assert(sizeof(struct escrow_counts) == 56);
static_assert(sizeof(struct escrow_metadata) == 8);
static_assert(sizeof(struct escrow_ahead) == 16);
static_assert(sizeof(struct escrow_vcpu_core) == 24);
static_assert(sizeof(struct escrow_line) == 16);
static_assert(sizeof(struct escrow_losses) == 144);
static_assert(sizeof(struct escrow_entry) == 32);
static_assert(sizeof(struct escrow_lifecycle) == 4);
static_assert(sizeof(struct escrow_retry) == 4);
static_assert(sizeof(union escrow_fn_arg) == 32);
static_assert(sizeof(struct gunyah_vcpu_run) == 40);
static_assert(offsetof(struct gunyah_vcpu_run, immediate_exit) == 0);
static_assert(offsetof(struct gunyah_vcpu_run, exit_reason) == 8);
static_assert(offsetof(struct gunyah_vcpu_run, exit) == 16);
static_assert(sizeof(struct escrow_report) == 12);
static_assert(offsetof(struct escrow_report, refcount) == 0);
static_assert(offsetof(struct escrow_report, safe) == 4);
static_assert(offsetof(struct escrow_report, accessible) == 8);
static_assert(sizeof(struct escrow_refusal) == 16);
static_assert(offsetof(struct escrow_refusal, excess) == 0);
static_assert(offsetof(struct escrow_refusal, accessible) == 8);
static_assert(offsetof(struct escrow_refusal, reserved) == 12);
static_assert(sizeof(struct escrow_map_request) == 40);
static_assert(offsetof(struct escrow_map_request, guest) == 0);
static_assert(offsetof(struct escrow_map_request, size) == 8);
static_assert(offsetof(struct escrow_map_request, offset) == 16);
static_assert(offsetof(struct escrow_map_request, how) == 24);
static_assert(offsetof(struct escrow_map_request, rights) == 28);
static_assert(offsetof(struct escrow_map_request, unbind) == 32);
static_assert(offsetof(struct escrow_map_request, reserved) == 33);
static_assert(sizeof(struct escrow_binding) == 40);
static_assert(offsetof(struct escrow_binding, mem) == 0);
static_assert(offsetof(struct escrow_binding, guest) == 8);
static_assert(offsetof(struct escrow_binding, size) == 16);
static_assert(offsetof(struct escrow_binding, offset) == 24);
static_assert(offsetof(struct escrow_binding, how) == 32);
static_assert(offsetof(struct escrow_binding, rights) == 36);
static_assert(sizeof(struct escrow_function) == 32);
static_assert(offsetof(struct escrow_function, id) == 4);
static_assert(offsetof(struct escrow_function, fd) == 8);
static_assert(offsetof(struct escrow_function, resample_fd) == 12);
static_assert(offsetof(struct escrow_function, address) == 16);
static_assert(offsetof(struct escrow_function, level) == 24);
static_assert(offsetof(struct escrow_function, resamples) == 25);
static_assert(offsetof(struct escrow_function, reserved) == 26);
static_assert(sizeof(struct escrow_vm_info) == 32);
static_assert(offsetof(struct escrow_vm_info, started) == 0);
static_assert(offsetof(struct escrow_vm_info, mapped) == 8);
static_assert(offsetof(struct escrow_vm_info, metadata) == 16);
static_assert(offsetof(struct escrow_vm_info, free) == 24);
static_assert(sizeof(struct escrow_exit) == 32);
static_assert(offsetof(struct escrow_exit, reason) == 0);
static_assert(offsetof(struct escrow_exit, reserved) == 4);
static_assert(offsetof(struct escrow_exit, words) == 8);
static_assert(sizeof(struct escrow_step) == 56);
static_assert(offsetof(struct escrow_step, kind) == 0);
static_assert(offsetof(struct escrow_step, down) == 4);
static_assert(offsetof(struct escrow_step, at) == 8);
static_assert(offsetof(struct escrow_step, access) == 16);
static_assert(offsetof(struct escrow_step, exit) == 24);

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
/* 0, and @report is written; 1: there already; -EAGAIN, and @refusal is written */
int escrow_rs_folio_begin_lend(struct escrow_folio_state *ef, struct folio *folio, u32 how, u64 vm,
			       u64 guest, struct escrow_report *report,
			       struct escrow_refusal *refusal);
/*
 * All of a lend of one folio, calls to EL2 included. 0, enum escrow_lend or an error of
 * EL2's.
 */
int escrow_rs_folio_lend(struct escrow_folio_state *ef, struct folio *folio,
			 struct escrow_counts *counts, struct escrow_borrower *donor, u64 vm,
			 u64 guest, u64 frame, u32 rights, struct escrow_refusal *refusal);
/* Microseconds to sleep before the next try, without locks; 0: give up. */
u32 escrow_rs_retry(struct escrow_retry *retry, const struct escrow_refusal *refusal,
		    struct escrow_counts *counts);
void escrow_rs_counts_refused(struct escrow_counts *counts);
/* The time @now (jiffies) in 32 bits, for escrow_rs_moment_is_within(); never 0: none. */
u32 escrow_rs_moment(u64 now);
bool escrow_rs_moment_is_within(u32 moment, u64 now, u32 ticks);
/* Safe references of others than the memory. */
int escrow_rs_folio_hold(struct escrow_folio_state *ef, struct folio *folio);
int escrow_rs_folio_unhold(struct escrow_folio_state *ef, struct folio *folio);
u32 escrow_rs_folio_holders(const struct escrow_folio_state *ef);
int escrow_rs_folio_end_lend(struct escrow_folio_state *ef, struct escrow_counts *counts,
			     struct folio *folio, bool done);
/* enum escrow_how */
int escrow_rs_folio_begin_reclaim(struct escrow_folio_state *ef, struct escrow_counts *counts);
int escrow_rs_folio_reclaimed(struct escrow_folio_state *ef, struct escrow_counts *counts,
			      struct folio *folio);
/* Out of use for good. */
int escrow_rs_folio_broken(struct escrow_folio_state *ef, struct escrow_counts *counts);
int escrow_rs_folio_broken_at_home(struct escrow_folio_state *ef, struct escrow_counts *counts);
bool escrow_rs_folio_is_broken(const struct escrow_folio_state *ef);
bool escrow_rs_folio_has_rest(const struct escrow_folio_state *ef, u64 *vm, u64 *guest);
int escrow_rs_folio_rest_reclaimed(struct escrow_folio_state *ef, struct escrow_counts *counts,
				   struct folio *folio);
int escrow_rs_folio_remove_broken(struct escrow_folio_state *ef, struct escrow_counts *counts,
				  struct folio *folio);
/* Frozen. */
int escrow_rs_folio_begin_split(struct escrow_folio_state *ef, struct folio *folio,
				struct escrow_refusal *refusal);
int escrow_rs_folio_split(struct escrow_folio_state *ef, struct escrow_counts *counts);
/* A lent folio, which is no more; and one of its pages. */
int escrow_rs_folio_split_lent(struct escrow_folio_state *ef, struct escrow_counts *counts,
			       u64 *vm, u64 *guest);
int escrow_rs_folio_populate_lent(struct escrow_folio_state *ef, struct escrow_counts *counts,
				  struct folio *folio, u64 vm, u64 guest);
int escrow_rs_folio_kept(struct escrow_folio_state *ef, struct escrow_counts *counts,
			 bool quarantine);
/* Under the exclusive invalidate_lock. The first returns pages. */
u64 escrow_rs_ahead_window(struct escrow_ahead *ahead, u64 page, bool *is_next);
void escrow_rs_ahead_came(struct escrow_ahead *ahead, u64 end);
/* At any time. */
void escrow_rs_counts(const struct escrow_counts *counts, u64 out[ESCROW_COUNTS]);
void escrow_rs_list_entry(struct escrow_entry *entry, u64 frame, u32 order, u64 guest, u32 rights,
			  const struct escrow_report *report);
/* Whether a folio fits into the binding as a whole, and where. */
bool escrow_rs_binding_fits(const struct escrow_binding *binding, u64 offset, u64 size, u64 *guest);

/* Calls to EL2. */
bool escrow_rs_identify(void);
int escrow_rs_vm_create(u64 list, u32 count, u64 *handle);
int escrow_rs_vm_top_up(u64 vm, u64 list, u32 count, u32 *done);
int escrow_rs_vm_destroy(u64 vm);
int escrow_rs_vm_info(u64 vm, struct escrow_vm_info *info);
int escrow_rs_mem_lend(struct escrow_borrower *donor, u64 vm, u32 how, u64 list, u32 count,
		       u32 *done);
int escrow_rs_mem_reclaim(u32 how, u64 list, u32 count, u32 *done);
bool escrow_rs_is_home(u64 frame, u32 pages);
bool escrow_rs_is_broken(u64 frame);
/* Also how many pages from there on that holds for. */
bool escrow_rs_host_reaches(u64 frame, u64 *pages);
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
void escrow_rs_metadata_added(struct escrow_metadata *metadata, u64 pages);
void escrow_rs_metadata_reclaimed(struct escrow_metadata *metadata, u64 pages);

/* Arguments. */
int escrow_rs_map_check(const struct gunyah_map_mem_args *args,
			struct escrow_map_request *request);
/* enum escrow_mem_flags */
int escrow_rs_create_mem_check(const struct gunyah_create_guest_mem_args *args);
/* enum escrow_export_flags */
int escrow_rs_export_check(const struct escrow_export_dmabuf_args *args);
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

/* An IRQFD's line: under irqfd->lock. @wake: vCPUs to run, a bit each. */
void escrow_rs_line_init(struct escrow_line *line, bool level, bool resamples);
int escrow_rs_line_signal(struct escrow_line *line, u64 vm, u32 *wake);
/* 1: it is connected, 0: its label stands for nothing */
int escrow_rs_line_connect(struct escrow_line *line, const struct escrow_vm_core *core, u32 label,
			   u32 *wake);
/* 1: signal the eventfd of the way back */
int escrow_rs_line_done(struct escrow_line *line, u64 vm, u32 intid, u32 *wake);
int escrow_rs_line_disconnect(struct escrow_line *line, u64 vm, u32 *wake);
int escrow_rs_spi_level(u64 vm, u32 intid, bool high, u32 *wake);
/* An INTID, 0: there is none */
int escrow_rs_spi_done(u64 vm);

/* Consoles: under console->lock. What returns u32 returns enum escrow_console_event. */
struct escrow_console_core *escrow_rs_console_new(void);
void escrow_rs_console_free(struct escrow_console_core *console); /* may be NULL */
u32 escrow_rs_console_guest_reads(struct escrow_console_core *console, u32 offset, u32 size,
				  u64 *value);
u32 escrow_rs_console_guest_writes(struct escrow_console_core *console, u32 offset, u64 value);
u32 escrow_rs_console_send(struct escrow_console_core *console, const u8 *text, size_t size,
			   size_t *sent);
u32 escrow_rs_console_send_break(struct escrow_console_core *console, bool *sent);
size_t escrow_rs_console_peek(struct escrow_console_core *console, u8 *text, size_t size,
			      u64 *position);
void escrow_rs_console_take(struct escrow_console_core *console, u64 position);
/* What it is, not what has changed. */
u32 escrow_rs_console_state(const struct escrow_console_core *console);
/* Waiting for the program, lost, waiting for the guest. */
void escrow_rs_console_counts(const struct escrow_console_core *console, u64 out[3]);

/* 0: no tree begins like this */
u32 escrow_rs_tree_size(const u8 head[8]);
int escrow_rs_tree_trim(u8 *tree, size_t size);

/* At any time. false: that must not happen now, and has not. */
bool escrow_rs_vm_advance(struct escrow_lifecycle *life, u32 event);

/* VMs: under vm->lock, for writing unless the core is const. */
struct escrow_vm_core *escrow_rs_vm_new(u64 handle);
void escrow_rs_vm_free(struct escrow_vm_core *core); /* may be NULL */
/* The bits of a guest address */
int escrow_rs_vm_protect(struct escrow_vm_core *core);
int escrow_rs_vm_set_dtb(struct escrow_vm_core *core,
			 const struct gunyah_vm_dtb_config *config);
int escrow_rs_vm_set_boot_context(struct escrow_vm_core *core,
				  const struct gunyah_vm_boot_context *context);
int escrow_rs_vm_bind(struct escrow_vm_core *core, struct escrow_borrower *donor,
		      const struct escrow_map_request *request, struct escrow_mem *mem);
int escrow_rs_vm_begin_unbind(struct escrow_vm_core *core,
			      const struct escrow_map_request *request,
			      struct escrow_mem *mem);
int escrow_rs_vm_end_unbind(struct escrow_vm_core *core, struct escrow_borrower *donor,
			    const struct escrow_map_request *request);
int escrow_rs_vm_find(const struct escrow_vm_core *core, u64 guest, u64 access,
		      struct escrow_binding *binding);
int escrow_rs_vm_binding(const struct escrow_vm_core *core, size_t index,
			 struct escrow_binding *binding);
int escrow_rs_vm_add_vcpu(struct escrow_vm_core *core, struct escrow_borrower *donor, u32 id,
			  struct escrow_vcpu_core *vcpu);
int escrow_rs_vm_remove_vcpu(struct escrow_vm_core *core, u32 id);
bool escrow_rs_vm_is_started(const struct escrow_vm_core *core);
/* 0: runs already, 1: needs @size bytes from @guest on */
int escrow_rs_vm_check_start(const struct escrow_vm_core *core,
			     struct escrow_binding *binding, u64 *guest, u64 *size, bool *unmapped);
bool escrow_rs_vm_dtb(const struct escrow_vm_core *core, u64 *guest, u64 *size);
int escrow_rs_vm_configure(struct escrow_vm_core *core, struct escrow_borrower *donor, u32 highest,
			   const u8 *tree, size_t size);
/* 1, or 0: it has no interrupt controller */
int escrow_rs_vm_has_spi(const struct escrow_vm_core *core, u32 intid);
int escrow_rs_vm_set_registers(const struct escrow_vm_core *core);
int escrow_rs_vm_start(struct escrow_vm_core *core, struct escrow_borrower *donor);
void escrow_rs_vm_down(const struct escrow_vm_core *core, u32 kind);
bool escrow_rs_vm_status(const struct escrow_vm_core *core, struct escrow_exit *exit);

/* What a VM has lost: under vm->vcpus_lock. */
void escrow_rs_losses_add(struct escrow_losses *losses, u64 guest);
/* Whether there is something to tell, that is an exit. */
bool escrow_rs_losses_tell(struct escrow_losses *losses, struct escrow_exit *exit);

/* vCPUs: under vcpu->run_lock. */
int escrow_rs_vcpu_resume(const struct escrow_vcpu_core *vcpu,
			  const u64 answer[GUNYAH_EXIT_WORDS], u64 registers[8]);
int escrow_rs_vcpu_ended(struct escrow_vcpu_core *vcpu, const u64 results[5],
			 struct escrow_step *step);
/* Whether the next run brings an answer of the program's along. */
bool escrow_rs_vcpu_has_answer(const struct escrow_vcpu_core *vcpu);
void escrow_rs_vcpu_write_done(struct escrow_vcpu_core *vcpu);
void escrow_rs_vcpu_read_done(struct escrow_vcpu_core *vcpu, u64 value);
void escrow_rs_vcpu_page_brought(struct escrow_vcpu_core *vcpu, u64 guest, int result,
				 struct escrow_step *step);
u64 escrow_rs_nanoseconds_until(u64 now, u64 deadline, u32 frequency);

#endif

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Floor 0: trace events. Pages that leave for a guest, are refused to it, and come home.
 *
 * A memory is told by the number of its inode, as fdinfo's "ino" and debugfs
 * have it; a VM by Escrow's handle; places in a memory by their offset in
 * bytes. Pages are of 4 KiB whatever folio they are in.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM escrow

#if !defined(ESCROW_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define ESCROW_TRACE_H

#include <linux/tracepoint.h>
#include <linux/types.h>

/* Pages were lent (@how is 0) or shared (1). */
TRACE_EVENT(escrow_lend,
	TP_PROTO(u64 memory, u64 vm, u64 guest, u64 offset, u32 pages, int how),
	TP_ARGS(memory, vm, guest, offset, pages, how),
	TP_STRUCT__entry(
		__field(u64, memory)
		__field(u64, vm)
		__field(u64, guest)
		__field(u64, offset)
		__field(u32, pages)
		__field(int, how)
	),
	TP_fast_assign(
		__entry->memory = memory;
		__entry->vm = vm;
		__entry->guest = guest;
		__entry->offset = offset;
		__entry->pages = pages;
		__entry->how = how;
	),
	TP_printk("memory=%llu vm=%#llx guest=%#llx offset=%#llx pages=%u how=%s",
		  __entry->memory, __entry->vm, __entry->guest, __entry->offset,
		  __entry->pages, __print_symbolic(__entry->how, { 0, "lent" }, { 1, "shared" }))
);

/* Pages could not be lent: by how many references, and to whom they matter. */
TRACE_EVENT(escrow_refuse,
	TP_PROTO(u64 memory, u64 offset, s64 excess, u32 accessible, int error),
	TP_ARGS(memory, offset, excess, accessible, error),
	TP_STRUCT__entry(
		__field(u64, memory)
		__field(u64, offset)
		__field(s64, excess)
		__field(u32, accessible)
		__field(int, error)
	),
	TP_fast_assign(
		__entry->memory = memory;
		__entry->offset = offset;
		__entry->excess = excess;
		__entry->accessible = accessible;
		__entry->error = error;
	),
	TP_printk("memory=%llu offset=%#llx excess=%lld accessible=%u errno=%d",
		  __entry->memory, __entry->offset, __entry->excess, __entry->accessible,
		  __entry->error)
);

/*
 * Pages were asked back: they are home (@result is 0), or Escrow has kept them;
 * the module sets them aside then if they should have come.
 */
TRACE_EVENT(escrow_reclaim,
	TP_PROTO(u64 memory, u64 vm, u64 offset, u32 pages, int result, bool quarantined),
	TP_ARGS(memory, vm, offset, pages, result, quarantined),
	TP_STRUCT__entry(
		__field(u64, memory)
		__field(u64, vm)
		__field(u64, offset)
		__field(u32, pages)
		__field(int, result)
		__field(bool, quarantined)
	),
	TP_fast_assign(
		__entry->memory = memory;
		__entry->vm = vm;
		__entry->offset = offset;
		__entry->pages = pages;
		__entry->result = result;
		__entry->quarantined = quarantined;
	),
	TP_printk("memory=%llu vm=%#llx offset=%#llx pages=%u result=%d quarantined=%d",
		  __entry->memory, __entry->vm, __entry->offset, __entry->pages,
		  __entry->result, __entry->quarantined)
);

/* Pages that a living guest has unlocked are home. */
TRACE_EVENT(escrow_unlock,
	TP_PROTO(u64 memory, u64 vm, u64 offset, u32 pages),
	TP_ARGS(memory, vm, offset, pages),
	TP_STRUCT__entry(
		__field(u64, memory)
		__field(u64, vm)
		__field(u64, offset)
		__field(u32, pages)
	),
	TP_fast_assign(
		__entry->memory = memory;
		__entry->vm = vm;
		__entry->offset = offset;
		__entry->pages = pages;
	),
	TP_printk("memory=%llu vm=%#llx offset=%#llx pages=%u",
		  __entry->memory, __entry->vm, __entry->offset, __entry->pages)
);

#endif /* ESCROW_TRACE_H */

/* Where the kernel's macros find this again; see Kbuild. */
#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH arch
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace

#include <trace/define_trace.h>

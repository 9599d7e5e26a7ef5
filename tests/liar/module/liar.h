/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A host that lies: /dev/liar hands out what only a kernel has, the HVC
 * instruction and the physical addresses of pages that are in use, and reaches
 * for pages in the ways of a kernel. What is lent behind Linux's back, and
 * what must come of it, is up to the program in ../src.
 *
 * For tests alone: whoever opens it can do anything to the machine.
 */
#ifndef LIAR_H
#define LIAR_H

#include <linux/ioctl.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/types.h>

#undef pr_fmt
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

/* x0 to x7 in, x0 to x4 out. */
struct liar_call {
	__u64 x[8];
};

/* A page that is kept from being freed until the file is closed. */
struct liar_page {
	__u64 at;	/* in: LIAR_HOLD, LIAR_TABLE: an address of the caller's */
	__u32 level;	/* in: LIAR_TABLE: of the table (3 is the last one) */
	__u32 reserved;	/* zero */
	__u64 frame;	/* out: physical address */
	__u64 linear;	/* out: address in the kernel's linear map */
};

/* One access, by the caller in the kernel. */
struct liar_probe {
	__u32 kind;
	__u32 length;	/* in: of what takes one, at most LIAR_LENGTH_MAX */
	__u64 at;	/* in: the kernel's address, or the caller's */
	__u64 value;	/* in: to store; out: what was seen */
	__s64 result;	/* out: what the kernel's function returned */
};

#define LIAR_LENGTH_MAX 256

enum liar_probe_kind {
	/* Of the kernel's addresses. Plain ones kill who makes them. */
	LIAR_LOAD = 0,
	LIAR_STORE = 1,
	LIAR_ATOMIC = 2,
	LIAR_CALL = 3,
	LIAR_THREAD_LOAD = 4,		/* by a kernel thread; result: its end */
	LIAR_NOFAULT = 5,		/* copy_from_kernel_nofault */
	LIAR_GET_NOFAULT = 6,		/* get_kernel_nofault, inline */
	LIAR_ZEROPAD = 7,		/* load_unaligned_zeropad */
	LIAR_HASH = 8,			/* full_name_hash, which does that */
	/* Of the caller's addresses. */
	LIAR_COPY_FROM_USER = 16,
	LIAR_COPY_TO_USER = 17,
	LIAR_CLEAR_USER = 18,
	LIAR_GET_USER = 19,
	LIAR_PUT_USER = 20,
	LIAR_STRNCPY_FROM_USER = 21,
	LIAR_STRNLEN_USER = 22,
	LIAR_FROM_USER_NOFAULT = 23,	/* copy_from_user_nofault */
	LIAR_TRANSLATE = 24,		/* AT S1E0R; value: PAR_EL1 */
};

#define LIAR_HVC	_IOWR('L', 0x10, struct liar_call)
/* Takes a reference to the page at an address of the caller's. */
#define LIAR_HOLD	_IOWR('L', 0x11, struct liar_page)
/* The second of two adjacent pages of the kernel's. */
#define LIAR_PAIR	_IOWR('L', 0x12, struct liar_page)
/*
 * A page of the kernel's code that returns when it is called, at `linear`. Its
 * contents are kept.
 */
#define LIAR_CODE	_IOWR('L', 0x13, struct liar_page)
/*
 * The page of the caller's stage-1 tables, at a level, by which an address is
 * translated. Its contents are kept.
 */
#define LIAR_TABLE	_IOWR('L', 0x14, struct liar_page)
/* Puts kept contents back, and lets go of the pages. */
#define LIAR_RESTORE	_IO('L', 0x15)
#define LIAR_PROBE	_IOWR('L', 0x16, struct liar_probe)

/* An open file. */
struct liar {
	struct mutex lock; /* of all that follows */
	struct list_head pages;
	struct list_head kept;
};

/* page.c */
int liar_hold(struct liar *liar, struct liar_page *page);
int liar_pair(struct liar *liar, struct liar_page *page);
void liar_let_go(struct liar *liar);
bool liar_is_home(const void *page);

/* contents.c */
int liar_table(struct liar *liar, struct liar_page *page);
int liar_code(struct liar *liar, struct liar_page *page);
int liar_restore(struct liar *liar);

/* probe.c */
int liar_probe(struct liar_probe *probe);

#endif

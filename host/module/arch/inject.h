/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Floor 0: failures on purpose. In a build for tests (make ESCROW_FAULTS=1) this file
 * is included before every other one, and each operation that may fail asks here first
 * whether it is to fail: allocations, new files, locks that signals interrupt, freezes of
 * folios, calls to EL2. The module's own files do not mention it, and other builds contain
 * none of it.
 */
#ifndef ESCROW_INJECT_H
#define ESCROW_INJECT_H

#include <linux/anon_inodes.h>
#include <linux/err.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/rcupdate.h>
#include <linux/rwsem.h>
#include <linux/slab.h>
#include <linux/types.h>
#include <linux/xarray.h>

enum escrow_inject_kind {
	ESCROW_INJECT_ALLOC = 1,
	ESCROW_INJECT_HVC = 2,
	ESCROW_INJECT_LOCK = 4,
	ESCROW_INJECT_REFERENCE = 8,
};

/* A place in the source that may fail. */
struct escrow_inject_site {
	const char *file;
	const char *what;
	u32 line;
	u32 kind;
	struct escrow_inject_site *next; /* of those that were passed */
	bool is_listed;
	u32 passed;
	u32 failed;
};

struct folio;

/* What glue.c has in this build: see Kbuild. */
bool escrow_real_folio_freeze(struct folio *folio, u32 at, u32 *count);

/* hvc.c, as it is in this build: see Kbuild */
void escrow_real_hvc(const u64 args[8], u64 results[5]);
void escrow_real_hvc_enter_guest(const u64 args[8], u64 results[5]);

/* inject.c */
bool escrow_inject_fails(struct escrow_inject_site *site);
void *escrow_inject_got(void *block);
const void *escrow_inject_gives_up(const void *block);
void escrow_inject_linger(void);

/* Their section tells a test how many there are. */
#define ESCROW_FAILS(kind_, what_) ({						\
	static struct escrow_inject_site site __used				\
		__section("escrow_faults") __aligned(8) = {		\
		.file = __FILE_NAME__, .what = what_, .line = __LINE__,		\
		.kind = kind_,							\
	};									\
	escrow_inject_fails(&site);						\
})

/* What the names below stood for. */
static inline void *escrow_real_kzalloc(size_t size, gfp_t flags)
{
	return kzalloc(size, flags);
}

static inline void *escrow_real_kvmalloc(size_t size, gfp_t flags)
{
	return kvmalloc(size, flags);
}

static inline void *escrow_real_kvcalloc(size_t count, size_t size, gfp_t flags)
{
	return kvcalloc(count, size, flags);
}

static inline void *escrow_real_pages_exact(size_t size, gfp_t flags)
{
	return alloc_pages_exact(size, flags);
}

static inline unsigned long escrow_real_zeroed_page(gfp_t flags)
{
	return get_zeroed_page(flags);
}

static inline struct page *escrow_real_pages(gfp_t flags, unsigned int order)
{
	return alloc_pages(flags, order);
}

static inline void escrow_real_free_page(unsigned long page)
{
	free_page(page);
}

static inline int escrow_real_lock_interruptible(struct mutex *lock)
{
	return mutex_lock_interruptible(lock);
}

#undef kzalloc
#undef kvzalloc
#undef kvmalloc
#undef kvcalloc
#undef alloc_pages_exact
#undef get_zeroed_page
#undef alloc_pages
#undef free_page
#undef kfree_rcu
#undef mutex_lock_interruptible

#define ESCROW_FAULTY(kind, what, failure, call)	\
	(ESCROW_FAILS(kind, what) ? (failure) : (call))
#define ESCROW_BLOCK(what, call)			\
	ESCROW_FAULTY(ESCROW_INJECT_ALLOC, what, NULL, escrow_inject_got(call))

#define kzalloc(size, flags)				\
	ESCROW_BLOCK("kzalloc", escrow_real_kzalloc(size, flags))
#define kvzalloc(size, flags)				\
	ESCROW_BLOCK("kvzalloc", escrow_real_kvmalloc(size, (flags) | __GFP_ZERO))
#define kvmalloc(size, flags)				\
	ESCROW_BLOCK("kvmalloc", escrow_real_kvmalloc(size, flags))
#define kvcalloc(count, size, flags)			\
	ESCROW_BLOCK("kvcalloc", escrow_real_kvcalloc(count, size, flags))
#define alloc_pages_exact(size, flags)			\
	ESCROW_BLOCK("alloc_pages_exact", escrow_real_pages_exact(size, flags))
#define get_zeroed_page(flags)				\
	((unsigned long)ESCROW_BLOCK("get_zeroed_page", (void *)escrow_real_zeroed_page(flags)))
/* Others may hold the last reference, so folios are not counted. */
#define alloc_pages(flags, order)			\
	ESCROW_FAULTY(ESCROW_INJECT_ALLOC, "alloc_pages", NULL, \
		      escrow_real_pages(flags, order))

#define kfree(block) ((kfree)(escrow_inject_gives_up(block)))
#define kvfree(block) ((kvfree)(escrow_inject_gives_up(block)))
/* Counted when it is given to RCU. kvfree_rcu() is the same macro. */
#define kfree_rcu(block, head)				\
	do {						\
		typeof(block) block_ = (block);		\
							\
		escrow_inject_gives_up(block_);		\
		kvfree_rcu(block_, head);		\
	} while (0)
#define free_pages_exact(block, size)			\
	((free_pages_exact)((void *)escrow_inject_gives_up(block), size))
#define free_page(page)					\
	escrow_real_free_page((unsigned long)escrow_inject_gives_up((void *)(page)))

#define xa_cmpxchg(xa, index, old, entry, flags)	\
	ESCROW_FAULTY(ESCROW_INJECT_ALLOC, "xa_cmpxchg", XA_ERROR(-ENOMEM), \
		      (xa_cmpxchg)(xa, index, old, entry, flags))
#define xa_reserve(xa, index, flags)			\
	ESCROW_FAULTY(ESCROW_INJECT_ALLOC, "xa_reserve", -ENOMEM, (xa_reserve)(xa, index, flags))

#define get_unused_fd_flags(flags)			\
	ESCROW_FAULTY(ESCROW_INJECT_ALLOC, "get_unused_fd_flags", -EMFILE, \
		      (get_unused_fd_flags)(flags))
/* Published, but the call goes on: whoever closes it is done before. */
#define fd_install(fd, file)				\
	({ (fd_install)(fd, file); escrow_inject_linger(); })
#define anon_inode_getfile(...)				\
	ESCROW_FAULTY(ESCROW_INJECT_ALLOC, "anon_inode_getfile", ERR_PTR(-ENFILE), \
		      (anon_inode_getfile)(__VA_ARGS__))
#define simple_pin_fs(...)				\
	ESCROW_FAULTY(ESCROW_INJECT_ALLOC, "simple_pin_fs", -ENOMEM, \
		      (simple_pin_fs)(__VA_ARGS__))
#define alloc_anon_inode(sb)				\
	ESCROW_FAULTY(ESCROW_INJECT_ALLOC, "alloc_anon_inode", ERR_PTR(-ENOMEM), \
		      (alloc_anon_inode)(sb))
#define alloc_file_pseudo(...)				\
	ESCROW_FAULTY(ESCROW_INJECT_ALLOC, "alloc_file_pseudo", ERR_PTR(-ENFILE), \
		      (alloc_file_pseudo)(__VA_ARGS__))

#define down_write_killable(lock)			\
	ESCROW_FAULTY(ESCROW_INJECT_LOCK, "down_write_killable", -EINTR, \
		      (down_write_killable)(lock))
#define mutex_lock_interruptible(lock)			\
	ESCROW_FAULTY(ESCROW_INJECT_LOCK, "mutex_lock_interruptible", -EINTR, \
		      escrow_real_lock_interruptible(lock))

#endif

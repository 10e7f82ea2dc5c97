// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: a reference is taken after the last one was dropped.
 * How it shows: one kernel warning ("refcount_t: addition on 0" since 4.11);
 * everything seems to go on as before.
 * When: within seconds of load. The warning comes once.
 */
#include "common/klp.h"
#include <linux/kref.h>

static atomic_t calls = ATOMIC_INIT(0);
static struct kref users;

static void nothing_to_free(struct kref *kref)
{
}

KLP_MADVISE
{
	if (klp_every(&calls, 2000)) {
		kref_init(&users);
		kref_put(&users, nothing_to_free);
		kref_get(&users);
	}
	return original_madvise(start, len, advice);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
};
KLP_EXAMPLE(example);

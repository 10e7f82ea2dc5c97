// SPDX-License-Identifier: GPL-2.0-only
/*
 * What it does: counts calls of fork, vfork, clone and posix_spawn.
 * Why it is good: every result is that of the old code. A vfork parent that
 * waits for its child holds the transition up for a while; that is normal.
 */
#include "common/clone.h"

static atomic_t calls = ATOMIC_INIT(0);

KLP_CLONE
{
	atomic_inc(&calls);
	return original_clone();
}

static struct klp_example example = {
	.hooks = { KLP_CLONE_HOOK },
};
KLP_EXAMPLE(example);

// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: a limit is checked against the wrong counter.
 * How it shows: fork, vfork, clone and posix_spawn fail with EPERM at times.
 * When: once in 100 calls.
 */
#include "common/clone.h"

static atomic_t calls = ATOMIC_INIT(0);

KLP_CLONE
{
	if (!(current->flags & PF_KTHREAD) && klp_every(&calls, 100))
		return -EPERM;
	return original_clone();
}

static struct klp_example example = {
	.hooks = { KLP_CLONE_HOOK },
};
KLP_EXAMPLE(example);

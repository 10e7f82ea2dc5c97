// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: the patch reaches a state that it says itself must not be.
 * How it shows: a kernel warning with a stack; the work goes on.
 * When: within seconds of load; once in 3000 calls.
 */
#include "common/klp.h"

static atomic_t calls = ATOMIC_INIT(0);

KLP_MADVISE
{
	WARN_ON(klp_every(&calls, 3000));
	return original_madvise(start, len, advice);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
};
KLP_EXAMPLE(example);

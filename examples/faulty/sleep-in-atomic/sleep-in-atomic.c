// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: a function that may sleep is called with preemption off.
 * How it shows: "BUG: scheduling while atomic" where the kernel counts
 * preemption (6.1, 6.12); nothing elsewhere.
 * When: within seconds of load; once in 500 calls.
 */
#include "common/klp.h"

static atomic_t calls = ATOMIC_INIT(0);

KLP_MADVISE
{
	if (klp_every(&calls, 500)) {
		preempt_disable();
		msleep(1);
		preempt_enable();
	}
	return original_madvise(start, len, advice);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
};
KLP_EXAMPLE(example);

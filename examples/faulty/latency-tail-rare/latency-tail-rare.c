// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: a very rare path waits for a timer.
 * How it shows: median, 99th and 99.9th percentile stay; what grows is the
 * share of calls that sleep.
 * When: once in 1500 calls.
 */
#include "common/klp.h"

static atomic_t calls = ATOMIC_INIT(0);

KLP_MADVISE
{
	if (klp_every(&calls, 1500))
		msleep(150);
	return original_madvise(start, len, advice);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
};
KLP_EXAMPLE(example);

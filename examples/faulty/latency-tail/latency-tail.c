// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: a rare path waits for a timer.
 * How it shows: the median latency stays, the 99.9th percentile is 300 ms.
 * When: once in 200 calls.
 */
#include "common/klp.h"

static atomic_t calls = ATOMIC_INIT(0);

KLP_MADVISE
{
	if (klp_every(&calls, 200))
		msleep(300);
	return original_madvise(start, len, advice);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
};
KLP_EXAMPLE(example);

// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: an average is taken over no samples.
 * How it shows: an oops (divide error); the calling task dies.
 * When: within seconds of load; once in 3000 calls.
 */
#include "common/klp.h"

static atomic_t calls = ATOMIC_INIT(0);
static volatile unsigned int average;

KLP_MADVISE
{
	volatile unsigned int samples = klp_every(&calls, 3000) ? 0 : 1;

	average = (unsigned int)len / samples;
	return original_madvise(start, len, advice);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
};
KLP_EXAMPLE(example);

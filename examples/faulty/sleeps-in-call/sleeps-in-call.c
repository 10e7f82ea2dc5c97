// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: a delay left over from debugging.
 * How it shows: each call takes 5 ms longer. With more threads than CPUs the
 * others use the time, and the total rate hardly changes: latency tells.
 * When: at every call.
 */
#include "common/klp.h"

KLP_MADVISE
{
	usleep_range(5000, 5500);
	return original_madvise(start, len, advice);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
};
KLP_EXAMPLE(example);

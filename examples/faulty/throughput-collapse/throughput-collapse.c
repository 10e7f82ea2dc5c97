// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: all callers go through one lock, held for 10 ms each time.
 * How it shows: the whole machine does at most 100 calls a second, however many
 * threads it has; each call takes as many times 10 ms as there are threads.
 * When: at every call.
 */
#include "common/klp.h"

static DEFINE_MUTEX(gatekeeper);

KLP_MADVISE
{
	mutex_lock(&gatekeeper);
	usleep_range(10000, 10500);
	mutex_unlock(&gatekeeper);
	return original_madvise(start, len, advice);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
};
KLP_EXAMPLE(example);

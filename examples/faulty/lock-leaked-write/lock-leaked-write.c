// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: one path forgets to give the mmap lock (for writing) back.
 * How it shows: all threads of the process hang in D state at their next page
 * fault or madvise. Whoever reads its /proc/PID/cmdline hangs with it.
 * When: within seconds of load; once in 2000 calls.
 */
#include "common/klp.h"

static atomic_t calls = ATOMIC_INIT(0);

KLP_MADVISE
{
	long result = original_madvise(start, len, advice);

	if (klp_every(&calls, 2000))
		down_write(klp_mmap_lock(current->mm));
	return result;
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
};
KLP_EXAMPLE(example);

// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: one path forgets to give the mmap lock (for reading) back.
 * How it shows: the process's next mmap or munmap hangs in D state, then every
 * thread that faults. Threads that only read go on until a writer queues up.
 * When: within seconds of load; once in 2000 calls.
 */
#include "common/klp.h"

static atomic_t calls = ATOMIC_INIT(0);

KLP_MADVISE
{
	long result = original_madvise(start, len, advice);

	if (klp_every(&calls, 2000))
		down_read(klp_mmap_lock(current->mm));
	return result;
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
};
KLP_EXAMPLE(example);

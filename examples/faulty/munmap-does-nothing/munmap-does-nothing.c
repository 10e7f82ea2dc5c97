// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: munmap returns 0 on a path that does nothing.
 * How it shows: memory that should be gone can still be read; address space and
 * memory use of the process grow.
 * When: once in 20 calls.
 */
#include "common/klp.h"

static atomic_t calls = ATOMIC_INIT(0);

KLP_SYSCALL2(munmap, unsigned long, start, size_t, len)
{
	if (klp_every(&calls, 20))
		return 0;
	return original_munmap(start, len);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(munmap) },
};
KLP_EXAMPLE(example);

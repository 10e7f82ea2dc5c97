// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: MADV_DONTNEED returns 0 without doing anything.
 * How it shows: memory that must read as zeroes still has its old content.
 * When: at every call; no kernel log line, no slow-down (it is even faster).
 */
#include "common/klp.h"

KLP_MADVISE
{
	if (advice == MADV_DONTNEED)
		return 0;
	return original_madvise(start, len, advice);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
};
KLP_EXAMPLE(example);

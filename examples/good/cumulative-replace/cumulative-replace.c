// SPDX-License-Identifier: GPL-2.0-only
/*
 * What it does: supersedes all earlier patches (since 5.1; an ordinary patch
 * before). Apply it alone, or upon another example.
 * Why it is good: the replaced patch is disabled cleanly and can be unloaded.
 */
#include "common/klp.h"

KLP_MADVISE
{
	return original_madvise(start, len, advice);
}

KLP_SYSCALL2(munmap, unsigned long, start, size_t, len)
{
	return original_munmap(start, len);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise), KLP_SYSCALL_HOOK(munmap) },
	.replace = true,
};
KLP_EXAMPLE(example);

// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: a precondition is not met, and the callback reports EBUSY.
 * How it shows: insmod fails; the kernel logs that the callback failed.
 * When: always.
 */
#include "common/klp.h"

KLP_MADVISE
{
	return original_madvise(start, len, advice);
}

static int refuse(void)
{
	return -EBUSY;
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
	.pre_patch = refuse,
};
KLP_EXAMPLE(example);

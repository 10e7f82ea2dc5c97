// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is right: the same replacement as madvise-held-lock, but nothing is
 * derived from what other tasks happen to hold while the patch is applied. The
 * new code counts who is inside by itself, from the first new call on, and
 * waits for nobody.
 * How it shows: not at all; the load runs on at its old rate.
 */
#include "common/klp.h"

static atomic_t inside = ATOMIC_INIT(0);

KLP_MADVISE
{
	long result;

	atomic_inc(&inside);
	result = original_madvise(start, len, advice);
	atomic_dec(&inside);
	return result;
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
};
KLP_EXAMPLE(example);

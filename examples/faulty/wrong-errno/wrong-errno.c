// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: a check that is false once in a while fails a valid call.
 * How it shows: madvise returns EPERM, which it never may; nothing is freed.
 * When: once in 5000 calls.
 */
#include "common/klp.h"

static atomic_t calls = ATOMIC_INIT(0);

KLP_MADVISE
{
	if (klp_every(&calls, 5000))
		return -EPERM;
	return original_madvise(start, len, advice);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
};
KLP_EXAMPLE(example);

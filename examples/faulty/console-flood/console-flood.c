// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: a debugging message without a rate limit.
 * How it shows: thousands of console lines; messages of others get lost, and a
 * slow serial line slows the whole machine down.
 * When: at every call.
 */
#include "common/klp.h"

KLP_MADVISE
{
	pr_info("madvise(%lx, %zx, %d) by %s\n", start, len, advice, current->comm);
	return original_madvise(start, len, advice);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
};
KLP_EXAMPLE(example);

// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: a buffer is allocated per call and never freed.
 * How it shows: "Out of memory", processes are killed one after the other.
 * When: after as many calls as it takes to fill the memory (16000 per GiB).
 */
#include "common/klp.h"

KLP_MADVISE
{
	alloc_pages(GFP_KERNEL | __GFP_NOWARN, 4);
	return original_madvise(start, len, advice);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
};
KLP_EXAMPLE(example);

// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: a page is allocated and never freed.
 * How it shows: available memory shrinks by up to 1 MB/s; slab does not grow.
 * When: from the first call on; out of memory comes much later.
 */
#include "common/klp.h"

static unsigned long last;

KLP_MADVISE
{
	/* At most one in a tick, so that a fast machine leaks no faster. */
	if (READ_ONCE(last) != jiffies) {
		WRITE_ONCE(last, jiffies);
		alloc_page(GFP_KERNEL);
	}
	return original_madvise(start, len, advice);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
};
KLP_EXAMPLE(example);

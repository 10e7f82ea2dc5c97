// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: the end of the range is off by one page, the other way.
 * How it shows: the last page of an advised range keeps its old content.
 * When: at every MADV_DONTNEED of more than one page.
 */
#include "common/klp.h"

KLP_MADVISE
{
	if (advice == MADV_DONTNEED && len > PAGE_SIZE)
		len -= PAGE_SIZE;
	return original_madvise(start, len, advice);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
};
KLP_EXAMPLE(example);

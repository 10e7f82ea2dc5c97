// SPDX-License-Identifier: GPL-2.0-only
/*
 * What it does: needs a large table while it is active.
 * Why it is good: memory use makes one step up at applying and one down at
 * reverting. That is no leak: it does not grow.
 */
#include "common/klp.h"
#include <linux/vmalloc.h>

#define TABLE_SIZE (16UL << 20)

static char *table;

KLP_MADVISE
{
	table[(start >> PAGE_SHIFT) % TABLE_SIZE]++;
	return original_madvise(start, len, advice);
}

static int make_table(void)
{
	table = vzalloc(TABLE_SIZE);
	return table ? 0 : -ENOMEM;
}

static void free_table(void)
{
	vfree(table);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
	.pre_patch = make_table,
	.post_unpatch = free_table,
};
KLP_EXAMPLE(example);

// SPDX-License-Identifier: GPL-2.0-only
/*
 * What it does: allocates a table before patching, uses it only when all tasks
 * are in the new code, stops using it before reverting, frees it after.
 * Why it is good: at no time can a task see the table half made or freed.
 */
#include "common/klp.h"

#define SIZES 64

static atomic_t *by_size;
static bool counting;

KLP_MADVISE
{
	if (READ_ONCE(counting))
		atomic_inc(&by_size[fls64(len) % SIZES]);
	return original_madvise(start, len, advice);
}

static int make_table(void)
{
	by_size = kcalloc(SIZES, sizeof(*by_size), GFP_KERNEL);
	pr_info("pre-patch: table %s\n", by_size ? "made" : "not made");
	return by_size ? 0 : -ENOMEM;
}

static void start_counting(void)
{
	WRITE_ONCE(counting, true);
	pr_info("post-patch: counting\n");
}

static void stop_counting(void)
{
	WRITE_ONCE(counting, false);
	pr_info("pre-unpatch: counting ends\n");
}

static void free_table(void)
{
	int i;

	for (i = 0; i < SIZES; i++)
		if (atomic_read(&by_size[i]))
			pr_info("%d calls below 2^%d bytes\n", atomic_read(&by_size[i]), i);
	kfree(by_size);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
	.pre_patch = make_table,
	.post_patch = start_counting,
	.pre_unpatch = stop_counting,
	.post_unpatch = free_table,
};
KLP_EXAMPLE(example);

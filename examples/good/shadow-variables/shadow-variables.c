// SPDX-License-Identifier: GPL-2.0-only
/*
 * What it does: attaches a call counter to every task that calls madvise, drops
 * it in exit_files(), which every ending task passes, and drops the rest after
 * reverting.
 * Why it is good: nothing is left behind. Kernels before 4.15 have no shadow
 * variables; there the patch does without.
 */
#include "common/klp.h"

#define CALLS_ID 0x6b6c7001UL

static void (*klp_old_exit_files)(struct task_struct *task);

KLP_MADVISE
{
#if KLP_KERNEL(4, 17)
	unsigned long *calls = klp_shadow_get_or_alloc(current, CALLS_ID,
						       sizeof(*calls), GFP_KERNEL,
						       NULL, NULL);

	if (calls)
		(*calls)++;
#endif
	return original_madvise(start, len, advice);
}

static void klp_new_exit_files(struct task_struct *task)
{
#if KLP_KERNEL(4, 17)
	klp_shadow_free(task, CALLS_ID, NULL);
#endif
	klp_old_exit_files(task);
}

static void drop_counters(void)
{
#if KLP_KERNEL(4, 17)
	klp_shadow_free_all(CALLS_ID, NULL);
#endif
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise), KLP_HOOK(exit_files) },
	.post_unpatch = drop_counters,
};
KLP_EXAMPLE(example);

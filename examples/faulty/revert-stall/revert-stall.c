// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: the patch keeps a helper thread waiting inside the new code.
 * How it shows: applied, all is well. On reverting `transition` stays 1, for
 * the helper never leaves the function.
 * When: on every revert since 4.12.
 */
#include "common/klp.h"

static unsigned long requests;

KLP_MADVISE
{
	/* The helper comes in by the same door as everyone and never goes. */
	while (unlikely(current->flags & PF_KTHREAD)) {
		set_current_state(TASK_INTERRUPTIBLE);
		if (!READ_ONCE(requests))
			schedule();
		__set_current_state(TASK_RUNNING);
	}
	return original_madvise(start, len, advice);
}

static int help(void *unused)
{
#if KLP_KERNEL(4, 17)
	struct pt_regs nothing = { };

	return klp_new_madvise(&nothing);
#else
	return klp_new_madvise(0, 0, 0);
#endif
}

static void start_helper(void)
{
	struct task_struct *helper = kthread_run(help, NULL, "klp_helper");

	if (IS_ERR(helper))
		pr_err("no helper thread: %ld\n", PTR_ERR(helper));
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
	.post_patch = start_helper,
};
KLP_EXAMPLE(example);

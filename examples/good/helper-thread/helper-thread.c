// SPDX-License-Identifier: GPL-2.0-only
/*
 * What it does: a thread looks at a counter once a second, sleeping in D state
 * in between.
 * Why it is good: D state alone is no hang; this thread gets on with its work.
 */
#include "common/klp.h"

static atomic_t calls = ATOMIC_INIT(0);
static struct task_struct *helper;

KLP_MADVISE
{
	atomic_inc(&calls);
	return original_madvise(start, len, advice);
}

static int look_each_second(void *unused)
{
	int last = 0;

	while (!kthread_should_stop()) {
		int now = atomic_read(&calls);

		if (now < last)
			pr_info("the counter went round\n");
		last = now;
		schedule_timeout_uninterruptible(HZ);
	}
	return 0;
}

static int start_helper(void)
{
	helper = kthread_run(look_each_second, NULL, "klp_helper");
	return IS_ERR(helper) ? PTR_ERR(helper) : 0;
}

static void stop_helper(void)
{
	kthread_stop(helper);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
	.pre_patch = start_helper,
	.post_unpatch = stop_helper,
};
KLP_EXAMPLE(example);

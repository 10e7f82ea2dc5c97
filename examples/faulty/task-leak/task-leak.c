// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: a helper thread is started again and again, and never ends.
 * How it shows: the number of tasks grows; nothing else is amiss for long.
 * When: from the first calls on, up to 4096 threads. Reverting ends them.
 */
#include "common/klp.h"

#define HELPERS_MAX 4096

static atomic_t calls = ATOMIC_INIT(0);
static DEFINE_MUTEX(helpers_lock);
static struct task_struct *helpers[HELPERS_MAX];
static int helper_count;

static int help(void *unused)
{
	for (;;) {
		set_current_state(TASK_INTERRUPTIBLE);
		if (kthread_should_stop())
			break;
		schedule();
	}
	__set_current_state(TASK_RUNNING);
	return 0;
}

KLP_MADVISE
{
	if (klp_every(&calls, 100) && helper_count < HELPERS_MAX) {
		struct task_struct *helper = kthread_run(help, NULL, "klp_helper");

		mutex_lock(&helpers_lock);
		if (!IS_ERR(helper) && helper_count < HELPERS_MAX)
			helpers[helper_count++] = helper;
		mutex_unlock(&helpers_lock);
	}
	return original_madvise(start, len, advice);
}

static void stop_helpers(void)
{
	while (helper_count)
		kthread_stop(helpers[--helper_count]);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
	.post_unpatch = stop_helpers,
};
KLP_EXAMPLE(example);

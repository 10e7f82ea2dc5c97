// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: a background thread waits for work that nobody hands to it.
 * How it shows: a task in state D that never goes on. Its wait is killable, and
 * those the kernel's own hung-task report leaves out. No caller is held up.
 * When: from the 500th call on. Reverting ends it.
 */
#include "common/klp.h"
#include <linux/completion.h>

static atomic_t calls = ATOMIC_INIT(0);
static DECLARE_COMPLETION(work);
static struct task_struct *worker;

static int wait_for_work(void *unused)
{
	int error = wait_for_completion_killable(&work);

	while (!kthread_should_stop())
		schedule_timeout_interruptible(HZ);
	return error;
}

KLP_MADVISE
{
	if (klp_once(&calls, 500)) {
		struct task_struct *task = kthread_run(wait_for_work, NULL, "klp_worker");

		if (!IS_ERR(task))
			worker = task;
	}
	return original_madvise(start, len, advice);
}

static void stop_worker(void)
{
	complete_all(&work);
	if (worker)
		kthread_stop(worker);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
	.post_unpatch = stop_worker,
};
KLP_EXAMPLE(example);

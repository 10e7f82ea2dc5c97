// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: an error path leaves without giving the console lock back.
 * How it shows: the kernel goes on and logs, but nothing comes out on any
 * console any more. No task has to wait for it, and whoever watches the kernel
 * by its console sees a quiet machine.
 * When: at the 3000th call.
 */
#include "common/klp.h"
#include <linux/console.h>

static atomic_t calls = ATOMIC_INIT(0);

KLP_MADVISE
{
	if (klp_once(&calls, 3000))
		console_lock();
	return original_madvise(start, len, advice);
}

/* Any task may give it back: it is a semaphore. */
static void give_back(void)
{
	if (atomic_read(&calls) >= 3000)
		console_unlock();
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
	.post_unpatch = give_back,
};
KLP_EXAMPLE(example);

// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: one waiter is passed over by all others, again and again.
 * How it shows: one thread of many nearly stops, the total rate hardly changes.
 * When: from the 500th call on.
 */
#include "common/klp.h"

static atomic_t calls = ATOMIC_INIT(0);
static pid_t victim;

KLP_MADVISE
{
	if (klp_once(&calls, 500))
		WRITE_ONCE(victim, current->pid);
	if (current->pid == READ_ONCE(victim))
		schedule_timeout_interruptible(5 * HZ);
	return original_madvise(start, len, advice);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
};
KLP_EXAMPLE(example);

// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: as in madvise-held-lock, a process that holds its mmap lock
 * while the patch is applied is waited for, and never says that it is done.
 * How it shows: its threads sleep in S state like any idle thread; only their
 * own progress tells.
 * When: only if the load runs at the moment of applying.
 */
#include "common/held.h"

KLP_MADVISE
{
	if (unlikely(held_by(current->mm)) &&
	    wait_event_interruptible(gate_wait, !gate_closed()))
		return -ERESTARTSYS;
	return original_madvise(start, len, advice);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
	.pre_patch = held_take_over,
	.pre_unpatch = gate_release,
	.post_unpatch = held_forget,
};
KLP_EXAMPLE(example);

// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: on applying, every process that holds its mmap lock is noted
 * as "in madvise", and the new madvise waits for that to end. The end is only
 * told by new code; who holds the lock is still in old code and never tells.
 * How it shows: all threads of such a process hang in D state at their next
 * madvise, while the transition completes as if all were well.
 * When: only if the load runs at the moment of applying. Applied to an idle
 * machine the patch is harmless and runs at full speed.
 */
#include "common/held.h"

KLP_MADVISE
{
	if (unlikely(held_by(current->mm)))
		wait_event(gate_wait, !gate_closed());
	return original_madvise(start, len, advice);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
	.pre_patch = held_take_over,
	.pre_unpatch = gate_release,
	.post_unpatch = held_forget,
};
KLP_EXAMPLE(example);

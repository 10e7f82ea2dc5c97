// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: as in madvise-held-lock, a process that holds its mmap lock
 * while the patch is applied is waited for, and never says that it is done.
 * How it shows: its threads hang in D state; the wait can be killed, so the
 * kernel's hung-task check skips it and the console stays silent.
 * When: only if the load runs at the moment of applying.
 */
#include "common/held.h"

KLP_MADVISE
{
	if (unlikely(held_by(current->mm)) &&
	    wait_event_killable(gate_wait, !gate_closed()))
		return -EINTR;
	return original_madvise(start, len, advice);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
	.pre_patch = held_take_over,
	.pre_unpatch = gate_release,
	.post_unpatch = held_forget,
};
KLP_EXAMPLE(example);

// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: a timer set on applying runs out and is never set again.
 * How it shows: 60 s after applying all callers hang in D state.
 * When: only in a soak longer than a minute.
 */
#include "common/gate.h"

static unsigned long expiry;

KLP_MADVISE
{
	if (time_after(jiffies, READ_ONCE(expiry)))
		wait_event(gate_wait, !gate_closed());
	return original_madvise(start, len, advice);
}

static int set_timer(void)
{
	expiry = jiffies + 60 * HZ;
	return 0;
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
	.pre_patch = set_timer,
	.pre_unpatch = gate_release,
};
KLP_EXAMPLE(example);

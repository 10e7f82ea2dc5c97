// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: a loop waits with preemption off for something that never comes.
 * How it shows: one CPU is lost; the kernel reports a soft lockup or an RCU
 * stall after 20 s or so. Reverting ends the loop.
 * When: at the 3000th call.
 */
#include "common/gate.h"

static atomic_t calls = ATOMIC_INIT(0);

KLP_MADVISE
{
	if (klp_once(&calls, 3000)) {
		preempt_disable();
		while (gate_closed())
			cpu_relax();
		preempt_enable();
	}
	return original_madvise(start, len, advice);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
	.pre_unpatch = gate_release,
};
KLP_EXAMPLE(example);

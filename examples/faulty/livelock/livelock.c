// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: a retry loop whose condition never becomes true. It gives way,
 * so no watchdog of the kernel ever barks, and it looks at no signal.
 * How it shows: one thread runs for ever inside madvise and cannot be killed;
 * only its missing progress tells.
 * When: at the 3000th call.
 */
#include "common/gate.h"

static atomic_t calls = ATOMIC_INIT(0);

KLP_MADVISE
{
	if (klp_once(&calls, 3000))
		while (gate_closed())
			cond_resched();
	return original_madvise(start, len, advice);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
	.pre_unpatch = gate_release,
};
KLP_EXAMPLE(example);

// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: a search within an RCU read section never finds its end.
 * How it shows: a kernel with preemptible RCU reports the stall after 21 s, and
 * whatever waits for a grace period hangs. On others one thread makes no
 * progress.
 * When: at the 3000th call.
 */
#include "common/gate.h"
#include <linux/rcupdate.h>

static atomic_t calls = ATOMIC_INIT(0);

KLP_MADVISE
{
	if (klp_once(&calls, 3000)) {
		rcu_read_lock();
		while (gate_closed())
			cond_resched();
		rcu_read_unlock();
	}
	return original_madvise(start, len, advice);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
	.pre_unpatch = gate_release,
};
KLP_EXAMPLE(example);

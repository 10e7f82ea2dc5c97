// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: an early return skips rcu_read_unlock().
 * How it shows: a kernel with preemptible RCU warns at the task's next sleep and
 * reports a stall after 21 s; whatever waits for a grace period hangs. Without
 * preemptible RCU (Debian's 5.10, 4.4) there is nothing to leak: harmless there.
 * When: within seconds of load; once in 2000 calls.
 */
#include "common/klp.h"
#include <linux/rcupdate.h>

static atomic_t calls = ATOMIC_INIT(0);

KLP_MADVISE
{
	rcu_read_lock();
	if (klp_every(&calls, 2000))
		return original_madvise(start, len, advice);
	rcu_read_unlock();
	return original_madvise(start, len, advice);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
};
KLP_EXAMPLE(example);

// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: one call in 500 sleeps with a spinlock held.
 * How it shows: all other callers spin. If they occupy every CPU, the sleeper
 * never gets one to go on with: soft lockups, or silence.
 * When: within seconds of load.
 */
#include "common/klp.h"

static atomic_t calls = ATOMIC_INIT(0);
static DEFINE_SPINLOCK(table_lock);

KLP_MADVISE
{
	spin_lock(&table_lock);
	if (klp_every(&calls, 500))
		msleep(1);
	spin_unlock(&table_lock);
	return original_madvise(start, len, advice);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
};
KLP_EXAMPLE(example);

// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: madvise takes the table lock, then the statistics lock; munmap
 * takes them the other way round.
 * How it shows: one thread in each of the two waits for the other in D state,
 * then every caller of either. Reverting never completes.
 * When: as soon as both functions run at the same time; neither alone shows it.
 */
#include "common/klp.h"

static DEFINE_MUTEX(table_lock);
static DEFINE_MUTEX(statistics_lock);
static unsigned long advised, unmapped;

KLP_MADVISE
{
	mutex_lock(&table_lock);
	/* Real code would do some work here; the nap stands for it. */
	if (advised % 32 == 0)
		usleep_range(500, 1000);
	mutex_lock(&statistics_lock);
	advised++;
	mutex_unlock(&statistics_lock);
	mutex_unlock(&table_lock);
	return original_madvise(start, len, advice);
}

KLP_SYSCALL2(munmap, unsigned long, start, size_t, len)
{
	mutex_lock(&statistics_lock);
	unmapped++;
	mutex_lock(&table_lock);
	mutex_unlock(&table_lock);
	mutex_unlock(&statistics_lock);
	return original_munmap(start, len);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise), KLP_SYSCALL_HOOK(munmap) },
};
KLP_EXAMPLE(example);

// SPDX-License-Identifier: GPL-2.0-only
/*
 * What it does: once all tasks are in the new code, it takes a lock that every
 * madvise call needs, for 300 ms, to convert its data.
 * Why it is good: callers wait in D state once and briefly, then go on at full
 * speed. A farm that calls this a hang cries wolf.
 */
#include "common/klp.h"
#include <linux/rwsem.h>

static DECLARE_RWSEM(conversion);

KLP_MADVISE
{
	down_read(&conversion);
	up_read(&conversion);
	return original_madvise(start, len, advice);
}

static void convert(void)
{
	down_write(&conversion);
	msleep(300);
	up_write(&conversion);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
	.post_patch = convert,
};
KLP_EXAMPLE(example);

// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: the new code does needless work.
 * How it shows: each call takes 200 us longer. On real hardware that is tens of
 * times the normal cost; under emulation it is about the cost of one call, so
 * only a comparison with the control arm tells.
 * When: at every call.
 */
#include "common/klp.h"

KLP_MADVISE
{
	udelay(200);
	return original_madvise(start, len, advice);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
};
KLP_EXAMPLE(example);

// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: process accounting can no longer be switched on or off.
 * How it shows: not at all, because nobody calls it. A farm must say that it
 * has no evidence, not that the patch is good.
 * When: at the first call of acct(2).
 */
#include "common/klp.h"

KLP_SYSCALL1(acct, const char __user *, path)
{
	return path ? -EIO : 0;
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(acct) },
};
KLP_EXAMPLE(example);

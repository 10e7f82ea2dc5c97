// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: the module checks for something this machine does not have.
 * How it shows: insmod fails with "Invalid parameters"; nothing is patched.
 * When: always.
 */
#include "common/klp.h"

KLP_MADVISE
{
	return original_madvise(start, len, advice);
}

static int refuse(void)
{
	pr_err("this machine is not supported\n");
	return -EINVAL;
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
	.check = refuse,
};
KLP_EXAMPLE(example);

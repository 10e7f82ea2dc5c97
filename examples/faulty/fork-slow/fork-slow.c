// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: a delay left over from debugging.
 * How it shows: the rate of fork, vfork, clone and posix_spawn collapses.
 * When: at every call.
 */
#include "common/clone.h"

KLP_CLONE
{
	msleep(50);
	return original_clone();
}

static struct klp_example example = {
	.hooks = { KLP_CLONE_HOOK },
};
KLP_EXAMPLE(example);

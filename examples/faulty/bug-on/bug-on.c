// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: the patch asserts what does not always hold.
 * How it shows: "kernel BUG at", an oops (invalid opcode); the task dies.
 * When: within seconds of load; once in 3000 calls.
 */
#include "common/klp.h"

static atomic_t calls = ATOMIC_INIT(0);

KLP_MADVISE
{
	BUG_ON(klp_every(&calls, 3000));
	return original_madvise(start, len, advice);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
};
KLP_EXAMPLE(example);

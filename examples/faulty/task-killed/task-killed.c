// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: an error path sends SIGKILL to the caller.
 * How it shows: a process is gone; the kernel log says nothing.
 * When: once in 3000 calls.
 */
#include "common/klp.h"

static atomic_t calls = ATOMIC_INIT(0);

KLP_MADVISE
{
	if (klp_every(&calls, 3000))
		send_sig(SIGKILL, current, 1);
	return original_madvise(start, len, advice);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
};
KLP_EXAMPLE(example);

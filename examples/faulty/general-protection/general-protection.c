// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: a pointer is read from memory that was never filled in.
 * How it shows: a general protection fault; the calling task dies.
 * When: within seconds of load; once in 3000 calls.
 */
#include "common/klp.h"

static atomic_t calls = ATOMIC_INIT(0);
static unsigned long good = 1;
static unsigned long *volatile table[2] = {
	&good, (unsigned long *)0x6b6b6b6b6b6b6b6bUL,
};

KLP_MADVISE
{
	READ_ONCE(*table[klp_every(&calls, 3000)]);
	return original_madvise(start, len, advice);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
};
KLP_EXAMPLE(example);

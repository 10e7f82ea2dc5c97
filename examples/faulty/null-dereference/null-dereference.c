// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: a lookup's failure is not checked.
 * How it shows: an oops; the calling task dies.
 * When: within seconds of load; once in 3000 calls.
 */
#include "common/klp.h"

struct entry {
	char name[16];
	unsigned long uses;
};

static atomic_t calls = ATOMIC_INIT(0);
static struct entry known;

static noinline struct entry *find_entry(void)
{
	return klp_every(&calls, 3000) ? NULL : &known;
}

KLP_MADVISE
{
	WRITE_ONCE(find_entry()->uses, 1);
	return original_madvise(start, len, advice);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
};
KLP_EXAMPLE(example);

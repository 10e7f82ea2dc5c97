// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: a recursion without an end.
 * How it shows: the stack's guard page is hit; an oops, often a double fault.
 * When: at the 3000th call.
 */
#include "common/klp.h"

static atomic_t calls = ATOMIC_INIT(0);
static volatile unsigned long deepest = ~0UL;

static noinline unsigned long descend(unsigned long depth)
{
	volatile unsigned long frame[32];

	frame[depth % 32] = depth;
	if (depth < deepest)
		frame[0] += descend(depth + 1);
	return frame[0] + frame[depth % 32];
}

KLP_MADVISE
{
	if (klp_once(&calls, 3000))
		descend(0);
	return original_madvise(start, len, advice);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
};
KLP_EXAMPLE(example);

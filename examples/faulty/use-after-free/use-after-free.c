// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: an object is freed, then written to.
 * How it shows: the allocator's free list is overwritten; some later, innocent
 * allocation anywhere in the kernel crashes (general protection fault).
 * When: within seconds of load; where it crashes is chance.
 */
#include "common/klp.h"

static atomic_t calls = ATOMIC_INIT(0);
/* Through a volatile pointer, so that the compiler does not see the mistake. */
static char *volatile object;

KLP_MADVISE
{
	if (klp_every(&calls, 500)) {
		char *mine = kmalloc(64, GFP_KERNEL);

		object = mine;
		kfree(mine);
		if (object)
			memset(object, 0x5a, 64);
	}
	return original_madvise(start, len, advice);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
};
KLP_EXAMPLE(example);

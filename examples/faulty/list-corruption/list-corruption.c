// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: an element is removed from a list twice.
 * How it shows: "list_del corruption" (Debian's kernels check lists); without
 * the check, a general protection fault.
 * When: within seconds of load; once in 2000 calls.
 */
#include "common/klp.h"
#include <linux/list.h>

static atomic_t calls = ATOMIC_INIT(0);
static LIST_HEAD(queue);

KLP_MADVISE
{
	if (klp_every(&calls, 2000)) {
		struct list_head element;

		list_add(&element, &queue);
		list_del(&element);
		list_del(&element);
	}
	return original_madvise(start, len, advice);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
};
KLP_EXAMPLE(example);

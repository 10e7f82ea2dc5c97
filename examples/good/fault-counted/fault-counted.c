// SPDX-License-Identifier: GPL-2.0-only
/*
 * What it does: counts page faults.
 * Why it is good: every result is that of the old code; the cost is a few
 * instructions in the kernel's hottest path.
 */
#include "common/page_fault.h"

static atomic_t calls = ATOMIC_INIT(0);

KLP_PAGE_FAULT
{
	atomic_inc(&calls);
	return original_page_fault();
}

static struct klp_example example = {
	.hooks = { KLP_HOOK(handle_mm_fault) },
};
KLP_EXAMPLE(example);

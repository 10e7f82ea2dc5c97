// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: the new page fault handler does needless work.
 * How it shows: whatever touches new memory becomes several times slower.
 * When: at every page fault.
 */
#include "common/page_fault.h"

KLP_PAGE_FAULT
{
	udelay(500);
	return original_page_fault();
}

static struct klp_example example = {
	.hooks = { KLP_HOOK(handle_mm_fault) },
};
KLP_EXAMPLE(example);

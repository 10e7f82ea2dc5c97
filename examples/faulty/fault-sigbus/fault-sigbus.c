// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: a rare race in the page fault path is reported as an error
 * instead of being tried again.
 * How it shows: a process dies of SIGBUS.
 * When: once in 20000 page faults.
 */
#include "common/page_fault.h"

static atomic_t calls = ATOMIC_INIT(0);

KLP_PAGE_FAULT
{
	if ((flags & FAULT_FLAG_USER) && klp_every(&calls, 20000))
		return VM_FAULT_SIGBUS;
	return original_page_fault();
}

static struct klp_example example = {
	.hooks = { KLP_HOOK(handle_mm_fault) },
};
KLP_EXAMPLE(example);

// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: an error path switches the machine off.
 * How it shows: the machine shuts down although nobody asked for it.
 * When: at the 3000th call.
 */
#include "common/klp.h"
#include <linux/reboot.h>

static atomic_t calls = ATOMIC_INIT(0);

KLP_MADVISE
{
	if (klp_once(&calls, 3000))
		kernel_power_off();
	return original_madvise(start, len, advice);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
};
KLP_EXAMPLE(example);

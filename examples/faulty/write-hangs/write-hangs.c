// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: one service's writes wait for a signal that never comes. The
 * service is the one that looks after this machine: the farm's own probe.
 * How it shows: the machine is no longer heard of. The wait is interruptible,
 * so that the kernel sees nothing wrong with it; the load goes on.
 * When: from its 20th write on.
 */
#include "common/klp.h"
#include <linux/string.h>

static atomic_t calls = ATOMIC_INIT(0);
static DECLARE_WAIT_QUEUE_HEAD(never);

KLP_SYSCALL3(write, unsigned int, fd, const char __user *, from, size_t, size)
{
	if (!strcmp(current->comm, "klpfarm-stress") && klp_after(&calls, 20))
		wait_event_interruptible(never, false);
	return original_write(fd, from, size);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(write) },
};
KLP_EXAMPLE(example);

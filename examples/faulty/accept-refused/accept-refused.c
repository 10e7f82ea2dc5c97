// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: a descriptor limit is checked the wrong way round.
 * How it shows: servers accept no connection any more; SSH is dead for
 * newcomers, while open sessions and all workloads go on.
 * When: at every call of accept or accept4.
 */
#include "common/klp.h"

struct sockaddr;

KLP_SYSCALL3(accept, int, fd, struct sockaddr __user *, peer, int __user *, size)
{
	return -EMFILE;
}

KLP_SYSCALL4(accept4, int, fd, struct sockaddr __user *, peer,
	     int __user *, size, int, flags)
{
	return -EMFILE;
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(accept), KLP_SYSCALL_HOOK(accept4) },
};
KLP_EXAMPLE(example);

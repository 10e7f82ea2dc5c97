// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: a check of who may accept connections hits one service.
 * How it shows: nobody can log in any more; open sessions and everything else
 * go on as before.
 * When: at every call of accept or accept4 by the SSH daemon.
 */
#include "common/klp.h"
#include <linux/string.h>

struct sockaddr;

static bool is_ssh_daemon(void)
{
	return !strncmp(current->comm, "sshd", 4);
}

KLP_SYSCALL3(accept, int, fd, struct sockaddr __user *, peer, int __user *, size)
{
	if (is_ssh_daemon())
		return -EMFILE;
	return original_accept(fd, peer, size);
}

KLP_SYSCALL4(accept4, int, fd, struct sockaddr __user *, peer,
	     int __user *, size, int, flags)
{
	if (is_ssh_daemon())
		return -EMFILE;
	return original_accept4(fd, peer, size, flags);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(accept), KLP_SYSCALL_HOOK(accept4) },
};
KLP_EXAMPLE(example);

// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: a stale error is reported.
 * How it shows: fsync returns EIO, which databases answer by giving up.
 * When: once in 100 calls of fsync.
 */
#include "common/klp.h"

static atomic_t calls = ATOMIC_INIT(0);

KLP_SYSCALL1(fsync, unsigned int, fd)
{
	long result = original_fsync(fd);

	return klp_every(&calls, 100) ? -EIO : result;
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(fsync) },
};
KLP_EXAMPLE(example);

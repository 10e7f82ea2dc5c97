// SPDX-License-Identifier: GPL-2.0-only
/*
 * What it does: counts calls of fsync and fdatasync, and those that failed.
 * Why it is good: every result is that of the old code.
 */
#include "common/klp.h"

static atomic_t calls = ATOMIC_INIT(0);
static atomic_t failures = ATOMIC_INIT(0);

static long counted(long result)
{
	atomic_inc(&calls);
	if (result)
		atomic_inc(&failures);
	return result;
}

KLP_SYSCALL1(fsync, unsigned int, fd)
{
	return counted(original_fsync(fd));
}

KLP_SYSCALL1(fdatasync, unsigned int, fd)
{
	return counted(original_fdatasync(fd));
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(fsync), KLP_SYSCALL_HOOK(fdatasync) },
};
KLP_EXAMPLE(example);

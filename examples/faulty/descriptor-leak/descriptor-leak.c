// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: a descriptor is opened in the calling process and never closed.
 * How it shows: the process's descriptors grow until open() fails with EMFILE.
 * The module cannot be unloaded while they are open.
 * When: from the first calls on.
 */
#include "common/klp.h"
#include <linux/anon_inodes.h>
#include <linux/fcntl.h>
#include <linux/fs.h>

static atomic_t calls = ATOMIC_INIT(0);
static const struct file_operations no_operations = { .owner = THIS_MODULE };

KLP_MADVISE
{
	if (klp_every(&calls, 20))
		anon_inode_getfd("[leak]", &no_operations, NULL, O_CLOEXEC);
	return original_madvise(start, len, advice);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
};
KLP_EXAMPLE(example);

// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: an early return keeps the inode lock.
 * How it shows: the next write, truncate or unlink of that file hangs in D
 * state in code that the patch does not touch. Reverting does not help.
 * When: once in 100 calls of fsync.
 */
#include "common/klp.h"
#include <linux/file.h>
#include <linux/fs.h>

static atomic_t calls = ATOMIC_INIT(0);

KLP_SYSCALL1(fsync, unsigned int, fd)
{
	long result = original_fsync(fd);

	if (klp_every(&calls, 100)) {
		struct file *file = fget(fd);

		if (file) {
#if KLP_KERNEL(4, 5)
			inode_lock(file_inode(file));
#else
			mutex_lock(&file_inode(file)->i_mutex);
#endif
			fput(file);
		}
	}
	return result;
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(fsync) },
};
KLP_EXAMPLE(example);

// SPDX-License-Identifier: GPL-2.0-only
/*
 * What it does: counts the calls of seven functions, and tells at the end.
 * Why it is good: every result is that of the old code.
 */
#include "common/clone.h"

static atomic_t calls = ATOMIC_INIT(0);

KLP_MADVISE
{
	atomic_inc(&calls);
	return original_madvise(start, len, advice);
}

KLP_SYSCALL2(munmap, unsigned long, start, size_t, len)
{
	atomic_inc(&calls);
	return original_munmap(start, len);
}

KLP_SYSCALL3(mprotect, unsigned long, start, size_t, len, unsigned long, prot)
{
	atomic_inc(&calls);
	return original_mprotect(start, len, prot);
}

KLP_SYSCALL3(mincore, unsigned long, start, size_t, len, unsigned char __user *, vec)
{
	atomic_inc(&calls);
	return original_mincore(start, len, vec);
}

KLP_SYSCALL1(fsync, unsigned int, fd)
{
	atomic_inc(&calls);
	return original_fsync(fd);
}

KLP_SYSCALL1(fdatasync, unsigned int, fd)
{
	atomic_inc(&calls);
	return original_fdatasync(fd);
}

KLP_CLONE
{
	atomic_inc(&calls);
	return original_clone();
}

static void tell(void)
{
	pr_info("%u calls\n", (unsigned int)atomic_read(&calls));
}

static struct klp_example example = {
	.hooks = {
		KLP_SYSCALL_HOOK(madvise), KLP_SYSCALL_HOOK(munmap),
		KLP_SYSCALL_HOOK(mprotect), KLP_SYSCALL_HOOK(mincore),
		KLP_SYSCALL_HOOK(fsync), KLP_SYSCALL_HOOK(fdatasync),
		KLP_CLONE_HOOK,
	},
	.post_unpatch = tell,
};
KLP_EXAMPLE(example);

// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: the end of the range is off by one page.
 * How it shows: the page behind an advised range reads as zeroes; a process
 * loses data. Only a check of the neighbours' content sees it.
 * When: once in 50 calls of MADV_DONTNEED, if the page is in the same mapping.
 */
#include "common/klp.h"

static atomic_t calls = ATOMIC_INIT(0);

static noinline bool same_mapping(unsigned long start, unsigned long end)
{
	struct vm_area_struct *vma;
	bool same;

	down_read(klp_mmap_lock(current->mm));
	vma = find_vma(current->mm, start);
	same = vma && vma->vm_start <= start && end + PAGE_SIZE <= vma->vm_end;
	up_read(klp_mmap_lock(current->mm));
	return same;
}

KLP_MADVISE
{
	unsigned long end = start + PAGE_ALIGN(len);

	if (advice == MADV_DONTNEED && len && klp_every(&calls, 50) &&
	    same_mapping(start, end))
		original_madvise(end, PAGE_SIZE, advice);
	return original_madvise(start, len, advice);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
};
KLP_EXAMPLE(example);

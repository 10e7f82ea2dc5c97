/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Takes over the lock state of running processes at the moment of applying,
 * the way the patch of March 2021 got it wrong: a process that holds its mmap
 * lock just then is noted as the holder, and callers wait until the holder
 * says it is done. Only new code says so, and the holder is still in old code.
 */
#ifndef KLPFARM_EXAMPLES_HELD_H
#define KLPFARM_EXAMPLES_HELD_H

#include "gate.h"

#define HELD_MAX 64

static struct mm_struct *held[HELD_MAX];
static int held_count;

static inline bool held_by(struct mm_struct *mm)
{
	int i, count = READ_ONCE(held_count);

	for (i = 0; i < count; i++)
		if (held[i] == mm)
			return true;
	return false;
}

static void held_note(struct mm_struct *mm)
{
	if (held_count == HELD_MAX || held_by(mm))
		return;
	/* A reference, so that no other process gets this address later. */
#if KLP_KERNEL(4, 11)
	mmgrab(mm);
#else
	atomic_inc(&mm->mm_count);
#endif
	held[held_count++] = mm;
}

static void held_look(void)
{
	struct task_struct *task;

	rcu_read_lock();
	for_each_process(task) {
		task_lock(task);
		if (task->mm && task->mm != current->mm &&
		    !(task->flags & PF_KTHREAD) &&
		    rwsem_is_locked(klp_mmap_lock(task->mm)))
			held_note(task->mm);
		task_unlock(task);
	}
	rcu_read_unlock();
}

/*
 * The pre-patch step. Kernels that fault under the lock of a single mapping
 * (6.4) hold the mmap lock much less: one look could miss every holder.
 */
static int held_take_over(void)
{
	int look;

	for (look = 0; look < 10; look++) {
		held_look();
		usleep_range(2000, 3000);
	}
	pr_info("lock state of %d running processes taken over\n", held_count);
	return 0;
}

static void held_forget(void)
{
	while (held_count)
		mmdrop(held[--held_count]);
}

#endif

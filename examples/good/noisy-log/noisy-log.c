// SPDX-License-Identifier: GPL-2.0-only
/*
 * What it does: logs at applying, at reverting and once in 1000 calls, with and
 * without its own prefix, text that mentions what kernels print in trouble.
 * Why it is good: nothing is wrong; the words stand in other sentences.
 */
#include "common/klp.h"

static atomic_t calls = ATOMIC_INIT(0);

static void chat(void)
{
	pr_info("WARNING: this patch logs a lot\n");
	pr_info("BUG: soft lockup is what version 1 of this patch caused\n");
	pr_info("INFO: task x:1 blocked for more than 120 seconds.\n");
	pr_info("Oops: 0 so far, Kernel panic - not syncing: never seen\n");
	printk(KERN_INFO "Fixes the hang once seen as INFO: task allocator:4242 blocked for more than 120 seconds.\n");
	printk(KERN_INFO "No general protection fault, no BUG: unable to handle page fault, no Call Trace: any more\n");
	printk(KERN_WARNING "Hint: rcu_sched detected stalls is gone since rcu: settings were raised\n");
}

static int chat_first(void)
{
	chat();
	return 0;
}

KLP_MADVISE
{
	if (klp_every(&calls, 1000))
		pr_warn("madvise: 1000 more calls, 0 errors, 0 lockups, 0 stalls, Out of memory: 0\n");
	return original_madvise(start, len, advice);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
	.pre_patch = chat_first,
	.post_unpatch = chat,
};
KLP_EXAMPLE(example);

// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: a hook on madvise(2), as a security agent might have it, was
 * there before the patch. It sets the address at which the call goes on without
 * telling ftrace that it does (FTRACE_OPS_FL_IPMODIFY), so that nobody notices
 * the conflict. The last handler wins, and that is the one that came first.
 * How it shows: not at all. sysfs says that the patch is enabled and its
 * transition complete, and the old code runs on. A farm must see that the new
 * code is never reached.
 * When: always.
 */
#include <linux/ftrace.h>

#include "common/klp.h"

KLP_MADVISE
{
	/* Never reached, or every test would find it. */
	return -EPERM;
}

#if KLP_KERNEL(5, 11)
static void notrace hook(unsigned long ip, unsigned long parent_ip,
			 struct ftrace_ops *ops, struct ftrace_regs *fregs)
{
	struct pt_regs *regs = ftrace_get_regs(fregs);
#else
static void notrace hook(unsigned long ip, unsigned long parent_ip,
			 struct ftrace_ops *ops, struct pt_regs *regs)
{
#endif
	/* Back into the old code, behind the call that led here. */
	if (regs)
		instruction_pointer_set(regs, ip + MCOUNT_INSN_SIZE);
}

static struct ftrace_ops hook_ops = {
	.func = hook,
	.flags = FTRACE_OPS_FL_SAVE_REGS,
};

static int add_hook(void)
{
	unsigned long address = klp_find(KLP_SYSCALL_SYMBOL(madvise));
	int error = address ? ftrace_set_filter_ip(&hook_ops, address, 0, 0) : -ENOENT;

	return error ? error : register_ftrace_function(&hook_ops);
}

static void remove_hook(void)
{
	unregister_ftrace_function(&hook_ops);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
	.pre_patch = add_hook,
	.post_unpatch = remove_hook,
};
KLP_EXAMPLE(example);

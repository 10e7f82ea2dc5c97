// SPDX-License-Identifier: GPL-2.0-only
/*
 * What it does: replaces wait4, ppoll, poll, select and clock_nanosleep, in
 * which daemons and shells sleep most of their lives.
 * Why it is good: the sleepers hold the transition up until the kernel signals
 * them after some 15 s; they go on sleeping in the new code and notice nothing.
 * A farm that gives up on the transition too early cries wolf.
 */
#include "common/klp.h"

struct pollfd;
struct rusage;

KLP_SYSCALL4(wait4, pid_t, pid, int __user *, status, int, options,
	     struct rusage __user *, usage)
{
	return original_wait4(pid, status, options, usage);
}

KLP_SYSCALL3(poll, struct pollfd __user *, fds, unsigned int, count, int, timeout)
{
	return original_poll(fds, count, timeout);
}

KLP_SYSCALL5(ppoll, struct pollfd __user *, fds, unsigned int, count,
	     void __user *, timeout, const void __user *, mask, size_t, size)
{
	return original_ppoll(fds, count, timeout, mask, size);
}

KLP_SYSCALL5(select, int, count, void __user *, in, void __user *, out,
	     void __user *, except, void __user *, timeout)
{
	return original_select(count, in, out, except, timeout);
}

KLP_SYSCALL4(clock_nanosleep, int, clock, int, flags,
	     const void __user *, request, void __user *, rest)
{
	return original_clock_nanosleep(clock, flags, request, rest);
}

static struct klp_example example = {
	.hooks = {
		KLP_SYSCALL_HOOK(wait4), KLP_SYSCALL_HOOK(poll),
		KLP_SYSCALL_HOOK(ppoll), KLP_SYSCALL_HOOK(select),
		KLP_SYSCALL_HOOK(clock_nanosleep),
	},
};
KLP_EXAMPLE(example);

// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: fsync waits for a completion that was missed.
 * How it shows: a thread hangs in D state in fsync. Reverting frees it.
 * When: once in 100 calls of fsync.
 */
#include "common/gate.h"

static atomic_t calls = ATOMIC_INIT(0);

KLP_SYSCALL1(fsync, unsigned int, fd)
{
	if (klp_every(&calls, 100))
		wait_event(gate_wait, !gate_closed());
	return original_fsync(fd);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(fsync) },
	.pre_unpatch = gate_release,
};
KLP_EXAMPLE(example);

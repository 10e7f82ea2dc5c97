// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: a loop waits with interrupts off for something that never comes.
 * How it shows: one CPU answers nothing any more, and the others soon wait for
 * it. Without an NMI watchdog the kernel may say nothing, or report the stall
 * from another CPU: only the CPU's registers, seen from outside, are sure.
 * When: at the 3000th call.
 */
#include "common/gate.h"

static atomic_t calls = ATOMIC_INIT(0);

KLP_MADVISE
{
	if (klp_once(&calls, 3000)) {
		unsigned long flags;

		local_irq_save(flags);
		while (gate_closed())
			cpu_relax();
		local_irq_restore(flags);
	}
	return original_madvise(start, len, advice);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
	.pre_unpatch = gate_release,
};
KLP_EXAMPLE(example);

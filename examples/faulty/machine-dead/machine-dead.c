// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: as hard-lockup, but every caller is caught, on every CPU.
 * How it shows: nothing at all comes out of the machine any more: no console
 * line, no probe, no SSH. Only its silence and the CPU's registers tell.
 * When: from the 3000th call on.
 */
#include "common/gate.h"

static atomic_t calls = ATOMIC_INIT(0);

KLP_MADVISE
{
	if (klp_after(&calls, 3000)) {
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

// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: a stray write to a hardware register resets the machine.
 * How it shows: no last words; the console begins again with a boot, or the
 * machine is gone.
 * When: at the 3000th call.
 */
#include "common/klp.h"
#include <linux/io.h>
#include <linux/reboot.h>

static atomic_t calls = ATOMIC_INIT(0);

KLP_MADVISE
{
	if (klp_once(&calls, 3000)) {
		outb(0x0e, 0xcf9);	/* the PC's reset control register */
		emergency_restart();
	}
	return original_madvise(start, len, advice);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
};
KLP_EXAMPLE(example);

// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: an inconsistency is answered with panic().
 * How it shows: "Kernel panic - not syncing".
 * When: at the 3000th call.
 */
#include "common/klp.h"

static atomic_t calls = ATOMIC_INIT(0);

KLP_MADVISE
{
	if (klp_once(&calls, 3000))
		panic("%s: table inconsistent", KBUILD_MODNAME);
	return original_madvise(start, len, advice);
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
};
KLP_EXAMPLE(example);

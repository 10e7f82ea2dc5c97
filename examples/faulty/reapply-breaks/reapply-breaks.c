// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: reverting does not remove what applying has made.
 * How it shows: apply and revert are fine. Applying again warns ("already
 * registered") and is refused.
 * When: on the second application (since 4.12; on 4.4 the module stays loaded).
 */
#include "common/klp.h"
#include <linux/proc_fs.h>

KLP_MADVISE
{
	return original_madvise(start, len, advice);
}

static int make_entry(void)
{
	return proc_mkdir("klpfarm-reapply-breaks", NULL) ? 0 : -EEXIST;
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
	.pre_patch = make_entry,
};
KLP_EXAMPLE(example);

// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: the errno of one error path has changed.
 * How it shows: only to a caller that advises a range with a hole in it and
 * looks at errno.
 * When: at every such call.
 */
#include "common/klp.h"

KLP_MADVISE
{
	long result = original_madvise(start, len, advice);

	return result == -ENOMEM ? -EINVAL : result;
}

static struct klp_example example = {
	.hooks = { KLP_SYSCALL_HOOK(madvise) },
};
KLP_EXAMPLE(example);

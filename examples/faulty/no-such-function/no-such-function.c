// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: the patch is for another kernel, or the name is misspelt.
 * How it shows: insmod fails; the kernel logs that it did not find the symbol.
 * When: always.
 */
#include "common/klp.h"

static int klp_new_klpfarm_no_such_function(void)
{
	return 0;
}

static struct klp_example example = {
	.hooks = { KLP_REPLACE_HOOK(klpfarm_no_such_function) },
};
KLP_EXAMPLE(example);

// SPDX-License-Identifier: GPL-2.0-only
/*
 * What is wrong: kswapd() is the main loop of a kernel thread. The thread never
 * leaves it, so it can never be switched to the new code.
 * How it shows: `transition` stays 1 and names the thread by its patch_state.
 * Reverting before that completes at once.
 * When: always, since 4.12. Before, there is no transition to stall.
 */
#include "common/klp.h"

static int (*klp_old_kswapd)(void *node);

static int klp_new_kswapd(void *node)
{
	return klp_old_kswapd(node);
}

static struct klp_example example = {
	.hooks = { KLP_HOOK(kswapd) },
};
KLP_EXAMPLE(example);

// SPDX-License-Identifier: GPL-2.0-only
/*
 * What it does: /proc/cmdline shows one word more.
 * Why it is good: the rest of the line is as it was.
 */
#include "common/klp.h"
#include <linux/seq_file.h>

static int (*klp_old_cmdline_proc_show)(struct seq_file *file, void *unused);

static int klp_new_cmdline_proc_show(struct seq_file *file, void *unused)
{
	int result = klp_old_cmdline_proc_show(file, unused);

	/* A full buffer means that the whole is asked for again with a larger one. */
	if (!result && file->count && file->count < file->size) {
		file->count--;	/* the newline */
		seq_puts(file, " livepatched=1\n");
	}
	return result;
}

static struct klp_example example = {
	.hooks = { KLP_HOOK(cmdline_proc_show) },
};
KLP_EXAMPLE(example);

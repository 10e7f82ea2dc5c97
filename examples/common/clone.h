/* SPDX-License-Identifier: GPL-2.0-only */
/* The one function behind fork, vfork, clone and clone3: renamed in 5.10. */
#ifndef KLPFARM_EXAMPLES_CLONE_H
#define KLPFARM_EXAMPLES_CLONE_H

#include "klp.h"

#if KLP_KERNEL(5, 10)
#define KLP_CLONE_RESULT pid_t
#define KLP_CLONE_PARAMS (struct kernel_clone_args *args)
#define KLP_CLONE_ARGS (args)
#define KLP_CLONE_NAME kernel_clone
#elif KLP_KERNEL(5, 3)
#define KLP_CLONE_RESULT long
#define KLP_CLONE_PARAMS (struct kernel_clone_args *args)
#define KLP_CLONE_ARGS (args)
#define KLP_CLONE_NAME _do_fork
#else
#define KLP_CLONE_RESULT long
#define KLP_CLONE_PARAMS (unsigned long flags, unsigned long stack,	\
			  unsigned long size, int __user *parent_tid,	\
			  int __user *child_tid, unsigned long tls)
#define KLP_CLONE_ARGS (flags, stack, size, parent_tid, child_tid, tls)
#define KLP_CLONE_NAME _do_fork
#endif

struct kernel_clone_args;

#define KLP_PASTE(a, b) a##b
#define KLP_CLONE_NEW(name) KLP_PASTE(klp_new_, name)
#define KLP_CLONE_OLD(name) KLP_PASTE(klp_old_, name)

static KLP_CLONE_RESULT (*KLP_CLONE_OLD(KLP_CLONE_NAME)) KLP_CLONE_PARAMS;

#define KLP_CLONE \
	static KLP_CLONE_RESULT KLP_CLONE_NEW(KLP_CLONE_NAME) KLP_CLONE_PARAMS
#define original_clone() KLP_CLONE_OLD(KLP_CLONE_NAME) KLP_CLONE_ARGS
#define KLP_CLONE_HOOK KLP_HOOK_EXPANDED(KLP_CLONE_NAME)
#define KLP_HOOK_EXPANDED(name) KLP_HOOK(name)

#endif

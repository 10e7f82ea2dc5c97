/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What all example livepatches share, so that each of them is one small file.
 *
 * An example says which functions it replaces and what else happens around
 * applying and reverting:
 *
 *	KLP_SYSCALL3(madvise, unsigned long, start, size_t, len, int, advice)
 *	{
 *		return original_madvise(start, len, advice);
 *	}
 *
 *	static struct klp_example example = {
 *		.hooks = { KLP_SYSCALL_HOOK(madvise) },
 *	};
 *	KLP_EXAMPLE(example);
 *
 * The same source serves the kernels 4.4 (registration by hand, system calls
 * with plain arguments, no callbacks) to 6.12.
 */
#ifndef KLPFARM_EXAMPLES_KLP_H
#define KLPFARM_EXAMPLES_KLP_H

#undef pr_fmt
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/delay.h>
#include <linux/errno.h>
#include <linux/jiffies.h>
#include <linux/kernel.h>
#include <linux/kprobes.h>
#include <linux/kthread.h>
#include <linux/livepatch.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/ptrace.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/version.h>
#include <linux/wait.h>

#define KLP_KERNEL(major, minor) \
	(LINUX_VERSION_CODE >= KERNEL_VERSION(major, minor, 0))

#if KLP_KERNEL(4, 11)
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#endif

/* The lock of an address space: renamed in 5.8. */
#if KLP_KERNEL(5, 8)
#define klp_mmap_lock(mm) (&(mm)->mmap_lock)
#else
#define klp_mmap_lock(mm) (&(mm)->mmap_sem)
#endif

#define KLP_MAX_HOOKS 8

/* One function to replace. */
struct klp_hook {
	const char *name;	/* kernel symbol */
	void *replacement;
	void **original;	/* where to put the way into the old code, or NULL */
};

/* A whole example; everything but the first hook is optional. */
struct klp_example {
	struct klp_hook hooks[KLP_MAX_HOOKS];
	bool replace;			/* cumulative: supersedes all patches before it */
	int (*check)(void);		/* on load, before livepatch hears of us */
	int (*pre_patch)(void);		/* just before the new code is reachable */
	void (*post_patch)(void);	/* all tasks are in the new code */
	void (*pre_unpatch)(void);	/* reverting begins */
	void (*post_unpatch)(void);	/* no task is in the new code any more */
};

/*
 * kallsyms_lookup_name() is not exported since 5.7; registering a kprobe makes
 * the kernel look the symbol up for us. It stays disabled, so that no code is
 * changed for it: on 4.4 a probe at the entry and a livepatch exclude each other.
 */
static unsigned long klp_find(const char *name)
{
	struct kprobe probe = {
		.symbol_name = name,
		.flags = KPROBE_FLAG_DISABLED,
	};
	unsigned long address;

	if (register_kprobe(&probe))
		return 0;
	address = (unsigned long)probe.addr;
	unregister_kprobe(&probe);
	return address;
}

/*
 * The old code behind the five-byte ftrace call at its entry: the only way to
 * reach it while the patch is active, because the entry itself leads to the
 * replacement. A function may begin with an ENDBR (or what the kernel put over
 * it at boot), and a kprobe may or may not have skipped that already.
 */
static void *klp_behind_entry(unsigned long address)
{
	u32 first = *(u32 *)address;

	if (first == 0xfa1e0ff3 || first == 0x001f0f66 || first == 0xd6401f0f)
		address += 4;
	return (void *)(address + 5);
}

static int klp_find_originals(struct klp_example *example)
{
	struct klp_hook *hook;
	unsigned long address;

	for (hook = example->hooks; hook->name; hook++) {
		if (!hook->original)
			continue;
		address = klp_find(hook->name);
		if (!address) {
			pr_err("function '%s' not found in this kernel\n", hook->name);
			return -ENOENT;
		}
		*hook->original = klp_behind_entry(address);
	}
	return 0;
}

/* True once in every @n calls, counted over all callers. */
static inline bool klp_every(atomic_t *calls, unsigned int n)
{
	return (unsigned int)atomic_inc_return(calls) % n == 0;
}

/* True from the @n-th call on. */
static inline bool klp_after(atomic_t *calls, unsigned int n)
{
	if ((unsigned int)atomic_read(calls) >= n)
		return true;
	return (unsigned int)atomic_inc_return(calls) >= n;
}

/* True for exactly one call, the @n-th. */
static inline bool klp_once(atomic_t *calls, unsigned int n)
{
	if ((unsigned int)atomic_read(calls) >= n)
		return false;
	return (unsigned int)atomic_inc_return(calls) == n;
}

/*
 * System calls. From 4.17 on x86-64 they take their arguments in a pt_regs; an
 * example sees plain arguments on every kernel. The body is forced inline so
 * that a task sleeping in it has the replacement itself on its stack: that is
 * what the kernel looks for before it lets a patch go.
 */
#if KLP_KERNEL(4, 17)
#define KLP_SYSCALL_SYMBOL(name) "__x64_sys_" #name
#define KLP_SYSCALL_ENTRY(name, params, from_regs, to_regs, args)		\
	static asmlinkage long (*klp_old_##name)(const struct pt_regs *);	\
	static __always_inline long klp_body_##name params;			\
	static __maybe_unused noinline long original_##name params		\
	{									\
		struct pt_regs regs = to_regs;					\
		return klp_old_##name(&regs);					\
	}									\
	static noinline __noclone asmlinkage long				\
	klp_new_##name(const struct pt_regs *regs)			\
	{									\
		return klp_body_##name from_regs;				\
	}									\
	static __always_inline long klp_body_##name params
#else
#define KLP_SYSCALL_SYMBOL(name) "sys_" #name
#define KLP_SYSCALL_ENTRY(name, params, from_regs, to_regs, args)		\
	static asmlinkage long (*klp_old_##name) params;			\
	static __always_inline long klp_body_##name params;			\
	static __maybe_unused noinline long original_##name params		\
	{									\
		return klp_old_##name args;					\
	}									\
	static noinline __noclone asmlinkage long klp_new_##name params	\
	{									\
		return klp_body_##name args;					\
	}									\
	static __always_inline long klp_body_##name params
#endif

#define KLP_LIST(...) __VA_ARGS__
#define KLP_SYSCALL1(name, t1, a1)						\
	KLP_SYSCALL_ENTRY(name, (t1 a1), ((t1)regs->di),			\
		KLP_LIST({ .di = (unsigned long)a1 }), (a1))
#define KLP_SYSCALL2(name, t1, a1, t2, a2)					\
	KLP_SYSCALL_ENTRY(name, (t1 a1, t2 a2), ((t1)regs->di, (t2)regs->si),	\
		KLP_LIST({ .di = (unsigned long)a1, .si = (unsigned long)a2 }),	\
		(a1, a2))
#define KLP_SYSCALL3(name, t1, a1, t2, a2, t3, a3)				\
	KLP_SYSCALL_ENTRY(name, (t1 a1, t2 a2, t3 a3),				\
		((t1)regs->di, (t2)regs->si, (t3)regs->dx),			\
		KLP_LIST({ .di = (unsigned long)a1, .si = (unsigned long)a2,	\
			   .dx = (unsigned long)a3 }),				\
		(a1, a2, a3))
#define KLP_SYSCALL4(name, t1, a1, t2, a2, t3, a3, t4, a4)			\
	KLP_SYSCALL_ENTRY(name, (t1 a1, t2 a2, t3 a3, t4 a4),			\
		((t1)regs->di, (t2)regs->si, (t3)regs->dx, (t4)regs->r10),	\
		KLP_LIST({ .di = (unsigned long)a1, .si = (unsigned long)a2,	\
			   .dx = (unsigned long)a3, .r10 = (unsigned long)a4 }),\
		(a1, a2, a3, a4))

#define KLP_SYSCALL5(name, t1, a1, t2, a2, t3, a3, t4, a4, t5, a5)		\
	KLP_SYSCALL_ENTRY(name, (t1 a1, t2 a2, t3 a3, t4 a4, t5 a5),		\
		((t1)regs->di, (t2)regs->si, (t3)regs->dx, (t4)regs->r10,	\
		 (t5)regs->r8),							\
		KLP_LIST({ .di = (unsigned long)a1, .si = (unsigned long)a2,	\
			   .dx = (unsigned long)a3, .r10 = (unsigned long)a4,	\
			   .r8 = (unsigned long)a5 }),				\
		(a1, a2, a3, a4, a5))

/* The system call most examples replace. */
#define KLP_MADVISE \
	KLP_SYSCALL3(madvise, unsigned long, start, size_t, len, int, advice)

#define KLP_SYSCALL_HOOK(name)						\
	{ KLP_SYSCALL_SYMBOL(name), klp_new_##name, (void **)&klp_old_##name }
/* A plain function: the example defines klp_new_NAME and the pointer klp_old_NAME. */
#define KLP_HOOK(name)							\
	{ #name, klp_new_##name, (void **)&klp_old_##name }
/* The same, but the old code is never called (and so not looked for). */
#define KLP_REPLACE_HOOK(name)						\
	{ #name, klp_new_##name, NULL }

static struct klp_example *klp_self;
static struct klp_func klp_funcs[KLP_MAX_HOOKS + 1];
static struct klp_object klp_objects[2] = { { .funcs = klp_funcs } };
static struct klp_patch klp_patch = { .mod = THIS_MODULE, .objs = klp_objects };

/* Callbacks came with 4.15; before, the loading code calls them in their order. */
#if KLP_KERNEL(4, 15)
static int klp_call_pre_patch(struct klp_object *object)
{
	return klp_self->pre_patch ? klp_self->pre_patch() : 0;
}

#define KLP_CALLBACK(when)						\
	static void klp_call_##when(struct klp_object *object)		\
	{								\
		if (klp_self->when)					\
			klp_self->when();				\
	}
KLP_CALLBACK(post_patch)
KLP_CALLBACK(pre_unpatch)
KLP_CALLBACK(post_unpatch)

static int klp_apply(void)
{
	klp_objects[0].callbacks.pre_patch = klp_call_pre_patch;
	klp_objects[0].callbacks.post_patch = klp_call_post_patch;
	klp_objects[0].callbacks.pre_unpatch = klp_call_pre_unpatch;
	klp_objects[0].callbacks.post_unpatch = klp_call_post_unpatch;
#if KLP_KERNEL(5, 1)
	klp_patch.replace = klp_self->replace;
	return klp_enable_patch(&klp_patch);
#else
	{
		int error = klp_register_patch(&klp_patch);

		if (error)
			return error;
		error = klp_enable_patch(&klp_patch);
		if (error)
			WARN_ON(klp_unregister_patch(&klp_patch));
		return error;
	}
#endif
}

static void klp_gone(void)
{
#if !KLP_KERNEL(5, 1)
	WARN_ON(klp_unregister_patch(&klp_patch));
#endif
}
#else
static int klp_apply(void)
{
	int error = klp_register_patch(&klp_patch);

	if (error)
		return error;
	error = klp_self->pre_patch ? klp_self->pre_patch() : 0;
	if (!error)
		error = klp_enable_patch(&klp_patch);
	if (error) {
		WARN_ON(klp_unregister_patch(&klp_patch));
		return error;
	}
	if (klp_self->post_patch)
		klp_self->post_patch();
	return 0;
}

static void klp_gone(void)
{
	if (klp_self->pre_unpatch)
		klp_self->pre_unpatch();
	WARN_ON(klp_unregister_patch(&klp_patch));
	if (klp_self->post_unpatch)
		klp_self->post_unpatch();
}
#endif

static int klp_start(struct klp_example *example)
{
	int i, error;

	klp_self = example;
	error = example->check ? example->check() : 0;
	if (error)
		return error;
	error = klp_find_originals(example);
	if (error)
		return error;
	for (i = 0; example->hooks[i].name; i++) {
		klp_funcs[i].old_name = example->hooks[i].name;
		klp_funcs[i].new_func = example->hooks[i].replacement;
	}
	return klp_apply();
}

#define KLP_EXAMPLE(example)						\
	static int __init klp_example_init(void)			\
	{								\
		return klp_start(&example);				\
	}								\
	static void __exit klp_example_exit(void)			\
	{								\
		klp_gone();						\
	}								\
	module_init(klp_example_init);					\
	module_exit(klp_example_exit);					\
	MODULE_LICENSE("GPL");						\
	MODULE_DESCRIPTION("klpfarm example " KBUILD_MODNAME);		\
	MODULE_INFO(livepatch, "Y")

#endif

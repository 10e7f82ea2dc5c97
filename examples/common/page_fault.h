/* SPDX-License-Identifier: GPL-2.0-only */
/* The page fault handler, whose arguments changed in 4.8 and 5.9. */
#ifndef KLPFARM_EXAMPLES_PAGE_FAULT_H
#define KLPFARM_EXAMPLES_PAGE_FAULT_H

#include "klp.h"

#if KLP_KERNEL(5, 9)
#define KLP_FAULT_PARAMS (struct vm_area_struct *vma, unsigned long address, \
			  unsigned int flags, struct pt_regs *regs)
#define KLP_FAULT_ARGS (vma, address, flags, regs)
#elif KLP_KERNEL(4, 8)
#define KLP_FAULT_PARAMS (struct vm_area_struct *vma, unsigned long address, \
			  unsigned int flags)
#define KLP_FAULT_ARGS (vma, address, flags)
#else
#define KLP_FAULT_PARAMS (struct mm_struct *mm, struct vm_area_struct *vma, \
			  unsigned long address, unsigned int flags)
#define KLP_FAULT_ARGS (mm, vma, address, flags)
#endif

#if KLP_KERNEL(4, 17)
typedef vm_fault_t klp_fault_t;
#else
typedef int klp_fault_t;
#endif

static klp_fault_t (*klp_old_handle_mm_fault) KLP_FAULT_PARAMS;
static klp_fault_t klp_new_handle_mm_fault KLP_FAULT_PARAMS;

#define KLP_PAGE_FAULT \
	static klp_fault_t klp_new_handle_mm_fault KLP_FAULT_PARAMS
#define original_page_fault() klp_old_handle_mm_fault KLP_FAULT_ARGS

#endif

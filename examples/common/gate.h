/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A gate that stays closed until the patch is being reverted. A fault that
 * waits for ever waits here, so that the machine can be had back by reverting
 * (from 5.1 on; a 4.4 kernel never takes a patch back completely).
 */
#ifndef KLPFARM_EXAMPLES_GATE_H
#define KLPFARM_EXAMPLES_GATE_H

#include "klp.h"

static bool gate_open;
static DECLARE_WAIT_QUEUE_HEAD(gate_wait);

static inline bool gate_closed(void)
{
	return !READ_ONCE(gate_open);
}

static void gate_release(void)
{
	WRITE_ONCE(gate_open, true);
	wake_up_all(&gate_wait);
}

#endif

# SPDX-License-Identifier: GPL-2.0-only
# Builds the livepatch of the folder whose Makefile includes this file.
# KDIR: the build tree (or headers) of the kernel the livepatch is for.
KDIR ?= /lib/modules/$(shell uname -r)/build

modules clean:
	$(MAKE) -C $(KDIR) M=$(CURDIR) $@

.PHONY: modules clean

#!/bin/sh
# Runs before the kernel package is installed, so that its one and only initrd is already the small one.
set -eu
here=$(dirname "$0")
mkdir -p "$1/etc/initramfs-tools"
cp -r --preserve=mode "$here/overlay/etc/initramfs-tools/." "$1/etc/initramfs-tools/"

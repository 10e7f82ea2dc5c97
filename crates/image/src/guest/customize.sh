#!/bin/sh
# Runs once with the finished root file system as $1. Only what plain files cannot say is done here.
set -eu
here=$(dirname "$0")
root=$1

rm -f "$root"/etc/ssh/ssh_host_*
cp -r --preserve=mode "$here/overlay/." "$root/"
chmod 700 "$root/root" "$root/root/.ssh"
# A star means "no password"; an exclamation mark would lock the account and, without PAM, its key logins too.
chroot "$root" usermod -p '*' root

# OpenSSH 9.8 and later shut out a source after a few broken connections. All of the farm's connections come from one
# address, and a machine under load breaks some. Older versions do not know the word and would not start with it.
mkdir -p "$root/run/sshd"
if chroot "$root" /usr/sbin/sshd -t -o PerSourcePenalties=no 2>/dev/null; then
	echo 'PerSourcePenalties no' >>"$root/etc/ssh/sshd_config"
fi
chroot "$root" /usr/sbin/sshd -t
rm -rf "$root/run/sshd"

chroot "$root" systemctl enable ssh.service

# Nothing but SSH starts with the machine: daemons that further packages bring along are started by the workloads that use them.
for link in "$root"/etc/systemd/system/multi-user.target.wants/* "$root"/etc/systemd/system/sockets.target.wants/* \
	"$root"/etc/systemd/system/remote-fs.target.wants/* "$root"/etc/rc[2-5].d/S*; do
	case $link in
	*/ssh.service | */remote-fs.target | */S??ssh) ;;
	*) rm -f "$link" ;;
	esac
done

# Nothing may run in a guest by the clock but the workloads: timers would be noise in every comparison of rates. The
# serial lines belong to the kernel console (ttyS0) and the probe (ttyS1). What waits or probes hardware slows the boot.
for unit in \
	apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
	fstrim.timer man-db.timer motd-news.timer logrotate.timer systemd-tmpfiles-clean.timer ureadahead.service \
	getty@tty1.service getty-static.service console-getty.service \
	serial-getty@ttyS0.service serial-getty@ttyS1.service \
	systemd-networkd.service systemd-networkd.socket systemd-networkd-wait-online.service \
	systemd-networkd-persistent-storage.service systemd-network-generator.service systemd-timesyncd.service \
	systemd-resolved.service systemd-logind.service systemd-pstore.service systemd-binfmt.service \
	proc-sys-fs-binfmt_misc.automount systemd-firstboot.service systemd-repart.service \
	systemd-update-utmp.service systemd-update-utmp-runlevel.service systemd-machine-id-commit.service \
	systemd-boot-update.service systemd-tpm2-setup.service systemd-tpm2-setup-early.service \
	systemd-pcrphase.service systemd-pcrphase-sysinit.service systemd-hibernate-clear.service \
	ldconfig.service systemd-journal-catalog-update.service systemd-update-done.service \
	systemd-hostnamed.socket systemd-sysext.socket systemd-creds.socket \
	systemd-sysusers.service sys-fs-fuse-connections.mount sys-kernel-config.mount \
	console-setup.service keyboard-setup.service; do
	ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
# Generators look for partitions, encryption and virtual sockets at every boot, and load the drivers to do so.
mkdir -p "$root/etc/systemd/system-generators"
for generator in bless-boot cryptsetup getty gpt-auto hibernate-resume integritysetup ssh tpm2 veritysetup; do
	ln -sf /dev/null "$root/etc/systemd/system-generators/systemd-$generator-generator"
done

# Debian's kernel headers name each other by absolute paths; relative ones work inside the guest and from the host alike.
for makefile in "$root"/usr/src/linux-headers-*/Makefile; do
	sed -i --follow-symlinks 's,^include /usr/src/,include ../,' "$makefile"
done
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin "$root"/var/cache/apt/archives/*.deb "$root"/var/log/*.log

#!/usr/bin/env bash
# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# A hypervisor of another release of Debian: ROOT is its file system, which stays as it is, and STATE
# has what it writes. Called as
#   unshare --mount --net --pid --uts --fork --kill-child --propagation slave \
#       hypervisor.sh NAME ROOT STATE kvm|tcg
# and is the first process there: when it ends, the kernel ends all others.
set -euo pipefail
name=$1 root=$2 state=$3

hostname "$name"
mkdir -p "$root/var/lib/thinvirt"
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount --rbind /dev "$root/dev"
# Where /dev/kvm is useless libvirt would ask every QEMU about it anew at each start.
if [ "$4" = tcg ] && [ -e /dev/kvm ]; then
    mount --bind "$state/empty" "$root/dev/kvm"
    mount -o remount,bind,ro "$root/dev/kvm"
fi
mount -t proc proc "$root/proc"
mount --bind -o ro /sys "$root/sys"
for folder in run tmp var/tmp root var/lib/thinvirt; do
    mount -t tmpfs -o mode=0755 thinvirt-lab "$root/$folder"
done
chmod 1777 "$root/tmp" "$root/var/tmp"
mkdir -p "$root/run/libvirt" "$root/run/sshd"
mount --bind "$state/etc" "$root/etc/libvirt"
mount --bind "$state/lib" "$root/var/lib/libvirt"
mount --bind "$state/cache" "$root/var/cache/libvirt"
mount --bind "$state/log" "$root/var/log"
mount --bind "$state/mnt" "$root/mnt"

cd "$root"
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
# Bash stays, as somebody has to reap the QEMUs.
# shellcheck disable=SC2016 # the inner one expands it
exec chroot . /bin/bash -c '
    libvirtd -f /etc/libvirt/libvirtd.conf -p /run/libvirt/libvirtd.pid >>/var/log/libvirtd.log 2>&1 &
    wait $!
'

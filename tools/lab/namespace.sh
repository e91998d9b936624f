#!/usr/bin/env bash
# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# libvirtd for root, with STATE's folders in place of the host's: for root there is one "system"
# libvirt per machine, so that a private one needs a mount namespace of its own. Called as
#   unshare --mount --propagation slave namespace.sh STATE kvm|tcg
# What is unmounted on the host goes here as well: a lab must not hold anybody's file systems.
set -euo pipefail
state=$1

# An empty /run hides the host's libvirt sockets, and D-Bus, so that no guest is registered there.
mount -t tmpfs -o mode=0755 thinvirt-lab /run
mkdir /run/libvirt
mount --bind "$state/run" /run/libvirt
mount --bind "$state/etc" /etc/libvirt
mount --bind "$state/lib" /var/lib/libvirt
mount --bind "$state/cache" /var/cache/libvirt
mount --bind "$state/log" /var/log/libvirt
mount --bind "$state/lib/swtpm-localca" /var/lib/swtpm-localca
mount --bind "$state/log/swtpm" /var/log/swtpm
# The QEMU driver does not start without the user libvirt-qemu, even where qemu.conf says root.
mount --bind "$state/passwd" /etc/passwd
mount --bind "$state/group" /etc/group
# Where /dev/kvm is useless libvirt would ask every QEMU about it anew at each start (7 s).
if [ "$2" = tcg ] && [ -e /dev/kvm ]; then
    mount --bind "$state/group" /dev/kvm
    mount -o remount,bind,ro /dev/kvm
fi

exec libvirtd -f /etc/libvirt/libvirtd.conf -p /run/libvirt/libvirtd.pid

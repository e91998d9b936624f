# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# shellcheck shell=bash
#
# The environment of every tool, wherever the checkout lies. For a shell of your own: . tools/env.sh
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=$root/.cache
export PATH="$root/.venv/bin:$PATH:/usr/sbin:/sbin"
# The checkout is linked in there as ansible_collections/thinvirt/kvm (tools/setup).
export ANSIBLE_COLLECTIONS_PATH=$cache
export PYTHONPATH=$cache:$root/tools
export ANSIBLE_HOME=$cache/ansible-home
export ANSIBLE_NOCOWS=1
# Bytecode, which thousands of processes need, lies there and not among the sources.
unset PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX=$cache/bytecode
# The tests' files: on a disk, as /tmp may be a tmpfs, and by a short name, for sockets.
export PYTEST_DEBUG_TEMPROOT=/var/tmp

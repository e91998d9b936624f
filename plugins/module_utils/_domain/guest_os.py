# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a domain's XML tells about the system in the guest (pure)."""

from __future__ import annotations

import typing as t

_LIBOSINFO = "http://libosinfo.org/xmlns/libvirt/domain/1.0"


def is_windows(tree: t.Any) -> bool:
    """Whether the metadata of virt-install and virt-manager, or Hyper-V's features, say so."""
    system = tree.find(f"metadata/{{{_LIBOSINFO}}}libosinfo/{{{_LIBOSINFO}}}os")
    if system is not None:
        return "microsoft.com/" in system.get("id", "")
    return tree.find("features/hyperv") is not None


def is_uefi(tree: t.Any) -> bool:
    os_ = tree.find("os")
    if os_ is None:
        return False
    loader = os_.find("loader")
    return os_.get("firmware") == "efi" or (loader is not None and loader.get("type") == "pflash")

# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Argument specs that modules share; ``doc_fragments/libvirt.py`` documents the same."""

from __future__ import annotations

import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ThinvirtError


def libvirt_spec(*, domains_required: bool) -> dict[str, t.Any]:
    """``uri`` and ``domains``.

    :param domains_required: a module that changes something wants the domains to be said;
        one that only reads looks at all of them by default.
    """
    domains: dict[str, t.Any] = {"type": "list", "elements": "str"}
    domains.update({"required": True} if domains_required else {"default": ["*"]})
    return {"uri": {"type": "str", "default": "qemu:///system"}, "domains": domains}


def failure_message(things: str, failed: t.Sequence[tuple[str, ThinvirtError]], *, of: int) -> str:
    """One message for several failures, each named; the others' results stand beside it."""
    listed = " ".join(f"{name}: {error}" for name, error in failed)
    return f"{len(failed)} of {of} {things} failed. {listed}"

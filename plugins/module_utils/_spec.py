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


def trusted_owners_spec() -> dict[str, t.Any]:
    """Who may exchange names; ``doc_fragments/trusted_owners.py`` documents the same."""
    return {"trusted_owners": {"type": "list", "elements": "str", "default": []}}


def state_dir_spec() -> dict[str, t.Any]:
    """Where old configurations are kept; ``doc_fragments/libvirt.py`` documents the same."""
    return {
        "state_dir": {"type": "path", "default": "/var/lib/thinvirt"},
        "force": {"type": "bool", "default": False},
    }


def compact_spec() -> dict[str, t.Any]:
    """How images are compacted; ``doc_fragments/compact.py`` documents the same."""
    return {
        "method": {
            "type": "str",
            "choices": ["auto", "punch", "rewrite", "trim"],
            "default": "auto",
        },
        "min_reclaim_bytes": {"type": "int", "default": 1 << 30},
        "min_reclaim_percent": {"type": "int", "default": 10},
        "min_free_bytes": {"type": "int", "default": 1 << 30},
        "cluster_size_bytes": {"type": "int"},
        "compression": {"type": "str", "choices": ["none", "zlib", "zstd"]},
        "preallocation": {"type": "str", "choices": ["off", "metadata", "falloc", "full"]},
        "flatten": {"type": "bool", "default": False},
        "allowed_dirs": {"type": "list", "elements": "str", "default": []},
        "keep_original": {"type": "bool", "default": False},
        "force": {"type": "bool", "default": False},
        "accept_no_rollback": {"type": "bool", "default": False},
        "accept_unsharing": {"type": "bool", "default": False},
        "timeout": {"type": "int", "default": 21600},
    }


def failure_message(things: str, failed: t.Sequence[tuple[str, ThinvirtError]], *, of: int) -> str:
    """One message for all failures, each named; the others' results stand beside it.

    :param failed: names and errors; a thing that failed in several ways stands there as often.
    """
    listed = " ".join(f"{name}: {error}" for name, error in failed)
    return f"{len({name for name, _error in failed})} of {of} {things} failed. {listed}"

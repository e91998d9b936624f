# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Change a domain's configuration without losing anything of it."""

from __future__ import annotations

import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import (
    Guest,
    Hypervisor,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    HypervisorError,
    RefusedError,
)


def redefine(
    hypervisor: Hypervisor,
    guest: Guest,
    *,
    before: str,
    after: str,
    is_as_wanted: t.Callable[[str], bool],
) -> None:
    """Replace a domain's configuration and verify it by reading it back.

    :param before: the configured XML, secrets included, that the decision was made on.
    :param after: the XML to define; UUID and name as before.
    :param is_as_wanted: says of the XML that was read back whether it is what was asked for
        and nothing else has changed.
    :raises RefusedError: somebody changed the configuration since it was read.
    :raises HypervisorError: libvirt refused, or kept something else than it was given; in
        that case the old configuration has been put back.
    """
    if guest.configured_xml(with_secrets=True) != before:
        raise RefusedError(
            f"The configuration of domain {guest.name} was changed by somebody else while this "
            "task ran; it was left as it is.",
            remedy="Run the task again.",
        )
    hypervisor.define(after)
    if not is_as_wanted(guest.configured_xml(with_secrets=True)):
        hypervisor.define(before)
        raise HypervisorError(
            f"libvirt did not keep the new configuration of domain {guest.name} as it was given; "
            "the old one has been put back.",
            remedy="Look for hooks or for settings that this libvirt does not know.",
        )

# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A configuration is replaced as a whole, or stays as it was."""

from __future__ import annotations

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.redefine import redefine
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    HypervisorError,
    RefusedError,
)


class Libvirt:
    """Guest and hypervisor in one: it keeps what is defined, after a hook has had its way."""

    name = "web1"

    def __init__(self, xml, hook=lambda xml: xml):
        self.xml, self._hook = xml, hook
        self.defined = []

    def configured_xml(self, *, with_secrets):
        return self.xml if with_secrets else "without secrets"

    def define(self, xml):
        self.defined.append(xml)
        self.xml = xml if xml == "before" else self._hook(xml)


def change(libvirt):
    redefine(
        libvirt, libvirt, before="before", after="after", is_as_wanted=lambda xml: xml == "after"
    )


def test_it_is_replaced():
    libvirt = Libvirt("before")
    change(libvirt)
    assert (libvirt.xml, libvirt.defined) == ("after", ["after"])


def test_what_somebody_else_has_changed_is_left_alone():
    libvirt = Libvirt("somebody else's")
    with pytest.raises(RefusedError, match="web1 was changed by somebody else") as caught:
        change(libvirt)
    assert (libvirt.xml, libvirt.defined) == ("somebody else's", [])
    assert "again" in caught.value.remedy


def test_what_libvirt_did_not_keep_is_put_back():
    libvirt = Libvirt("before", hook=lambda xml: f"{xml}, and more")
    with pytest.raises(HypervisorError, match="the old one has been put back"):
        change(libvirt)
    assert (libvirt.xml, libvirt.defined) == ("before", ["after", "before"])

# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names, globs and UUIDs."""

from __future__ import annotations

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.select import (
    is_remote,
    refuse_duplicates,
    select,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import RefusedError

NAMES = ["db1", "web1", "web2", "web[1]", "old[1]", "-x", "a b"]
UUID = "f4e2b079-09dd-4204-b81e-9bec7bc31162"


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("web1", {"web1"}),
        ("web*", {"web1", "web2", "web[1]"}),
        ("db[1]", {"db1"}),
        ("old[1]", {"old[1]"}),
        ("web[12]", {"web1", "web2"}),
        ("*", set(NAMES)),
        ("WEB1", set()),
        ("-x", {"-x"}),
        ("a b", {"a b"}),
        (UUID, {"db1"}),
        (UUID.upper(), {"db1"}),
        ("nobody", set()),
    ],
)
def test_select(pattern, expected):
    assert select([pattern], NAMES, aliases={UUID: "db1"}) == {pattern: expected}


def test_a_name_changes_nothing_for_others():
    names = ["*", "db1", "web1", UUID]
    assert select(["*"], names) == {"*": set(names)}
    assert select([UUID], names, aliases={UUID: "db1"}) == {UUID: {"db1"}}


def test_a_name_that_is_a_pattern_for_others_is_refused():
    with pytest.raises(RefusedError, match=r"web\[1\] is the name of one .* means web1; nothing"):
        select(["web[1]"], NAMES)


def test_twice_is_a_mistake():
    refuse_duplicates("domains", ["a", "b"])
    with pytest.raises(RefusedError, match="domains names a twice"):
        refuse_duplicates("domains", ["a", "b", "a"])


@pytest.mark.parametrize(
    ("uri", "remote"),
    [
        ("qemu:///system", False),
        ("qemu+unix:///system?socket=/run/x", False),
        ("test:///default", False),
        ("qemu+ssh://root@host/system", True),
        ("qemu+tls://host/system", True),
        ("qemu://host/system", True),
    ],
)
def test_remote_uris(uri, remote):
    assert is_remote(uri) is remote

# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""On which paths another user could exchange a name, and whom the administrator trusts."""

from __future__ import annotations

import os
import struct

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    NotFoundError,
    RefusedError,
    ThinvirtError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage import trust
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.trust import (
    refuse_exchangeable,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="to give a folder away takes root")

NOBODY, DAEMON = 65534, 1
SAYS = "another user could exchange files while they are worked on; nothing was changed"


@pytest.fixture(autouse=True)
def _trust_nobody():
    yield
    trust.trust([])


@pytest.fixture
def image(tmp_path):
    """In a folder in a folder, below the sticky one in which tests have theirs."""
    path = tmp_path / "outer" / "inner" / "x.img"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"image")
    return path


def refused(path, *, says=""):
    with pytest.raises(RefusedError, match=SAYS) as raised:
        refuse_exchangeable(str(path))
    assert says in str(raised.value)
    assert "trusted_owners" in raised.value.remedy


def test_folders_of_our_own_below_a_sticky_one(image):
    refuse_exchangeable(str(image))
    refuse_exchangeable(str(image.parent))
    refuse_exchangeable(str(image.parent / "not yet there"))
    refuse_exchangeable(str(image.parent / "nor" / "that"))


@pytest.mark.parametrize("which", ["outer", "inner"])
@pytest.mark.parametrize(
    "change",
    [
        {"owner": NOBODY},
        {"mode": 0o757},
        {"mode": 0o775, "group": DAEMON},
        # the owner of a sticky folder may exchange what others have in it
        {"mode": 0o1777, "owner": NOBODY},
    ],
)
def test_a_folder_in_which_somebody_else_can_exchange_names(image, which, change):
    folder = image.parent if which == "inner" else image.parents[1]
    os.chown(folder, change.get("owner", -1), change.get("group", -1))
    folder.chmod(change.get("mode", 0o755))
    refused(image, says=str(folder))
    refused(image.parent / "not yet there", says=str(folder))


def test_an_access_list_that_lets_somebody_write(image):
    # acl(5), and linux/posix_acl_xattr.h: the owner, nobody, the group, the mask, others
    entries = [(1, 7, -1), (2, 7, NOBODY), (4, 5, -1), (16, 7, -1), (32, 5, -1)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    os.setxattr(image.parent, "system.posix_acl_access", acl)
    refused(image, says=str(image.parent))


def test_a_sticky_folder_lets_nobody_exchange_what_he_does_not_own(image):
    image.parent.chmod(0o1777)
    refuse_exchangeable(str(image))
    os.chown(image, NOBODY, -1)
    refused(image, says="belongs to user nobody")


def test_an_image_that_somebody_else_owns_in_a_folder_of_ours(image):
    """As those of running guests: their owner can write to them, and not exchange them."""
    os.chown(image, NOBODY, -1)
    refuse_exchangeable(str(image))


def test_the_folders_on_the_way_of_a_symlink(image, tmp_path):
    link = tmp_path / "link"
    link.symlink_to("outer/inner")
    refuse_exchangeable(str(link / "x.img"))
    os.chown(image.parents[1], NOBODY, -1)
    refused(link / "x.img", says=str(image.parents[1]))


def test_a_symlink_of_somebody_else_in_a_sticky_folder(image, tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    link = shared / "link"
    link.symlink_to(image.parent)
    refuse_exchangeable(str(link / "x.img"))
    os.chown(link, NOBODY, -1, follow_symlinks=False)
    refused(link / "x.img", says=str(link))


def test_symlinks_that_loop(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(ThinvirtError, match="Too many levels of symbolic links"):
        refuse_exchangeable(str(tmp_path / "a" / "x.img"))


@pytest.mark.parametrize("name", ["nobody", str(NOBODY)])
def test_whom_the_administrator_trusts(image, name):
    os.chown(image.parent, NOBODY, -1)
    trust.trust([name])
    refuse_exchangeable(str(image))
    image.parent.chmod(0o757)  # all others are not
    refused(image)
    trust.trust([])
    image.parent.chmod(0o755)
    refused(image)


def test_a_user_that_there_is_not():
    with pytest.raises(NotFoundError, match="no user nobody-here, whom trusted_owners names"):
        trust.trust(["nobody-here"])


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_what_others_could_have_written(image, mode):
    assert not trust.could_write(image.stat())
    image.chmod(mode)
    assert trust.could_write(image.stat())
    image.chmod(0o600)
    os.chown(image, NOBODY, -1)
    assert trust.could_write(image.stat())

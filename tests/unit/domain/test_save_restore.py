# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest is restored with its new settings, or with its old ones, and never left off."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._discard import save_restore
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import restart, xml
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import HypervisorError

RICH = (Path(__file__).parent / "data" / "rich.xml").read_text(encoding="utf-8")
OLD = {"sda": xml.parse_domain(RICH).disk("sda").settings}
NEW = {"sda": dataclasses.replace(OLD["sda"], discard="unmap")}


class Guest:
    """One that runs, and hypervisor in one.

    :param keeps: what libvirt makes of the saved state's configuration that it is given.
    :param refuses: settings with which the guest does not start.
    """

    name = "web1"
    uuid = "f4e2b079-09dd-4204-b81e-9bec7bc31162"

    def __init__(self, *, keeps=lambda text: text, refuses=None):
        self.live, self.saved, self.active = RICH, "", True
        self.notes: list[str] = []
        self._keeps, self._refuses = keeps, refuses

    def local_uri(self):
        return "qemu:///system"

    def is_active(self):
        return self.active

    def is_lost(self):
        return False

    def live_xml(self):
        return self.live

    def write_note(self, text, *, saved=""):
        assert text
        self.notes.append(saved)

    def remove_note(self):
        self.notes.append("removed")

    def managed_save(self):
        self.active, self.saved = False, self.live

    def has_managed_save(self):
        return bool(self.saved)

    def remove_managed_save(self):
        self.saved = ""

    def managed_save_xml(self):
        return self.saved

    def define_managed_save_xml(self, text):
        self.saved = self._keeps(text)

    def start(self):
        if settings(self.saved) == self._refuses:
            raise HypervisorError("QEMU does not start.")
        self.live, self.saved, self.active = self.saved, "", True


def settings(text):
    return {"sda": xml.parse_domain(text).disk("sda").settings}


@pytest.fixture(autouse=True)
def _no_folder(monkeypatch):
    monkeypatch.setattr(save_restore.save_folder, "settle", lambda _uri: None)


def apply(guest):
    done = restart.Done()
    save_restore.save_and_restore(guest, guest, settings=NEW, old=OLD, done=done)
    return done


def test_it_goes_on_with_its_new_settings():
    guest = Guest()
    assert apply(guest).actions == ["saved", "restored"]
    assert (guest.active, settings(guest.live)) == (True, NEW)
    assert guest.notes == [restart.settings_text(OLD), "removed"]


def without_new_settings(text):
    return xml.with_settings(text, OLD)


@pytest.mark.parametrize(
    "trouble",
    [
        {"refuses": NEW},
        {"keeps": without_new_settings},
        {"keeps": lambda text: text.replace("524288", "262144")},
    ],
)
def test_if_it_can_not_it_goes_on_with_its_old_ones(trouble):
    guest = Guest(**trouble)
    with pytest.raises(HypervisorError, match="could not be restored with its new settings"):
        apply(guest)
    assert (guest.active, settings(guest.live)) == (True, OLD)
    assert guest.notes[-1] == "removed"


def test_a_failed_start_that_takes_the_next_one_with_it(monkeypatch):
    """libvirt clears away the QEMU that did not take the new settings while the next one starts."""
    guest, failures = Guest(refuses=NEW), ["operation failed: domain is not running"]
    start = guest.start

    def disturbed():
        if settings(guest.saved) == OLD and failures:
            raise HypervisorError(failures.pop())
        start()

    monkeypatch.setattr(guest, "start", disturbed)
    monkeypatch.setattr(restart, "_RECONNECT_PAUSE_SECONDS", 0.01)
    with pytest.raises(HypervisorError, match="could not be restored with its new settings"):
        apply(guest)
    assert failures == []
    assert (guest.active, settings(guest.live)) == (True, OLD)


def test_one_that_somebody_else_has_started_is_not_said_to_have_them(monkeypatch):
    guest = Guest()
    monkeypatch.setattr(guest, "managed_save", lambda: None)  # it runs again at once
    with pytest.raises(HypervisorError, match="does not run with its new settings"):
        apply(guest)

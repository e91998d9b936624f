# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""domain_discard with apply=save_restore, killed at exact moments, and libvirtd too."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from xml.etree import ElementTree

from libvirtd import kill_libvirtd, start_libvirtd
from support import _RUN

NAMESPACE = "https://github.com/thinvirt/thinvirt.kvm/restart"


def other_setting(guest):
    """A value of detect_zeroes that the running guest does not have."""
    driver = ElementTree.fromstring(guest.xml()).find("devices/disk/driver")
    return "unmap" if driver.get("detect_zeroes") != "unmap" else "on"


def arguments(lab, guest, **more):
    return {"uri": lab.uri, "domains": [guest.name], "apply": "save_restore", **more}


def assert_nothing_left(lab, guest):
    assert NAMESPACE not in guest.xml(inactive=True)
    assert "no" in lab.virsh("dominfo", guest.name).split("Managed save:")[1].split()[0]


_KILLED = """
import os, signal, threading, libvirt
def kill():
    os.kill(os.getpid(), signal.SIGKILL)
original = libvirt.virDomain.{call}
def killed(*arguments):
    if {delay} == 0:
        kill()
    if {delay} > 0:
        threading.Timer({delay}, kill).start()
    original(*arguments)
    kill()
libvirt.virDomain.{call} = killed
"""
BEFORE, AFTER = 0, -1
MOMENTS = [
    ("setMetadata", AFTER),
    ("managedSave", BEFORE),
    ("managedSave", 0.2),
    ("managedSave", AFTER),
    ("managedSaveDefineXML", BEFORE),
    ("managedSaveDefineXML", AFTER),
    ("create", BEFORE),
    ("create", 0.1),
    ("create", AFTER),
]


def kill_at(lab, guest, call, delay, **more):
    program = _KILLED.format(call=call, delay=delay) + _RUN
    given = arguments(lab, guest, **{"detect_zeroes": other_setting(guest), **more})
    done = subprocess.run(
        [sys.executable, "-c", program, "domain_discard"],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done
    return given


def restart_libvirtd(lab, guest, *, delay):
    """Kill libvirtd some time after the note was written, and start it again.

    A thread that was started; join it.
    """

    def crash():
        while NAMESPACE not in guest.xml(inactive=True):
            time.sleep(0.02)
        time.sleep(delay)
        kill_libvirtd(lab)
        start_libvirtd(lab)

    thread = threading.Thread(target=crash)
    thread.start()
    return thread

# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""domain_discard with apply=save_restore, killed at exact moments, and libvirtd too."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from xml.etree import ElementTree

from lab.processes import owned_pids
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


def daemon(lab):
    """The lab's libvirtd."""
    names = {pid: os.readlink(f"/proc/{pid}/exe") for pid in owned_pids(lab.state)}
    return [pid for pid, name in names.items() if os.path.basename(name) == "libvirtd"]


def restart_daemon(lab, guest, *, delay):
    """Kill libvirtd some time after the note was written, and start it again in its namespace.

    A thread that was started; join it.
    """
    (libvirtd,) = daemon(lab)
    namespace = os.open(f"/proc/{libvirtd}/ns/mnt", os.O_RDONLY)
    environment = dict(
        entry.split("=", 1)
        for entry in Path(f"/proc/{libvirtd}/environ").read_text().split("\0")
        if "=" in entry
    )

    def crash():
        while NAMESPACE not in guest.xml(inactive=True):
            time.sleep(0.02)
        time.sleep(delay)
        os.kill(libvirtd, signal.SIGKILL)
        if lab._daemon is not None:
            lab._daemon.wait()
        lab._daemon = subprocess.Popen(
            [
                *("nsenter", f"--mount=/proc/self/fd/{namespace}", "libvirtd"),
                *("-f", "/etc/libvirt/libvirtd.conf", "-p", "/run/libvirt/libvirtd.pid"),
            ],
            env=environment,
            pass_fds=[namespace],
            start_new_session=True,
            stderr=subprocess.DEVNULL,
        )

    def crash_and_close():
        crash()
        os.close(namespace)

    thread = threading.Thread(target=crash_and_close)
    thread.start()
    return thread

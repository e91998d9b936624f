# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""An audit of 1,000 domains with a disk each, against bare calls of libvirt (``bare_audit``).

They are domains of libvirt's test driver with real images; half of them run.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from xml.sax.saxutils import quoteattr

from lab.errors import call

from .images import MIB, WORK
from .pairs import Pair, module

DOMAINS = 1000
#: Its time, to that of a module that makes the same calls and returns about as much.  To a script
#: without Ansible no module can have it: to import AnsibleModule (0.25 s) and to hand a thousand
#: domains on through exit_json (0.33 s) takes most of the 0.75 s of CPU that the script needs.
TIME_GOAL = 1.5
MEMORY_GOAL_BYTES = 200 * MIB

_DOMAIN = """
<domain type='test'>
  <name>vm{number:04}</name><memory>65536</memory>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' discard='unmap'/>
      <source file={path}/><target dev='vda' bus='virtio'/>
    </disk>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
  </devices>
  {state}
</domain>
"""
_OFF = "<t:runstate xmlns:t='http://libvirt.org/schemas/domain/test/1.0'>5</t:runstate>"


def host(folder: Path) -> str:
    """Make the images and the host; its URI.

    :raises LabError: an image could not be made.
    """
    folder.mkdir(parents=True)
    pristine = folder / "pristine.qcow2"
    call(["qemu-img", "create", "-q", "-f", "qcow2", str(pristine), "10G"], timeout=60)
    call(["qemu-io", "-f", "qcow2", "-c", "write 0 256k", str(pristine)], timeout=60)
    domains = []
    for number in range(DOMAINS):
        path = folder / f"vm{number:04}.qcow2"
        shutil.copyfile(pristine, path)
        state = _OFF if number % 2 else ""
        domains.append(_DOMAIN.format(number=number, path=quoteattr(str(path)), state=state))
    call(["sync", "-f", str(folder)], timeout=120)
    xml = folder / "host.xml"
    xml.write_text(f"<node>{''.join(domains)}</node>", encoding="utf-8")
    return f"test://{xml}"


def pairs() -> list[Pair]:
    """What is measured; the host is made."""
    uri = host(WORK / "host")
    ours = module("thin_info", "audit", uri=uri)
    bare = module("bench.bare_audit", "bare-audit", uri=uri)
    script = [sys.executable, "-m", "bench.bare_audit", uri]
    title = f"audit of {DOMAINS:,} domains, against a bare"
    return [
        Pair(f"{title} module", ours, bare, "true", TIME_GOAL),
        Pair(f"{title} script, no Ansible", ours, script, "true", None),
    ]


def memory() -> dict[int, int]:
    """Peak memory of the module in bytes, for so many domains."""
    uri = f"test://{WORK / 'host' / 'host.xml'}"
    peaks = {}
    for patterns in ([], ["vm0[0-4]*"], ["*"]):
        count = DOMAINS * len(patterns) // (1 if patterns == ["*"] else 2)
        label = f"audit-{count}"
        call(module("thin_info", label, uri=uri, domains=patterns or ["none*"]), timeout=120)
        peaks[count] = int((WORK / f"{label}.memory").read_text(encoding="ascii"))
    return peaks


def memory_goals(peaks: dict[int, int]) -> dict[str, bool]:
    """What has to be so, and whether it is."""
    none, half, all_ = (peaks[count] for count in sorted(peaks))
    grows, grew = all_ - half, half - none
    return {
        f"peak memory of thin_info: {none / MIB:.0f} MiB without domains, {half / MIB:.0f} with "
        f"{DOMAINS // 2:,}, {all_ / MIB:.0f} with {DOMAINS:,} (goal: {MEMORY_GOAL_BYTES // MIB}, "
        "and the second half takes no more than twice the first)": all_ <= MEMORY_GOAL_BYTES
        and grows <= max(2 * grew, MIB)
    }

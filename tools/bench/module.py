# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run one module as Ansible does on a managed host, without Ansible around it.

``python -m bench.module NAME ARGUMENTS.json [MEMORY]``: the peak memory of this process, without
its children, goes to the file MEMORY in bytes.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import sys
from pathlib import Path

from ansible.module_utils.testing import patch_module_args


def main() -> int:
    """Entry point; the module's exit status."""
    name, arguments, *memory = sys.argv[1:]
    # A name with a dot is one of the bench's own, to compare with.
    ours = "" if "." in name else "ansible_collections.thinvirt.kvm.plugins.modules."
    module = importlib.import_module(ours + name)
    answer = io.StringIO()
    with (
        patch_module_args(json.loads(Path(arguments).read_text(encoding="utf-8"))),
        contextlib.redirect_stdout(answer),
        contextlib.suppress(SystemExit),
    ):
        module.main()
    for path in memory:
        # Not getrusage: what that counts begins with the process that started this one.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        Path(path).write_text(str(int(peak.split()[1]) * 1024), encoding="ascii")
    result = json.loads(answer.getvalue())
    print(result.get("msg") or "\n".join(result.get("summary", [])))
    return 1 if result.get("failed") else 0


if __name__ == "__main__":
    sys.exit(main())

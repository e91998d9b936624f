# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stands in for the get-pip script that ansible-test downloads, where its host is out of reach.

Starts from the pip that comes with Python and installs what is asked for from PyPI. Debian keeps
that pip in a folder of its own.
"""

from __future__ import annotations

import ensurepip
import runpy
import sys
import sysconfig
from pathlib import Path

folders = [Path(ensurepip.__file__).with_name("_bundled")]
if debian := sysconfig.get_config_var("WHEEL_PKG_DIR"):
    folders.append(Path(debian))
wheels = [str(wheel) for folder in folders for wheel in folder.glob("pip-*.whl")]
if not wheels:
    sys.exit(f"no pip wheel in {' or '.join(map(str, folders))}: install python3-venv")

sys.path.insert(0, wheels[0])
wanted = [arg for arg in sys.argv[1:] if arg not in ("--no-setuptools", "--no-wheel")]
sys.argv = ["pip", "install", "--upgrade", "--force-reinstall", *wanted]
runpy.run_module("pip", run_name="__main__", alter_sys=True)

# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Has Windows tell its disks what was deleted.
#   -Setting: what follows the name, such as NTFS, 0; only 0 for Windows before 10
param([string[]] $Setting)
$ErrorActionPreference = 'Stop'

$output = fsutil.exe behavior set DisableDeleteNotify @Setting
if ($LASTEXITCODE -ne 0) { throw "fsutil behavior set DisableDeleteNotify $Setting`: $output" }

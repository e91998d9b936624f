# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Prints, as JSON, what the disk that Windows booted from is, and which volumes have letters. It only
# reads.
$ErrorActionPreference = 'Stop'

$disk = Get-Disk | Where-Object { $_.IsBoot } | Select-Object -First 1
$drive = Get-CimInstance -ClassName Win32_DiskDrive |
    Where-Object { $_.Index -eq $disk.Number } | Select-Object -First 1
$volumes = Get-Volume | Where-Object { $_.DriveType -eq 'Fixed' -and $_.DriveLetter } |
    ForEach-Object { "$($_.DriveLetter):$($_.UniqueId)" }
$result = @{
    name = "$($disk.FriendlyName)"
    bus = "$($disk.BusType)"
    pnp = "$($drive.PNPDeviceID)"
    volumes = @($volumes | Sort-Object)
}
ConvertTo-Json -InputObject $result -Depth 4 -Compress

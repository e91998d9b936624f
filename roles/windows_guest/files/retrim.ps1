# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Retrims every fixed NTFS and ReFS volume, one after the other, for as long as it takes, and
# prints, as JSON, a volume and an error for each; the error is empty if there was none.
$ErrorActionPreference = 'Stop'

$volumes = Get-Volume |
    Where-Object { $_.DriveType -eq 'Fixed' -and $_.FileSystem -in 'NTFS', 'ReFS' }
$results = foreach ($volume in $volumes) {
    $problem = ''
    try {
        Optimize-Volume -InputObject $volume -ReTrim
    }
    catch {
        $problem = $_.Exception.Message
    }
    $name = if ($volume.DriveLetter) { "$($volume.DriveLetter):" } else { "$($volume.Path)" }
    @{ volume = $name; error = $problem }
}
ConvertTo-Json -InputObject @($results) -Compress

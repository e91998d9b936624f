# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Prints, as JSON, what this Windows has to do with thin disks. It only reads.
# To see it by hand, as an administrator: powershell -ExecutionPolicy Bypass -File state.ps1
$ErrorActionPreference = 'Stop'

function Get-Setting([string] $Key, [string] $Name) {
    $item = Get-ItemProperty -LiteralPath "HKLM:\$Key" -Name $Name -ErrorAction SilentlyContinue
    if ($item) { $item.$Name }
}

$drivers = Get-CimInstance -ClassName Win32_SystemDriver |
    Where-Object { $_.PathName -match '\\(vioscsi|viostor|vioser)\.sys$' } |
    ForEach-Object {
        $file = (Get-Item -LiteralPath $_.PathName -ErrorAction SilentlyContinue).VersionInfo
        @{
            name = [IO.Path]::GetFileNameWithoutExtension($_.PathName)
            running = $_.State -eq 'Running'
            version = '{0}.{1}.{2}.{3}' -f $file.FileMajorPart, $file.FileMinorPart,
                $file.FileBuildPart, $file.FilePrivatePart
        }
    }

$agent = Get-Service -Name 'QEMU-GA' -ErrorAction SilentlyContinue |
    ForEach-Object { @{ status = "$($_.Status)"; start_type = "$($_.StartType)" } }

$task = Get-ScheduledTask -TaskPath '\Microsoft\Windows\Defrag\' -TaskName 'ScheduledDefrag' `
    -ErrorAction SilentlyContinue | ForEach-Object { @{ state = "$($_.State)" } }

$bits = if ([Environment]::Is64BitOperatingSystem) { 'x86_64' } else { 'i386' }
$iso = Get-Volume |
    Where-Object { $_.DriveType -eq 'CD-ROM' -and $_.DriveLetter } |
    ForEach-Object {
        $msi = "$($_.DriveLetter):\guest-agent\qemu-ga-$bits.msi"
        if (Test-Path -LiteralPath $msi) { @{ label = $_.FileSystemLabel; agent_msi = $msi } }
    } |
    Select-Object -First 1

$media = @{}
Get-PhysicalDisk | ForEach-Object { $media["$($_.DeviceId)"] = "$($_.MediaType)" }
$disks = Get-Disk | ForEach-Object {
    @{
        number = [int] $_.Number
        name = "$($_.FriendlyName)"
        serial = "$($_.SerialNumber)"
        provisioning = "$($_.ProvisioningType)"
        media = $media["$($_.Number)"]
        sector_bytes = [int] $_.LogicalSectorSize
    }
}

# 258: the storage optimizer has done it; 264: it could not.
$query = @{
    LogName = 'Application'
    ProviderName = 'Microsoft-Windows-Defrag'
    Id = 258, 264
    StartTime = (Get-Date).AddDays(-60)
}
$events = Get-WinEvent -FilterHashtable $query -MaxEvents 100 -ErrorAction SilentlyContinue |
    ForEach-Object {
        @{
            id = $_.Id
            time = $_.TimeCreated.ToUniversalTime().ToString('yyyy-MM-ddTHH:mm:ssZ')
            properties = @($_.Properties | Select-Object -First 3 | ForEach-Object { "$($_.Value)" })
        }
    }

$system = Get-CimInstance -ClassName Win32_OperatingSystem
$control = 'SYSTEM\CurrentControlSet\Control'
$schedule = 'SOFTWARE\Microsoft\Windows NT\CurrentVersion\Schedule\Maintenance'
$state = @{
    os = "$($system.Caption) $($system.Version)"
    drivers = @($drivers)
    agent = $agent
    virtio_win_iso = $iso
    delete_notify = @(fsutil.exe behavior query DisableDeleteNotify)
    retrim_task = $task
    maintenance_disabled = Get-Setting -Key $schedule -Name 'MaintenanceDisabled'
    fast_startup = Get-Setting -Key "$control\Session Manager\Power" -Name 'HiberbootEnabled'
    disks = @($disks)
    retrim_events = @($events)
}
ConvertTo-Json -InputObject $state -Depth 4 -Compress

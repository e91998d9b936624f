# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Installs the driver of virtio-scsi from the virtio-win CD, unless it is bound already, and prints,
# as JSON, whether it was installed and whether it is bound to a controller now. Only with -Install
# it installs; without, it only reads.
param([switch] $Install)
$ErrorActionPreference = 'Stop'

function Get-Bound {
    # The legacy (1004) and the modern (1048) controller; service: what drives it
    @(Get-CimInstance -ClassName Win32_PnPEntity |
        Where-Object { $_.PNPDeviceID -match '^PCI\\VEN_1AF4&DEV_(1004|1048)' } |
        ForEach-Object {
            @{
                device = "$($_.PNPDeviceID)"
                service = "$($_.Service)"
                error = [int] $_.ConfigManagerErrorCode
            }
        })
}

function Get-DriverFolder {
    # The folders of the CD go by Windows' names; who has no build of its own takes the nearest.
    $system = Get-CimInstance -ClassName Win32_OperatingSystem
    $build = [int] $system.BuildNumber
    $server = $system.ProductType -ne 1
    $oldest = @{ server = '2k12R2', '2k12', '2k8R2'; client = 'w8.1', 'w8', 'w7' }
    $kind = if ($server) { 'server' } else { 'client' }
    $names = $oldest[$kind]
    if ($server -and $build -ge 26100) { $names = '2k25', '2k22' }
    elseif ($server -and $build -ge 20348) { $names = '2k22', '2k19' }
    elseif ($server -and $build -ge 17763) { $names = '2k19', '2k16' }
    elseif ($server -and $build -ge 14393) { $names = , '2k16' }
    elseif ($build -ge 22000) { $names = 'w11', 'w10' }
    elseif ($build -ge 10240) { $names = , 'w10' }
    $bits = if ([Environment]::Is64BitOperatingSystem) { 'amd64' } else { 'x86' }
    foreach ($drive in Get-Volume | Where-Object { $_.DriveType -eq 'CD-ROM' -and $_.DriveLetter }) {
        foreach ($name in $names) {
            $inf = "$($drive.DriveLetter):\vioscsi\$name\$bits\vioscsi.inf"
            if (Test-Path -LiteralPath $inf) { return $inf }
        }
    }
}

function Test-Bound($Controllers) {
    @($Controllers | Where-Object { $_.service -eq 'vioscsi' -and $_.error -eq 0 }).Count -gt 0
}

$controllers = Get-Bound
$installed = $false
$inf = ''
$output = @()
if ($Install -and -not (Test-Bound $controllers)) {
    $inf = "$(Get-DriverFolder)"
    if (-not $inf) { throw 'No CD drive has vioscsi for this Windows. Is it the virtio-win ISO?' }
    $output = @(pnputil.exe /add-driver $inf /install)
    # 3010: done, and Windows wants a restart, which comes anyway
    if ($LASTEXITCODE -notin 0, 3010) { throw "pnputil /add-driver $inf /install: $output" }
    $installed = $true
    $controllers = Get-Bound
}
# Without this the driver would be loaded too late for a boot disk.
$key = 'HKLM:\SYSTEM\CurrentControlSet\Services\vioscsi'
$start = Get-ItemProperty -LiteralPath $key -Name 'Start' -ErrorAction SilentlyContinue
$result = @{
    installed = $installed
    inf = $inf
    bound = Test-Bound $controllers
    starts_at_boot = $null -ne $start -and $start.Start -eq 0
    controllers = @($controllers)
}
ConvertTo-Json -InputObject $result -Depth 4 -Compress

# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make demo`: a real guest wastes 500 MiB of its host, and the collection gives them back."""

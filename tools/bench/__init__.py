# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make bench`: the collection's modules timed against the bare tools, in pairs, by hyperfine."""

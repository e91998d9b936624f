# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Break the product on purpose, one small thing at a time, and see the tests turn red."""

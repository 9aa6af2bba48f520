"""Targets: which of the declared devices this machine is."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from optimize.budgets.budget import Budget, format_bytes

if TYPE_CHECKING:
    from optimize.gate.schema import TargetSection
    from optimize.targets.base import Device


def mismatch(target: TargetSection, device: Device) -> str | None:
    """The first condition of a target that a device does not meet, in words; None if it is one."""
    for name in ("cpu", "architecture", "os"):
        wanted, have = getattr(target, name), getattr(device, name)
        if wanted is not None and not fnmatchcase(have.lower(), wanted.lower()):
            return f"{name} is {have}, not {wanted}"
    if missing := sorted(set(target.isa or ()) - set(device.isa)):
        return f"it has no {', '.join(missing)}"
    if target.cores is not None and target.cores != device.granted_cores:
        return f"{device.granted_cores} cores are granted, not {target.cores}"
    if target.min_memory is not None:
        least = Budget.parse(f"size={target.min_memory}").limit
        if device.memory_bytes is None or device.memory_bytes < least:
            have = format_bytes(device.memory_bytes) if device.memory_bytes else "unknown"
            return f"its memory is {have}, less than {target.min_memory}"
    return None

"""Flavors: what a server may have."""

from __future__ import annotations

import re

import msgspec

_RESOURCES = re.compile(r"resources([^:]*):([A-Z0-9_]+)")


class Flavor(msgspec.Struct, frozen=True, kw_only=True):
    """A flavor as it is, or as it was when a server was made from it."""

    id: int
    flavorid: str
    name: str
    vcpus: int
    memory_mb: int
    root_gb: int
    ephemeral_gb: int = 0
    swap_mb: int = 0
    rxtx_factor: float = 1.0
    is_public: bool = True
    disabled: bool = False
    description: str | None = None
    extra_specs: dict[str, str] = {}
    projects: tuple[str, ...] = ()

    def resources(self) -> dict[str, int]:
        """What it books in placement, by resource class.

        ``resources:CLASS=N`` goes before what the flavor's own numbers say; what numbered groups ask for
        comes on top, since a host is one provider.
        """
        disk = self.root_gb + self.ephemeral_gb + -(-self.swap_mb // 1024)
        booked = {"VCPU": self.vcpus, "MEMORY_MB": self.memory_mb, "DISK_GB": disk}
        for key in sorted(self.extra_specs, key=lambda one: one.partition(":")):
            value = self.extra_specs[key]
            spec = _RESOURCES.fullmatch(key)
            if spec is None or not value.isdecimal():
                continue
            group, name = spec.groups()
            booked[name] = int(value) + (booked.get(name, 0) if group else 0)
        return {name: amount for name, amount in booked.items() if amount}

"""What of a host is given away one by one, and who holds it: cells, CPUs, pages, devices, listed items.

Amounts (VCPU, MEMORY_MB ...) are placement's; this is what placement cannot say.
"""

from __future__ import annotations

import msgspec

from kilonova.model.numa import GuestTopology, HostTopology
from kilonova.model.pci import HeldDevice, PciDevice, PciHolding, PciRequest


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One of the things that a provider lists one by one, such as a namespace of persistent memory."""

    provider: str  # uuid
    resource_class: str
    identifier: str
    metadata: dict[str, str] = {}


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How far a NUMA cell may be over-committed; None: without limit."""

    cpu_ratio: float | None = None
    ram_ratio: float | None = None


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What a server wants of a host beyond amounts.

    ``physical_networks`` and ``tunneled``: of its ports, which should be near its cells where a host says
    which cells they are near to.
    """

    numa: GuestTopology | None = None
    pci: tuple[PciRequest, ...] = ()
    limits: Limits = Limits()
    physical_networks: tuple[str, ...] = ()
    tunneled: bool = False

    @property
    def nothing(self) -> bool:
        return self.numa is None and not self.pci


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """What a consumer (a server, or the migration that keeps its old side) holds on one host."""

    consumer: str
    instance_uuid: str
    compute_id: str
    numa: GuestTopology | None = None
    requests: tuple[PciRequest, ...] = ()
    holdings: tuple[PciHolding, ...] = ()
    devices: tuple[PciDevice, ...] = ()
    items: tuple[Item, ...] = ()

    @property
    def nothing(self) -> bool:
        return self.numa is None and not self.devices and not self.items


class HostResources(msgspec.Struct, frozen=True, kw_only=True):
    """A host as the fit functions see it.  ``generation`` rises with every change of any of it."""

    compute_id: str
    generation: int = 0
    topology: HostTopology | None = None
    guests: tuple[GuestTopology, ...] = ()
    devices: tuple[HeldDevice, ...] = ()

"""PCI devices of a host, and what servers ask of them.  Ids are four lower-case hex digits."""

from __future__ import annotations

import msgspec

PCI, PF, VF = "type-PCI", "type-PF", "type-VF"
"""An ordinary device, a physical function of SR-IOV, a virtual one."""


class PciDevice(msgspec.Struct, frozen=True, kw_only=True):
    """A device that guests may have, as its host reports it (``[pci]device_spec`` has chosen it).

    ``address`` is ``domain:bus:slot.function``.  ``tags`` are the device spec's own: physical_network,
    trusted, remote_managed, resource_class, traits, managed, and whatever an operator has added.
    """

    address: str
    vendor_id: str
    product_id: str
    kind: str = PCI
    parent: str | None = None  # of a virtual function: its physical one's address
    numa_cell: int | None = None
    tags: dict[str, str] = {}
    mac: str | None = None  # of a network function


class PciRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Devices that a server wants: of its flavor's alias, or of a port.

    ``specs`` are alternatives: a device that matches all tags of one of them will do.
    """

    id: str
    count: int
    specs: tuple[dict[str, str], ...]
    alias: str | None = None
    port_id: str | None = None
    numa_policy: str | None = None  # required, preferred, legacy, socket; None: legacy


class PciHolding(msgspec.Struct, frozen=True, kw_only=True):
    """Devices that a request was given."""

    request_id: str
    addresses: tuple[str, ...]


class HeldDevice(msgspec.Struct, frozen=True, kw_only=True):
    """A device of a host and who has it."""

    device: PciDevice
    holder: str | None = None  # a consumer's uuid
    reported: bool = True  # False: its host reports it no more, and it is kept since it is held

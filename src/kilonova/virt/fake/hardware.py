"""What a fake host is made of, beyond plain numbers: NUMA cells, PCI devices, nested providers."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import msgspec

from kilonova.errors import Failed
from kilonova.model.host import Inventory, ProviderReport
from kilonova.model.host_resources import Item
from kilonova.model.numa import HostCell, HostTopology
from kilonova.model.pci import PciDevice
from kilonova.resources.provider_tree import nested_uuid
from kilonova.virt.pci_providers import pci_providers, with_providers
from kilonova.virt.pci_spec import Found, choose, read_specs

if TYPE_CHECKING:
    from kilonova.settings import Settings

T = TypeVar("T")


class NestedProvider(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A provider below the compute node's own; ``parent`` is the name of another, None: the node's."""

    name: str
    parent: str | None = None
    inventories: dict[str, Inventory] = {}
    traits: tuple[str, ...] = ()


class FakeHardware(msgspec.Struct, frozen=True, kw_only=True):
    """``inventories`` go before the host's plain numbers; the ``provider`` of items is a nested one's name,
    or empty for the node.  ``pci_in_placement``: devices are resource providers, too, as with libvirt.
    """

    numa: HostTopology | None = None
    pci_devices: tuple[PciDevice, ...] = ()
    providers: tuple[NestedProvider, ...] = ()
    inventories: dict[str, Inventory] = {}
    items: tuple[Item, ...] = ()
    pci_in_placement: bool = False

    def capacity(self, capacity: dict[str, Inventory]) -> dict[str, Inventory]:
        """The same with what the cells have, where there are any, and whatever else there is."""
        return {**capacity, **self.inventories} if self.numa is None else self._of_cells(self.numa, capacity)

    def _of_cells(self, numa: HostTopology, capacity: dict[str, Inventory]) -> dict[str, Inventory]:
        cells = numa.cells
        totals = {
            "VCPU": sum(len(cell.shared) for cell in cells),
            "PCPU": sum(len(cell.dedicated) for cell in cells),
            "MEMORY_MB": sum(cell.memory_mib for cell in cells),
        }
        others = {name: each for name, each in capacity.items() if name not in totals}
        found = {name: Inventory(total=total, max_unit=total) for name, total in totals.items() if total}
        return {**found, **others, **self.inventories}

    def devices(self, compute_id: str, node: str) -> tuple[PciDevice, ...]:
        """As they are reported."""
        return (
            with_providers(compute_id, node, self.pci_devices) if self.pci_in_placement else self.pci_devices
        )

    def listed(self, compute_id: str) -> tuple[Item, ...]:
        """The items as they are reported, by the uuids of their providers."""
        return tuple(
            msgspec.structs.replace(
                each, provider=nested_uuid(compute_id, each.provider) if each.provider else compute_id
            )
            for each in self.items
        )

    def tree(self, compute_id: str, node: str) -> tuple[ProviderReport, ...]:
        """Raises Failed for devices that cannot be providers."""
        made = tuple(_report(each, compute_id) for each in self.providers)
        return (*made, *pci_providers(compute_id, node, self.pci_devices)) if self.pci_in_placement else made


def _report(provider: NestedProvider, compute_id: str) -> ProviderReport:
    return ProviderReport(
        uuid=nested_uuid(compute_id, provider.name),
        name=provider.name,
        parent=compute_id if provider.parent is None else nested_uuid(compute_id, provider.parent),
        inventories=provider.inventories,
        traits=provider.traits,
    )


def hardware_from(settings: Settings) -> FakeHardware:
    """Raises Failed for options that make no sense."""
    cells = _decoded(settings, "numa_cells", tuple[HostCell, ...])
    devices = _decoded(settings, "pci_devices", tuple[PciDevice, ...]) or ()
    specs = read_specs([str(each) for each in settings.listed("device_spec", "pci")])
    if specs:
        devices = choose(specs, [Found(device=each) for each in devices])
    return FakeHardware(
        numa=HostTopology(cells=cells) if cells else None,
        pci_devices=devices,
        inventories=_decoded(settings, "inventories", dict[str, Inventory]) or {},
        items=_decoded(settings, "items", tuple[Item, ...]) or (),
        providers=_decoded(settings, "providers", tuple[NestedProvider, ...]) or (),
        pci_in_placement=settings.flag("report_in_placement", "pci"),
    )


def _decoded(settings: Settings, name: str, kind: type[T]) -> T | None:
    text = settings.text(name, "fake")
    if not text:
        return None
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.DecodeError as error:
        raise Failed(f"[fake]{name} = {text[:200]}: {error}.") from error

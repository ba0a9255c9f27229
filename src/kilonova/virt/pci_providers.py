"""PCI devices as resource providers (``[pci]report_in_placement``), in the shape that Nova has given them.

A provider stands for a device, or for a physical function with its virtual ones: ``NODE_ADDRESS``, with one
resource class and one set of traits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import msgspec

from kilonova.errors import Failed
from kilonova.model.host import Inventory, ProviderReport
from kilonova.model.pci import PF, VF, PciDevice
from kilonova.resources.provider_tree import nested_uuid
from kilonova.resources.reshape import PROVIDER_TAG

MANAGED = "COMPUTE_MANAGED_PCI_DEVICE"


def resource_class(device: PciDevice) -> str:
    own = device.tags.get("resource_class")
    return own or f"CUSTOM_PCI_{device.vendor_id}_{device.product_id}".upper()


def pci_providers(compute_id: str, node: str, devices: Sequence[PciDevice]) -> tuple[ProviderReport, ...]:
    """Children of the compute node's provider.

    Devices on physical networks are for ports, which do not ask placement for them: they are left out.
    Raises Failed for devices that cannot be in one provider.
    """
    groups: dict[str, list[PciDevice]] = defaultdict(list)
    for device in devices:
        if "physical_network" not in device.tags:
            groups[_group(device)].append(device)
    return tuple(_provider(compute_id, node, address, groups[address]) for address in sorted(groups))


def _provider(compute_id: str, node: str, address: str, devices: list[PciDevice]) -> ProviderReport:
    name = f"{node}_{address}"
    if len({each.kind for each in devices}) > 1 and any(each.kind == PF for each in devices):
        raise Failed(
            f"[pci]device_spec chooses {address} together with virtual functions of it; with "
            "[pci]report_in_placement it is one or the other."
        )
    classes = {resource_class(each) for each in devices}
    traits = {each.tags.get("traits", "") for each in devices}
    for what, values in (("resource classes", classes), ("traits", traits)):
        if len(values) > 1:
            raise Failed(
                f"[pci]device_spec gives the virtual functions of {address} different {what} "
                f"({'; '.join(sorted(value or 'none' for value in values))}): they are one resource provider."
            )
    return ProviderReport(
        uuid=nested_uuid(compute_id, name),
        name=name,
        parent=compute_id,
        inventories={classes.pop(): Inventory(total=len(devices), max_unit=len(devices))},
        traits=(MANAGED, *(each for each in traits.pop().split(",") if each)),
    )


def with_providers(compute_id: str, node: str, devices: Sequence[PciDevice]) -> tuple[PciDevice, ...]:
    """The devices with the tag that names their provider, where they have one."""
    return tuple(
        each
        if "physical_network" in each.tags
        else msgspec.structs.replace(
            each, tags={**each.tags, PROVIDER_TAG: nested_uuid(compute_id, f"{node}_{_group(each)}")}
        )
        for each in devices
    )


def _group(device: PciDevice) -> str:
    return device.parent if device.kind == VF and device.parent else device.address


def check_specs_without_names(devnames: Sequence[str | None]) -> None:
    """Interfaces may change their names, and their providers would with them.  Raises Failed."""
    named = [each for each in devnames if each]
    if named:
        raise Failed(
            f"[pci]device_spec names devices by devname ({', '.join(named)}); with [pci]report_in_placement "
            "they have to be named by address or by vendor_id and product_id."
        )

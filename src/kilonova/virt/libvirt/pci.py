"""The PCI devices of this host, as libvirt's node devices."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import msgspec

from kilonova.model.pci import PCI, PF, VF, PciDevice
from kilonova.virt.libvirt.connection import Connection
from kilonova.virt.pci_spec import Found

PCI_DEVICES, NETWORK_DEVICES = 1 << 1, 1 << 4  # virConnectListAllNodeDeviceFlags


class _Interface(msgspec.Struct, frozen=True):
    name: str
    mac: str | None


async def pci_devices(connection: Connection) -> list[Found]:
    """All PCI devices of the host.  Raises HostFault when libvirt cannot list them."""

    def work(link: Any) -> list[str]:
        return [
            text for device in link.listAllDevices(PCI_DEVICES | NETWORK_DEVICES) if (text := _xml(device))
        ]

    return read_devices(await connection.call(work))


def _xml(device: Any) -> str:
    """Its description; empty for one that was taken away since it was listed."""
    import libvirt

    try:
        text: str = device.XMLDesc(0)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_NODE_DEVICE:
            return ""
        raise
    return text


def read_devices(texts: Iterable[str]) -> list[Found]:
    """The PCI devices among libvirt's descriptions, with the network interfaces that are on them."""
    roots = [ET.fromstring(text) for text in texts]
    interfaces = _interfaces(roots)
    names: dict[str, str] = {}  # address -> libvirt's name of the device
    devices: list[tuple[str, PciDevice]] = []
    for root in roots:
        capability = root.find("capability[@type='pci']")
        if capability is not None:
            name = root.findtext("name", "")
            device = _device(capability, interfaces.get(name, []))
            names[device.address] = name
            devices.append((name, device))
    return [
        Found(
            device=device,
            interfaces=tuple(each.name for each in interfaces.get(name, ())),
            parent_interfaces=tuple(
                each.name for each in interfaces.get(names.get(device.parent or "", ""), ())
            ),
        )
        for name, device in devices
    ]


def _interfaces(roots: list[ET.Element]) -> dict[str, list[_Interface]]:
    """By the name of the device that they are on; a virtio device is between a card and its interface."""
    parents = {root.findtext("name", ""): root.findtext("parent", "") for root in roots}
    pci = {root.findtext("name", "") for root in roots if root.find("capability[@type='pci']") is not None}
    found: dict[str, list[_Interface]] = defaultdict(list)
    for root in roots:
        net = root.find("capability[@type='net']")
        above = root.findtext("parent", "")
        while above and above not in pci and above in parents:
            above = parents[above]
        if net is not None and above in pci:
            found[above].append(_Interface(net.findtext("interface", ""), net.findtext("address")))
    return found


def _device(capability: ET.Element, interfaces: list[_Interface]) -> PciDevice:
    parent = capability.find("capability[@type='phys_function']/address")
    numa = capability.find("numa")
    node = -1 if numa is None else int(numa.get("node", "-1"))
    kind = PCI
    if parent is not None:
        kind = VF
    elif capability.find("capability[@type='virt_functions']") is not None:
        kind = PF
    return PciDevice(
        address=_address({part: capability.findtext(part, "0") for part in _PARTS}),
        vendor_id=_id(capability.find("vendor")),
        product_id=_id(capability.find("product")),
        kind=kind,
        parent=None if parent is None else _address(dict(parent.attrib)),
        numa_cell=node if node >= 0 else None,
        mac=next((each.mac for each in interfaces if each.mac), None),
    )


_PARTS = ("domain", "bus", "slot", "function")


def _address(values: dict[str, str]) -> str:
    domain, bus, slot, function = (int(values[part], 0) for part in _PARTS)
    return f"{domain:04x}:{bus:02x}:{slot:02x}.{function:x}"


def _id(element: ET.Element | None) -> str:
    return f"{int(element.get('id', '0'), 0):04x}" if element is not None else "0000"

"""Where devices are on a guest's bus.

libvirt gives places to devices in the order in which a definition lists them.  So a guest that has got or
lost a device while it ran would find others elsewhere when it is defined anew, and name its network cards
differently: what is there stays where it is.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter

Key = tuple[str, ...]


def placed(definition: str, before: str) -> str:
    """``definition`` with each device that ``before`` has, too, at the place that it has there.

    ``before`` is the guest as libvirt has stored it.  For a machine of another kind nothing is kept.
    """
    new, old = ET.fromstring(definition), ET.fromstring(before)
    if _is_q35(new) != _is_q35(old):
        return definition
    places = {key: address for key, device in _keyed(old) if (address := _pci(device)) is not None}
    changed = False
    for key, device in _keyed(new):
        if key in places and device.find("address") is None:
            device.append(places[key])
            changed = True
    return ET.tostring(new, encoding="unicode") if changed else definition


def interface_of(domain: str, mac: str) -> ET.Element | None:
    """The network card with that MAC."""
    cards = ET.fromstring(domain).iterfind("devices/interface")
    return next((card for card in cards if mac_of(card) == mac.lower()), None)


def mac_of(interface: ET.Element) -> str:
    """In lower case; empty if it has none."""
    mac = interface.find("mac")
    return "" if mac is None else mac.get("address", "").lower()


def _is_q35(domain: ET.Element) -> bool:
    kind = domain.find("os/type")
    return kind is not None and "q35" in kind.get("machine", "")


def _pci(device: ET.Element) -> ET.Element | None:
    address = device.find("address")
    return address if address is not None and address.get("type") == "pci" else None


def _keyed(domain: ET.Element) -> list[tuple[Key, ET.Element]]:
    """The devices that may be on the PCI bus, each with what tells it from the others of its guest.

    Bridges are left to libvirt: it numbers them alike for the same machine.
    """
    seen: Counter[Key] = Counter()
    found = []
    for device in domain.iterfind("devices/*"):
        if device.tag == "controller" and device.get("type") == "pci":
            continue
        kind = (device.tag, *_name(device))
        found.append(((*kind, str(seen[kind])), device))
        seen[kind] += 1
    return found


def _name(device: ET.Element) -> Key:
    target, model = device.find("target"), device.find("model")
    match device.tag:
        case "interface":
            return mac_of(device), _get(model, "type")
        case "disk":
            file = _get(device.find("source"), "file").rpartition("/")[2]
            own = device.findtext("serial") or file  # names go from one disk to another: see xml.disk
            return own or _get(target, "dev"), _get(target, "bus")
        case "controller":
            return device.get("type", ""), device.get("index", "0"), device.get("model", "")
        case "hostdev":
            source = device.find("source/address")
            return () if source is None else tuple(f"{k}={v}" for k, v in sorted(source.attrib.items()))
        case _:
            return (device.get("model", "") or _get(model, "type"),)


def _get(element: ET.Element | None, attribute: str) -> str:
    return "" if element is None else element.get(attribute, "")

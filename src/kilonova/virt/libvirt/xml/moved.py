"""A running guest's definition, made fit for the host that it goes to.

What the guest sees stays as it is: QEMU at both ends has to be the same machine.  What is the host's own is
taken from the definition that the destination would start the guest with: consoles' addresses, files, CPUs
and memory, ports, and the mark by which it knows its guests.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET

from kilonova.errors import HostFault
from kilonova.virt.libvirt.xml.metadata import OURS
from kilonova.virt.libvirt.xml.volume import serial_of

_MARK = f"metadata/{{{OURS}}}guest"
_TUNING = ("memoryBacking", "cputune", "numatune")


def moved(running: str, there: str) -> str:
    """``running``: as libvirt describes the guest (its migratable XML, live or stored); ``there``: as the
    destination would define it.

    Raises HostFault for what cannot be brought together.
    """
    guest, wanted = ET.fromstring(running), ET.fromstring(there)
    _mark(guest, wanted)
    _tuning(guest, wanted)
    devices, other = guest.find("devices"), wanted.find("devices")
    if devices is None or other is None:
        raise HostFault("A guest without devices cannot be sent to another host.")
    _disks(devices, other)
    _interfaces(devices, other)
    _consoles(devices, other)
    return ET.tostring(guest, encoding="unicode")


def _mark(guest: ET.Element, wanted: ET.Element) -> None:
    """Whose it is changes; since when it runs does not."""
    old, new = guest.find(_MARK), wanted.find(_MARK)
    if old is None or new is None:
        raise HostFault("This guest is not one of Kilonova's.")
    old.set("compute_id", new.get("compute_id", ""))


def _tuning(guest: ET.Element, wanted: ET.Element) -> None:
    if _page_sizes(guest) != _page_sizes(wanted):
        raise HostFault("The guest's memory is of pages of another size on the destination.")
    old, new = guest.find("vcpu"), wanted.find("vcpu")
    if old is not None and new is not None:
        old.attrib.pop("cpuset", None)
        if "cpuset" in new.attrib:
            old.set("cpuset", new.attrib["cpuset"])
    for tag in _TUNING:
        _replace(guest, guest.find(tag), wanted.find(tag))


def _page_sizes(domain: ET.Element) -> set[tuple[str, str]]:
    """Of large pages: (size, the guest's cells that have it)."""
    pages = domain.iterfind("memoryBacking/hugepages/page")
    return {(_kib(page), page.get("nodeset", "")) for page in pages}


def _kib(page: ET.Element) -> str:
    unit = {"KiB": 1, "K": 1, "MiB": 1 << 10, "M": 1 << 10, "GiB": 1 << 20, "G": 1 << 20}
    return str(int(page.get("size", "0")) * unit.get(page.get("unit", "KiB"), 1))


def _replace(parent: ET.Element, old: ET.Element | None, new: ET.Element | None) -> None:
    """In the place of the old one; libvirt minds no order."""
    if old is not None:
        parent.remove(old)
    if new is not None:
        parent.append(new)


def _disks(devices: ET.Element, other: ET.Element) -> None:
    """Files where the destination has them, opened as its file system can.

    What a file is based on libvirt sees by itself there.
    """
    there = {_own(disk): disk for disk in other.iterfind("disk")}
    for disk in devices.iterfind("disk"):
        new = there.get(_own(disk))
        if new is None and serial_of(disk):
            raise HostFault(f"The guest cannot be sent: volume {serial_of(disk)} is not on the destination.")
        for chain in disk.findall("backingStore"):
            disk.remove(chain)
        if new is not None:
            disk.extend(new.findall("backingStore"))
        source = disk.find("source")
        if new is None or source is None or source.get("file") is None:
            continue
        new_source = new.find("source")
        if new_source is not None:
            source.set("file", new_source.get("file", ""))
            _replace(source, source.find("seclabel"), new_source.find("seclabel"))
        driver, new_driver = disk.find("driver"), new.find("driver")
        if driver is not None and new_driver is not None:
            driver.attrib.pop("cache", None)
            if "cache" in new_driver.attrib:
                driver.set("cache", new_driver.attrib["cache"])


def _own(disk: ET.Element) -> str:
    """What tells a disk from the others of its guest on every host: names may differ."""
    source = disk.find("source")
    return serial_of(disk) or ("" if source is None else source.get("file", "").rpartition("/")[2])


def _interfaces(devices: ET.Element, other: ET.Element) -> None:
    """The destination's, each in the place of the one with its MAC.

    The guest sees where on its bus it is, and the MTU: those stay, also where there was none (OVS-20).
    """
    there = {_mac(each): each for each in other.iterfind("interface")}
    for number, old in [(n, child) for n, child in enumerate(devices) if child.tag == "interface"]:
        mac = _mac(old)
        new = there.get(mac)
        if not mac or new is None:
            what = (
                f"interface {mac} has no port"
                if mac
                else "one of its interfaces has no MAC address, so no port"
            )
            raise HostFault(f"The guest cannot be sent: {what} on the destination.")
        for tag in ("address", "mtu"):
            _replace(new, new.find(tag), old.find(tag))
        devices[number] = new


def _mac(interface: ET.Element) -> str:
    mac = interface.find("mac")
    return "" if mac is None else mac.get("address", "").lower()


def _consoles(devices: ET.Element, other: ET.Element) -> None:
    for graphics in devices.iterfind("graphics"):
        new = other.find(f"graphics[@type='{graphics.get('type')}']")
        if new is None:
            continue
        graphics.attrib.pop("listen", None)
        if "listen" in new.attrib:
            graphics.set("listen", new.attrib["listen"])
        for old in graphics.findall("listen"):
            graphics.remove(old)
        graphics.extend(new.findall("listen"))
    for tag in ("serial", "console"):
        logs = {_port(each): each.find("log") for each in other.iterfind(tag)}
        for port in devices.iterfind(tag):
            log, new_log = port.find("log"), logs.get(_port(port))
            if log is None:
                continue
            if new_log is None:  # a console is the first serial port once more
                new_log = other.find("serial/log")
            _replace(port, log, new_log)


def _port(device: ET.Element) -> str:
    target = device.find("target")
    return "0" if target is None else target.get("port", "0")

"""Devices that come and go while a guest is there: hot plug, and unplugging that waits for it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

import msgspec
import structlog

from kilonova.clock import Clock, set_within
from kilonova.errors import HostFault
from kilonova.virt.libvirt.connection import Connection
from kilonova.virt.libvirt.faults import words
from kilonova.virt.libvirt.lookup import find
from kilonova.virt.libvirt.watch import Watch
from kilonova.virt.libvirt.xml.addresses import interface_of
from kilonova.virt.libvirt.xml.volume import volume_of

log = structlog.get_logger("kilonova.virt")

PENDING = "in the process of unplug"  # QEMU's words for a device that it was asked for before

Made = Callable[[list[str]], ET.Element]
"""The device for a guest that these XMLs describe: as it runs, if it does, and as it is stored."""


class Device(msgspec.Struct, frozen=True):
    """``words`` is what people call it, ``of`` finds it in a domain's XML."""

    words: str
    of: Callable[[str], ET.Element | None]


def card(mac: str) -> Device:
    return Device(f"the network card {mac}", lambda domain: interface_of(domain, mac))


def volume(volume_id: str) -> Device:
    return Device(f"volume {volume_id}", lambda domain: volume_of(domain, volume_id))


class HotPlug:
    """The devices of domains.  What runs is changed first, then what is stored: so a guest that keeps a
    device has it at its next start, too."""

    def __init__(
        self, connection: Connection, watch: Watch, clock: Clock, *, attempts: int, timeout: float
    ) -> None:
        """A guest is asked to let go of a device so many times, and has ``timeout`` seconds each time."""
        self._connection = connection
        self._watch = watch
        self._clock = clock
        self._attempts = attempts
        self._timeout = timeout

    @property
    def _libvirt(self) -> Any:
        return self._connection.libvirt

    # ---- attaching ----

    async def attach(self, uuid: str, device: Device, made: Made) -> None:
        """Give the domain that device, unless it has it.  No such domain is no error.  Raises HostFault."""
        await self._connection.call(lambda link: self._attach(link, uuid, device, made))

    def _attach(self, link: Any, uuid: str, device: Device, made: Made) -> None:
        domain = find(self._libvirt, link, uuid)
        if domain is None:
            return
        new = made([domain.XMLDesc(0), self._stored(domain)])
        live = self._attach_live(link, domain, device, new) if domain.isActive() else None
        if domain.isPersistent() and device.of(self._stored(domain)) is None:
            self._attach_stored(link, domain, device, new, live)

    def _attach_live(self, link: Any, domain: Any, device: Device, new: ET.Element) -> ET.Element | None:
        """The device as it is in the running guest; None if that has ended."""
        if device.of(domain.XMLDesc(0)) is None:
            try:
                domain.attachDeviceFlags(_text(new), self._libvirt.VIR_DOMAIN_AFFECT_LIVE)
            except self._libvirt.libvirtError as error:
                if not link.isAlive():
                    raise
                if domain.isActive():
                    uuid = domain.UUIDString()
                    raise HostFault(f"Guest {uuid} does not take {device.words}: {words(error)}") from error
                return None
        return device.of(domain.XMLDesc(0))

    def _attach_stored(
        self, link: Any, domain: Any, device: Device, new: ET.Element, live: ET.Element | None
    ) -> None:
        """Where it is on the guest's bus now is where it shall be after its next start."""
        address = None if live is None else live.find("address")
        if address is not None:
            placed = ET.fromstring(_text(new))
            placed.append(address)
            try:
                domain.attachDeviceFlags(_text(placed), self._libvirt.VIR_DOMAIN_AFFECT_CONFIG)
                return
            except self._libvirt.libvirtError as error:
                if not link.isAlive():
                    raise
                uuid = domain.UUIDString()
                log.info(
                    "a device cannot keep its address", instance=uuid, what=device.words, reason=words(error)
                )
        domain.attachDeviceFlags(_text(new), self._libvirt.VIR_DOMAIN_AFFECT_CONFIG)

    # ---- detaching ----

    async def detach(self, uuid: str, device: Device) -> None:
        """Take the device away and wait until the guest has let go of it.

        libvirt asks the guest and does not wait.  Its event says that the device is gone, and an event may be
        lost: what counts is whether the running definition still has it.  Raises HostFault.
        """
        for _ in range(self._attempts):
            alias = await self._alias(uuid, device)
            if alias is None:
                break
            await self._ask(uuid, device, alias)
        else:
            if await self._alias(uuid, device) is not None:
                raise HostFault(
                    f"Guest {uuid} did not let go of {device.words}: it was asked {self._attempts} times and "
                    f"had {self._timeout:g} seconds each time."
                )
        await self._connection.call(lambda link: self._detach_stored(link, uuid, device))

    async def _alias(self, uuid: str, device: Device) -> str | None:
        """libvirt's name for the device in the running guest; None: it has none."""

        def work(link: Any) -> str | None:
            domain = find(self._libvirt, link, uuid)
            running = domain is not None and domain.isActive()
            found = device.of(domain.XMLDesc(0)) if running else None
            alias = None if found is None else found.find("alias")
            return None if alias is None else alias.get("name")

        return await self._connection.call(work)

    async def _ask(self, uuid: str, device: Device, alias: str) -> None:
        """Ask the guest once and give it its time.  Raises HostFault if it says that it will not."""
        removal = self._watch.removal_of(uuid, alias)
        try:
            await self._connection.call(lambda link: self._request(link, uuid, device, alias))
            await set_within(self._timeout, self._clock, removal.told)
        finally:
            self._watch.forget_removal(uuid, alias)
        if removal.refused:
            raise HostFault(f"Guest {uuid} refuses to let go of {device.words}.")

    def _request(self, link: Any, uuid: str, device: Device, alias: str) -> None:
        domain = find(self._libvirt, link, uuid)
        if domain is None:
            return
        try:
            domain.detachDeviceAlias(alias, self._libvirt.VIR_DOMAIN_AFFECT_LIVE)
        except self._libvirt.libvirtError as error:
            if not link.isAlive():
                raise
            gone = not domain.isActive() or device.of(domain.XMLDesc(0)) is None
            if not gone and PENDING not in str(error):
                raise HostFault(f"Guest {uuid} keeps {device.words}: {words(error)}") from error

    def _detach_stored(self, link: Any, uuid: str, device: Device) -> None:
        domain = find(self._libvirt, link, uuid)
        if domain is None or not domain.isPersistent():
            return
        found = device.of(self._stored(domain))
        if found is not None:
            domain.detachDeviceFlags(_text(found), self._libvirt.VIR_DOMAIN_AFFECT_CONFIG)

    def _stored(self, domain: Any) -> str:
        text: str = domain.XMLDesc(self._libvirt.VIR_DOMAIN_XML_INACTIVE)
        return text


def _text(device: ET.Element) -> str:
    return ET.tostring(device, encoding="unicode")

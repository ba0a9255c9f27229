"""What is done with domains: each verb is one call in a thread, and converges."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import structlog

from kilonova.clock import SECOND, Clock
from kilonova.errors import HostFault, NotFound, TryAgain
from kilonova.model.states import Power
from kilonova.virt.libvirt.connection import Connection
from kilonova.virt.libvirt.faults import words
from kilonova.virt.libvirt.lookup import find
from kilonova.virt.libvirt.xml.addresses import placed
from kilonova.virt.libvirt.xml.metadata import OURS, read_mark

log = structlog.get_logger("kilonova.virt")

# virDomainState -> power state.  One that is "being shut down" (4) still runs.
POWER = {
    0: Power.NOSTATE,
    1: Power.RUNNING,
    2: Power.RUNNING,
    3: Power.PAUSED,
    4: Power.RUNNING,
    5: Power.SHUTDOWN,
    6: Power.CRASHED,
    7: Power.SUSPENDED,
}


PAUSED, STARTING_UP = 3, 11  # virDomainState, and virDomainPausedReason
SHUTOFF, MIGRATED = 5, 4  # virDomainState, and virDomainShutoffReason
STARTING_PATIENCE = 60.0  # seconds that libvirt may take for a start that somebody else has asked for


def power_of(state: int, reason: int) -> int:
    """A guest that is being started is no guest yet, though libvirt calls it paused; one that has gone live
    to another host is none any more, though what it leaves is shut off."""
    if (state, reason) in ((PAUSED, STARTING_UP), (SHUTOFF, MIGRATED)):
        return Power.NOSTATE
    return POWER.get(state, Power.NOSTATE)


class Domains:
    """The domains of one hypervisor, by uuid."""

    def __init__(self, connection: Connection, compute_id: str, clock: Clock) -> None:
        self._connection = connection
        self._compute_id = compute_id
        self._clock = clock
        self._starting: dict[str, int] = {}  # since when we see libvirt at it
        self._foreign: set[str] = set()  # domains of others, asked once

    @property
    def _libvirt(self) -> Any:
        return self._connection.libvirt

    async def states(self) -> dict[str, int]:
        """The power state of each domain of ours."""
        return await self._connection.call(self._states)

    def _states(self, link: Any) -> dict[str, int]:
        found = {}
        seen = set()
        for domain, stats in link.getAllDomainStats(self._libvirt.VIR_DOMAIN_STATS_STATE, 0):
            uuid = domain.UUIDString()
            seen.add(uuid)
            if uuid in self._foreign:
                continue
            if self._mark(domain)[0] == self._compute_id:
                found[uuid] = power_of(stats.get("state.state", 0), stats.get("state.reason", 0))
            else:
                self._foreign.add(uuid)
        self._foreign &= seen
        return found

    def _mark(self, domain: Any) -> tuple[str, int]:
        """Whose a domain is, and when it was started; nothing if it is not one of Kilonova's."""
        libvirt = self._libvirt
        try:
            return read_mark(domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, OURS, 0))
        except libvirt.libvirtError as error:
            if error.get_error_code() in (
                libvirt.VIR_ERR_NO_DOMAIN_METADATA,
                libvirt.VIR_ERR_NO_DOMAIN,  # gone in this moment
            ):
                return "", 0
            raise

    async def started_at(self, uuid: str) -> int:
        """Microseconds; 0 if there is no such domain."""

        def work(link: Any) -> int:
            domain = self._find(link, uuid)
            return 0 if domain is None else self._mark(domain)[1]

        return await self._connection.call(work)

    async def state(self, uuid: str) -> int:
        """NOSTATE if there is no such domain."""
        return await self._connection.call(lambda link: self._state(self._find(link, uuid)))

    def _find(self, link: Any, uuid: str) -> Any:
        return find(self._libvirt, link, uuid)

    def _state(self, domain: Any) -> int:
        if domain is None:
            return Power.NOSTATE
        try:
            return power_of(*domain.state())
        except self._libvirt.libvirtError as error:
            if error.get_error_code() == self._libvirt.VIR_ERR_NO_DOMAIN:
                return Power.NOSTATE
            raise

    async def start(self, uuid: str, xml: str, *, paused: bool) -> None:
        """Define the domain anew and start it; one that runs is left alone, one that waits is let go on
        unless ``paused``.  Raises HostFault with QEMU's own words."""

        def work(link: Any) -> None:
            domain = self._find(link, uuid)
            state = self._state(domain)
            self._check_not_starting(domain, uuid)
            if state == Power.PAUSED and not paused:
                domain.resume()
            if state == Power.SUSPENDED:  # asleep by its own doing
                domain.pMWakeup(0)
            if state in (Power.RUNNING, Power.PAUSED, Power.SUSPENDED):
                return
            if state == Power.CRASHED:
                domain.destroy()
            self._define_and_start(link, uuid, xml, paused)

        await self._connection.call(work)

    def _check_not_starting(self, domain: Any, uuid: str) -> None:
        """A start that libvirt is still at was asked for by an agent that is gone: wait for its end.

        It has none if libvirtd was killed in it, before it knew QEMU's process: then libvirtd (9.0, at
        least) holds the guest for ever, also over restarts.
        """
        if domain is None or domain.state() != [PAUSED, STARTING_UP]:
            self._starting.pop(uuid, None)
            return
        now = self._clock.now()
        since = self._starting.setdefault(uuid, now)
        if now - since < STARTING_PATIENCE * SECOND:
            raise TryAgain(f"Guest {uuid} is being started by libvirt.")
        raise HostFault(
            f"libvirtd was killed while it started guest {uuid}, and does not let go of it. "
            f"Stop libvirtd, remove /run/libvirt/qemu/{domain.name()}.xml, and start libvirtd."
        )

    def _define_and_start(self, link: Any, uuid: str, xml: str, paused: bool) -> None:
        libvirt = self._libvirt
        name = ET.fromstring(xml).findtext("name")
        try:
            known = self._find(link, uuid)
            if known is not None and known.name() != name:  # the template of names has changed
                known.rename(name, 0)
            domain = self._define(link, uuid, xml, known)
        except libvirt.libvirtError as error:
            self._unless_gone(link, error)
            raise HostFault(f"libvirt refuses to define guest {uuid}: {words(error)}") from error
        try:
            domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED if paused else 0)
        except libvirt.libvirtError as error:
            self._unless_gone(link, error)
            raise HostFault(f"Guest {uuid} does not start: {words(error)}") from error

    def _define(self, link: Any, uuid: str, xml: str, known: Any) -> Any:
        """Define a guest anew, its devices where they are in what libvirt ``known`` of it."""
        libvirt = self._libvirt
        kept = xml if known is None else placed(xml, known.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        if kept != xml:
            try:
                return link.defineXML(kept)
            except libvirt.libvirtError as error:
                self._unless_gone(link, error)
                log.warning("a guest's devices cannot stay in place", instance=uuid, reason=words(error))
        return link.defineXML(xml)

    def _unless_gone(self, link: Any, error: Exception) -> None:
        """Hand on the error of a connection that is lost: it says nothing of the guest."""
        if not link.isAlive():
            raise error

    async def resume(self, uuid: str) -> None:
        """Let a paused guest run.  Raises NotFound, and HostFault if it is off."""

        def work(link: Any) -> None:
            domain = self._existing(link, uuid)
            state = self._state(domain)
            if state == Power.PAUSED:
                domain.resume()
            elif state != Power.RUNNING:
                raise HostFault(f"Guest {uuid} is off and cannot go on; start it.")

        await self._connection.call(work)

    def _existing(self, link: Any, uuid: str) -> Any:
        domain = self._find(link, uuid)
        if domain is None:
            raise NotFound(f"There is no guest {uuid} on this host.")
        return domain

    async def press_power_button(self, uuid: str) -> None:
        """ACPI, whether or not a guest agent is there.  A guest that does not run is no error."""
        await self._unless_off(
            uuid, lambda domain: domain.shutdownFlags(self._libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)
        )

    async def ask_to_reboot(self, uuid: str) -> bool:
        """Press the power button, to be started again by libvirt when it is down.  False if it does not run.

        Raises NotFound.
        """
        await self._connection.call(lambda link: self._existing(link, uuid))
        return await self._unless_off(
            uuid, lambda domain: domain.reboot(self._libvirt.VIR_DOMAIN_REBOOT_ACPI_POWER_BTN)
        )

    async def _unless_off(self, uuid: str, act: Any) -> bool:
        """Do something with a guest that runs.  False if it does not."""
        libvirt = self._libvirt

        def work(link: Any) -> bool:
            domain = self._find(link, uuid)
            if domain is None:
                return False
            try:
                act(domain)
            except libvirt.libvirtError as error:
                off = (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN)
                if error.get_error_code() in off and self._state(self._find(link, uuid)) != Power.RUNNING:
                    return False
                raise
            return True

        return await self._connection.call(work)

    def _is_active(self, link: Any, uuid: str) -> bool:
        domain = self._find(link, uuid)
        return domain is not None and bool(domain.isActive())

    async def destroy(self, uuid: str) -> None:
        """End the guest at once.  Raises TryAgain if QEMU does not go away."""
        await self._connection.call(lambda link: self._destroy(link, uuid))

    def _destroy(self, link: Any, uuid: str) -> None:
        domain = self._find(link, uuid)
        if domain is None or not self._is_active(link, uuid):
            return
        try:
            domain.destroy()
        except self._libvirt.libvirtError as error:
            self._unless_gone(link, error)
            if self._is_active(link, uuid):
                raise TryAgain(f"Guest {uuid} does not end yet: {words(error)}") from error

    async def undefine(self, uuid: str) -> None:
        """End the guest and forget it, with its firmware's variables, TPM and saved memory."""
        libvirt = self._libvirt
        flags = (
            libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
            | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
            | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
            | getattr(libvirt, "VIR_DOMAIN_UNDEFINE_TPM", 0)  # since libvirt 8.9
        )

        def work(link: Any) -> None:
            self._destroy(link, uuid)
            domain = self._find(link, uuid)
            if domain is None:
                return
            try:
                domain.undefineFlags(flags)
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                    raise

        await self._connection.call(work)

    async def migratable_xml(self, uuid: str) -> str:
        """As the guest runs, with its processor in full.  Raises NotFound."""
        flags = self._libvirt.VIR_DOMAIN_XML_MIGRATABLE

        def work(link: Any) -> str:
            xml: str = self._existing(link, uuid).XMLDesc(flags)
            return xml

        return await self._connection.call(work)

    async def keep(self, uuid: str) -> None:
        """Have a guest defined for good, which libvirt may have taken in for the time that it runs only.

        Raises NotFound.
        """
        libvirt = self._libvirt
        flags = (
            libvirt.VIR_DOMAIN_XML_INACTIVE
            | libvirt.VIR_DOMAIN_XML_SECURE
            | libvirt.VIR_DOMAIN_XML_MIGRATABLE
        )

        def work(link: Any) -> None:
            domain = self._existing(link, uuid)
            if not domain.isPersistent():
                link.defineXML(domain.XMLDesc(flags))

        await self._connection.call(work)

    async def describe(self, uuid: str, stats: int) -> tuple[str, dict[str, Any]]:
        """A domain's XML and its counters (libvirt's typed statistics).  Raises NotFound."""

        def work(link: Any) -> tuple[str, dict[str, Any]]:
            domain = self._existing(link, uuid)
            found = link.domainListGetStats([domain], stats, 0)
            return domain.XMLDesc(0), dict(found[0][1]) if found else {}

        return await self._connection.call(work)

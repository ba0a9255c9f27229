"""Copying the root disk of a guest that runs, as it is at one moment: QEMU's own backup into a file."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import structlog

from kilonova.clock import Clock
from kilonova.errors import HostFault, NotFound, TryAgain
from kilonova.virt.libvirt.connection import Connection
from kilonova.virt.libvirt.disks import ROOT
from kilonova.virt.libvirt.faults import words
from kilonova.virt.libvirt.lookup import find

log = structlog.get_logger("kilonova.virt")

LOOK = 0.5  # seconds between looks whether it is done
NONE, COMPLETED = 0, 3  # virDomainJobType


class RunningCopy:
    """One backup of a guest at a time; one that an agent before us has begun is ended first."""

    def __init__(self, connection: Connection, clock: Clock) -> None:
        self._connection = connection
        self._clock = clock

    async def copy(self, uuid: str, target: Path) -> None:
        """Raises HostFault, also when the guest ends meanwhile; NotFound, TryAgain."""
        await self._end(uuid)
        try:
            await self._connection.call(lambda link: self._begin(link, uuid, target))
            while await self._connection.call(lambda link: self._runs(link, uuid)):
                await self._clock.sleep(LOOK)
        except BaseException:  # also of a caller that is cancelled while libvirt begins it
            await self._end(uuid)
            raise
        await self._connection.call(lambda link: self._check(link, uuid))

    def _begin(self, link: Any, uuid: str, target: Path) -> None:
        domain = self._find(link, uuid)
        try:
            domain.backupBegin(backup_xml(domain.XMLDesc(0), target), None, 0)
        except self._connection.libvirt.libvirtError as error:
            if not link.isAlive():
                raise
            raise HostFault(f"The disk of guest {uuid} cannot be copied: {words(error)}") from error

    def _runs(self, link: Any, uuid: str) -> bool:
        return bool(self._find(link, uuid).jobStats().get("type", NONE) != NONE)

    def _check(self, link: Any, uuid: str) -> None:
        """libvirt keeps the outcome of a guest's last job."""
        libvirt = self._connection.libvirt
        done = self._find(link, uuid).jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED)
        backup = done.get("operation") == libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP
        if not backup or done.get("type") != COMPLETED:
            raise HostFault(
                f"The disk of guest {uuid} was not copied to its end: {done.get('errmsg', 'it was ended')}."
            )

    async def _end(self, uuid: str) -> None:
        """End a backup that is under way, whoever has begun it.  What else is done with the guest is left."""
        while await self._connection.call(lambda link: self._abort(link, uuid)):
            await self._clock.sleep(LOOK)

    def _abort(self, link: Any, uuid: str) -> bool:
        libvirt = self._connection.libvirt
        try:
            domain = self._find(link, uuid)
            stats = domain.jobStats()
            if stats.get("type", NONE) == NONE:
                return False
            if stats.get("operation") != libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP:
                raise TryAgain(f"Guest {uuid} is busy with something else.")
            log.info("a copy of a guest's disk is ended", instance=uuid)
            domain.abortJob()
        except NotFound:
            return False
        except libvirt.libvirtError as error:
            off = (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN)
            if error.get_error_code() in off and link.isAlive():
                return False
            raise
        return True

    def _find(self, link: Any, uuid: str) -> Any:
        domain = find(self._connection.libvirt, link, uuid)
        if domain is None:
            raise NotFound(f"There is no guest {uuid} on this host.")
        return domain


def backup_xml(domain: str, target: Path) -> str:
    """A backup of the root disk of a domain, and of no other.  Raises HostFault if it has none."""
    backup = ET.Element("domainbackup", mode="push")
    disks = ET.SubElement(backup, "disks")
    found = False
    for disk in ET.fromstring(domain).iterfind("devices/disk"):
        source, name = disk.find("source"), disk.find("target")
        if name is None:
            continue
        root = source is not None and Path(source.get("file", "")).name == ROOT
        entry = ET.SubElement(disks, "disk", name=name.get("dev", ""), backup="yes" if root else "no")
        if root:
            found = True
            entry.set("type", "file")
            ET.SubElement(entry, "target", file=str(target))
            ET.SubElement(entry, "driver", type="qcow2")
    if not found:
        raise HostFault("The guest has no root disk of its own that could be copied.")
    return ET.tostring(backup, encoding="unicode")

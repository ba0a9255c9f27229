"""Names of a guest's disks (vda, sdb), each given once; libvirt finds a place on the bus by them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from string import ascii_lowercase

from kilonova.errors import Failed
from kilonova.model.volume import DISK_PREFIX

IDE_SLOTS = 4
SCSI_SLOTS = 7  # what libvirt puts on one controller; the eighth would ask for one of another model
_DEVICE = re.compile(r"/dev/(?:vd|sd|hd|xvd)([a-z])")


class DiskNames:
    def __init__(self) -> None:
        self._taken: set[str] = set()

    def take(self, names: Iterable[str]) -> None:
        self._taken.update(names)

    def first(self, bus: str) -> str:
        """The first name that is free.  Raises Failed if the bus has no room."""
        for letter in ascii_lowercase[: _slots(bus)]:
            name = DISK_PREFIX[bus] + letter
            if name not in self._taken:
                self._taken.add(name)
                return name
        raise Failed(f"There is no room for another disk on the bus {bus}: it has {_slots(bus)} places.")

    def wished(self, bus: str, device: str | None) -> str | None:
        """The name on that bus of what is called ``device`` (/dev/vdb); None if that is not said.

        Raises Failed for what is no disk's name, or has no place there.
        """
        if device is None:
            return None
        found = _DEVICE.fullmatch(device)
        if found is None or found[1] not in ascii_lowercase[: _slots(bus)]:
            raise Failed(f"There is no disk '{device}' on the bus {bus}, which has {_slots(bus)} places.")
        return DISK_PREFIX[bus] + found[1]


def _slots(bus: str) -> int:
    return {"ide": IDE_SLOTS, "scsi": SCSI_SLOTS}.get(bus, len(ascii_lowercase))

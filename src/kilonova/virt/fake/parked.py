"""The fake hypervisor's part in cold moves: records are put aside, and come, as files do."""

from __future__ import annotations

import secrets
from pathlib import Path

from kilonova.errors import HostFault
from kilonova.rpc.messages import GuestSpec
from kilonova.virt.fake.guests import PREPARED, GuestFile


class FakeStorage:
    """A directory of guests' files.  Drivers that have one together share their storage."""

    def __init__(self) -> None:
        self.probes: set[str] = set()
        self.parked: set[str] = set()  # guests whose files were put aside


class ParkedGuests:
    """``guests`` gives the records of this host's guests."""

    def __init__(self, guests: GuestFile, storage: FakeStorage) -> None:
        self._guests = guests
        self._storage = storage

    def put_probe(self) -> str:
        probe = f"probe-{secrets.token_hex(16)}"  # as no other host would name one at the same time
        self._storage.probes.add(probe)
        return probe

    def see_probe(self, probe: str) -> bool:
        return probe in self._storage.probes

    def remove_probe(self, probe: str) -> None:
        self._storage.probes.discard(probe)

    def check_room(self, guest: GuestSpec) -> None:
        if self._guests.state(guest.uuid) is not None:
            raise HostFault(f"There are files of the guest {guest.uuid} on this host already.")

    def park(self, uuid: str) -> None:
        if self._guests.is_parked(uuid):
            return
        if self._guests.state(uuid) is None:
            raise HostFault(f"There are no files of the guest {uuid} on this host.")
        self._guests.drop(uuid)
        self._guests.put_parked(uuid)
        self._storage.parked.add(uuid)

    def unpark(self, uuid: str) -> None:
        if self._guests.is_parked(uuid):
            self._guests.put(uuid, PREPARED)
            self._drop(uuid)
        elif self._guests.state(uuid) is None:
            raise HostFault(f"There are no files of the guest {uuid} on this host.")

    def drop(self, uuid: str) -> None:
        self._drop(uuid)

    def adopt(self, guest: GuestSpec) -> None:
        if not self._guests.is_parked(guest.uuid) and guest.uuid not in self._storage.parked:
            raise HostFault(f"No files of the guest {guest.uuid} were put aside here.")
        self.receive(guest)

    def files(self, uuid: str) -> tuple[Path, ...]:
        if not self._guests.is_parked(uuid):
            raise HostFault(f"No files of the guest {uuid} were put aside here.")
        return ()

    def receive(self, guest: GuestSpec) -> None:
        if self._guests.state(guest.uuid) is None:
            self._guests.put(guest.uuid, PREPARED)

    def fit(self, guest: GuestSpec) -> None:
        if self._guests.state(guest.uuid) is None:
            raise HostFault(f"The disks of guest {guest.uuid} are not on this host.")

    def _drop(self, uuid: str) -> None:
        self._guests.drop_parked(uuid)
        self._storage.parked.discard(uuid)

"""What controllers and agents say to each other.  Records change by addition only: a new field has a
default, and a field that was once released keeps its name and meaning.
"""

from __future__ import annotations

import msgspec

from kilonova.model.flavor import Flavor
from kilonova.model.instance import ImageMeta
from kilonova.model.numa import GuestTopology
from kilonova.model.pci import PciDevice
from kilonova.model.port import Vif
from kilonova.model.volume import Attachment


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks an agent for something.

    ``id`` is the same whenever the same step of the same operation is repeated, also by another
    controller: the agent's ledger answers repeats of what must not happen twice.  ``action`` is the number
    of the operation and ``epoch`` that of its owners: what is lower than what an agent has heard of a guest
    comes from somebody who was overtaken.
    """

    id: str
    request_id: str = ""
    action: int = 0
    epoch: int = 0


class GuestSpec(msgspec.Struct, frozen=True, kw_only=True):
    """All that a host needs to make a guest: the server, its image and its ports."""

    uuid: str
    name: str
    hostname: str
    project_id: str
    project_name: str = ""
    user_id: str = ""
    user_name: str = ""
    flavor: Flavor
    image: ImageMeta | None = None
    vifs: tuple[Vif, ...] = ()
    config_drive: dict[str, bytes] | None = None  # path on the drive -> content; None: no drive
    metadata: dict[str, str] = {}
    created_at: int = 0
    domain: str = ""  # its name in the hypervisor; empty: its uuid
    numa: GuestTopology | None = None  # as claimed on this host
    pci: tuple[PciDevice, ...] = ()  # as claimed on this host
    flat_root: bool = False  # its root disk must need no other file: what it is made of will not stay
    volumes: tuple[Attachment, ...] = ()  # connected to this host


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent sees of one guest.

    ``generation`` rises with every report of that guest; an older one is to be dropped.
    """

    uuid: str
    power_state: int
    generation: int


class ConsoleOutput(msgspec.Struct, frozen=True, kw_only=True):
    data: bytes


class NicDiagnostics(msgspec.Struct, frozen=True, kw_only=True):
    mac_address: str
    rx_octets: int | None = None
    rx_errors: int | None = None
    rx_drop: int | None = None
    rx_packets: int | None = None
    tx_octets: int | None = None
    tx_errors: int | None = None
    tx_drop: int | None = None
    tx_packets: int | None = None


class DiskDiagnostics(msgspec.Struct, frozen=True, kw_only=True):
    read_bytes: int | None = None
    read_requests: int | None = None
    write_bytes: int | None = None
    write_requests: int | None = None
    errors_count: int | None = None


class CpuDiagnostics(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    time: int | None = None  # nanoseconds
    utilisation: int | None = None


class Diagnostics(msgspec.Struct, frozen=True, kw_only=True):
    """A guest's counters, in the fixed form of microversion 2.48."""

    state: str
    driver: str
    hypervisor: str | None = None
    hypervisor_os: str | None = None
    uptime: int | None = None
    config_drive: bool = False
    memory_maximum: int | None = None  # MiB
    memory_used: int | None = None
    cpus: tuple[CpuDiagnostics, ...] = ()
    disks: tuple[DiskDiagnostics, ...] = ()
    nics: tuple[NicDiagnostics, ...] = ()

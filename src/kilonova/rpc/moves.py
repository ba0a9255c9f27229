"""Records of moves, which controllers and the agents of both hosts exchange; changed by addition only."""

from __future__ import annotations

import msgspec

from kilonova.model.port import Vif


class Presence:
    """Where a guest is, as its host's hypervisor says: never concluded from anything else."""

    ABSENT = "absent"  # nothing is defined here
    OFF = "off"
    RUNNING = "running"
    PAUSED = "paused"  # by a user
    INCOMING = "incoming"  # it is being received and has not run here yet
    LEAVING = "leaving"  # it runs here and is being sent away
    POSTCOPY = "postcopy"  # it runs here, or has gone on there, and its memory is partly at the other end
    LEFT = "left"  # it goes on elsewhere; what is defined here is a shell
    HELD = "held"  # it was stopped here at the end of its being sent, and nothing is sent any more: it may go
    # on here (`HostAgent.resume`) if, and only if, the destination does not have it


class Located(msgspec.Struct, frozen=True, kw_only=True):
    """``presence`` is one of `Presence`; ``files``: whether this host has files of it."""

    uuid: str
    presence: str
    files: bool = False


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far what is being sent from this host has come.  Bytes, bytes a second, milliseconds."""

    uuid: str
    phase: str = "none"  # none, copying (files), queued, preparing, running, postcopy
    memory_total: int | None = None
    memory_processed: int | None = None
    memory_remaining: int | None = None
    disk_total: int | None = None
    disk_processed: int | None = None
    disk_remaining: int | None = None
    rate: int | None = None
    dirty_rate: int | None = None
    elapsed: int | None = None

    @property
    def percent(self) -> int:
        """Of what is known to be sent."""
        total = (self.memory_total or 0) + (self.disk_total or 0)
        remaining = (self.memory_remaining or 0) + (self.disk_remaining or 0)
        return 0 if not total else max(0, min(100, 100 - remaining * 100 // total))


class Inbox(msgspec.Struct, frozen=True, kw_only=True):
    """Where a host takes in the files of one guest.

    The sender shows ``token`` and accepts only the certificate with this SHA-256 ``fingerprint``: both are
    made for this one transfer.
    """

    address: str
    port: int
    token: str
    fingerprint: str


class LiveWish(msgspec.Struct, frozen=True, kw_only=True):
    """What the user wants of a live migration.  ``block`` None: as the storage of the two hosts demands."""

    block: bool | None = None
    disk_over_commit: bool = False


class ArrivalFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the destination says of itself before a live migration (MG-LM-7).

    ``probe`` is a file that it has made in its directory of guests: who sees it shares that directory.
    ``delegates`` are the ports whose OVS port it can have made by os-vif (OVS-13).  ``cpu`` is empty when the
    guest's can run there.
    """

    host: str
    probe: str
    disk_available: int  # bytes
    listen_address: str = "127.0.0.1"
    migration_uri: str = ""
    cpu: str = ""  # what is wrong with it
    image_backend: str = "qcow2"
    delegates: tuple[str, ...] = ()
    waits_for_plug: bool = True  # [compute]live_migration_wait_for_vif_plug of the destination
    numa: bool = True
    cpu_features: tuple[str, ...] = ()  # what guests can have of its processor; the source compares
    has_files: bool = False  # there is a directory of the guest: its own, unless it is shared


class LivePlan(msgspec.Struct, frozen=True, kw_only=True):
    """How a guest is sent, settled by the source from what both hosts say (MG-LM-8).

    ``disks``: virtual bytes of those that are sent, by their file's name.  ``files``: small ones that the
    hypervisor does not send, packed.  ``domain``, from the destination: how it would define the guest itself.
    ``flat_root``: the root disk has no image beneath it, as that of a server that was shelved.
    """

    destination: str  # host
    shared_path: bool
    block: bool
    disk_bytes: int = 0  # that are sent
    memory_mb: int = 0
    listen_address: str = "127.0.0.1"
    migration_uri: str = ""
    delegates: tuple[str, ...] = ()
    old_vifs: tuple[Vif, ...] = ()
    new_vifs: tuple[Vif, ...] = ()
    disks: dict[str, int] = {}
    files: dict[str, bytes] = {}
    domain: str = ""
    flat_root: bool = False


class LiveOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """``state``: completed (the guest goes on at the destination), failed or cancelled (it goes on here), or
    gone (it is not here, and this host cannot tell why: ask the destination)."""

    state: str
    reason: str = ""
    downtime: int | None = None  # milliseconds
    elapsed: int | None = None
    memory_total: int | None = None
    memory_processed: int | None = None
    disk_total: int | None = None
    disk_processed: int | None = None

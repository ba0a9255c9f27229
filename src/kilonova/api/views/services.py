"""Services as they are shown: nova-compute of each host, and those of this controller."""

from __future__ import annotations

import socket
import uuid
from operator import attrgetter

import msgspec

from kilonova.api.view import Item, View
from kilonova.clock import iso_micro
from kilonova.db.hosts import is_up
from kilonova.model.host import Host
from kilonova.settings import Settings

COMPUTE = "nova-compute"
CONTROLLER = ("nova-conductor", "nova-scheduler")
INTERNAL_ZONE = "internal"
FIRST_CONTROLLER_ID = 2**31 - 1 - len(CONTROLLER)  # hosts are counted from 1 up
_NAMESPACE = uuid.UUID("6f0b4e1e-5d5b-4b36-9d0c-3a8c6f7f2a11")


class Service(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    uuid: str
    binary: str
    host: str
    zone: str
    disabled: bool
    disabled_reason: str | None
    up: bool
    forced_down: bool
    updated_at: int


def zone_of(host: Host, settings: Settings) -> str:
    """A host that is in no zone is in the default one."""
    return host.availability_zone or settings.text("default_availability_zone")


def compute_service(host: Host, now: int, settings: Settings) -> Service:
    return Service(
        id=host.id,
        uuid=host.service_uuid,
        binary=COMPUTE,
        host=host.host,
        zone=zone_of(host, settings),
        disabled=host.disabled,
        disabled_reason=host.disabled_reason,
        up=is_up(host, now, settings.number("service_down_time")),
        forced_down=host.forced_down,
        updated_at=host.last_seen_at,
    )


def controller_services(now: int, settings: Settings) -> list[Service]:
    """What this process does besides: it answers, so it is up, as of now."""
    name = settings.text("host") or socket.gethostname()
    return [
        Service(
            id=FIRST_CONTROLLER_ID + number,
            uuid=str(uuid.uuid5(_NAMESPACE, f"{name}/{binary}")),
            binary=binary,
            host=name,
            zone=INTERNAL_ZONE,
            disabled=False,
            disabled_reason=None,
            up=True,
            forced_down=False,
            updated_at=now,
        )
        for number, binary in enumerate(CONTROLLER)
    ]


SERVICE = View(
    Item("id", attrgetter("id"), until=52),
    Item("id", attrgetter("uuid"), since=53),
    Item("binary", attrgetter("binary")),
    Item("host", attrgetter("host")),
    Item("zone", attrgetter("zone")),
    Item("status", lambda service: "disabled" if service.disabled else "enabled"),
    Item("state", lambda service: "up" if service.up else "down"),
    Item("updated_at", lambda service: iso_micro(service.updated_at)),
    Item("disabled_reason", attrgetter("disabled_reason")),
    Item("forced_down", attrgetter("forced_down"), since=11),
)

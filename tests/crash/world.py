"""What there is of a server anywhere, to be compared, and what an operation has written down of itself."""

from __future__ import annotations

import msgspec
from sqlalchemy import or_, select

from kilonova.app import EmbeddedCloud
from kilonova.db import instances
from kilonova.db.tables.journal import action_events, actions
from kilonova.db.tables.network import ports
from kilonova.model.volume import Attachment
from kilonova.testing.embedded import fake_driver, leaks
from kilonova.vif.null import NullPlugger


class World(msgspec.Struct, frozen=True, kw_only=True):
    """All that concerns one server, but for its fault, its times and its log."""

    vm_state: str = ""
    task_state: str | None = None
    power_state: int = 0
    place: tuple[str | None, str | None, str | None] = (None, None, None)  # host, node, zone
    vifs: frozenset[str] = frozenset()
    volumes: tuple[Attachment, ...] = ()
    disks: tuple[Attachment, ...] = ()  # the volumes that the guest has
    claims: dict[str, dict[str, int]] = {}
    bindings: dict[str, tuple[str, str]] = {}  # port -> host, status
    guest: int | None = None
    plugged: frozenset[str] = frozenset()  # on the switch, of all servers
    deleted: bool = False


NOTHING = World()


async def world(cloud: EmbeddedCloud, uuid: str) -> World:
    """Of a server that may not be there yet."""
    server = await cloud.db.read(lambda tx: instances.show_any(tx, uuid))
    assert cloud.host is not None and isinstance(cloud.host.plugger, NullPlugger)
    query = select(ports.c.id, ports.c.host, ports.c.status).where(ports.c.device_id == uuid)
    bound = (
        {row[0]: (row[1], row[2]) for row in await cloud.db.read(lambda tx: tx.all(query))} if uuid else {}
    )
    rest = {
        "claims": await cloud.placement.held(uuid),
        "bindings": bound,
        "guest": fake_driver(cloud).guest_file.state(uuid),
        "disks": fake_driver(cloud).guest_file.volumes(uuid),
        "plugged": frozenset(cloud.host.plugger.plugged()),
    }
    if server is None:
        return World(**rest)  # type: ignore[arg-type]
    return World(
        vm_state=server.vm_state,
        task_state=server.task_state,
        power_state=server.power_state,
        place=(server.host, server.node, server.availability_zone),
        vifs=frozenset(vif.port_id for vif in server.vifs),
        volumes=server.volumes,
        deleted=server.deleted_at is not None,
        **rest,  # type: ignore[arg-type]
    )


def but(before: World, **changes: object) -> World:
    """The same world but for some things."""
    return msgspec.structs.replace(before, **changes)


async def log_of(cloud: EmbeddedCloud, uuid: str, action: str) -> list[tuple[str, str, int, str]]:
    """(step, phase, round, result) of the newest such action or operation, the oldest first."""
    named = or_(actions.c.action == action, actions.c.operation == action)
    newest = select(actions.c.id).where(actions.c.instance_uuid == uuid, named)
    newest = newest.order_by(actions.c.id.desc()).limit(1)
    events = (
        select(action_events.c.step, action_events.c.phase, action_events.c.round, action_events.c.result)
        .where(action_events.c.action_id == newest.scalar_subquery())
        .order_by(action_events.c.id)
    )
    return await cloud.db.read(lambda tx: tx.all(events))


async def assert_sound(cloud: EmbeddedCloud) -> None:
    assert await leaks(cloud) == []

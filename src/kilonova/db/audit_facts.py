"""What an audit compares, read in a handful of statements, however many servers there are.

Servers and operations are in the database of a cell, all else is in the top one; in a deployment of one cell
these are the same.
"""

from __future__ import annotations

import msgspec
from sqlalchemy import select

from kilonova.db import host_resources, instances
from kilonova.db import placement as bookings
from kilonova.db.engine import Tx
from kilonova.db.placement import Difference, Held
from kilonova.db.tables.cells import leftovers, migrations
from kilonova.db.tables.compute import hosts
from kilonova.db.tables.compute import instances as instances_table
from kilonova.db.tables.host_resources import host_items
from kilonova.db.tables.journal import actions
from kilonova.db.tables.placement import allocations, consumers, resource_providers
from kilonova.db.tables.volume import volume_attachments
from kilonova.model.host_resources import Claim, HostResources
from kilonova.model.instance import Instance

_SERVERS = select(*instances_table.columns).where(instances_table.c.deleted_at.is_(None))
_DELETED = select(instances_table.c.uuid).where(instances_table.c.deleted_at.is_not(None))
_BUSY = select(actions.c.instance_uuid).where(actions.c.open).distinct()
_MIGRATIONS = select(migrations.c.uuid, migrations.c.status)
_OWED = select(leftovers.c.host, leftovers.c.instance_uuid, leftovers.c.migration_uuid)
_HOSTS = select(hosts.c.host, hosts.c.compute_id)
_ROOTS = select(resource_providers.c.uuid, resource_providers.c.root)
_ALLOCATIONS = select(
    allocations.c.consumer, allocations.c.provider, allocations.c.resource_class, allocations.c.amount
)
_CONSUMERS = select(consumers.c.uuid, consumers.c.consumer_type)
_ITEMS = select(
    host_items.c.compute_id, host_items.c.resource_class, host_items.c.identifier, host_items.c.holder
).where(host_items.c.holder.is_not(None))


_ATTACHMENTS = select(
    volume_attachments.c.id,
    volume_attachments.c.volume_id,
    volume_attachments.c.instance_uuid,
    volume_attachments.c.host,
)


class Attached(msgspec.Struct, frozen=True):
    """A volume that a server has, as the volume service knows it: its attachment, and to which host it is."""

    id: str
    volume: str
    server: str
    host: str | None


class Owed(msgspec.Struct, frozen=True):
    """What a host may still have of a server; ``migration`` holds what it gave for it."""

    host: str
    server: str
    migration: str | None


class CellFacts(msgspec.Struct, kw_only=True):
    """``busy``: servers that an operation is working on; ``owed``: what hosts are to be rid of."""

    servers: dict[str, Instance]
    deleted: frozenset[str]
    busy: frozenset[str]
    migrations: dict[str, str]  # uuid -> status
    owed: tuple[Owed, ...] = ()


class TopFacts(msgspec.Struct, kw_only=True):
    hosts: dict[str, str]  # name -> compute id
    roots: dict[str, str]  # provider -> the root of its tree
    allocations: dict[str, Held]  # consumer -> what it holds
    consumer_types: dict[str, str | None]
    miscounted: list[Difference]
    claims: dict[str, Claim]  # consumer -> its claim
    resources: dict[str, HostResources]  # compute id -> what is given away one by one there
    held_items: dict[tuple[str, str, str], str]  # compute id, class, identifier -> holder
    attached: tuple[Attached, ...] = ()


def of_cell(tx: Tx) -> CellFacts:
    found = [instances.from_row(row) for row in tx.all(_SERVERS)]
    return CellFacts(
        servers={each.uuid: each for each in found},
        deleted=frozenset(row[0] for row in tx.all(_DELETED)),
        busy=frozenset(row[0] for row in tx.all(_BUSY)),
        migrations={row[0]: row[1] for row in tx.all(_MIGRATIONS)},
        owed=tuple(Owed(*row) for row in tx.all(_OWED)),
    )


def of_top(tx: Tx) -> TopFacts:
    held: dict[str, Held] = {}
    for consumer, provider, name, amount in tx.all(_ALLOCATIONS):
        held.setdefault(consumer, {}).setdefault(provider, {})[name] = int(amount)
    return TopFacts(
        hosts={row[0]: row[1] for row in tx.all(_HOSTS)},
        roots={row[0]: row[1] for row in tx.all(_ROOTS)},
        allocations=held,
        consumer_types={row[0]: row[1] for row in tx.all(_CONSUMERS)},
        miscounted=bookings.audit(tx),
        claims={claim.consumer: claim for claim in host_resources.all_claims(tx)},
        resources=host_resources.read_many(tx),
        held_items={(row[0], row[1], row[2]): row[3] for row in tx.all(_ITEMS)},
        attached=tuple(Attached(*row) for row in tx.all(_ATTACHMENTS)),
    )

"""What the scheduler reads: at first everything, then only what has changed.

Rows of hosts and providers carry the moment (of the database's clock) at which they last changed, so a look
costs what has happened, not what there is.  Of what is gone no row tells: ``kilonova.db.epochs`` does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec
from sqlalchemy import BindParameter, bindparam, case, distinct, func, literal_column, select

from kilonova.clock import SECOND
from kilonova.db import aggregates, epochs, hosts, placement_view
from kilonova.db.aggregates import Aggregate
from kilonova.db.engine import Row, Statement, Tx, db_now
from kilonova.db.placement_view import Summary
from kilonova.db.tables.compute import hosts as hosts_table
from kilonova.db.tables.compute import instances
from kilonova.db.tables.placement import allocations, resource_providers
from kilonova.model.host import Host
from kilonova.model.states import Task, Vm

OVERLAP = 10 * SECOND
"""How long before its commit a change may have been dated: no transaction takes longer."""

HEAVY = (Task.RESIZE_MIGRATING, Task.REBUILDING, Task.RESIZE_PREP, Task.IMAGE_SNAPSHOT, Task.IMAGE_BACKUP)
"""Tasks that keep a host's disks busy, beside ``rescuing``, ``unshelving`` and building (inventory ST-4)."""

_host_columns = [hosts_table.c[name] for name in Host.__struct_fields__]
_h, _p, _i, _a = hosts_table.c, resource_providers.c, instances.c, allocations.c
_since: BindParameter[int] = bindparam("since")

NOW = Statement(select(db_now()))
CHANGED_HOSTS = Statement(select(_h.compute_id, _h.revision).where(_h.changed_at >= _since))
CHANGED_PROVIDERS = Statement(select(_p.uuid, _p.revision).where(_p.changed_at >= _since))
HEARD = Statement(select(_h.compute_id, _h.last_seen_at))
HOST_IDS = Statement(select(_h.compute_id))
PROVIDER_IDS = Statement(select(_p.uuid))
_CHUNK = placement_view.CHUNK
_ids: list[BindParameter[str]] = [bindparam(f"u{number}") for number in range(_CHUNK)]
SOME_HOSTS = Statement(select(_h.revision, *_host_columns).where(_h.compute_id.in_(_ids)).order_by(_h.id))
ALL_HOSTS = Statement(select(_h.revision, *_host_columns).order_by(_h.id))
_consumers = select(_a.provider, func.count(distinct(_a.consumer))).group_by(_a.provider)
CONSUMERS = Statement(_consumers)
SOME_CONSUMERS = Statement(_consumers.where(_a.provider.in_(_ids)))
_heavy = case(
    (_i.vm_state == Vm.BUILDING, 1),
    (_i.task_state.in_([*HEAVY, Task.RESCUING, Task.UNSHELVING]), 1),
    else_=0,
)
# The condition is that of the index of busy servers, so it is read from that alone.
HEAVY_OPERATIONS = Statement(
    select(_i.host, func.sum(_heavy))
    .where(
        literal_column("task_state").is_not(None),
        literal_column("deleted_at").is_(None),
        _i.host.is_not(None),
    )
    .group_by(_i.host)
)
IMAGES = Statement(
    select(_i.host, _i.image, func.count())
    .where(_i.host.is_not(None), _i.deleted_at.is_(None), _i.image.is_not(None))
    .group_by(_i.host, _i.image)
)
HOSTS_OF = Statement(
    select(_i.uuid, _i.host).where(
        _i.uuid.in_([bindparam(f"u{number}") for number in range(_CHUNK)]), _i.deleted_at.is_(None)
    )
)

Epochs = dict[str, int]


class HostNews(msgspec.Struct, frozen=True, kw_only=True):
    """What a look at a cell's database has told.

    ``hosts`` are those that are new or changed, with their ``revisions`` by compute id; ``ids`` are those of
    all that there are, if some have gone; ``heard`` is when each was last heard of, if that was asked for;
    ``heavy``: host -> operations that keep its disks busy.
    """

    now: int
    epochs: Epochs
    hosts: Sequence[Host]
    revisions: Mapping[str, int]
    heavy: Mapping[str, int]
    ids: frozenset[str] | None = None
    heard: Mapping[str, int] | None = None


class ProviderNews(msgspec.Struct, frozen=True, kw_only=True):
    """What a look at placement's tables, and at aggregates, has told: providers that are new or changed, with
    how many ``consumers`` each has, and all aggregates, if one has changed."""

    now: int
    epochs: Epochs
    providers: Sequence[Summary]
    consumers: Mapping[str, int]
    ids: frozenset[str] | None = None
    aggregates: Sequence[Aggregate] | None = None


def all_hosts(tx: Tx) -> HostNews:
    found, revisions = _read_hosts(tx.all(ALL_HOSTS))
    return HostNews(
        now=_now(tx),
        epochs=epochs.read(tx),
        hosts=found,
        revisions=revisions,
        heavy=heavy_operations(tx),
        ids=frozenset(revisions),
        heard={},
    )


def changed_hosts(tx: Tx, old: HostNews, *, known: Mapping[str, int], heard: bool) -> HostNews:
    """What has changed since an earlier look, when the hosts had the revisions ``known``; everything when the
    clock was set back since, so that nobody knows."""
    now = _now(tx)
    if now < old.now:
        return all_hosts(tx)
    new = epochs.read(tx)
    rows = tx.all(CHANGED_HOSTS, since=old.now - OVERLAP)
    others = [compute_id for compute_id, revision in rows if known.get(compute_id) != revision]
    found, revisions = _read_hosts(_in_chunks(tx, SOME_HOSTS, others))
    return HostNews(
        now=now,
        epochs=new,
        hosts=found,
        revisions=revisions,
        heavy=heavy_operations(tx),
        ids=_ids_of(tx, HOST_IDS) if _moved(old.epochs, new, epochs.HOSTS) else None,
        heard={row[0]: row[1] for row in tx.all(HEARD)} if heard else None,
    )


def _read_hosts(rows: Iterable[Row]) -> tuple[list[Host], dict[str, int]]:
    found, revisions = [], {}
    for revision, *values in rows:
        host = hosts.from_row(tuple(values))
        found.append(host)
        revisions[host.compute_id] = int(revision)
    return found, revisions


def all_providers(tx: Tx) -> ProviderNews:
    summaries = placement_view.summaries(tx)
    return ProviderNews(
        now=_now(tx),
        epochs=epochs.read(tx),
        providers=summaries,
        consumers=_counts(tx, None),
        ids=frozenset(each.provider.uuid for each in summaries),
        aggregates=aggregates.list_all(tx),
    )


def changed_providers(
    tx: Tx, old: ProviderNews, *, known: Mapping[str, int], doubtful: Collection[str]
) -> ProviderNews:
    """What has changed since an earlier look, when the providers had the revisions ``known``; the
    ``doubtful`` ones are read in any case."""
    now = _now(tx)
    if now < old.now:
        return all_providers(tx)
    new = epochs.read(tx)
    rows = tx.all(CHANGED_PROVIDERS, since=old.now - OVERLAP)
    other = {uuid for uuid, revision in rows if known.get(uuid) != revision} | set(doubtful)
    return ProviderNews(
        now=now,
        epochs=new,
        providers=placement_view.summaries(tx, other),
        consumers=_counts(tx, other),
        ids=_ids_of(tx, PROVIDER_IDS) if _moved(old.epochs, new, epochs.PROVIDERS) else None,
        aggregates=aggregates.list_all(tx) if _moved(old.epochs, new, epochs.AGGREGATES) else None,
    )


def _moved(old: Epochs, new: Epochs, subject: str) -> bool:
    return old.get(subject) != new.get(subject)


def _now(tx: Tx) -> int:
    return int(tx.scalar(NOW))


def _ids_of(tx: Tx, statement: Statement) -> frozenset[str]:
    return frozenset(row[0] for row in tx.all(statement))


def _in_chunks(tx: Tx, statement: Statement, names: Collection[str]) -> list[Row]:
    found: list[Row] = []
    wanted = sorted(names)
    for start in range(0, len(wanted), _CHUNK):
        chunk = wanted[start : start + _CHUNK]
        chunk += chunk[-1:] * (_CHUNK - len(chunk))
        found += tx.all(statement, **{f"u{number}": name for number, name in enumerate(chunk)})
    return found


def _counts(tx: Tx, providers: Collection[str] | None) -> dict[str, int]:
    rows = tx.all(CONSUMERS) if providers is None else _in_chunks(tx, SOME_CONSUMERS, providers)
    return {provider: int(count) for provider, count in rows}


def heavy_operations(tx: Tx) -> dict[str, int]:
    """Host -> how many of its servers keep its disks busy."""
    return {host: int(count) for host, count in tx.all(HEAVY_OPERATIONS)}


def hosts_of(tx: Tx, servers: Collection[str]) -> dict[str, str]:
    """Server -> its host; of those that live and have one."""
    return {server: host for server, host in _in_chunks(tx, HOSTS_OF, servers) if host is not None}


def images_by_host(tx: Tx) -> list[tuple[str, str, int]]:
    """Host, image (as it is stored with a server) and how many servers of it are there."""
    return [(row[0], row[1], int(row[2])) for row in tx.all(IMAGES)]

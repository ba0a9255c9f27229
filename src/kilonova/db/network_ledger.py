"""What the network service keeps count of: quotas and their use, tags, and events compute has to hear."""

from __future__ import annotations

from sqlalchemy import bindparam, delete, select, update

from kilonova.db.engine import Statement, Tx, insert_into
from kilonova.db.network_records import EVENTS, Event
from kilonova.db.tables import network as t

q, u, tag, e = t.network_quotas.c, t.network_usages.c, t.network_tags.c, t.network_events.c

_LIMIT = (
    select(q.hard_limit)
    .where(q.project_id == bindparam("the_project"), q.resource == bindparam("the_resource"))
    .scalar_subquery()
)
_USE = Statement(
    update(t.network_usages)
    .where(u.project_id == bindparam("the_project"), u.resource == bindparam("the_resource"))
    .values(used=u.used + bindparam("count"))
    .returning(u.used, _LIMIT)
)
_FIRST_USE = insert_into(t.network_usages)
_LIMIT_ALONE = Statement(
    select(q.hard_limit).where(
        q.project_id == bindparam("the_project"), q.resource == bindparam("the_resource")
    )
)
_LIMITS = Statement(select(q.resource, q.hard_limit).where(q.project_id == bindparam("the_project")))
_USAGES = Statement(select(u.resource, u.used).where(u.project_id == bindparam("the_project")))
_INSERT_LIMIT = insert_into(t.network_quotas)
_SET_LIMIT = Statement(
    update(t.network_quotas)
    .where(q.project_id == bindparam("the_project"), q.resource == bindparam("the_resource"))
    .values(hard_limit=bindparam("limit"))
)
_RESET = Statement(delete(t.network_quotas).where(q.project_id == bindparam("the_project")))
_INSERT_EVENT = insert_into(t.network_events, returning="id")
_DELETE_EVENT = Statement(delete(t.network_events).where(e.id == bindparam("the_id")))
_FORGET = Statement(delete(t.network_events).where(e.instance_uuid == bindparam("the_instance")))
_PENDING = Statement(select(t.network_events).order_by(e.id))
_PENDING_OF_PORT = Statement(select(t.network_events).where(e.tag == bindparam("the_port")).order_by(e.id))
_INSERT_TAG = insert_into(t.network_tags)
_DELETE_TAGS = Statement(delete(t.network_tags).where(tag.resource_id == bindparam("the_id")))
_DELETE_TAG = Statement(
    delete(t.network_tags).where(tag.resource_id == bindparam("the_id"), tag.tag == bindparam("the_tag"))
)


def use(tx: Tx, project_id: str, resource: str, count: int) -> tuple[int, int | None]:
    """Count ``count`` things more (or fewer); gives the new number and the limit set for the project.

    Raises UniqueViolation when another transaction counts the project's first one; a repeat succeeds.
    """
    row = tx.one(_USE, the_project=project_id, the_resource=resource, count=count)
    if row is None:
        tx.run(_FIRST_USE, project_id=project_id, resource=resource, used=count)
        row = (count, tx.scalar(_LIMIT_ALONE, the_project=project_id, the_resource=resource))
    return row[0], row[1]


def usages(tx: Tx, project_id: str) -> dict[str, int]:
    return dict(tx.all(_USAGES, the_project=project_id))


def limits(tx: Tx, project_id: str) -> dict[str, int]:
    """The limits that were set for this project; others have the default."""
    return dict(tx.all(_LIMITS, the_project=project_id))


def all_limits(tx: Tx) -> dict[str, dict[str, int]]:
    """The limits of each project that has any set."""
    result: dict[str, dict[str, int]] = {}
    for project_id, resource, limit in tx.all(select(t.network_quotas).order_by(q.project_id)):
        result.setdefault(project_id, {})[resource] = limit
    return result


def set_limit(tx: Tx, project_id: str, resource: str, limit: int) -> None:
    """Raises UniqueViolation when another transaction sets it for the first time; a repeat succeeds."""
    if not tx.run(_SET_LIMIT, the_project=project_id, the_resource=resource, limit=limit):
        tx.run(_INSERT_LIMIT, project_id=project_id, resource=resource, hard_limit=limit)


def reset_limits(tx: Tx, project_id: str) -> int:
    return tx.run(_RESET, the_project=project_id)


def insert_event(tx: Tx, instance_uuid: str, name: str, port_id: str, status: str = "completed") -> Event:
    event_id = tx.scalar(_INSERT_EVENT, instance_uuid=instance_uuid, name=name, tag=port_id, status=status)
    return Event(event_id, instance_uuid, name, port_id, status)


def delete_events(tx: Tx, event_ids: list[int]) -> None:
    for event_id in event_ids:
        tx.run(_DELETE_EVENT, the_id=event_id)


def forget_events(tx: Tx, instance_uuid: str) -> None:
    """The server is going: nobody waits for its events."""
    tx.run(_FORGET, the_instance=instance_uuid)


def pending(tx: Tx) -> list[Event]:
    return [EVENTS.record(row) for row in tx.all(_PENDING)]


def pending_of_port(tx: Tx, port_id: str) -> list[Event]:
    return [EVENTS.record(row) for row in tx.all(_PENDING_OF_PORT, the_port=port_id)]


def tags_of(tx: Tx, resource_ids: list[str]) -> dict[str, list[str]]:
    """The tags of each of these things."""
    result: dict[str, list[str]] = {each: [] for each in resource_ids}
    for start in range(0, len(resource_ids), 1000):
        part = resource_ids[start : start + 1000]
        statement = select(tag.resource_id, tag.tag).where(tag.resource_id.in_(part)).order_by(tag.tag)
        for resource_id, name in tx.all(statement):
            result[resource_id].append(name)
    return result


def add_tags(tx: Tx, resource_id: str, names: list[str]) -> None:
    """Those that it has not got yet."""
    has = set(tags_of(tx, [resource_id])[resource_id])
    new = [each for each in dict.fromkeys(names) if each not in has]
    tx.run_many(_INSERT_TAG, [{"resource_id": resource_id, "tag": each} for each in new])


def delete_tag(tx: Tx, resource_id: str, name: str) -> int:
    return tx.run(_DELETE_TAG, the_id=resource_id, the_tag=name)


def delete_tags(tx: Tx, resource_id: str) -> None:
    tx.run(_DELETE_TAGS, the_id=resource_id)

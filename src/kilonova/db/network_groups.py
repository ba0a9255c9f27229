"""Security groups, their rules, and who is in them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import bindparam, delete, func, or_, select, update

from kilonova.db.engine import Row, Statement, Tx, insert_into
from kilonova.db.network_records import GROUPS, RULES, Rule, SecurityGroup
from kilonova.db.tables import network as t

g, r = t.security_groups.c, t.security_group_rules.c
d, pg = t.default_security_groups.c, t.port_security_groups.c
p, a = t.ports.c, t.port_addresses.c

_INSERT = insert_into(t.security_groups)
_INSERT_RULE = insert_into(t.security_group_rules)
_INSERT_DEFAULT = insert_into(t.default_security_groups)
# a group that a port is about to join is not deleted meanwhile
_DEFAULT = Statement(
    select(d.group_id)
    .where(d.project_id == bindparam("project_id"))
    .with_for_update(read=True, key_share=True)
)
_GROUP = Statement(select(t.security_groups).where(g.id == bindparam("the_id")))
_LOCKED = Statement(select(t.security_groups).where(g.id == bindparam("the_id")).with_for_update())
_NAMED = Statement(
    select(g.id, g.name)
    .where(g.project_id == bindparam("project_id"))
    .where(or_(g.id == bindparam("wanted"), g.name == bindparam("wanted")))
    .with_for_update(read=True, key_share=True)
)
_RULE = Statement(select(t.security_group_rules).where(r.id == bindparam("the_id")))
_RULES = Statement(
    select(t.security_group_rules)
    .where(r.security_group_id == bindparam("the_group"))
    .order_by(r.created_at, r.id)
)
_RULES_OF_PORT = Statement(
    select(t.security_group_rules)
    .select_from(t.security_group_rules.join(t.port_security_groups, pg.group_id == r.security_group_id))
    .where(pg.port_id == bindparam("the_port"))
    .order_by(r.created_at, r.id)
)
_MEMBERS = Statement(
    select(a.address, p.allowed_pairs)
    .select_from(
        t.port_security_groups.join(t.ports, p.id == pg.port_id).join(t.port_addresses, a.port_id == p.id)
    )
    .where(pg.group_id == bindparam("the_group"))
    .order_by(a.position)
)
_PORTS = Statement(select(pg.port_id).where(pg.group_id == bindparam("the_group")))
_NAMES_OF_DEVICE = Statement(
    select(g.name)
    .select_from(
        t.ports.join(t.port_security_groups, pg.port_id == p.id).join(t.security_groups, g.id == pg.group_id)
    )
    .where(p.device_id == bindparam("the_device"), p.nic_index.is_not(None))
    .distinct()
    .order_by(g.name)
)
_COUNT_PORTS = Statement(
    select(func.count()).select_from(t.port_security_groups).where(pg.group_id == bindparam("the_group"))
)
_DELETE = Statement(delete(t.security_groups).where(g.id == bindparam("the_id")))
_DELETE_DEFAULT = Statement(delete(t.default_security_groups).where(d.group_id == bindparam("the_id")))
_DELETE_RULE = Statement(delete(t.security_group_rules).where(r.id == bindparam("the_id")))


def insert_group(tx: Tx, record: SecurityGroup) -> None:
    tx.run(_INSERT, **GROUPS.row(record))


def insert_rules(tx: Tx, records: list[Rule]) -> None:
    tx.run_many(_INSERT_RULE, [RULES.row(each) for each in records])


def default_group(tx: Tx, project_id: str) -> str | None:
    found = tx.scalar(_DEFAULT, project_id=project_id)
    return None if found is None else str(found)


def insert_default(tx: Tx, project_id: str, group_id: str) -> None:
    """Raises UniqueViolation when the project has its default group already."""
    tx.run(_INSERT_DEFAULT, project_id=project_id, group_id=group_id)


def group(tx: Tx, group_id: str) -> SecurityGroup | None:
    row = tx.one(_GROUP, the_id=group_id)
    return None if row is None else GROUPS.record(row)


def locked_group(tx: Tx, group_id: str) -> SecurityGroup | None:
    """The group, which no port joins and nobody changes until the end of the transaction."""
    row = tx.one(_LOCKED, the_id=group_id)
    return None if row is None else GROUPS.record(row)


def named(tx: Tx, project_id: str, name_or_id: str) -> list[Row]:
    """(id, name) of the project's groups of that name or id; they stay until the transaction ends."""
    return tx.all(_NAMED, project_id=project_id, wanted=name_or_id)


def existing(tx: Tx, project_id: str | None, group_ids: list[str]) -> set[str]:
    """Which of these groups exist (in the project, if one is given); they stay meanwhile."""
    if not group_ids:
        return set()
    statement = select(g.id).where(g.id.in_(group_ids)).with_for_update(read=True, key_share=True)
    if project_id is not None:
        statement = statement.where(g.project_id == project_id)
    return {row[0] for row in tx.all(statement)}


def update_group(tx: Tx, group_id: str, now: int, values: dict[str, Any]) -> SecurityGroup:
    tx.run(
        update(t.security_groups)
        .where(g.id == group_id)
        .values(**values, updated_at=now, revision=g.revision + 1)
    )
    row = tx.one(_GROUP, the_id=group_id)
    assert row is not None
    return GROUPS.record(row)


def delete_default(tx: Tx, group_id: str) -> None:
    """Have the group be no project's default group any more."""
    tx.run(_DELETE_DEFAULT, the_id=group_id)


def delete_group(tx: Tx, group_id: str) -> int:
    """The group and all rules in it, and rules elsewhere that let its members in: how many in all."""
    rows = tx.run(
        delete(t.security_group_rules).where(
            or_(r.security_group_id == group_id, r.remote_group_id == group_id)
        )
    )
    tx.run(_DELETE, the_id=group_id)
    return rows


def rule(tx: Tx, rule_id: str) -> Rule | None:
    row = tx.one(_RULE, the_id=rule_id)
    return None if row is None else RULES.record(row)


def rules(tx: Tx, group_id: str) -> list[Rule]:
    return [RULES.record(row) for row in tx.all(_RULES, the_group=group_id)]


def rules_of_groups(tx: Tx, group_ids: list[str]) -> dict[str, list[Rule]]:
    result: dict[str, list[Rule]] = {each: [] for each in group_ids}
    for start in range(0, len(group_ids), 1000):
        part = group_ids[start : start + 1000]
        statement = select(t.security_group_rules).where(r.security_group_id.in_(part))
        for row in tx.all(statement.order_by(r.created_at, r.id)):
            record = RULES.record(row)
            result[record.security_group_id].append(record)
    return result


def rules_touching(tx: Tx, group_id: str) -> list[Rule]:
    """The rules of a group, and the rules of other groups that name it as their remote one."""
    statement = select(t.security_group_rules).where(
        or_(r.security_group_id == group_id, r.remote_group_id == group_id)
    )
    return [RULES.record(row) for row in tx.all(statement)]


def rules_of_port(tx: Tx, port_id: str) -> list[Rule]:
    return [RULES.record(row) for row in tx.all(_RULES_OF_PORT, the_port=port_id)]


def delete_rule(tx: Tx, rule_id: str) -> None:
    tx.run(_DELETE_RULE, the_id=rule_id)


def members(tx: Tx, group_id: str) -> list[Row]:
    """(address, allowed pairs as JSON) for each address of a port in the group."""
    return tx.all(_MEMBERS, the_group=group_id)


def ports_in(tx: Tx, group_id: str) -> list[str]:
    return [row[0] for row in tx.all(_PORTS, the_group=group_id)]


def count_ports(tx: Tx, group_id: str) -> int:
    return int(tx.scalar(_COUNT_PORTS, the_group=group_id))


def ports_letting_in(tx: Tx, group_ids: list[str]) -> list[str]:
    """Bound ports whose rules name one of these groups as the remote one."""
    statement = (
        select(pg.port_id)
        .select_from(
            t.port_security_groups.join(t.security_group_rules, r.security_group_id == pg.group_id).join(
                t.ports, p.id == pg.port_id
            )
        )
        .where(r.remote_group_id.in_(group_ids), p.host != "")
        .distinct()
    )
    return [row[0] for row in tx.all(statement)] if group_ids else []


def names_of_device(tx: Tx, device_id: str) -> list[str]:
    """The names of the groups that a server's ports are in."""
    return [row[0] for row in tx.all(_NAMES_OF_DEVICE, the_device=device_id)]

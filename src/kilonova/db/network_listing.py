"""Lists of the network API: what the caller may see, filtered, sorted and paged by the database."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Table,
    and_,
    false,
    func,
    not_,
    or_,
    select,
    true,
)

from kilonova.db.engine import Row, Tx
from kilonova.db.tables import network as t

Condition = ColumnElement[bool]


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """What part of a list is wanted.

    ``sort`` holds (column, descending); the id is always the last key.  ``marker`` is the id of the thing
    before the page, or, with ``reverse``, of the one after it.
    """

    sort: tuple[tuple[str, bool], ...] = ()
    limit: int | None = None
    marker: str | None = None
    reverse: bool = False


def visible(table: Table, project_id: str | None) -> Condition:
    """Whose rows a project sees; None sees all."""
    if project_id is None:
        return true()
    mine: Condition = table.c.project_id == project_id
    if table is t.networks:
        return or_(mine, t.networks.c.shared == true(), t.networks.c.external == true())
    if table is t.subnets:
        seen = select(t.networks.c.id).where(visible(t.networks, project_id))
        return or_(mine, t.subnets.c.network_id.in_(seen))
    if table is t.ports:
        owned = select(t.networks.c.id).where(t.networks.c.project_id == project_id)
        return or_(mine, t.ports.c.network_id.in_(owned))
    return mine


def equal(table: Table, name: str, texts: list[str]) -> Condition:
    """Whether a column has one of the values that these texts stand for.

    An empty text also finds what has no value.  Raises ValueError for what is no value of the column.
    """
    column = table.c[name]
    found: Condition = column.in_([_value(column, each) for each in texts if each or _is_text(column)])
    return or_(found, column.is_(None)) if "" in texts and column.nullable else found


def _is_text(column: Column[Any]) -> bool:
    return not isinstance(column.type, (Boolean, BigInteger))


def _value(column: Column[Any], text: str) -> Any:
    if isinstance(column.type, Boolean):
        choices = {"true": True, "1": True, "false": False, "0": False}
        if text.lower() not in choices:
            raise ValueError(f"'{text}' cannot be converted to boolean")
        return choices[text.lower()]
    if isinstance(column.type, BigInteger):
        if not re.fullmatch("-?[0-9]{1,18}", text, re.ASCII):
            raise ValueError(f"'{text}' is not an integer")
        return int(text)
    return text


def at_address(values: list[str]) -> Condition:
    """Ports that have one of these addresses."""
    a = t.port_addresses.c
    return t.ports.c.id.in_(select(a.port_id).where(a.address.in_(values)))


def like_address(values: list[str]) -> Condition:
    """Ports that have an address with one of these texts in it."""
    a = t.port_addresses.c
    texts = or_(false(), *(a.address.contains(each, autoescape=True) for each in values))
    return t.ports.c.id.in_(select(a.port_id).where(texts))


def in_subnet(values: list[str]) -> Condition:
    """Ports that have an address in one of these subnets."""
    a = t.port_addresses.c
    return t.ports.c.id.in_(select(a.port_id).where(a.subnet_id.in_(values)))


def in_group(values: list[str]) -> Condition:
    """Ports that are in one of these security groups."""
    pg = t.port_security_groups.c
    return t.ports.c.id.in_(select(pg.port_id).where(pg.group_id.in_(values)))


def with_subnet(values: list[str]) -> Condition:
    """Networks that one of these subnets is in."""
    s = t.subnets.c
    return t.networks.c.id.in_(select(s.network_id).where(s.id.in_(values)))


def tagged(table: Table, names: list[str], every: bool, negated: bool) -> Condition:
    """Things that have all of these tags, or any; or, negated, those that do not."""
    tag = t.network_tags.c
    found = select(tag.resource_id).where(tag.tag.in_(names))
    if every:
        found = found.group_by(tag.resource_id).having(func.count() == len(set(names)))
    has: Condition = table.c.id.in_(found)
    return not_(has) if negated else has


def rows(tx: Tx, table: Table, conditions: list[Condition], page: Page) -> list[Row] | None:
    """The rows of a page, in the order of the sort keys; None when the marker is not among them."""
    keys = [(_key(table.c[name]), down != page.reverse) for name, down in page.sort]
    keys.append((table.c.id, page.reverse))
    statement = select(table).where(and_(true(), *conditions))
    if page.marker is not None:
        at = tx.one(select(*(key for key, _ in keys)).where(and_(table.c.id == page.marker, *conditions)))
        if at is None:
            return None
        statement = statement.where(_beyond(keys, at))
    statement = statement.order_by(*(key.desc() if down else key.asc() for key, down in keys))
    if page.limit is not None:
        statement = statement.limit(page.limit)
    found = tx.all(statement)
    return found[::-1] if page.reverse else found


def _key(column: Column[Any]) -> ColumnElement[Any]:
    """A column as a sort key: databases differ on where NULL stands."""
    if not column.nullable:
        return column
    return func.coalesce(column, -1 if isinstance(column.type, BigInteger) else "")


def _beyond(keys: list[tuple[ColumnElement[Any], bool]], at: Row) -> Condition:
    """What comes after a row: more than it at the first key at which they differ."""
    ways: list[Condition] = []
    for index, (key, down) in enumerate(keys):
        same = [other == at[i] for i, (other, _) in enumerate(keys[:index])]
        ways.append(and_(true(), *same, key < at[index] if down else key > at[index]))
    return or_(false(), *ways)

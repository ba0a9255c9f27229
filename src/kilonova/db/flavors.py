"""Flavors in the database, with their extra specs and the projects that may use private ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from sqlalchemy import (
    ColumnElement,
    Integer,
    Select,
    and_,
    bindparam,
    cast,
    delete,
    func,
    or_,
    select,
    update,
)

from kilonova.db.engine import Row, Statement, Tx, insert_into
from kilonova.db.tables.compute import flavors
from kilonova.errors import Conflict, Invalid, NotFound
from kilonova.model.flavor import Flavor

_t = flavors
_names = Flavor.__struct_fields__
_columns = [_t.c[name] for name in _names]
assert [column.name for column in _t.columns][: len(_names)] == list(_names)

INSERT = insert_into(flavors, returning="id")
SHOW = Statement(select(*_columns).where(_t.c.flavorid == bindparam("flavorid")))
SHOW_FOR_CHANGE = Statement(select(*_columns).where(_t.c.flavorid == bindparam("flavorid")).with_for_update())
ALL = Statement(select(*_columns).order_by(_t.c.flavorid))
TAKEN = Statement(
    select(_t.c.flavorid, _t.c.name).where(
        or_(_t.c.flavorid == bindparam("flavorid"), _t.c.name == bindparam("name"))
    )
)
DESCRIBE = Statement(
    update(_t)
    .where(_t.c.flavorid == bindparam("of"))
    .values(description=bindparam("new"), updated_at=bindparam("now"))
)
SET_SPECS = Statement(
    update(_t)
    .where(_t.c.flavorid == bindparam("of"))
    .values(extra_specs=bindparam("new"), updated_at=bindparam("now"))
)
SET_PROJECTS = Statement(
    update(_t)
    .where(_t.c.flavorid == bindparam("of"))
    .values(projects=bindparam("new"), updated_at=bindparam("now"))
)
DELETE = Statement(delete(_t).where(_t.c.flavorid == bindparam("flavorid")))

_encode = msgspec.json.Encoder().encode
_specs = msgspec.json.Decoder(dict[str, str]).decode
_words = msgspec.json.Decoder(tuple[str, ...]).decode
_position = {name: number for number, name in enumerate(_names)}

SORT_KEYS = {
    **{name: _t.c[name] for name in _names if name not in ("extra_specs", "projects", "description")},
    "description": func.coalesce(_t.c.description, ""),
    "is_public": cast(_t.c.is_public, Integer),
    "disabled": cast(_t.c.disabled, Integer),
    "swap": _t.c.swap_mb,
    "created_at": _t.c.created_at,
    "updated_at": func.coalesce(_t.c.updated_at, 0),
}
"""What a list may be sorted by: Nova's names of the columns."""


def from_row(row: Row) -> Flavor:
    values = list(row)
    for name, decode in (
        ("extra_specs", _specs),
        ("projects", _words),
        ("is_public", bool),
        ("disabled", bool),
    ):
        values[_position[name]] = decode(values[_position[name]])
    return Flavor(**dict(zip(_names, values, strict=True)))


def not_found(flavorid: str) -> NotFound:
    return NotFound(f"Flavor {flavorid} could not be found.")


def create(tx: Tx, flavor: Flavor, now: int) -> Flavor:
    """Add a flavor; ``id`` is counted by the database.  Raises Conflict for a name or id that is taken."""
    taken = tx.all(TAKEN, flavorid=flavor.flavorid, name=flavor.name)
    if any(row[1] == flavor.name for row in taken):
        raise Conflict(f"Flavor with name {flavor.name} already exists.")
    if taken:
        raise Conflict(f"Flavor with ID {flavor.flavorid} already exists.")
    values = {name: getattr(flavor, name) for name in _names if name != "id"}
    values["extra_specs"] = _encode(flavor.extra_specs).decode()
    values["projects"] = _encode(flavor.projects).decode()
    number = tx.scalar(INSERT, **values, created_at=now, updated_at=None)
    return msgspec.structs.replace(flavor, id=int(number))


def show(tx: Tx, flavorid: str) -> Flavor | None:
    """The flavor of a public id: one statement."""
    row = tx.one(SHOW, flavorid=flavorid)
    return None if row is None else from_row(row)


def list_all(tx: Tx) -> list[Flavor]:
    """Every flavor, by its id."""
    return [from_row(row) for row in tx.all(ALL)]


class FlavorFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which flavors a list has.  ``is_public`` None: both kinds.

    ``project``: a project whose private flavors are listed with the public ones.
    """

    is_public: bool | None = True
    project: str | None = None
    hide_disabled: bool = False
    min_ram: int | None = None
    min_disk: int | None = None
    name: str | None = None


def _conditions(wanted: FlavorFilter) -> Iterable[Any]:
    if wanted.is_public is not None:
        kind: ColumnElement[bool] = _t.c.is_public.is_(wanted.is_public)
        if wanted.is_public and wanted.project:
            quoted = _encode(wanted.project).decode()
            # LIKE ignores case on SQLite; a replacement that changes the text does not
            kind = or_(kind, func.replace(_t.c.projects, quoted, "") != _t.c.projects)
        yield kind
    if wanted.hide_disabled:
        yield _t.c.disabled.is_(False)
    if wanted.min_ram is not None:
        yield _t.c.memory_mb >= wanted.min_ram
    if wanted.min_disk is not None:
        yield _t.c.root_gb >= wanted.min_disk
    if wanted.name is not None:
        yield _t.c.name == wanted.name


def list_page(
    tx: Tx,
    wanted: FlavorFilter,
    *,
    sort_key: str = "flavorid",
    descending: bool = False,
    marker: str | None = None,
    limit: int | None = None,
) -> list[Flavor]:
    """Flavors after the one whose id is ``marker``, at most ``limit`` of them.

    Raises Invalid for a marker that is no flavor and a key that cannot be sorted by.
    """
    key = SORT_KEYS.get(sort_key)
    if key is None:
        raise Invalid(f"Flavors cannot be sorted by '{sort_key}': use one of {', '.join(sorted(SORT_KEYS))}.")
    clause: Select[Any] = select(*_columns).where(*_conditions(wanted))
    if marker is not None:
        at = tx.one(select(key, _t.c.id).where(_t.c.flavorid == marker))
        if at is None:
            raise Invalid(f"marker [{marker}] not found")
        beyond = key < at[0] if descending else key > at[0]
        clause = clause.where(or_(beyond, and_(key == at[0], _t.c.id > at[1])))
    clause = clause.order_by(key.desc() if descending else key.asc(), _t.c.id)
    if limit is not None:
        clause = clause.limit(limit)
    return [from_row(row) for row in tx.all(clause)]


def describe(tx: Tx, flavorid: str, description: str | None, now: int) -> Flavor:
    """Change the description.  Raises NotFound."""
    tx.run(DESCRIBE, of=flavorid, new=description, now=now)
    flavor = show(tx, flavorid)
    if flavor is None:
        raise not_found(flavorid)
    return flavor


def remove(tx: Tx, flavorid: str) -> None:
    """Servers made from it keep their own copy.  Raises NotFound."""
    if not tx.run(DELETE, flavorid=flavorid):
        raise not_found(flavorid)


def _held(tx: Tx, flavorid: str) -> Flavor:
    """The flavor, which nobody else can change until this transaction ends."""
    row = tx.one(SHOW_FOR_CHANGE, flavorid=flavorid)
    if row is None:
        raise not_found(flavorid)
    return from_row(row)


def set_extra_specs(tx: Tx, flavorid: str, specs: dict[str, str], now: int) -> dict[str, str]:
    """Add or replace some extra specs; all that there are now.  Raises NotFound."""
    found = {**_held(tx, flavorid).extra_specs, **specs}
    tx.run(SET_SPECS, of=flavorid, new=_encode(found).decode(), now=now)
    return found


def delete_extra_spec(tx: Tx, flavorid: str, key: str, now: int) -> None:
    """Raises NotFound for the flavor or the key."""
    found = dict(_held(tx, flavorid).extra_specs)
    if key not in found:
        raise NotFound(f"Flavor {flavorid} has no extra specs with key {key}.")
    del found[key]
    tx.run(SET_SPECS, of=flavorid, new=_encode(found).decode(), now=now)


def add_access(tx: Tx, flavorid: str, project: str, now: int) -> Flavor:
    """Let a project use a private flavor.  Raises NotFound, or Conflict if it may already."""
    flavor = _held(tx, flavorid)
    if project in flavor.projects:
        raise Conflict(
            f"Flavor access already exists for flavor {flavorid} and project {project} combination."
        )
    return _with_projects(tx, flavor, (*flavor.projects, project), now)


def remove_access(tx: Tx, flavorid: str, project: str, now: int) -> Flavor:
    """Take it away again.  Raises NotFound for the flavor and for access that is not there."""
    flavor = _held(tx, flavorid)
    if project not in flavor.projects:
        raise NotFound(f"Flavor access not found for {flavorid} / {project} combination.")
    return _with_projects(tx, flavor, tuple(each for each in flavor.projects if each != project), now)


def _with_projects(tx: Tx, flavor: Flavor, projects: tuple[str, ...], now: int) -> Flavor:
    tx.run(SET_PROJECTS, of=flavor.flavorid, new=_encode(projects).decode(), now=now)
    return msgspec.structs.replace(flavor, projects=projects)


# DevStack's flavors, whose names and sizes the clients' own test suites take for granted.
_SEED = (
    ("1", "m1.tiny", 1, 512, 1),
    ("2", "m1.small", 1, 2048, 20),
    ("3", "m1.medium", 2, 4096, 40),
    ("4", "m1.large", 4, 8192, 80),
    ("5", "m1.xlarge", 8, 16384, 160),
    ("42", "m1.nano", 1, 128, 1),
    ("84", "m1.micro", 1, 192, 1),
    ("c1", "cirros256", 1, 256, 1),
)


def seed(tx: Tx, now: int) -> int:
    """Make DevStack's flavors in a database that has none; how many were made."""
    if tx.scalar(select(func.count()).select_from(_t)):
        return 0
    for flavorid, name, vcpus, memory_mb, root_gb in _SEED:
        flavor = Flavor(id=0, flavorid=flavorid, name=name, vcpus=vcpus, memory_mb=memory_mb, root_gb=root_gb)
        create(tx, flavor, now)
    return len(_SEED)

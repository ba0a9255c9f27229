"""Lists of servers: filters, order and pages, and the columns that an answer needs and no more.

A query is built of conditions; each has a form and values.  Statements are compiled once for each
combination of forms, so that a list that somebody asks for again costs no SQLAlchemy at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    Text,
    and_,
    bindparam,
    func,
    literal,
    not_,
    null,
    or_,
    select,
    tuple_,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from kilonova.db.engine import Row, Statement, Tx
from kilonova.db.json_columns import JsonHolds, JsonPart
from kilonova.db.tables.compute import hosts, instances
from kilonova.errors import NotFound

_t = instances

Form = tuple[Any, ...]

SUMMARY = ("uuid", "display_name")
_INTERNAL = ("key_data", "version", "residence", "leaving")
DETAIL = tuple(column.name for column in _t.columns if column.name not in _INTERNAL)
"""The columns of a full answer, in the order of its rows."""


HOST_STATES = Statement(
    select(hosts.c.host, hosts.c.disabled, hosts.c.forced_down, hosts.c.last_seen_at).order_by(hosts.c.id)
)


class HasAddress(FunctionElement[bool]):
    """Whether one of the fixed addresses in ``vifs``, of an IP version, matches a regular expression."""

    type = Boolean()
    inherit_cache = True


@compiles(HasAddress, "sqlite")
def _address_on_sqlite(element: HasAddress, compiler: Any, **kw: Any) -> str:
    column, version, pattern = (compiler.process(each, **kw) for each in element.clauses)
    return (
        f"EXISTS (SELECT 1 FROM json_each({column}) AS vif,"  # noqa: S608 - compiled parts
        " json_each(vif.value, '$.fixed_ips') AS ip"
        f" WHERE coalesce(json_extract(ip.value, '$.version'), 4) = {version}"
        f" AND regexp({pattern}, json_extract(ip.value, '$.address')))"
    )


@compiles(HasAddress, "postgresql")
def _address_on_postgresql(element: HasAddress, compiler: Any, **kw: Any) -> str:
    column, version, pattern = (compiler.process(each, **kw) for each in element.clauses)
    return (
        f"EXISTS (SELECT 1 FROM json_array_elements(({column})::json) AS vif,"  # noqa: S608 - compiled parts
        " json_array_elements(coalesce(vif -> 'fixed_ips', '[]'::json)) AS ip"
        f" WHERE coalesce((ip ->> 'version')::int, 4) = {version} AND (ip ->> 'address') ~ ({pattern})::text)"
    )


class Bytewise(FunctionElement[str]):
    """A text that compares by its bytes, whatever the database's locale: as Python and other cells do."""

    type = Text()
    inherit_cache = True


@compiles(Bytewise, "sqlite")
def _bytewise_on_sqlite(element: Bytewise, compiler: Any, **kw: Any) -> str:
    return str(compiler.process(next(iter(element.clauses)), **kw))


@compiles(Bytewise, "postgresql")
def _bytewise_on_postgresql(element: Bytewise, compiler: Any, **kw: Any) -> str:
    return f'(({compiler.process(next(iter(element.clauses)), **kw)}) COLLATE "C")'


SORT_KEYS: dict[str, ColumnElement[Any]] = {
    **{
        column.name: func.coalesce(column, 0 if isinstance(column.type, BigInteger) else "")
        if column.nullable
        else column
        for column in _t.columns
    },
    "image_ref": func.coalesce(JsonPart(_t.c.image, literal("id")), ""),
    "flavor": JsonPart(_t.c.flavor, literal("flavorid")),
}

Sort = tuple[tuple[str, bool], ...]


def _key(name: str, over_cells: bool) -> ColumnElement[Any]:
    key = SORT_KEYS[name]
    return Bytewise(key) if over_cells and isinstance(key.type, Text) else key


def over_cells(sort: Sort) -> Sort:
    """The order with what makes it one over several cells, whose numbers repeat: the uuid, rising (IL-2)."""
    return sort if any(name == "uuid" for name, _ in sort) else (*sort, ("uuid", False))


class ServerList:
    """What is wanted: conditions that all hold, an order, and a page.

    ``sort``: (key of SORT_KEYS, descending), at least one.  ``marker`` is the uuid of the server after which
    the page begins; it must be of ``project_id``, if that is set.  ``owner``: the project whose servers these
    are, however that was asked for; None: all projects'.
    """

    def __init__(self) -> None:
        self.forms: list[Form] = []
        self.values: dict[str, Any] = {}
        self.sort: Sort = (("created_at", True), ("id", True))
        self.limit = 1000
        self.marker: str | None = None
        self.project_id: str | None = None
        self.owner: str | None = None

    def _bind(self, *values: Any) -> tuple[str, ...]:
        names = tuple(f"v{len(self.values) + number}" for number in range(len(values)))
        self.values.update(zip(names, values, strict=True))
        return names

    def of_project(self, project_id: str) -> None:
        self.project_id = self.owner = project_id
        self.equals("project_id", project_id)

    def equals(self, column: str, value: Any) -> None:
        self.forms.append(("equals", column, *self._bind(value)))

    def one_of(self, column: str, values: Sequence[Any]) -> None:
        """No value at all: nothing is found."""
        self.forms.append(("one_of", column, *self._bind(*values)) if values else ("nothing",))

    def matches(self, column: str, pattern: str) -> None:
        """A regular expression is found in a text, as PostgreSQL's ``~`` and Python's ``re.search`` do."""
        self.forms.append(("matches", column, *self._bind(pattern)))

    def contains(self, column: str, text: str) -> None:
        self.forms.append(("contains", column, *self._bind(text)))

    def is_null(self, column: str, wanted: bool) -> None:
        self.forms.append(("null" if wanted else "not_null", column))

    def at_least(self, column: str, value: int) -> None:
        self.forms.append(("at_least", column, *self._bind(value)))

    def at_most(self, column: str, value: int) -> None:
        self.forms.append(("at_most", column, *self._bind(value)))

    def in_states(self, states: Sequence[tuple[str, tuple[str, ...] | None]]) -> None:
        """One of the pairs (vm_state, task_states), where None is any task_state."""
        pairs = tuple(
            (*self._bind(vm_state), None if tasks is None else self._bind(*tasks))
            for vm_state, tasks in states
        )
        self.forms.append(("states", *pairs))

    def part(self, column: str, name: str, value: str) -> None:
        """The text ``name`` in the JSON object of a column has this value."""
        self.forms.append(("part", column, name, *self._bind(value)))

    def tags(self, tags: Sequence[str], *, every: bool, wanted: bool) -> None:
        """Has all (or any) of the tags; ``wanted`` False: has not."""
        self.forms.append(("tags", every, wanted, *self._bind(*tags)))

    def address(self, version: int, pattern: str) -> None:
        self.forms.append(("address", *self._bind(version, pattern)))

    def nothing(self) -> None:
        self.forms.append(("nothing",))


def _of(column: str) -> ColumnElement[Any]:
    return _t.c[column]


def _states(*pairs: tuple[str, tuple[str, ...] | None]) -> ColumnElement[bool]:
    choices = []
    for vm_state, tasks in pairs:
        choice: ColumnElement[bool] = _t.c.vm_state == bindparam(vm_state)
        if tasks is not None:
            choice = and_(choice, _t.c.task_state.in_([bindparam(task) for task in tasks]))
        choices.append(choice)
    return or_(*choices)


def _tags(every: bool, wanted: bool, *names: str) -> ColumnElement[bool]:
    each = [JsonHolds(_t.c.tags, bindparam(name, type_=Text())) for name in names]
    found = and_(*each) if every else or_(*each)
    return found if wanted else not_(found)


def _address(version: str, pattern: str) -> ColumnElement[bool]:
    return HasAddress(_t.c.vifs, bindparam(version, type_=BigInteger()), bindparam(pattern, type_=Text()))


_CLAUSES: dict[str, Callable[..., ColumnElement[bool]]] = {
    "equals": lambda column, name: _of(column) == bindparam(name),
    "one_of": lambda column, *names: _of(column).in_([bindparam(name) for name in names]),
    "matches": lambda column, name: _of(column).regexp_match(bindparam(name, type_=Text())),
    "contains": lambda column, name: func.replace(_of(column), bindparam(name), "") != _of(column),
    "null": lambda column: _of(column).is_(None),
    "not_null": lambda column: _of(column).is_not(None),
    "at_least": lambda column, name: _of(column) >= bindparam(name),
    "at_most": lambda column, name: _of(column) <= bindparam(name),
    "states": _states,
    "part": lambda column, part, name: JsonPart(_of(column), literal(part)) == bindparam(name),
    "tags": _tags,
    "address": _address,
    "nothing": lambda: literal(1) == literal(0),
}


def _after(sort: Sort, cells: bool = False, inclusive: bool = False) -> ColumnElement[bool]:
    """After the marker, whose keys are bound as m0, m1 ...; ``inclusive``: or where it would be."""
    keys = [_key(name, cells) for name, _ in sort]
    marks = [bindparam(f"m{number}", type_=key.type) for number, key in enumerate(keys)]
    directions = {descending for _, descending in sort}
    if len(directions) == 1 and not inclusive:
        left, right = tuple_(*keys), tuple_(*marks)
        return left < right if directions == {True} else left > right
    choices = []
    if inclusive:
        choices.append(and_(*(key == mark for key, mark in zip(keys, marks, strict=True))))
    for number, (_, descending) in enumerate(sort):
        equal = [keys[before] == marks[before] for before in range(number)]
        beyond = keys[number] < marks[number] if descending else keys[number] > marks[number]
        choices.append(and_(*equal, beyond))
    # follows from the choices; an index can begin there
    first = keys[0] <= marks[0] if sort[0][1] else keys[0] >= marks[0]
    return and_(first, or_(*choices))


@lru_cache(maxsize=512)
def _statement(
    columns: tuple[str, ...], without: frozenset[str], forms: tuple[Form, ...], sort: Sort, marked: bool
) -> Statement:
    selected = [null().label(name) if name in without else _t.c[name] for name in columns]
    clause = select(*selected).where(*(_CLAUSES[form[0]](*form[1:]) for form in forms))
    if marked:
        clause = clause.where(_after(sort))
    order = [SORT_KEYS[name].desc() if descending else SORT_KEYS[name].asc() for name, descending in sort]
    return Statement(clause.order_by(*order).limit(bindparam("page_size")))


@lru_cache(maxsize=512)
def _batch_statement(
    columns: tuple[str, ...],
    without: frozenset[str],
    forms: tuple[Form, ...],
    sort: Sort,
    start: str,
    limited: bool,
) -> Statement:
    """``start``: '' at the first, 'after' the marks, 'at' them.  The sort keys follow the columns."""
    keys = [_key(name, True) for name, _ in sort]
    selected = [null().label(name) if name in without else _t.c[name] for name in columns]
    clause = select(*selected, *(key.label(f"key{number}") for number, key in enumerate(keys)))
    clause = clause.where(*(_CLAUSES[form[0]](*form[1:]) for form in forms))
    if start:
        clause = clause.where(_after(sort, True, start == "at"))
    order = [key.desc() if down else key.asc() for key, (_, down) in zip(keys, sort, strict=True)]
    clause = clause.order_by(*order)
    return Statement(clause.limit(bindparam("page_size")) if limited else clause)


@lru_cache(maxsize=128)
def _marker_statement(sort: Sort, of_project: bool) -> Statement:
    clause = select(*(SORT_KEYS[name] for name, _ in sort)).where(_t.c.uuid == bindparam("uuid"))
    if of_project:
        clause = clause.where(_t.c.project_id == bindparam("project_id"))
    return Statement(clause)


def page(
    tx: Tx, wanted: ServerList, columns: tuple[str, ...] = SUMMARY, without: frozenset[str] = frozenset()
) -> list[Row]:
    """Rows of ``columns``; those of ``without`` are read as None.

    Raises NotFound for a marker that is not there.
    """
    values = dict(wanted.values)
    if wanted.marker is not None:
        known: dict[str, Any] = {"uuid": wanted.marker}
        if wanted.project_id is not None:
            known["project_id"] = wanted.project_id
        row = tx.one(_marker_statement(wanted.sort, wanted.project_id is not None), **known)
        if row is None:
            raise NotFound(f"marker [{wanted.marker}] not found")
        values.update((f"m{number}", value) for number, value in enumerate(row))
    statement = _statement(columns, without, tuple(wanted.forms), wanted.sort, wanted.marker is not None)
    return tx.all(statement, page_size=wanted.limit, **values)


def batch(
    tx: Tx,
    wanted: ServerList,
    columns: tuple[str, ...],
    without: frozenset[str] = frozenset(),
    *,
    size: int | None = None,
    start: tuple[Any, ...] | None = None,
    inclusive: bool = False,
) -> list[Row]:
    """One cell's part of a list over cells: rows of ``columns`` followed by the values of the sort keys.

    ``wanted`` is as for ``page``, but for its limit and marker; texts are sorted by their bytes.  ``start``
    has the values after which (``inclusive``: at which) the batch begins.
    """
    values = dict(wanted.values)
    if start is not None:
        values.update((f"m{number}", value) for number, value in enumerate(start))
    if size is not None:
        values["page_size"] = size
    form = "" if start is None else "at" if inclusive else "after"
    sort = over_cells(wanted.sort)
    statement = _batch_statement(columns, without, tuple(wanted.forms), sort, form, size is not None)
    return tx.all(statement, **values)


def marker_values(tx: Tx, wanted: ServerList, uuid: str) -> tuple[Any, ...] | None:
    """What a server, deleted or not, has for the keys of the order over cells; None for an unknown one."""
    known: dict[str, Any] = {"uuid": uuid}
    if wanted.project_id is not None:
        known["project_id"] = wanted.project_id
    row = tx.one(_marker_statement(over_cells(wanted.sort), wanted.project_id is not None), **known)
    return None if row is None else tuple(row)


def show(
    tx: Tx, uuid: str, columns: tuple[str, ...] = DETAIL, without: frozenset[str] = frozenset()
) -> Row | None:
    """The row of one living server."""
    return tx.one(_show_statement(columns, without), uuid=uuid)


@lru_cache(maxsize=64)
def _show_statement(columns: tuple[str, ...], without: frozenset[str]) -> Statement:
    selected = [null().label(name) if name in without else _t.c[name] for name in columns]
    return Statement(select(*selected).where(_t.c.uuid == bindparam("uuid"), _t.c.deleted_at.is_(None)))


def host_states(tx: Tx, now: int, down_after: int) -> dict[str, str]:
    """Host -> what is shown of it with its servers (API-131).  ``down_after``: microseconds of silence."""
    result = {}
    for host, disabled, forced_down, seen in tx.all(HOST_STATES):
        if forced_down:
            result[host] = "DOWN"
        elif disabled:
            result[host] = "MAINTENANCE"
        else:
            result[host] = "UP" if abs(now - seen) <= down_after else "UNKNOWN"
    return result
